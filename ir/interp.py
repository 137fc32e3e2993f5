"""The numpy interpreter: the semantics of every graph.

`run` maps input arrays to output arrays. At FLOAT level arrays hold reals. At ANNOTATED level they hold reals too, and every
value whose type is quantized passes through quantize and dequantize (fake quantization). At INTEGER level arrays hold what the
types say: codes, accumulators, and reals inside declared float islands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import UsageError
from bevel.ir.dims import bound_attrs, bound_type
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import Call, Trait, lookup
from bevel.ir.types import F16, Codebook, Dim, Int, Quant

Array = npt.NDArray[Any]
Observer = Callable[[Value, Array], None]


def _fits(dim: int | Dim, extent: int) -> bool:
    if isinstance(dim, Dim):
        return dim.lo <= extent and (dim.hi is None or extent <= dim.hi)
    return dim == extent


def check_input(value: Value, array: Array, *, finite: bool = True) -> Array:
    """`array` if it fits graph input `value`.

    Raises:
        UsageError: another rank, extent or dtype, or NaN or infinity where `finite`; names the input, found and expected.
    """
    shape = value.type.shape
    if array.ndim != len(shape) or not all(_fits(d, n) for d, n in zip(shape, array.shape, strict=True)):
        expected = ", ".join(str(d) for d in shape)
        raise UsageError(f"input {value.name!r}: shape {list(array.shape)} given, expected [{expected}]")
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UsageError(f"input {value.name!r}: holds NaN or infinity")
    return array


def boundary_codes(value: Value, array: Array) -> Array:
    """`array` as the elements that `value` stores: floats for a quantized type become codes, the rest passes unchanged.

    Raises:
        UsageError: another dtype, or codes outside the storage range.
    """
    elem = value.type.elem
    if isinstance(elem, Quant) and array.dtype.kind == "f":
        return elem.quantize(array)
    if array.dtype != value.type.dtype:
        choice = " or float32" if isinstance(elem, Quant) else ""
        raise UsageError(f"value {value.name!r}: dtype {array.dtype} given, expected {value.type.dtype}{choice}")
    if isinstance(elem, Quant) and array.size and not elem.storage.min <= array.min() <= array.max() <= elem.storage.max:
        raise UsageError(
            f"value {value.name!r}: codes {array.min()}..{array.max()} given, {elem.storage} holds {elem.storage.min}.."
            f"{elem.storage.max}"
        )
    return array


def _as_real(value: Value, array: Array) -> Array:
    """Reals of an array below INTEGER level: fake quantization where the type is quantized, one rounding where it is float16."""
    elem = value.type.elem
    if elem == F16:
        # Beyond 65504 is infinity, as in memory.
        with np.errstate(over="ignore"):
            return array.astype(np.float16).astype(np.float32)
    if isinstance(elem, Quant):
        return elem.dequantize(elem.quantize(array) if array.dtype.kind == "f" else array)
    return elem.dequantize(array) if isinstance(elem, Codebook) else array


def run(
    graph: Graph,
    inputs: Mapping[str, Array],
    *,
    observe: Observer | None = None,
    extra_outputs: tuple[str, ...] = (),
    finite: bool = True,
) -> dict[str, Array]:
    """Execute `graph`.

    Args:
        graph: verified graph of any level.
        inputs: one array for each graph input. Where the input's type is quantized, float arrays are quantized at the boundary
            with IEEE float32 division and half-even rounding; integer arrays are taken as codes.
        observe: called with every node result as it is computed (calibration, debugging), before fake quantization.
        extra_outputs: names of further values to return.
        finite: refuse NaN and infinity in inputs, which are mistakes in every data set.

    Returns:
        Output arrays by name, `extra_outputs` included. At INTEGER level quantized outputs are codes, else reals.

    Raises:
        UsageError: a missing, superfluous or ill-shaped input, or an extra output that does not exist.
    """
    expected = {v.name for v in graph.inputs}
    if set(inputs) != expected:
        raise UsageError(f"inputs {sorted(inputs)} given, {graph.name!r} expects {sorted(expected)}")
    if unknown := [name for name in extra_outputs if name not in graph]:
        raise UsageError(f"extra outputs {unknown} do not exist in {graph.name!r}")
    execution = Execution(graph, inputs, finite=finite)
    wanted = dict.fromkeys((*graph.outputs, *(graph.value(name) for name in extra_outputs)))
    pending = {v: len(v.users) for v in graph.values()}
    for node in graph.nodes:
        execution.execute(node, observe)
        for value in dict.fromkeys(node.inputs):
            pending[value] -= 1
            if not pending[value] and value not in wanted and not value.is_constant:
                del execution.arrays[value]
    return {v.name: execution.arrays[v] for v in wanted}


class Execution:
    """A graph on its way: nodes are executed one by one, in the graph's order.

    Attributes:
        arrays: what is known of the graph's values: after the beginning, its inputs and constants.

    Args:
        graph: verified graph of any level.
        inputs: see `run`.
        finite: see `run`.

    Raises:
        UsageError: an ill-shaped input.
    """

    def __init__(self, graph: Graph, inputs: Mapping[str, Array], *, finite: bool = True) -> None:
        self._integer = graph.level is Level.INTEGER
        self._symbols: dict[str, int] = {}
        self.arrays: dict[Value, Array] = {}
        for value in graph.inputs:
            array = check_input(value, np.asarray(inputs[value.name]), finite=finite)
            _bind_symbols(value, array, self._symbols)
            self.arrays[value] = self._held(value, boundary_codes(value, array))
        for value in graph.constants:
            self.arrays[value] = self._held(value, value.array)

    def execute(self, node: Node, observe: Observer | None = None) -> None:
        """Compute the results of a node whose operands are known; `observe` sees them before fake quantization."""
        results = _call(node, tuple(self.arrays[v] for v in node.inputs), self._symbols)
        for value, array in zip(node.outputs, results, strict=True):
            if observe is not None:
                observe(value, array)
            self.arrays[value] = self._held(value, array)

    def refresh(self, node: Node) -> None:
        """Take up constant operands of `node` that it did not have in the beginning."""
        for value in node.inputs:
            if value.is_constant and value not in self.arrays:
                self.arrays[value] = self._held(value, value.array)

    def _held(self, value: Value, array: Array) -> Array:
        return array if self._integer else _as_real(value, array)


def _bind_symbols(value: Value, array: Array, symbols: dict[str, int]) -> None:
    for dim, extent in zip(value.type.shape, array.shape, strict=True):
        if isinstance(dim, Dim) and symbols.setdefault(dim.name, extent) != extent:
            raise UsageError(f"input {value.name!r}: dimension {dim.name} is {extent}, another input has {symbols[dim.name]}")


def _call(node: Node, arrays: tuple[Array, ...], symbols: Mapping[str, int]) -> tuple[Array, ...]:
    ins, outs = (tuple(bound_type(v.type, symbols) for v in values) for values in (node.inputs, node.outputs))
    call = Call(bound_attrs(node.attrs, symbols) if symbols else node.attrs, ins, outs)
    results = lookup(node.op).reference(call, *arrays)
    return results if isinstance(results, tuple) else (results,)


def evaluate(node: Node, level: Level) -> tuple[Array, ...]:
    """Stored arrays of the results of a node whose operands are all constants: codes where a result type is quantized."""
    # Movement of one type copies elements, so it is exact on codes; arithmetic below INTEGER level is on reals.
    elems = {v.type.elem for v in (*node.inputs, *node.outputs) if not isinstance(v.type.elem, Int)}
    moved = Trait.MOVEMENT in lookup(node.op).traits and len(elems) <= 1
    stored = level is Level.INTEGER or moved
    results = _call(node, tuple(v.array if stored else _as_real(v, v.array) for v in node.inputs), {})
    return tuple(boundary_codes(v, a) for v, a in zip(node.outputs, results, strict=True))


def to_real(value: Value, array: Array) -> Array:
    """Reals of an output array: codes of a quantized type are dequantized."""
    elem = value.type.elem
    return elem.dequantize(array) if isinstance(elem, Quant) and array.dtype.kind != "f" else array
