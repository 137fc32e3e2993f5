"""`bevel devices`: the profiles bevel knows, and what is done with one. `bevel devices NAME` is short for `show NAME`."""

from __future__ import annotations

import click

from bevel.cli import devices_add, emulate, history, options
from bevel.cli.device_document import address, describe
from bevel.cli.output import emit, table
from bevel.devices.fleet import on_each
from bevel.devices.profile import Profile, list_profiles, load_profile, remove_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.transport import Transport
from bevel.errors import BevelError, ToolchainError, UsageError
from bevel.ir.protocols import Target


class _DeviceVerbs(click.Group):
    """A group that takes the name of a device, or a profile's path, where a subcommand could stand."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        known = args[0] in self.commands or args[0].startswith("-")
        return super().resolve_command(ctx, args if known else ["show", *args])


@click.group("devices", cls=_DeviceVerbs, invoke_without_command=True)
@options.universal
@click.pass_context
def command(ctx: click.Context, as_json: bool, verbose: bool) -> None:
    """List device profiles, and add, show, check, probe, emulate or remove one.

    \b
    bevel devices
    bevel devices add pi@board.local
    bevel devices raspberry-pi-4          # the same as: bevel devices show raspberry-pi-4
    bevel devices check kitchen-pi
    """
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_devices, as_json=as_json, verbose=verbose)
    # --json and --verbose hold for the subcommand wherever they stand.
    given = {"as_json": True} if as_json else {}
    ctx.default_map = {name: given for name in command.commands}


@command.command("list")
@options.universal
def list_devices(as_json: bool, verbose: bool) -> None:
    """List the device profiles: `host`, those that ship with bevel, and your own."""
    profiles = [load_profile(known) for known in list_profiles()]
    rows = [(p.name, p.arch, p.cpu, " ".join(sorted(p.features)), address(p), p.description) for p in profiles]
    emit(
        as_json,
        {"devices": [describe(p) for p in profiles]},
        [table("devices", ("name", "arch", "cpu", "ISA", "address", ""), rows)],
    )


@command.command("show")
@click.argument("name")
@click.option("--check", is_flag=True, help="Connect as well: the same as `bevel devices check NAME`.")
@options.universal
def show(name: str, check: bool, as_json: bool, verbose: bool) -> None:
    """Show the profile NAME, a name that `bevel devices` lists or a TOML file.

    \b
    bevel devices show raspberry-pi-4
    """
    profile = load_profile(name)
    document = describe(profile)
    text: list[object] = [f"{key}: {value}" for key, value in document.items()]
    if check:
        found = _check(profile)
        document["check"] = found
        text.append(f"answers: {found}")
    emit(as_json, document, text)


@command.command("check")
@click.argument("names", metavar="NAME...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every device with an address.")
@options.universal
@click.pass_context
def check_devices(ctx: click.Context, names: tuple[str, ...], every: bool, as_json: bool, verbose: bool) -> None:
    """Connect to each NAME, all at the same time, and compare what the device says with its profile.

    Exits with 4 when one of several does not answer as it should.

    \b
    bevel devices check kitchen-pi
    bevel devices check kitchen-pi garage-pi
    bevel devices check --all
    """
    if bool(names) == every:
        raise UsageError("bevel devices check: give the names of devices, or --all")
    if len(names) == 1:
        ctx.invoke(show, name=names[0], check=True, as_json=as_json, verbose=verbose)
        return
    profiles = [load_profile(name) for name in names or list_profiles()]
    if every:
        profiles = [profile for profile in profiles if profile.ssh is not None or profile.adb is not None]
    if not profiles:
        raise UsageError("no device has an address; add one: bevel devices add user@host")
    answers = on_each(profiles, lambda transport, profile: _answer(transport, profile.target()))
    documents: list[dict[str, object]] = []
    rows: list[tuple[object, ...]] = []
    for name, answer in answers.items():
        if isinstance(answer, BevelError):
            documents.append({"name": name, "error": {"kind": type(answer).__name__, "message": str(answer)}})
            rows.append((name, type(answer).__name__, str(answer)))
        else:
            documents.append({"name": name, "check": answer})
            rows.append((name, "ok", answer))
    emit(as_json, {"devices": documents}, [table("devices", ("name", "", "says"), rows)])
    if any("error" in document for document in documents):
        raise click.exceptions.Exit(ToolchainError.exit_code)


@command.command("remove")
@click.argument("name")
@options.universal
def remove(name: str, as_json: bool, verbose: bool) -> None:
    """Forget your own profile NAME; a shipped profile of that name is seen again.

    \b
    bevel devices remove kitchen-pi
    """
    path = remove_profile(name)
    emit(as_json, {"removed": name, "file": str(path)}, [f"removed {path}"])


command.add_command(devices_add.add)
command.add_command(devices_add.probe)
command.add_command(emulate.command)
command.add_command(history.command)


def _check(profile: Profile) -> dict[str, object]:
    """What a device says of itself, after checking that it runs code compiled for `profile`."""
    with resolve_transport(profile) as transport:
        return _answer(transport, profile.target())


def _answer(transport: Transport, target: Target) -> dict[str, object]:
    transport.preflight(target)
    info = transport.info
    return {
        "label": transport.label,
        "emulated": transport.emulated,
        "arch": info.arch,
        "features": sorted(info.features),
    }
