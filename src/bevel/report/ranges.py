"""What calibration saw and chose, and which layers stayed float and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bevel.errors import UsageError
from bevel.report.markup import cell, head, note, number, row_name, table, text
from bevel.runtime.artifact import Artifact


def islands(manifest: Mapping[str, Any]) -> str:
    """Float layers of an integer graph with their reasons and shares of the work; nothing where there are none."""
    rows = []
    for layer in manifest.get("islands", ()):
        shares = [number(layer[key], f"{100 * layer[key]:.1f} %") for key in ("macs_share", "bytes_share")]
        rows.append(
            row_name(layer["layer"]) + cell(layer["op"]) + f"<td class=wrap>{text(layer['reason'])}</td>" + "".join(shares)
        )
    if not rows:
        return ""
    heads = [head("layer"), head("op"), head("reason")]
    heads += [head("of the operations", numeric=True), head("of the bytes moved", numeric=True)]
    return note("Byte identity between devices ends behind a float layer.") + table("Layers that stay float", heads, rows)


def ranges(manifest: Mapping[str, Any]) -> str:
    """What calibration saw of each value and chose for it; nothing for models that were not calibrated here."""
    rows = []
    for value in manifest.get("ranges", ()):
        cells = [row_name(value["name"])]
        cells += [number(end, f"{end:.5g}") for key in ("observed", "chosen") for end in value[key]]
        cells += [number(value["scale"], f"{value['scale']:.5g}"), number(value["zero_point"])]
        cells.append(number(value["clipped"], f"{100 * value['clipped']:.3g} %"))
        rows.append("".join(cells))
    if not rows:
        return ""
    names = ("seen from", "seen to", "type from", "type to", "scale", "zero point", "clipped")
    heads = [head("value"), *(head(name, numeric=True) for name in names)]
    return note("Values that take over the type of another are left out. Clipped: share of the calibration data.") + table(
        "Calibrated values", heads, rows
    )


def write_ranges(artifact: Artifact, path: Path) -> None:
    """Write the manifest's `ranges` as JSON: a list of {name, observed, chosen, scale, zero_point, clipped}; docs/calibration.md.

    Raises:
        UsageError: the file cannot be written.
    """
    rows = artifact.manifest.get("ranges", [])
    try:
        path.write_text(json.dumps({"model": artifact.name, "ranges": rows}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
