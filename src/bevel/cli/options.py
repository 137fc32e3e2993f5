"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.transport import Transport
from bevel.errors import UsageError
from bevel.runtime.artifact import Artifact

Command = Callable[..., Any]


def universal(command: Command) -> Command:
    """--json and --verbose, which every verb takes."""
    command = click.option("--verbose", is_flag=True, help="Show the traceback of an error.")(command)
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout (docs/json.md).")(command)


def device(required: bool = False) -> Callable[[Command], Command]:
    """--device NAME."""
    return click.option(
        "--device",
        required=required,
        metavar="NAME|FILE",
        help="Device profile: `host`, a name that `bevel devices` lists, or a TOML file."
        + ("" if required else "  [default: the one the artifact was compiled for]"),
    )


artifact_argument = click.argument("artifact", type=click.Path(path_type=Path))
threads = click.option("--threads", type=click.IntRange(1, 256), default=1, show_default=True, help="Threads to run with.")
seed = click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")


def open_transport(artifact: Artifact, device_name: str | None) -> Transport:
    """The way to the device to run `artifact` on: the one named, else the one it was compiled for."""
    return resolve_transport(load_profile(device_name or str(artifact.manifest["target"]["name"])))


def parse_dims(pairs: tuple[str, ...]) -> dict[str, int]:
    """`NAME=N` pairs of --dim.

    Raises:
        UsageError: not of that form, or N < 1.
    """
    dims = {}
    for pair in pairs:
        name, separator, extent = pair.partition("=")
        if not separator or not extent.isdecimal() or int(extent) < 1:
            raise UsageError(f"--dim {pair}: expected NAME=N with N >= 1, for example --dim seq=128")
        dims[name] = int(extent)
    return dims
