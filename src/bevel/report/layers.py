"""The table of layers: kernel, precision, work, and times where they are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bevel.devices.cost import take_prediction
from bevel.report.findings import Findings
from bevel.report.markup import cell, head, note, number, row_name, table, text
from bevel.runtime.manifest import kernel_calls

# Beyond these the prediction missed by more than its stated interval.
FAR = (0.5, 2.0)


def layers(manifest: Mapping[str, Any], findings: Findings) -> str:
    """One row a step, in the order they run."""
    times = findings.layer_ms(manifest)
    predicted = dict(findings.predicted_ms)
    comparable = bool(times) and bool(predicted) and findings.profile.get("provenance") != "emulated"
    heads = [head("#", numeric=True), head("layer")]
    if times:
        heads += [head("us", numeric=True), head("share", numeric=True)]
    if predicted:
        heads.append(head("predicted us", numeric=True))
    if comparable:
        heads.append(head("ratio", numeric=True))
    if times:
        heads.append(head("Gop/s", numeric=True))
    tuning = manifest.get("tuning", {}).get("kernels")
    heads += [head("op"), head("kernel"), *([head("chosen")] if tuning else []), head("bits"), head("operations", numeric=True)]
    total, longest = sum(times) or 1.0, max(times, default=0.0) or 1.0
    rows = []
    for index, layer in enumerate(manifest["layers"]):
        cells = [number(index), row_name(layer["name"])]
        # Steps that share a layer (a boundary conversion) show its prediction once.
        guess = take_prediction(predicted, layer)
        if times:
            ms, share = times[index], 100 * times[index] / total
            cells += [
                number(ms, f"{ms * 1e3:.2f}"),
                number(share, f"{share:.1f} %", kind="'n share'", style=f"--w:{100 * times[index] / longest:.1f}"),
            ]
        if findings.predicted_ms:
            cells.append(number(guess, None if guess is None else f"{guess * 1e3:.2f}"))
        if comparable:
            ratio = times[index] / guess if guess else None
            far = ratio is not None and not FAR[0] <= ratio <= FAR[1]
            cells.append(number(ratio, None if ratio is None else f"{ratio:.2f}", kind="'n far'" if far else "n"))
        if times:
            rate = layer["macs"] / max(times[index], 1e-9) / 1e6
            cells.append(number(rate if layer["macs"] else None, f"{rate:.1f}"))
        cells += [cell(layer[key]) for key in ("op", "kernel")]
        if tuning:
            cells.append(cell("; ".join(dict.fromkeys(chosen(tuning[call["symbol"]]) for call in kernel_calls(layer)))))
        cells.append(cell(layer["bits"]))
        cells.append(number(layer["macs"], f"{layer['macs']:,}"))
        rows.append("".join(cells))
    caption = "Layers in the order they run" + ("; ratio is measured / predicted" if comparable else "")
    return _note(times, findings) + table(caption, heads, rows)


def chosen(kernel: Mapping[str, Any]) -> str:
    """How a kernel was chosen, and what that gained over the static choice."""
    gain = kernel.get("gain")
    return f"{kernel['chosen']}, {gain:.2f}x" if gain is not None and gain > 1 else str(kernel["chosen"])


def _note(times: list[float], findings: Findings) -> str:
    hint = "The heads sort; rest on a name to see it in full."
    if not times:
        return note(f"{hint} No layer times here: <code>bevel profile --report</code> measures them.")
    where = f"{findings.profile.get('provenance', 'measured')} on {findings.profile.get('device', 'the device')}"
    return note(f"{hint} Sum of the layer timers {sum(times) * 1e3:.4g} us ({text(where)}).")
