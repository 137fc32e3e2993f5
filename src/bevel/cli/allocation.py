"""How `bevel compile` says which bits were chosen for each layer, and why fewer were refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bevel.cli.output import table
from bevel.report import short_name


def allocation_lines(manifest: Mapping[str, Any]) -> list[object]:
    """A row for each layer at each number of bits that was weighed, and what came of it; nothing where bits were not chosen."""
    found = manifest.get("allocation")
    if found is None:
        return []
    rows = []
    for layer in found["layers"]:
        chosen = layer["chosen"]
        options = {one["bits"]: (one, why) for one, why in _weighed(layer)}
        for bits, (one, why) in options.items():
            first = short_name(layer["layer"]) if bits == layer["int8"]["bits"] else ""
            mark = "*" if bits == chosen["bits"] else ""
            gain = one.get("gain", layer["gain"] if mark and bits != layer["int8"]["bits"] else None)
            times = (one["predicted_us"], one["measured_us"], one["conversion_us"] or None)
            rows.append((first, f"{bits}{mark}", one["kernel"] or "none", *times, gain, why))
    columns = ("layer", "bits", "kernel", "predicted us", "measured us", "converting", "gain", "why")
    few = sum(layer["chosen"]["bits"] != layer["int8"]["bits"] for layer in found["layers"])
    by = ", ".join(f"{count} by {source} times" for source, count in sorted(found["by"].items()))
    return [
        table("bits of each layer (* chosen)", columns, rows),
        f"fewer than 8 bits in {few} of {len(found['layers'])} layers, chosen among {', '.join(found['allowed'])}: {by}; "
        f"together they take {found['chosen_us']:.4g} us, at 8 bits {found['int8_us']:.4g} us",
    ]


def _weighed(layer: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """What was weighed of a layer, most bits first, and what came of it."""
    int8, chosen = layer["int8"], layer["chosen"]
    found = [(int8, "")] if chosen["bits"] != int8["bits"] else []
    found.append((chosen, f"the fastest, by {layer['by']} times" if chosen["bits"] != int8["bits"] else ""))
    return found + [(one, one["reason"]) for one in layer["refused"]]
