"""Bits of every layer, the plan that asked for them, and where the artifact came from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bevel.report.markup import label, note, svg, text

_WIDTH, _HEIGHT = 890.0, 34.0
# By how often a precision occurs; a letter in each cell says it again where there is room.
_COLOURS = "abcd"


def plan(manifest: Mapping[str, Any]) -> str:
    """A strip of the layers in the order they run, one cell each, coloured by precision; the plan below."""
    bits = [str(layer["bits"]) for layer in manifest["layers"]]
    if not bits:
        return ""
    kinds = [name for name, _ in Counter(bits).most_common()]
    colour = {name: _COLOURS[min(index, len(_COLOURS) - 1)] for index, name in enumerate(kinds)}
    width = _WIDTH / len(bits)
    marks = []
    for index, (name, layer) in enumerate(zip(bits, manifest["layers"], strict=True)):
        tip = f"{index} {layer['name']}: {name}"
        marks.append(
            f"<rect class='dot {colour[name]}' x='{index * width + 0.5:.2f}' y='4' width='{max(width - 1, 0.6):.2f}' "
            f"height='{_HEIGHT - 8:.0f}'><title>{text(tip)}</title></rect>"
        )
        if width > 9 * len(name):
            marks.append(label((index + 0.5) * width, _HEIGHT / 2 + 4, name, "middle", "in"))
    keys = "".join(
        f"<span class='key {colour[name]}'></span>{text(name)}: {count} layer{'s' * (count != 1)}"
        for name, count in Counter(bits).most_common()
    )
    given = manifest["provenance"].get("plan")
    document = f"<details><summary>The plan as given</summary><pre>{text(json.dumps(given, indent=1))}</pre></details>"
    return (
        note(keys) + svg(_WIDTH, _HEIGHT, "Precision of each layer, in the order they run", marks) + (document if given else "")
    )


def provenance(manifest: Mapping[str, Any]) -> str:
    """What made the artifact, as it stands in the manifest."""
    facts = {key: value for key, value in manifest["provenance"].items() if key != "plan"}
    return (
        f"<pre>{text(json.dumps(facts, indent=1))}</pre>"
        f"<p class=note>graph <code>{text(manifest['graph_hash'])}</code><br>linked with {text(manifest['toolchain'])}, runner "
        f"{text(manifest['runner'])}</p>"
    )
