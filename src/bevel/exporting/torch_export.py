"""From a torch module to a proven ONNX file: the road of `bevel export`.

In: a `Source`, descriptions of inputs, options. Out: a file and its proof. The file is written beside its place and moved there
when parity holds, so a failure leaves nothing behind.
"""

from __future__ import annotations

import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.data import Inputs, open_data
from bevel.errors import ExportError, UnsupportedModel, UsageError
from bevel.exporting.extra import require
from bevel.exporting.fake_quantization import translations
from bevel.exporting.inputs import (
    Bounds,
    InputSpec,
    bounds_of,
    describe_example,
    merge_bounds,
    parse_input,
    trial_sizes,
)
from bevel.exporting.parity import Case, Proof, Say, prove
from bevel.exporting.source import Call, Source, load_source, plan_call
from bevel.frontend.provenance import strip_provenance

Array = npt.NDArray[Any]

EXPORTERS = ("dynamo", "torchscript")
# torch's translations are written for this operator set: none is converted.
OPSET = 18
TOLERANCE = 1e-4
# Random cases at the example's size, besides one at every other size.
_SEEDS = 3
# One protobuf message, which an ONNX file is, holds at most this.
_FILE_LIMIT = 2**31


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        inputs: text or an example array for an input, by name; overrides what the source says of it.
        dims: bounds of named dimensions; override those of the source.
        data: arrays to prove parity on as well (docs/data.md).
        samples: how many samples of `data` to use at most.
        outputs: names of the outputs, in order; default the model's own.
        task: of a transformers model; selects its head.
        head: class of a transformers model, by name.
        random_weights: draw weights that a transformers directory lacks.
        exporter: "dynamo" or "torchscript".
        opset: ONNX operator set.
        tolerance: of max|d| / max|reference|.
        seed: of random inputs and weights.
    """

    inputs: Mapping[str, str | Array] = field(default_factory=dict)
    dims: Mapping[str, Bounds] = field(default_factory=dict)
    data: Path | None = None
    samples: int = 32
    outputs: tuple[str, ...] = ()
    task: str | None = None
    head: str | None = None
    random_weights: bool = False
    exporter: str = "dynamo"
    opset: int = OPSET
    tolerance: float = TOLERANCE
    seed: int = 0


@dataclass(frozen=True)
class Exported:
    """An exported, proven file.

    Attributes:
        path: the ONNX file.
        exporter: what wrote it, with its version.
        opset: ONNX operator set.
        inputs: what it takes.
        outputs: names of what it gives.
        dims: bounds of its named dimensions.
        proof: what was compared, and the greatest error.
        seconds: how long all of it took.
    """

    path: Path
    exporter: str
    opset: int
    inputs: tuple[InputSpec, ...]
    outputs: tuple[str, ...]
    dims: Mapping[str, Bounds]
    proof: Proof
    seconds: float


def _silent(_stage: str, _done: int, _total: int) -> None:
    """Progress for callers that show none."""


def export_model(source: Any, output: Path, options: ExportOptions, say: Say = _silent) -> Exported:
    """Export `source` to the ONNX file `output` and prove that it computes the same.

    Args:
        source: `module:factory`, a .pt2 file, a transformers config.json or directory, or a torch module.
        output: file to write; an older one is replaced when everything has succeeded.
        options: see there.
        say: progress.

    Raises:
        UsageError: the source, the inputs, the data or the place to write cannot be meant.
        ExportError: the source cannot be loaded, run or exported.
        ParityError: the exported file computes something else; nothing is written.
        ToolchainError: an optional dependency is missing.
    """
    start = time.monotonic()
    if options.exporter not in EXPORTERS:
        raise UsageError(f"exporter {options.exporter!r} is unknown; choose one of {', '.join(EXPORTERS)}")
    if not output.parent.is_dir():
        raise UsageError(f"{output}: {output.parent} is not a directory; create it, or choose another place")
    if output.is_dir():
        raise UsageError(f"{output}: is a directory; name a file, for example {output / 'model.onnx'}")
    require("onnxruntime")
    say("load", 0, 1)
    loaded = load_source(source, task=options.task, head=options.head, random_weights=options.random_weights, seed=options.seed)
    say("load", 1, 1)
    inputs, bounds, examples = _resolve_inputs(loaded, options)
    call = _plan(loaded, inputs)
    cases = _cases(inputs, bounds, examples, options)
    outputs = _output_names(call, cases[0], inputs, options)
    _check_size(loaded)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        partial = Path(folder) / "model.onnx"
        say("export", 0, 1)
        _export(loaded, call, inputs, bounds, cases[0], outputs, options, partial)
        strip_provenance(partial)
        say("export", 1, 1)
        proof = prove(partial, lambda feeds: list(call.outputs(feeds).values()), inputs, outputs, cases, options.tolerance, say)
        os.replace(partial, output)
    exporter = f"{options.exporter} of torch {require('torch').__version__}"
    return Exported(output, exporter, options.opset, inputs, outputs, bounds, proof, time.monotonic() - start)


def _resolve_inputs(source: Source, options: ExportOptions) -> tuple[tuple[InputSpec, ...], dict[str, Bounds], dict[str, Array]]:
    """Inputs of the source with those of the caller laid over them; bounds of all dimensions; example values."""
    specs = {spec.name: spec for spec in source.inputs}
    examples = dict(source.examples or {})
    written: dict[str, Bounds] = dict(options.dims)
    for name, given in options.inputs.items():
        examples.pop(name, None)
        if isinstance(given, str):
            specs[name], bounds = parse_input(name, given)
            written = merge_bounds(written, [bounds])
        elif isinstance(given, np.ndarray):
            specs[name], examples[name] = describe_example(name, given), given
        else:
            raise UsageError(f"input {name!r} is {type(given).__name__}, expected text such as 1,3,224,224, or a numpy array")
    if source.program is not None:
        _check_program(source, specs)
    if not specs:
        raise UsageError(
            f"{source.label}: says nothing about its inputs; give --input NAME=SHAPE, for example --input x=1,3,224,224"
        )
    inputs = tuple(specs.values())
    named = {symbol for spec in inputs for symbol in spec.symbols}
    own = {name: bound for name, bound in (source.bounds or {}).items() if name in named}
    return inputs, bounds_of(inputs, {**own, **written}), examples


def _check_program(source: Source, specs: Mapping[str, InputSpec]) -> None:
    """A program's shapes are fixed: the caller may name its free dimensions and narrow them, nothing else."""
    own = {spec.name: spec for spec in source.inputs}
    if set(specs) != set(own):
        raise UsageError(f"{source.label}: inputs {sorted(specs)} given, the program takes {sorted(own)}")
    for name, spec in specs.items():
        free = [isinstance(extent, str) for extent in own[name].shape]
        asked = [isinstance(extent, str) for extent in spec.shape]
        constants = [extent for extent in own[name].shape if isinstance(extent, int)]
        if free != asked or constants != [e for e in spec.shape if isinstance(e, int)] or spec.dtype != own[name].dtype:
            raise UsageError(
                f"{source.label}: input {name!r} is {own[name].dtype}{list(own[name].shape)} in the program; "
                f"{spec.dtype}{list(spec.shape)} asked for"
            )


def _plan(source: Source, inputs: tuple[InputSpec, ...]) -> Call:
    names = tuple(spec.name for spec in inputs)
    if source.program is None:
        return plan_call(source, names)
    own = tuple(spec.name for spec in source.inputs)
    return Call(source.module, own, len(source.program.call_spec.in_spec.child(0).children()))


def _cases(
    inputs: tuple[InputSpec, ...], bounds: Mapping[str, Bounds], examples: Mapping[str, Array], options: ExportOptions
) -> list[Case]:
    """What to compare on; the first is the example that is traced."""
    cases = []
    rng = np.random.default_rng(options.seed)
    sizes = trial_sizes(bounds, rng)
    for number, size in enumerate([sizes[0]] * _SEEDS + sizes[1:]):
        feeds = {spec.name: spec.draw(size, rng) for spec in inputs}
        if number == 0:
            # Nothing is padded in the traced example; what an exporter concludes from that, the other cases show.
            feeds.update({spec.name: np.ones_like(feeds[spec.name]) for spec in inputs if spec.mask})
            feeds.update(examples)
        at = "".join(f", {name}={extent}" for name, extent in size.items())
        cases.append(Case(f"example{at}" if number == 0 else f"random inputs {number}{at}", feeds))
    if options.data is not None:
        described = [Inputs(s.name, tuple(None if isinstance(e, str) else e for e in s.shape)) for s in inputs]
        data = open_data(options.data, described)
        for index in range(min(len(data), options.samples)):
            feeds = {s.name: data.sample(index)[s.name].astype(s.dtype, copy=False) for s in inputs}
            _check_extents(options.data, index, inputs, bounds, feeds)
            cases.append(Case(f"{options.data} sample {index}", feeds))
    return cases


def _check_extents(
    path: Path, index: int, inputs: tuple[InputSpec, ...], bounds: Mapping[str, Bounds], feeds: Mapping[str, Array]
) -> None:
    for spec in inputs:
        for symbol, extent in zip(spec.shape, feeds[spec.name].shape, strict=True):
            if isinstance(symbol, str) and not bounds[symbol][0] <= extent <= bounds[symbol][1]:
                raise UsageError(
                    f"{path}: sample {index} has {symbol}={extent}, outside of "
                    f"[{bounds[symbol][0]}:{bounds[symbol][1]}]; widen the bounds"
                )


def _output_names(call: Call, example: Case, inputs: tuple[InputSpec, ...], options: ExportOptions) -> tuple[str, ...]:
    own = tuple(call.outputs(example.feeds))
    names = options.outputs or own
    if len(names) != len(own) or len(set(names)) != len(names):
        raise UsageError(f"outputs {list(names)} asked for, the model gives {len(own)}: {list(own)}; name each once")
    taken = {spec.name for spec in inputs}
    if options.outputs and taken & set(names):
        raise UsageError(f"outputs {sorted(taken & set(names))} are called like inputs; choose other names")
    return tuple(f"{name}_out" if name in taken else name for name in names)


def _check_size(source: Source) -> None:
    tensors = {id(t): t for t in (*source.module.parameters(), *source.module.buffers())}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    if size >= _FILE_LIMIT:
        raise UnsupportedModel(f"{source.label}: {size / 2**30:.1f} GiB of weights; one ONNX file holds less than 2 GiB")


def _export(
    source: Source,
    call: Call,
    inputs: tuple[InputSpec, ...],
    bounds: Mapping[str, Bounds],
    example: Case,
    outputs: tuple[str, ...],
    options: ExportOptions,
    path: Path,
) -> None:
    """Let torch write the file.

    Raises:
        ExportError: torch refuses the module.
    """
    torch = require("torch")
    require("onnxscript")
    by_name = {spec.name: spec for spec in inputs}
    names = list(call.names)
    shared: dict[str, Any] = {
        "input_names": names,
        "output_names": list(outputs),
        "opset_version": options.opset,
        "verbose": False,
    }
    tensors = call.tensors(example.feeds)
    axes = {name: {axis: e for axis, e in enumerate(by_name[name].shape) if isinstance(e, str)} for name in names}
    try:
        with _quiet(), torch.no_grad():
            if options.exporter == "torchscript":
                from bevel.exporting.positional import Positional

                wrapped = Positional(call).eval()
                torch.onnx.export(wrapped, tuple(tensors.values()), str(path), dynamo=False, dynamic_axes=axes, **shared)
                return
            dims = {n: torch.export.Dim(n, min=low, max=high) for n, (low, high) in bounds.items() if low < high}
            dynamic = {name: {axis: dims[e] for axis, e in named.items() if e in dims} for name, named in axes.items()}
            args, kwargs = call.arguments(tensors)
            positional, keywords = call.arguments(dynamic)
            shapes = {**dict(zip(_parameter_names(call), positional, strict=False)), **keywords}
            program = torch.onnx.export(
                source.program if source.program is not None else call.module,
                args,
                kwargs=kwargs,
                dynamo=True,
                dynamic_shapes=shapes if dims else None,
                custom_translation_table=translations(),
                **shared,
            )
            program.save(str(path), external_data=False)
    except Exception as error:
        raise ExportError(f"{source.label}: torch's {options.exporter} exporter refuses the model: {_cause(error)}") from error


def _parameter_names(call: Call) -> list[str]:
    import inspect

    return list(inspect.signature(call.module.forward).parameters)


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters speak of packages that are not installed and of their own future; what matters is raised or found by parity."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _cause(error: BaseException) -> str:
    """The innermost reason, in one line: exporters wrap it in advice of many lines."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:400] if lines else 'no message'}"
