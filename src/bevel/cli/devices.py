"""`bevel devices`: profiles, and whether a device answers."""

from __future__ import annotations

import click

from bevel.cli import options
from bevel.cli.output import emit, table
from bevel.devices.profile import Profile, list_profiles, load_profile
from bevel.devices.resolve import resolve_transport


@click.command("devices")
@click.argument("name", required=False)
@click.option("--check", is_flag=True, help="Connect to NAME and say what it is.")
@options.universal
def command(name: str | None, check: bool, as_json: bool, verbose: bool) -> None:
    """List device profiles, show one, or check that it answers.

    \b
    bevel devices
    bevel devices raspberry-pi-4
    bevel devices my-pi.toml --check
    """
    if name is None:
        profiles = [load_profile(known) for known in list_profiles()]
        rows = [(p.name, p.arch, p.cpu, " ".join(sorted(p.features)), _address(p), p.description) for p in profiles]
        emit(
            as_json,
            {"devices": [_document(p) for p in profiles]},
            [table("devices", ("name", "arch", "cpu", "ISA", "address", ""), rows)],
        )
        return
    profile = load_profile(name)
    document = _document(profile)
    text: list[object] = [f"{key}: {value}" for key, value in document.items()]
    if check:
        with resolve_transport(profile) as transport:
            transport.preflight(profile.target())
            info = transport.info
            found = {
                "label": transport.label,
                "emulated": transport.emulated,
                "arch": info.arch,
                "features": sorted(info.features),
            }
        document["check"] = found
        text.append(f"answers: {found}")
    emit(as_json, document, text)


def _address(profile: Profile) -> str:
    return profile.ssh.address if profile.ssh is not None else "-"


def _document(profile: Profile) -> dict[str, object]:
    peaks = profile.peaks
    return {
        "name": profile.name,
        "description": profile.description,
        "arch": profile.arch,
        "cpu": profile.cpu,
        "features": sorted(profile.features),
        "cores": profile.cores,
        "clock_ghz": profile.clock_ghz,
        "address": profile.ssh.address if profile.ssh is not None else None,
        "peaks": {
            "fp32_gmacs": peaks.fp32_gmacs.value,
            "int8_gmacs": peaks.int8_gmacs.value,
            "provenance": peaks.int8_gmacs.provenance,
            "bandwidth_gbs": {level: figure.value for level, figure in peaks.bandwidth_gbs.items()},
        },
    }
