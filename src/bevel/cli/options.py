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


report = click.option("--report", is_flag=True, help="Show it in the artifact's report.html as well.")
pad_nms = click.option(
    "--pad-nms", is_flag=True, help="Take NonMaxSuppression: rows that an image leaves empty are -1 (docs/detectors.md)."
)
dims = click.option("--dim", "dims", multiple=True, metavar="NAME=N", help="Extent of a symbolic dimension; repeatable.")


def parse_dims(pairs: tuple[str, ...]) -> dict[str, int | tuple[int, int]]:
    """`NAME=N` and `NAME=LO:HI` pairs of --dim.

    Raises:
        UsageError: not of that form, or an extent below 1.
    """
    found: dict[str, int | tuple[int, int]] = {}
    for pair in pairs:
        name, separator, extent = pair.rpartition("=")
        parts = [int(p) if p.isdecimal() else 0 for p in extent.split(":")]
        if not separator or len(parts) > 2 or min(parts) < 1 or parts != sorted(parts):
            raise UsageError(
                f"--dim {pair}: expected NAME=N, for example --dim seq=128, or NAME=LO:HI with 1 <= LO <= HI, for example "
                "--dim seq=1:256"
            )
        found[name] = parts[0] if parts[0] == parts[-1] else (parts[0], parts[1])
    return found


def parse_states(pairs: tuple[str, ...]) -> dict[str, str]:
    """`INPUT=OUTPUT` pairs of --state.

    Raises:
        UsageError: not of that form, or the same input twice.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, output = pair.partition("=")
        if not name or not output:
            raise UsageError(f"--state {pair}: expected INPUT=OUTPUT, for example --state h=hn")
        if name in found:
            raise UsageError(f"--state {pair}: input {name!r} takes output {found[name]!r} already")
        found[name] = output
    return found


def parse_extents(pairs: tuple[str, ...]) -> dict[str, int]:
    """`NAME=N` pairs of --dim.

    Raises:
        UsageError: not of that form, or an extent below 1.
    """
    found = {}
    for name, extent in parse_dims(pairs).items():
        if not isinstance(extent, int):
            raise UsageError(f"--dim {name}={extent[0]}:{extent[1]}: expected one extent, for example --dim {name}={extent[1]}")
        found[name] = extent
    return found
