"""`bevel cost`: predictions before anything is compiled."""

from __future__ import annotations

from pathlib import Path

import click

from bevel.cli import options
from bevel.cli.output import emit, table
from bevel.compiler import bind, load_graph
from bevel.devices.cost import Roofline, graph_cost
from bevel.devices.profile import load_profile
from bevel.errors import UsageError
from bevel.ir.graph import Level
from bevel.passes.canonicalize import canonicalize
from bevel.report import short_name

_SPELLINGS = {"8": "w8a8", "w8a8": "w8a8", "fp32": "fp32"}


@click.command("cost")
@click.argument("model", type=click.Path(path_type=Path))
@options.device(required=True)
@click.option("--bits", default="8", show_default=True, help="Precision to compare with fp32.")
@options.dims
@options.pad_nms
@options.universal
def command(model: Path, device: str, bits: str, dims: tuple[str, ...], pad_nms: bool, as_json: bool, verbose: bool) -> None:
    """Predict the latency of MODEL per layer for fp32 and int8, and say whether int8 will pay on this device.

    \b
    bevel cost model.onnx --device raspberry-pi-4
    """
    if bits not in _SPELLINGS:
        raise UsageError(f"--bits {bits}: static costs are known for {', '.join(_SPELLINGS)}")
    profile = load_profile(device)
    graph = canonicalize(load_graph(model, options.parse_extents(dims), pad_nms=pad_nms))
    if graph.level is Level.INTEGER:
        raise UsageError(f"{model}: an integer graph has one precision; give the original model")
    graph = bind(graph, {})
    specs = tuple(dict.fromkeys(("fp32", _SPELLINGS[bits])))
    layers = graph_cost(graph, Roofline(profile), specs)
    totals = {spec: sum(layer.bits[spec].ms for layer in layers) for spec in specs}
    document = {
        "device": profile.name,
        "provenance": "static",
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "macs": layer.macs,
                "bits": {spec: {"ms": e.ms, "lo": e.lo, "hi": e.hi} for spec, e in layer.bits.items()},
            }
            for layer in layers
        ],
        "total_ms": totals,
    }
    rows = [
        (
            short_name(layer.name),
            layer.op,
            layer.macs,
            *(layer.bits[s].ms * 1e3 for s in specs),
            _verdict(layer.pays) if len(specs) > 1 else "",
        )
        for layer in layers
    ]
    text: list[object] = [
        table(f"{graph.name} on {profile.name}", ("layer", "op", "MACs", *(f"{s} us" for s in specs), "int8"), rows),
        "; ".join(f"{spec}: {ms:.3f} ms" for spec, ms in totals.items()) + " (static roofline, 0.5x to 2x)",
    ]
    if len(specs) > 1:
        ratio = totals["fp32"] / totals["w8a8"]
        text.append(
            f"int8 will pay: predicted {ratio:.2f}x faster"
            if ratio > 1
            else f"int8 will not pay: predicted {ratio:.2f}x of fp32's speed"
        )
    emit(as_json, document, text)


def _verdict(pays: bool) -> str:
    return "pays" if pays else "does not pay"
