"""`bevel compile`: a model file becomes an artifact."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from bevel.cli import options
from bevel.cli.allocation import allocation_lines
from bevel.cli.output import emit, kib, progress, table
from bevel.compiler import Options, Trace, boundary_sides, compile_model, default_output
from bevel.errors import UsageError
from bevel.ir.graph import Graph
from bevel.ir.plan import DEFAULT_CALIBRATION, ROUNDINGS, SCALES, load_plan, loads_plan
from bevel.ir.text import print_graph
from bevel.ir.types import GROUP_SIZES
from bevel.passes.pipeline import lookup_pass
from bevel.preprocessing import load_preprocess
from bevel.report import short_name, write_ranges
from bevel.runtime.artifact import Artifact
from bevel.runtime.manifest import kernel_calls
from bevel.tuning.options import MODES, Tuning


@click.command("compile")
@click.argument("model", type=click.Path(path_type=Path))
@options.device(required=True)
@click.option(
    "--bits",
    help="Precision: fp32, fp16 (where the device has it), 8 (= w8a8, integer-only), or wNaM for weights of N (1, 1.58, 2 to 8) "
    "and activations of M (1 to 8) bits; auto-lowbit[:wNaM,...]: in each layer the fastest of these, or of w8a8 and w4a8, on the "
    "device (docs/quantization.md).  [default: 8, or the plan's]",
)
@click.option("--calib", type=click.Path(path_type=Path), help="Calibration data: .npz or directory of .npy (docs/data.md).")
@click.option("--samples", type=click.IntRange(1), default=256, show_default=True, help="Calibration samples to use at most.")
@click.option(
    "--calib-method",
    "--method",
    "method",
    metavar="NAME[:P]",
    help="Calibration method: minmax, moving-average, percentile, mse, entropy (docs/calibration.md).  "
    f"[default: {DEFAULT_CALIBRATION}, or the plan's]",
)
@click.option(
    "--weight-scales",
    type=click.Choice(SCALES),
    help="Weight scales: nothing clipped (minmax), least squared error (mse), or mse below 4 bits and for groups (auto).  "
    "[default: auto, or the plan's]",
)
@click.option(
    "--weight-group",
    type=click.Choice([str(size) for size in GROUP_SIZES]),
    help="Weights of up to 4 bits: groups of so many inputs with an integer factor each beside the scale of their channel "
    "(docs/quantization.md).  [default: no groups, or the plan's]",
)
@click.option(
    "--rounding",
    type=click.Choice(ROUNDINGS),
    help="Weights of fewer than 8 bits: to the nearest code, or by what they multiply (gptq: takes a minute, and is far better "
    "at 3 bits and less).  [default: nearest, or the plan's]",
)
@click.option("--no-bias-correction", is_flag=True, help="Leave biases as they are (docs/calibration.md).")
@click.option("--ranges", type=click.Path(path_type=Path), help="Write what calibration saw and chose of every value, as JSON.")
@click.option(
    "--dim",
    "dims",
    multiple=True,
    metavar="NAME=N|LO:HI",
    help="Extent of a symbolic dimension, or bounds to choose it within at run time; repeatable.",
)
@click.option(
    "--custom-op", "custom", multiple=True, metavar="DOMAIN.OP=FILE.c", help="C function of a custom operator; repeatable."
)
@options.pad_nms
@click.option("--preprocess", metavar="NAME|FILE.toml", help="Take camera frames: imagenet, ... or a file (docs/preprocess.md).")
@click.option(
    "--channels-last",
    type=click.Choice(["inputs", "outputs", "both"]),
    help="Images at the artifact's boundary are [N, H, W, C].",
)
@click.option("--float-outputs", is_flag=True, help="Outputs are float32, not codes.")
@click.option("--keep-float", multiple=True, metavar="LAYER", help="Layers to keep in float (patterns like 'head*'); repeatable.")
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar="INPUT=OUTPUT",
    help="Input that takes an output's bytes after each run (docs/states.md); repeatable.",
)
@click.option("--plan", type=click.Path(path_type=Path), help="Compression plan (JSON): precision layer by layer.")
@click.option(
    "--save-plan",
    type=click.Path(path_type=Path),
    help="Write the plan that was compiled, with the bits that were chosen, as JSON.",
)
@click.option(
    "--tune",
    type=click.Choice(MODES),
    default="cached",
    show_default=True,
    help="Choose kernels statically, by what was measured before, or measure them on the device (docs/tuning.md).",
)
@click.option("--tune-budget", type=float, metavar="SECONDS", help="Begin no measurement after this time.  [default: no limit]")
@click.option("--dump-ir-after", "dump", metavar="PASS|all", help="Print the graph after a pass, or after every one, on stderr.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Artifact to write.  [default: MODEL.bevel]")
@options.universal
def command(
    model: Path,
    device: str,
    bits: str | None,
    calib: Path | None,
    samples: int,
    method: str | None,
    weight_scales: str | None,
    weight_group: str | None,
    rounding: str | None,
    no_bias_correction: bool,
    ranges: Path | None,
    dims: tuple[str, ...],
    custom: tuple[str, ...],
    pad_nms: bool,
    preprocess: str | None,
    channels_last: str | None,
    float_outputs: bool,
    keep_float: tuple[str, ...],
    states: tuple[str, ...],
    plan: Path | None,
    save_plan: Path | None,
    tune: str,
    tune_budget: float | None,
    dump: str | None,
    output: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Compile MODEL (.onnx, a saved graph .ir, or another artifact) into an artifact for one device.

    \b
    bevel compile model.onnx --device host --bits fp32
    bevel compile model.onnx --device raspberry-pi-4 --bits 8 --calib images.npz -o model.bevel
    bevel compile model.onnx --device raspberry-pi-4 --bits w4a8 --calib images.npz --rounding gptq   # weights of 4 bits
    bevel compile model.onnx --device raspberry-pi-4 --bits auto-lowbit:w4a8,w2a2 --calib images.npz --save-plan plan.json
    bevel compile model.bevel --device raspberry-pi-5 -o model-pi5.bevel   # the same integer graph, same bits
    bevel compile model.onnx --device raspberry-pi-4 --calib frames.npz --preprocess imagenet   # takes uint8 camera frames
    bevel compile model.onnx --device host --bits fp32 --custom-op mydomain.Swirl=swirl.c   # docs/custom.md
    bevel compile vad.onnx --device host --bits fp32 --state h=hn --state c=cn   # keeps its state between runs
    """
    if plan is not None and any(given is not None for given in (bits, method, weight_scales, weight_group, rounding)):
        raise UsageError(
            "--plan decides bits, calibration method, weight scales, groups and rounding: leave out --bits, --method, "
            "--weight-scales, --weight-group and --rounding"
        )
    loaded = load_plan(plan) if plan is not None else None
    chosen = Options(device, bits or "8", calib, samples, method or DEFAULT_CALIBRATION, options.parse_dims(dims), loaded, custom)
    chosen = replace(
        chosen,
        preprocess=load_preprocess(preprocess) if preprocess is not None else None,
        pad_nms=pad_nms,
        channels_last=boundary_sides(channels_last),
        float_outputs=float_outputs,
        keep_float=keep_float,
        weight_scales=weight_scales or "auto",
        rounding=rounding or "nearest",
        weight_group=int(weight_group) if weight_group is not None else None,
        bias_correction=not no_bias_correction,
        states=options.parse_states(states),
        tuning=Tuning(tune, tune_budget),
    )
    with progress() as say:
        trace = _dumping(dump) if dump is not None else None
        artifact, seconds = compile_model(model, output or default_output(model, device), chosen, say, trace)
    if ranges is not None:
        write_ranges(artifact, ranges)
    if save_plan is not None:
        _save_plan(artifact, chosen, save_plan)
    emit(as_json, _document(artifact, seconds), _text(artifact, seconds))


def _save_plan(artifact: Artifact, given: Options, path: Path) -> None:
    """Write the plan that `artifact` was compiled with: the given one, with the bits that were left to the device.

    Raises:
        UsageError: the file cannot be written.
    """
    plan = artifact.manifest["provenance"]["plan"]
    try:
        (loads_plan(json.dumps(plan)) if plan is not None else given.whole_plan()).save(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error


def _dumping(wanted: str) -> Trace:
    """A trace that prints graphs after the wanted passes.

    Raises:
        UsageError: there is no such pass.
    """
    if wanted != "all":
        lookup_pass(wanted)

    def dump(name: str, graph: Graph) -> None:
        if wanted in ("all", name):
            click.echo(f"// after {name}\n{print_graph(graph)}", err=True)

    return Trace(dump)


def _document(artifact: Artifact, seconds: float) -> dict[str, object]:
    m = artifact.manifest
    return {
        "artifact": str(artifact.path),
        "device": m["target"]["name"],
        "bytes": m["bytes"],
        "arena_bytes": m["arena_bytes"],
        "integer_only": m["integer_only"],
        "float_islands": m["float_islands"],
        "islands": m.get("islands", []),
        "layers": [
            {key: layer[key] for key in ("name", "op", "kernel", "bits")} | {"chosen": _chosen(m, layer)} for layer in m["layers"]
        ],
        "tuning": {key: value for key, value in m["tuning"].items() if key != "kernels"},
        "seconds": round(seconds, 3),
    } | ({"allocation": m["allocation"]} if "allocation" in m else {})


def _chosen(manifest: Mapping[str, Any], layer: Mapping[str, Any]) -> str:
    """How the kernels of a layer were chosen."""
    kernels = manifest["tuning"]["kernels"]
    return "+".join(dict.fromkeys(kernels[call["symbol"]]["chosen"] for call in kernel_calls(layer)))


def _text(artifact: Artifact, seconds: float) -> list[object]:
    m = artifact.manifest
    generic = [layer for layer in m["layers"] if layer["kernel"].startswith("generic")]
    macs = sum(layer["macs"] for layer in m["layers"]) or 1
    share = 100 * sum(layer["macs"] for layer in generic) / macs
    rows = [
        (short_name(layer["name"]), layer["op"], layer["kernel"], _chosen(m, layer), layer["bits"], layer["macs"])
        for layer in m["layers"]
    ]
    lines: list[object] = [
        table(f"{artifact.name} for {m['target']['name']}", ("layer", "op", "kernel", "chosen", "bits", "MACs"), rows),
        f"{len(generic)} of {len(rows)} layers run generic kernels, {share:.1f} % of the MACs",
        _tuning_line(m["tuning"]),
        f"library {kib(m['bytes']['library'])}, weights {kib(m['bytes']['weights'])}, arena {kib(m['arena_bytes'])}, "
        f"{'integer only' if m['integer_only'] else 'not integer only'}",
    ]
    lines += _low_bit_lines(m["layers"])
    lines += allocation_lines(m)
    if islands := m.get("islands"):
        cells = [
            (short_name(i["layer"]), i["op"], i["reason"], f"{100 * i['macs_share']:.1f} %", f"{100 * i['bytes_share']:.1f} %")
            for i in islands
        ]
        lines.append(table("float islands", ("layer", "op", "reason", "of the MACs", "of the bytes"), cells))
    lines.append(f"wrote {artifact.path} in {seconds:.1f} s; report: {artifact.path / 'report.html'}")
    return lines


def _low_bit_lines(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which kernels compute the layers whose weights have fewer than 8 bits; those for int8 gain no time by them."""
    kernels = Counter((layer["bits"], layer["kernel"]) for layer in layers if _is_low(layer))
    return [f"{count} layers of {bits} run {kernel}" for (bits, kernel), count in sorted(kernels.items())]


def _is_low(layer: Mapping[str, Any]) -> bool:
    return str(layer["op"]).startswith(("IntConv", "IntGemm")) and layer["bits"] != "w8a8"


def _tuning_line(tuning: Mapping[str, Any]) -> str:
    """How kernels were chosen, by their share of the MACs, and what stood in the way of measuring them."""
    total = sum(tuning["macs"].values()) or 1
    shares = ", ".join(
        f"{source} {100 * macs / total:.0f} %" for source, macs in sorted(tuning["macs"].items(), key=lambda e: -e[1])
    )
    line = f"kernels chosen: {shares or 'static'} of the MACs"
    if tuning.get("unmeasured"):
        line += f"; {tuning['unmeasured']} problems left out by --tune-budget: run the command again to go on"
    if tuning.get("why_static"):
        line += f"; not measured: {tuning['why_static']}"
    return line
