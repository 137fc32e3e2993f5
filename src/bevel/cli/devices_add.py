"""`bevel devices add` and `bevel devices probe`: a board's profile from the board itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

from bevel.cli import options
from bevel.cli.device_document import probe_document, probe_tables
from bevel.cli.output import STDERR, emit
from bevel.devices.adb import AdbTransport
from bevel.devices.host import figures_file
from bevel.devices.probe import Probe, probe_device, profile_from_probe
from bevel.devices.profile import Adb, Ssh, check_name, list_profiles, load_profile, parse_address, save_profile, user_directory
from bevel.devices.resolve import resolve_transport
from bevel.devices.ssh import SshTransport
from bevel.devices.transport import Transport
from bevel.errors import UsageError

quick = click.option(
    "--quick", is_flag=True, help="Ask only, measure nothing: figures come from the shipped profile that fits best."
)


@click.command("add")
@click.argument("address", required=False, metavar="USER@HOST[:PORT]")
@click.option("--adb", "serial", metavar="SERIAL", help="An Android device instead, as `adb devices` lists it.")
@click.option("--name", help="What --device will take.  [default: the host's name]")
@click.option("--identity", type=click.Path(path_type=Path), help="Private key.  [default: ~/.ssh/config, agent, usual keys]")
@click.option("--known-hosts", type=click.Path(path_type=Path), help="Accepted host keys.  [default: ~/.ssh/known_hosts]")
@click.option("--config", type=click.Path(path_type=Path), help="OpenSSH client configuration.  [default: ~/.ssh/config]")
@click.option("--workdir", help="Directory on the device that bevel will own.")
@click.option("--force", is_flag=True, help="Replace a profile of that name.")
@quick
@options.universal
def add(
    address: str | None,
    serial: str | None,
    name: str | None,
    identity: Path | None,
    known_hosts: Path | None,
    config: Path | None,
    workdir: str | None,
    force: bool,
    quick: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Probe the board at USER@HOST and make it a device: afterwards every verb takes --device NAME.

    Host keys are never accepted unseen: log in once with ssh by hand.

    \b
    bevel devices add pi@board.local
    bevel devices add pi@192.168.1.7 --name kitchen-pi --identity ~/.ssh/id_pi
    bevel devices add --adb 8A1X0123
    """
    if (address is None) == (serial is None):
        raise UsageError("give an address, such as pi@board.local, or --adb SERIAL")
    ssh, adb = None, None
    transport: Transport
    if address is not None:
        user, host, port = parse_address(address)
        files = {"known_hosts": _absolute(known_hosts), "identity": _absolute(identity), "config": _absolute(config)}
        ssh = Ssh(host=host, user=user, port=port, workdir=workdir or Ssh.workdir, **files)
        name = name or _default_name(host)
        transport = SshTransport(ssh)
    else:
        adb = Adb(serial=serial, workdir=workdir or Adb.workdir)
        name = name or _default_name(str(serial))
        transport = AdbTransport(adb)
    check_name(name)
    if name in list_profiles() and not force:
        own = (user_directory() / f"{name}.toml").exists()
        raise UsageError(
            f"there is a device {name!r} already, {'your own' if own else 'which ships with bevel'}: "
            "choose another --name, or replace it with --force"
        )
    probe = _probe(transport, quick)
    profile = profile_from_probe(probe, name, ssh, adb)
    path = save_profile(profile)
    hints = [
        f"saved {path}",
        f"next: bevel compile model.onnx --device {name} --calib images.npz -o model.bevel && bevel bench model.bevel",
    ]
    emit(as_json, probe_document(probe, profile, path), [*probe_tables(probe, profile), *hints])


@click.command("probe")
@click.argument("name")
@click.option("--save/--no-save", default=True, help="Keep the figures: in your own profile, for `host` in a file of its own.")
@quick
@options.universal
def probe(name: str, save: bool, quick: bool, as_json: bool, verbose: bool) -> None:
    """Measure the device NAME anew: peaks, bandwidths, latencies; `host` is this machine.

    \b
    bevel devices probe host
    bevel devices probe kitchen-pi --no-save
    """
    known = load_profile(name)
    found = _probe(resolve_transport(known), quick)
    own = user_directory() / f"{known.name}.toml"
    path = figures_file(found.info.cpuinfo, found.info.arch) if known.name == "host" else own if own.exists() else None
    path = path if save and not quick else None
    fresh = profile_from_probe(found, path.stem if path else known.name, known.ssh, known.adb)
    if known.name != "host":
        fresh = replace(fresh, description=known.description, qemu_cpu=known.qemu_cpu)
    if path is not None:
        save_profile(fresh, path)
    note = f"saved {path}" if path else "not saved" + ("" if known.name == "host" or own.exists() else ": no profile of your own")
    emit(as_json, probe_document(found, replace(fresh, name=known.name), path), [*probe_tables(found, fresh), note])


def _probe(transport: Transport, quick: bool) -> Probe:
    with transport:
        say: Callable[[str], None] = lambda line: STDERR.print(line, highlight=False)  # noqa: E731
        return probe_device(transport, quick=quick, say=say if STDERR.is_terminal else None)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.expanduser().absolute())


def _default_name(host: str) -> str:
    """The first part of a host's name; all of an address."""
    first = host.partition(".")[0]
    name = host if first.isdecimal() or ":" in host else first
    return name.replace(":", "-").strip("-._") or "board"
