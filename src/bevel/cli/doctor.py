"""`bevel doctor`: what is missing, here or on a device."""

from __future__ import annotations

from collections.abc import Iterator

import click

from bevel.benchmarking.peers.environment import list_environments
from bevel.cli import options
from bevel.cli.output import emit, table
from bevel.devices.doctor import Check, check_device, check_host
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport

_DEVICE_EXIT = 4


@click.command("doctor")
@click.option("--device", metavar="NAME|FILE", help="Connect to this device and look there instead.")
@options.universal
def command(device: str | None, as_json: bool, verbose: bool) -> None:
    """Check this machine's compilers, emulators and packages, or a device's state; say what to install or change.

    Exits with 4 when something required is missing.

    \b
    bevel doctor
    bevel doctor --device kitchen-pi
    """
    if device is None:
        subject, checks = "this machine", [*check_host(), *_peers()]
    else:
        profile = load_profile(device)
        with resolve_transport(profile) as transport:
            subject, checks = transport.label, list(check_device(transport, profile))
    failed = [check for check in checks if check.required and not check.ok]
    document = {
        "subject": subject,
        "ok": not failed,
        "checks": [
            {
                "name": check.name,
                "ok": check.ok,
                "required": check.required,
                "found": check.found,
                "purpose": check.purpose,
                "remedy": check.remedy,
            }
            for check in checks
        ],
    }
    rows = [(_verdict(check), check.name, check.found, check.purpose, check.remedy) for check in checks]
    summary = f"required and missing: {', '.join(check.name for check in failed)}" if failed else "all that is required is there"
    emit(as_json, document, [table(subject, ("", "", "found", "for", "to do"), rows), summary])
    if failed:
        raise click.exceptions.Exit(_DEVICE_EXIT)


def _peers() -> Iterator[Check]:
    """Environments of other engines, which take gigabytes."""
    for environment in list_environments():
        found = f"{environment.bytes // 1024**2} MiB in {environment.folder}"
        yield Check(f"peer {environment.name}", True, found, "bevel bench --against; remove the folder to free the space")


def _verdict(check: Check) -> str:
    if check.ok:
        return "ok"
    return "MISSING" if check.required else "no"
