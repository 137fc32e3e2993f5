"""From a model file to an artifact: the pipeline of `bevel compile`.

In: an ONNX file, a saved graph (.ir) or another artifact, a device profile, bits and calibration data. Out: an artifact
directory. The stages are `load_graph`, `prepare` (canonical FLOAT, or INTEGER through calibration), `lower`, kernels to
objects, link. The finished artifact is cached by the content of everything that went in (`artifact_cache`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from bevel import __version__, artifact_cache
from bevel.data import inputs_of, open_data
from bevel.devices.cost import Roofline, predict_layers
from bevel.devices.profile import Profile, list_profiles, load_profile
from bevel.errors import ArtifactError, CalibrationError, InvalidPlan, UsageError
from bevel.ir.graph import Graph, Level
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.custom import load_custom_op
from bevel.ir.plan import (
    DEFAULT_CALIBRATION,
    FP16,
    FP32,
    ROUNDINGS,
    SCALES,
    W8A8,
    Bits,
    CompressionPlan,
    granularity_of,
    parse_allowed,
    parse_bits,
)
from bevel.ir.types import F16, Dim
from bevel.passes.bind_dims import bind_dims
from bevel.passes.boundary import ChannelsLast, FloatOutputs
from bevel.passes.canonicalize import CANONICAL
from bevel.passes.pipeline import Pass, print_pipeline, run_passes
from bevel.passes.preprocess import Preprocess
from bevel.passes.states import KeepStates
from bevel.passes.to_half import ToHalf
from bevel.provenance import findings, provenance
from bevel.report import Findings, write_report
from bevel.runtime.artifact import Artifact
from bevel.runtime.manifest import read_manifest
from bevel.runtime.toolchain import find_toolchain
from bevel.tuning.options import Tuning

if TYPE_CHECKING:
    from bevel.backends.schedule import Schedule
    from bevel.passes.quantize.observation import Observation
    from bevel.tuning.tuner import Tuner

Array = npt.NDArray[Any]
Say = Callable[[str, int, int], None]


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Progress for callers that show none."""


@dataclass(frozen=True)
class Options:
    """What decides an artifact besides the model.

    Attributes:
        device: profile name or TOML path.
        bits: as `parse_bits` reads it: "fp32", "fp16", "8" (= "w8a8"), "w4a8", "w2a2", ..., or as `parse_allowed` does:
            "auto-lowbit", "auto-lowbit:w4a8,w2a2"; the plan's, where there is one.
        calibration: data set path; needed to quantize a float model.
        samples: how many calibration samples to use at most.
        method: calibration method; the plan's, where there is one.
        weight_scales: how weight scales are chosen ("auto", "minmax" or "mse"); the plan's, where there is one.
        rounding: how weights of fewer than 8 bits are rounded ("nearest" or "gptq"); the plan's, where there is one.
        weight_group: inputs whose weights share an integer factor, None for no groups; the plan's, where there is one.
        dims: of symbolic dimensions: an extent, or bounds (lo, hi) within which it is chosen at run time; a leading batch
            dimension is 1 unless given.
        plan: what to do layer by layer.
        custom_ops: "DOMAIN.OP=FILE.c" of each custom operator (`bevel.ir.ops.custom`).
        preprocess: what the model does to camera frames first; None takes tensors as the model does.
        channels_last: "inputs" and/or "outputs" whose images are [N, H, W, C] at the artifact's boundary.
        float_outputs: outputs are float32, not codes.
        pad_nms: NonMaxSuppression gives a fixed number of rows, those left empty filled with -1 (docs/detectors.md).
        keep_float: patterns (`fnmatch`) of layers that stay in float when the model is quantized.
        states: inputs that a run leaves its successor -> the outputs they take (docs/states.md).
        bias_correction: correct the biases of quantized layers on the calibration data.
        tuning: how kernels are chosen (docs/tuning.md).
    """

    device: str
    bits: str = "8"
    calibration: Path | None = None
    samples: int = 256
    method: str = DEFAULT_CALIBRATION
    dims: Mapping[str, int | tuple[int, int]] = field(default_factory=dict)
    plan: CompressionPlan | None = None
    custom_ops: tuple[str, ...] = ()
    bias_correction: bool = True
    preprocess: Preprocess | None = None
    pad_nms: bool = False
    channels_last: tuple[str, ...] = ()
    float_outputs: bool = False
    keep_float: tuple[str, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)
    weight_scales: str = "auto"
    rounding: str = "nearest"
    weight_group: int | None = None
    tuning: Tuning = field(default_factory=Tuning)

    def precision(self) -> Bits:
        """Precision of layers that the plan does not name.

        Raises:
            UsageError: this version does not compile it.
        """
        if self.plan is not None:
            bits = self.plan.bits
        else:
            bits = W8A8 if parse_allowed(self.bits) else parse_bits(self.bits)
        if bits.is_float and bits not in (FP32, FP16):
            raise UsageError(f"bits {bits}: this version compiles fp32, fp16 and wNaM with N and M up to 8 (8 = w8a8)")
        return bits

    def whole_plan(self) -> CompressionPlan:
        """The plan, or the one that `bits` and the other options amount to.

        Raises:
            UsageError: there are no such bits, or weight scales.
        """
        if self.plan is not None:
            return self.plan
        if self.weight_scales not in SCALES:
            raise UsageError(f"weight scales {self.weight_scales!r}: expected one of {', '.join(SCALES)}")
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"rounding {self.rounding!r}: expected one of {', '.join(ROUNDINGS)}")
        bits, allow = self.precision(), parse_allowed(self.bits)
        group = granularity_of(self.weight_group, allow[-1] if allow else bits)
        return CompressionPlan("", bits, 8, self.method, group, self.weight_scales, rounding=self.rounding, allow=allow)

    def calibration_method(self) -> str:
        """The calibration method, as `parse_method` spells it.

        Raises:
            UsageError: there is no such method.
        """
        from bevel.passes.quantize.methods import parse_method

        method = self.plan.calibration if self.plan is not None else self.method
        parse_method(method)
        return method


def load_graph(model: Path, dims: Mapping[str, int | tuple[int, int]] | None = None, *, pad_nms: bool = False) -> Graph:
    """The graph of an ONNX file, a saved graph or an artifact, as stored, with extents or bounds `dims` for symbolic dimensions.

    An ONNX file is imported with `pad_nms` (`bevel.frontend.onnx.import_onnx`); the others were, or were not.

    Raises:
        UsageError: there is no such file, or no such dimension.
        UnsupportedModel: it is damaged or asks for what bevel does not implement.
    """
    if model.is_file() and model.suffix != ".ir":
        from bevel.frontend.onnx import import_onnx

        graph = import_onnx(model, dims=dims, pad_nms=pad_nms)
        graph.name = model.stem
        return graph
    from bevel.ir import serialize

    if model.is_dir():
        graph = serialize.loads(Artifact.open(model).graph_bytes(), f"{model}: graph")
    elif model.is_file():
        graph = serialize.load_graph(model)
    else:
        raise _no_such_model(model)
    return bind_dims(graph, dims) if dims else graph


def _no_such_model(model: Path) -> UsageError:
    return UsageError(f"{model}: no such file; expected an .onnx model, a saved graph (.ir) or an artifact directory")


@dataclass
class Trace:
    """What `prepare` is watched by.

    Attributes:
        dump: called with the name and result of every pass.
        applied: gets the passes that ran, for provenance.
        observed: gets what calibration saw and chose.
        kept: gets the names of the layers that stay float as asked.
    """

    dump: Callable[[str, Graph], None] | None = None
    applied: list[Pass] = field(default_factory=list)
    observed: list[Observation] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)

    def run(self, graph: Graph, *passes: Pass) -> Graph:
        """`graph` after `passes`, each verified before and after."""
        self.applied.extend(passes)
        return run_passes(graph, passes, dump_after=self.dump)


def prepare(graph: Graph, options: Options, say: Say = _silent, trace: Trace | None = None) -> Graph:
    """Canonicalize and, for 8 bits, quantize to INTEGER.

    Args:
        graph: as imported.
        options: precision, plan, calibration data.
        say: progress.
        trace: watches the passes.

    Raises:
        CalibrationError: a float model is to be quantized without, or with unfit, calibration data.
        InvalidPlan: the plan does not fit the model.
        UsageError: bits that the model's level does not allow.
    """
    trace = trace or Trace()
    options.precision()
    if options.plan is not None:
        options.plan.validate(graph)
    graph = trace.run(graph, *_boundary(options))
    if graph.level is not Level.INTEGER:
        graph = trace.run(graph, *CANONICAL)
    graph = _quantized(graph, options, say, trace)
    return trace.run(graph, FloatOutputs()) if options.float_outputs else graph


def boundary_sides(choice: str | None) -> tuple[str, ...]:
    """The sides that "inputs", "outputs", "both" or None name.

    Raises:
        UsageError: another word.
    """
    sides = {None: (), "inputs": ("inputs",), "outputs": ("outputs",), "both": ("inputs", "outputs")}
    if choice not in sides:
        raise UsageError(f"channels_last {choice!r}: expected inputs, outputs or both")
    return sides[choice]


def _boundary(options: Options) -> list[Pass]:
    """Passes that change what the model takes and gives, or what of it a run leaves the next."""
    passes: list[Pass] = [options.preprocess] if options.preprocess is not None else []
    if options.channels_last:
        passes.append(ChannelsLast("inputs" in options.channels_last, "outputs" in options.channels_last))
    if options.states:
        passes.append(KeepStates(tuple(f"{name}={output}" for name, output in options.states.items())))
    return passes


def _quantized(graph: Graph, options: Options, say: Say, trace: Trace) -> Graph:
    """The canonical `graph` at the precision that is asked for; see `prepare`."""
    precision, method = options.precision(), options.calibration_method()
    if options.whole_plan().allow:
        raise UsageError("bits are left to the device here: `bevel compile` chooses them (docs/quantization.md)")
    kept = _kept_float(graph, options.plan) | _matching(graph, options.keep_float)
    trace.kept.update(kept)
    if precision in (FP32, FP16) and not _any_of_codes(options.plan):
        if graph.level is not Level.FLOAT:
            raise UsageError(f"{graph.name!r} is already quantized: compile it with --bits 8, which keeps the bits it has")
        return graph if precision == FP32 else trace.run(graph, ToHalf())
    if graph.level is not Level.FLOAT:
        _require_own_bits(graph, options.whole_plan())
    if graph.level is Level.INTEGER:
        return graph
    from bevel.passes.quantize.calibrate import Calibrate
    from bevel.passes.quantize.observe import samples_per_batch
    from bevel.passes.quantize.to_integer import ToInteger

    if graph.level is Level.FLOAT:
        if options.calibration is None:
            raise CalibrationError(
                f"{graph.name!r} is a float model: 8 bits need calibration data, --calib DATA.npz with arrays named "
                f"{[v.name for v in graph.inputs]}, to measure its activations (or compile it with --bits fp32)"
            )
        data = open_data(options.calibration, inputs_of(graph))
        batches = data.batches(samples_per_batch(graph), options.samples)
        plan = options.whole_plan()
        calibrate = Calibrate(
            method,
            str(plan.bits),
            plan.stream,
            plan.granularity,
            plan.scales,
            plan.levels,
            bias_correction=options.bias_correction,
            data=batches,
            keep_float=kept,
            layers=plan.layers,
            progress=lambda stage, done: say(stage, min(done * batches.size, batches.samples), batches.samples),
            report=trace.observed.extend,
        )
        passes: list[Pass] = [calibrate]
        if "gptq" in {plan.rounding, *(layer.rounding for layer in plan.layers.values())}:
            from bevel.passes.quantize.gptq import Gptq

            layers = sum(Trait.WEIGHTED in lookup(node.op).traits for node in graph.nodes)
            passes.append(Gptq(graph, plan, batches, progress=lambda stage, done: say(stage, done, layers)))
        return trace.run(graph, *passes, ToInteger())
    return trace.run(graph, ToInteger())


def _matching(graph: Graph, patterns: tuple[str, ...]) -> frozenset[str]:
    """Results of `graph` whose name, or whose layer's name, matches one of `patterns`.

    Raises:
        UsageError: a pattern matches nothing.
    """
    found: set[str] = set()
    for pattern in patterns:
        names = {v.name for n in graph.nodes for v in n.outputs if fnmatchcase(v.name, pattern) or fnmatchcase(n.loc, pattern)}
        if not names:
            layers = ", ".join(sorted({n.loc or n.outputs[0].name for n in graph.nodes})[:20])
            raise UsageError(f"--keep-float {pattern!r} matches no layer of {graph.name!r}; its layers are {layers}, ...")
        found |= names
    return frozenset(found)


def _any_at(bits: Bits, plan: CompressionPlan | None) -> bool:
    return plan is not None and any(layer.bits == bits for layer in plan.layers.values())


def _require_own_bits(graph: Graph, plan: CompressionPlan) -> None:
    """Refuse to give a quantized model other bits than it has.

    Raises:
        UsageError: the plan, or --bits, asks for that.
    """
    asked = [plan.bits, *(layer.bits for layer in plan.layers.values() if layer.bits is not None)]
    if other := [str(bits) for bits in asked if not bits.is_float and bits != W8A8]:
        raise UsageError(
            f"{graph.name!r} is already quantized, so bits {other[0]} are out of reach: compile the float model with them, or "
            "this one without --bits, which keeps the bits it has"
        )


def _any_of_codes(plan: CompressionPlan | None) -> bool:
    return plan is not None and any(layer.bits is not None and not layer.bits.is_float for layer in plan.layers.values())


def _kept_float(graph: Graph, plan: CompressionPlan | None) -> frozenset[str]:
    """Results of the canonical `graph` whose layers the plan keeps in fp32.

    Raises:
        InvalidPlan: the model is quantized already, or canonicalization merged a named layer into another.
    """
    if plan is None:
        return frozenset()
    if graph.level is not Level.FLOAT and (plan.bits == FP32 or _any_at(FP32, plan)):
        raise InvalidPlan(f"the plan asks for fp32, but {graph.name!r} is already quantized; apply it to the float model")
    names = {v.name for node in graph.nodes for v in node.outputs}
    for name, layer in plan.layers.items():
        if layer.bits is not None and name not in names:
            raise InvalidPlan(
                f"layer {name!r} is merged into another layer of {graph.name!r}; layers are {', '.join(sorted(names))}"
            )
    return plan.layers_at(FP32, graph)


def extents(graph: Graph, dims: Mapping[str, int]) -> dict[str, int]:
    """An extent for every symbolic dimension of the inputs without upper bound: those of `dims`, and 1 for a leading batch axis.

    Raises:
        UsageError: a dimension stays unbound, or `dims` names one that the model does not have.
    """
    found = {d.name: d for v in graph.inputs for d in v.type.shape if isinstance(d, Dim)}
    known = set(found)
    if unknown := sorted(set(dims) - known):
        raise UsageError(f"--dim {unknown[0]}: the model's symbolic dimensions are {', '.join(sorted(known)) or 'none'}")
    bound = dict(dims)
    for value in graph.inputs:
        if value.type.shape and isinstance(batch := value.type.shape[0], Dim) and batch.hi is None:
            bound.setdefault(batch.name, 1)
    if left := sorted(name for name in known - set(bound) if found[name].hi is None):
        raise UsageError(
            f"dimension {left[0]!r} of {graph.name!r} is symbolic: give it with --dim {left[0]}=N, or bounds within which it is "
            f"chosen at run time with --dim {left[0]}=LO:HI"
        )
    return bound


def bind(graph: Graph, dims: Mapping[str, int]) -> Graph:
    """`graph` with every symbolic dimension bound or bounded; see `extents`."""
    return bind_dims(graph, extents(graph, dims))


def compile_model(
    model: str | Path, output: str | Path, options: Options, say: Say = _silent, trace: Trace | None = None
) -> tuple[Artifact, float]:
    """Compile `model` into the artifact directory `output`, which appears whole or not at all.

    Args:
        model: .onnx, .ir or artifact directory.
        output: by convention NAME.bevel; replaced if it is an artifact.
        options: device, bits, data.
        say: progress: (stage, done, total).
        trace: watches the passes, which then run even where the cache holds the artifact.

    Returns:
        The artifact and the seconds it took.

    Raises:
        BevelError: a subclass says what is wrong with the model, the data, the options or the toolchain.
    """
    start = time.monotonic()
    model, output = Path(model), Path(output)
    # What can be refused at once is refused before minutes of work.
    choices = {
        "bits": str(options.precision()),
        "weight_scales": options.whole_plan().scales,
        "granularity": options.whole_plan().granularity,
        "rounding": options.whole_plan().rounding,
        "method": options.calibration_method(),
        "bias_correction": options.bias_correction,
        "samples": options.samples,
        "dims": dict(options.dims),
        "pad_nms": options.pad_nms,
        "custom_ops": [load_custom_op(spec).digest for spec in options.custom_ops],
        "plan": options.plan.dumps() if options.plan is not None else None,
        **({"allow": [*map(str, options.whole_plan().allow)]} if options.whole_plan().allow else {}),
        "boundary": [print_pipeline(_boundary(options)), options.float_outputs, options.keep_float],
    }
    profile = load_profile(options.device)
    if not model.exists():
        raise _no_such_model(model)
    if options.calibration is not None and not options.calibration.exists():
        raise UsageError(f"{options.calibration}: no such file; calibration data is an .npz or a directory of .npy files")
    check_output(output)
    options.tuning.check()
    from bevel.tuning.tuner import Tuner

    toolchain = find_toolchain(profile.arch)
    stem = artifact_cache.cache_key(model, profile.target(), toolchain.description, choices, options.calibration)
    tuner = Tuner.load(profile, options.tuning)
    known = artifact_cache.recall(stem, options.tuning.mode)
    if trace is None and known is not None and tuner.knows(known):
        if (found := artifact_cache.fetch(artifact_cache.tuned_key(stem, tuner.digest(known)), output)) is not None:
            return found, time.monotonic() - start
    say("import", 0, 1)
    graph = load_graph(model, options.dims, pad_nms=options.pad_nms)
    batch, imported = extents(graph, {}), len(graph.nodes)
    trace = trace or Trace()
    problems: list[str] = []
    chosen: dict[str, Any] = {}
    if options.whole_plan().allow:
        from bevel.allocation.allocate import allocate

        allocation = allocate(graph, options, profile, batch, tuner, say)
        options, problems, chosen = replace(options, plan=allocation.plan), allocation.problems, allocation.manifest_field()
    graph = bind(prepare(graph, options, say, trace), batch)
    nodes = {"imported": imported, "compiled": len(graph.nodes)}
    schedule = lowered(graph, profile, say, tuner)
    problems += [repr(kernel.problem) for kernel in schedule.kernels]
    key = artifact_cache.tuned_key(stem, tuner.digest(problems))
    with artifact_cache.staging(key) as folder:
        artifact = build(
            graph,
            profile,
            Path(folder) / output.name,
            options,
            provenance=provenance(model, options, key, trace) | {"nodes": nodes},
            fields=findings(graph, model, trace) | chosen | {"tuning": tuner.document(schedule)},
            say=say,
            schedule=schedule,
        )
        predicted = Findings(predicted_ms=predict_layers(graph, Roofline(profile)))
        artifact_cache.store(write_report(artifact, predicted), key)
    artifact_cache.remember(stem, tuner.satisfied, tuner.measured(problems))
    finished = artifact_cache.fetch(key, output)
    if finished is None:
        raise ArtifactError(f"{output}: the artifact was damaged on its way out of the cache; compile again")
    return finished, time.monotonic() - start


def default_output(model: Path, device: str) -> Path:
    """MODEL.bevel here; for an artifact MODEL-DEVICE.bevel, so that it never replaces the one it is compiled from."""
    if model.is_dir():
        return Path(f"{model.resolve().name.removesuffix('.bevel')}-{Path(device).name.removesuffix('.toml')}.bevel")
    return Path(f"{model.name.removesuffix('.onnx').removesuffix('.ir')}.bevel")


def check_output(output: Path) -> None:
    """Refuse a place where no artifact can be written.

    Raises:
        UsageError: something that is not an artifact is there, or no directory can be made there.
    """
    if output.exists() or output.is_symlink():
        try:
            read_manifest(output)
        except ArtifactError as error:
            raise UsageError(f"{output}: exists and is not an artifact; choose another -o or remove it") from error
    parent = next(p for p in output.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"{output}: cannot be written, because {parent} is not a directory that you may write; choose another -o"
        )


def _check_half(graph: Graph, profile: Profile) -> None:
    """Refuse half precision on a device without it.

    Raises:
        UsageError: says which devices have it.
    """
    if "fp16" in profile.features or all(value.type.elem != F16 for value in graph.values()):
        return
    having = [name for name in list_profiles() if name != "host" and "fp16" in load_profile(name).features]
    raise UsageError(
        f"{graph.name!r} is in half precision, for which {profile.name} ({profile.cpu}) has no instructions; compile it with "
        f"--bits fp32 or 8, or for one of {', '.join(having)}"
    )


def lowered(graph: Graph, profile: Profile, say: Say = _silent, tuner: Tuner | None = None) -> Schedule:
    """Lower a FLOAT or INTEGER graph for a device.

    Args:
        graph: its symbolic dimensions are bounded.
        profile: the device.
        say: progress.
        tuner: chooses kernels, after measuring them if that is its mode; None takes the statically best ones.

    Raises:
        UnsupportedOp: no kernel computes some node.
        DeviceError: the device failed while kernels were measured.
    """
    from bevel.backends.lower import lower
    from bevel.ir.verify import verify

    verify(graph)
    _check_half(graph, profile)
    say("lower", 0, 1)
    schedule = lower(graph, profile.target(), ranker=tuner)
    if tuner is not None and tuner.measure(profile, schedule, say):
        schedule = lower(graph, profile.target(), ranker=tuner)
    return schedule


def build(
    graph: Graph,
    profile: Profile,
    output: Path,
    options: Options,
    *,
    provenance: Mapping[str, Any] | None = None,
    fields: Mapping[str, Any] | None = None,
    say: Say = _silent,
    schedule: Schedule | None = None,
) -> Artifact:
    """Turn a FLOAT or INTEGER graph into an artifact for one device.

    Args:
        graph: its symbolic dimensions are bounded.
        profile: the device.
        output: artifact directory.
        options: says where the self-test's inputs come from.
        provenance: for the manifest.
        fields: more for the manifest.
        say: progress.
        schedule: what `lowered` made of the graph; None lowers it with the statically best kernels.
    """
    from bevel.backends.objects import compile_kernels
    from bevel.golden import golden_inputs
    from bevel.ir import interp
    from bevel.ir.serialize import code_spans, dumps
    from bevel.ir.verify import float_islands, is_integer_only
    from bevel.runtime.artifact import write_artifact
    from bevel.runtime.custom import is_custom

    schedule = schedule or lowered(graph, profile, say)
    kernels = [kernel for kernel in schedule.kernels if not is_custom(kernel)]
    objects = compile_kernels(kernels, schedule.target, progress=lambda done, total: say("kernels", done, total))
    say("link", 0, 1)
    islands = [node.loc or node.outputs[0].name for island in float_islands(graph) for node in island]
    saved = dumps(graph)
    return write_artifact(
        output,
        schedule,
        objects,
        golden=[(case, interp.run(graph, case)) for case in golden_inputs(graph, options.calibration)],
        provenance=provenance or {"bevel": __version__},
        graph_bytes=saved,
        graph_codes=code_spans(saved),
        integer_only=is_integer_only(graph),
        float_islands=islands if graph.level is Level.INTEGER else [],
        fields={"memory": [vars(lifetime) for lifetime in schedule.lifetimes], **(fields or {})},
    )
