"""The bits that were chosen for each layer, and why fewer were refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bevel.report.markup import cell, head, note, number, row_name, table, text


def allocation(manifest: Mapping[str, Any]) -> str:
    """One row for each layer and each number of bits that was weighed; nothing where the plan said the bits."""
    found = manifest.get("allocation")
    if found is None:
        return ""
    rows = []
    for layer in found["layers"]:
        int8, chosen = layer["int8"], layer["chosen"]
        rows.append(_row(layer, int8, 1.0, "chosen" if chosen["bits"] == int8["bits"] else ""))
        if chosen["bits"] != int8["bits"]:
            rows.append(_row(layer, chosen, layer["gain"], f"chosen: the fastest, by {layer['by']} times"))
        rows += [_row(layer, one, one["gain"], one["reason"]) for one in layer["refused"]]
    heads = [head("layer"), head("bits"), head("kernel")]
    heads += [head(name, numeric=True) for name in ("predicted us", "measured us", "converting us", "gain")]
    least = found["least_gain"]
    words = (
        f"Chosen among {text(', '.join(found['allowed']))}. Gain: time at 8 bits over the time at these, converting the input "
        f"included. Fewer bits are taken for a gain of {least['measured']:.2f}x where both times were measured, of "
        f"{least['static']:.2f}x where they are estimates. "
        f"Together: {found['int8_us']:.4g} us at 8 bits, {found['chosen_us']:.4g} us as chosen."
    )
    return note(words) + table("What was weighed of each layer", [*heads, head("why")], rows)


def _row(layer: Mapping[str, Any], one: Mapping[str, Any], gain: float | None, why: str) -> str:
    times = [number(us, None if us is None else f"{us:.2f}") for us in (one["predicted_us"], one["measured_us"])]
    converting = one["conversion_us"]
    return (
        row_name(layer["layer"])
        + cell(one["bits"])
        + cell(one["kernel"] or "none")
        + "".join(times)
        + number(converting or None, f"{converting:.2f}")
        + number(gain, None if gain is None else f"{gain:.2f}")
        + f"<td class=wrap>{text(why)}</td>"
    )
