"""ONNX's own operator test cases, judged: each is imported, interpreted and compared with the outputs ONNX gives.

A case counts as `pass`, `refused` (an `UnsupportedModel` that names what is missing), `wrong` (another value, shape or type)
or `crash` (any other exception). Cases come in two variants: as they are, and *frozen*, with every operand but the first
stored in the model, as deployed models store axes, shapes, bounds and weights.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases

from bevel.errors import UnsupportedModel
from bevel.frontend import import_onnx
from bevel.ir.graph import Graph, Value
from bevel.ir.interp import run
from bevel.ir.types import Quant
from bevel.passes.canonicalize import canonicalize

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class NodeCase:
    """One case: the model, its inputs and the outputs that ONNX gives, None where they are no dense arrays.

    Attributes:
        name: of the case; frozen variants end in " frozen".
        op: type of the first node.
        rtol, atol: tolerance of the case.
    """

    name: str
    op: str
    model: onnx.ModelProto
    inputs: tuple[Array, ...] | None
    outputs: tuple[Array, ...] | None
    rtol: float
    atol: float


@dataclass(frozen=True)
class Verdict:
    """What became of a case.

    Attributes:
        status: "pass", "refused", "wrong" or "crash".
        detail: message of the refusal or the failure.
        graph: the canonical graph, where one was made.
    """

    case: NodeCase
    status: str
    detail: str = ""
    graph: Graph | None = None


def load_cases() -> list[NodeCase]:
    """All node cases of the installed onnx package, as they are."""
    found = []
    for case in collect_testcases(None):
        inputs, outputs = case.data_sets[0]
        given, expected = _dense(inputs), _dense(outputs)
        arrays = (given, expected) if given is not None and expected is not None else (None, None)
        found.append(NodeCase(case.name, case.model.graph.node[0].op_type, case.model, *arrays, case.rtol, case.atol))
    return found


def _dense(values: Sequence[Any]) -> tuple[Array, ...] | None:
    """The values as arrays, None where one is a sequence, an optional or a map."""
    arrays = [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for v in values]
    return tuple(map(np.asarray, arrays)) if all(isinstance(a, np.ndarray | np.generic) for a in arrays) else None


def frozen(case: NodeCase) -> NodeCase | None:
    """The variant whose operands but the first are initializers, None where there is none."""
    names = [i.name for i in case.model.graph.input]
    if case.inputs is None or not 1 < len(case.inputs) == len(names) or any(a.dtype.kind in "OUS" for a in case.inputs):
        return None
    model = onnx.ModelProto.FromString(case.model.SerializeToString())
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in zip(names[1:], case.inputs[1:], strict=True))
    del model.graph.input[1:]
    return dataclasses.replace(case, name=f"{case.name} frozen", model=model, inputs=case.inputs[:1])


def variants(cases: Sequence[NodeCase]) -> Iterator[NodeCase]:
    """Every case, followed by its frozen variant."""
    for case in cases:
        yield case
        if (other := frozen(case)) is not None:
            yield other


def feed(graph: Graph, case: NodeCase) -> dict[str, Array]:
    """Inputs as the graph takes them: every float is float32, unsigned codes are signed."""
    assert case.inputs is not None
    named = dict(zip((i.name for i in case.model.graph.input), case.inputs, strict=True))
    result = {}
    for value in graph.inputs:
        array = named[value.name]
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            array = array.astype(np.float32)
        elif isinstance(value.type.elem, Quant):
            unsigned = array.dtype.name.startswith("uint")
            shift = (1 << (value.type.elem.storage.bits - 1)) if unsigned and value.type.elem.storage.signed else 0
            array = (array.astype(np.int64) - shift).astype(value.type.dtype)
        result[value.name] = array
    return result


def stored(value: Value, array: Array, expected: Array) -> Array:
    """An output as the model stores it: unsigned codes where ONNX has them."""
    elem = value.type.elem
    if isinstance(elem, Quant) and "int" in expected.dtype.name:
        codes = elem.quantize(array) if array.dtype.kind == "f" else array
        unsigned = expected.dtype.name.startswith("uint")
        return codes.astype(np.int64) + ((1 << (elem.storage.bits - 1)) if unsigned and elem.storage.signed else 0)
    return array


def difference(case: NodeCase, graph: Graph, results: dict[str, Array]) -> str:
    """What `results` get wrong, "" where they are right within the tolerance of the case and of its types."""
    assert case.outputs is not None
    for value, want in zip(graph.outputs, case.outputs, strict=True):
        got = stored(value, results[value.name], want)
        if got.shape != want.shape:
            return f"output {value.name!r} has shape {list(got.shape)}, expected {list(want.shape)}"
        floating = want.dtype.kind == "f" or want.dtype.name == "bfloat16"
        if floating != (got.dtype.kind == "f"):
            return f"output {value.name!r} is {got.dtype}, expected {want.dtype}"
        # Reduced types round every intermediate result; here each is a float32.
        coarse = {"float16": 4 * 2.0**-10, "bfloat16": 4 * 2.0**-7}.get(want.dtype.name, 0.0)
        close = np.isclose(
            got.astype(np.float64),
            want.astype(np.float64),
            rtol=max(case.rtol, coarse) if floating else 0,
            atol=max(case.atol, 1e-6, coarse) if floating else 0,
            equal_nan=True,
        )
        if not close.all():
            at = tuple(int(i) for i in np.argwhere(~close)[0]) if close.ndim else ()
            return (
                f"output {value.name!r} at {at} is {got[at]}, expected {want[at]}; {int((~close).sum())} of {close.size} differ"
            )
    return ""


def judge(case: NodeCase, folder: Path) -> Verdict:
    """Import, canonicalize and interpret one case."""
    path = folder / "case.onnx"
    path.write_bytes(case.model.SerializeToString())
    try:
        with np.errstate(all="ignore"):
            graph = canonicalize(import_onnx(path))
            if case.inputs is None or case.outputs is None:
                return Verdict(case, "wrong", "imported although it takes or gives no dense arrays", graph)
            fault = difference(case, graph, run(graph, feed(graph, case), finite=False))
    except UnsupportedModel as error:
        return Verdict(case, "refused", f"{type(error).__name__}: {error}".replace(f"{path}: ", ""))
    except Exception as error:  # a crash is one of the results this file exists to report
        return Verdict(case, "crash", f"{type(error).__name__}: {error}")
    return Verdict(case, "wrong" if fault else "pass", fault, graph)


def judge_all(cases: Sequence[NodeCase]) -> list[Verdict]:
    """Verdicts of all cases, in order."""
    with tempfile.TemporaryDirectory() as folder:
        return [judge(case, Path(folder)) for case in cases]
