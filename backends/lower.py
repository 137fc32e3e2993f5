"""Lowering: a graph becomes a Schedule.

In: a verified FLOAT or INTEGER graph whose symbolic dimensions have upper bounds, and a target. Out: kernel calls over one
arena with packed weights. Here nodes are fused into problems while layouts are assigned, and a kernel is chosen for each;
`bevel.backends.assemble` does the rest. Every fusion computes exactly what the graph says.

Symbolic dimensions are laid out at their bounds, so strides, offsets and the arena are static; only loops end early. What the
user sees is contiguous at the actual extents: where that differs, "Spread" and "Compact" copy at the graph's border.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.backends.addends import fuse_addends
from bevel.backends.assemble import assemble
from bevel.backends.calls import Call, Tensor
from bevel.backends.kernel import Buf, ConvConstants, ConvProblem, NodeProblem
from bevel.backends.kernels.int16_sums import are_light
from bevel.backends.physical import (
    NHWC,
    PRODUCTS,
    WINDOWED,
    Layout,
    bounded,
    buffer_of,
    code_offset,
    contiguous,
    equivalent,
    low_bits,
    needs_row_major,
    precision_of,
    product_dtype,
    row_major,
    same_memory,
    store_constant,
    transposed,
    weight_integers,
)
from bevel.backends.schedule import Schedule
from bevel.backends.select import KernelRanker, choose, rewritten, with_groups
from bevel.backends.stairs import stairs
from bevel.errors import UnsupportedOp, UsageError
from bevel.ir.graph import Graph, Level, Node, Value
from bevel.ir.ops import NoAttrs, Trait, lookup
from bevel.ir.ops.elementwise import ClipAttrs
from bevel.ir.ops.integer import RequantizeAttrs
from bevel.ir.protocols import Target
from bevel.ir.types import Dim, Float, Quant, TensorType

Array = npt.NDArray[Any]


def lower(graph: Graph, target: Target, *, ranker: KernelRanker | None = None) -> Schedule:
    """Lower `graph` for `target`.

    Args:
        graph: FLOAT or INTEGER graph; its symbolic dimensions have upper bounds.
        target: device to generate code for.
        ranker: orders kernel candidates; None takes each generator's static preference.

    Raises:
        UsageError: a symbolic dimension has no upper bound, or the graph is ANNOTATED.
        UnsupportedOp: no kernel computes some node, or none with its run-time extents; names it.
    """
    _require_bounds(graph)
    lowering = _Lowering(graph, target, ranker)
    calls = lowering.fused_calls()
    return assemble(graph, target, calls, lowering.inputs, lowering.outputs)


def kernel_calls(graph: Graph, target: Target, *, ranker: KernelRanker | None = None) -> list[Call]:
    """The kernel calls that `lower` makes of `graph`, before anything is packed or placed."""
    _require_bounds(graph)
    return _Lowering(graph, target, ranker).fused_calls()


def _require_bounds(graph: Graph) -> None:
    """See `lower`."""
    if graph.level is Level.ANNOTATED:
        raise UsageError(f"graph {graph.name!r} is at level annotated: run to-integer (or strip the annotations) first")
    for value in graph.values():
        for d in value.type.shape:
            if isinstance(d, Dim) and (d.hi is None or d.lo < 1):
                raise UsageError(
                    f"value {value.name!r} has type {value.type}: bind dimension {d.name!r} with --dim {d.name}=N, or bound it "
                    f"with --dim {d.name}=LO:HI, LO >= 1"
                )


class _Lowering:
    """State of one lowering."""

    def __init__(self, graph: Graph, target: Target, ranker: KernelRanker | None) -> None:
        self.graph = graph
        self.target = target
        self.ranker = ranker
        self.calls: list[Call] = []
        self.tensors: dict[Value, Tensor] = {}
        self.copies: dict[tuple[str, Layout, str], Tensor] = {}
        self.fused: set[Node] = set()
        self.inputs: list[tuple[Value, Tensor]] = []
        self.outputs: list[tuple[Value, Tensor]] = []

    def fused_calls(self) -> list[Call]:
        """Kernel calls in execution order, each with its kernel."""
        for value in self.graph.inputs:
            tensor = Tensor(value.name, self._boundary_buf(value.type))
            self.inputs.append((value, tensor))
            self.tensors[value] = tensor if contiguous(tensor.buf) else self._border(value.name, tensor, "Spread")
        for node in self.graph.nodes:
            if node not in self.fused:
                self._lower_node(node)
        for value in self.graph.outputs:
            self.outputs.append((value, self._boundary_output(value)))
        for call in self.calls:
            call.choice = choose(call.problem, self.target, call.layer, self.ranker)
        kept = [tensor.base for _, tensor in (*self.inputs, *self.outputs)]
        return fuse_addends(self.calls, kept, self.target, self.ranker)

    # Tensors ---------------------------------------------------------------------------------------------------------

    @staticmethod
    def _boundary_buf(type_: TensorType) -> Buf:
        """Graph inputs and outputs are row-major and hold the codes the graph says."""
        elem = type_.elem
        zero = elem.zero_point[0] if isinstance(elem, Quant) and elem.per_tensor else 0
        shape, dims = bounded(type_.shape)
        return Buf(shape, type_.dtype.name, None, zero, dims)

    def _define(self, value: Value, layout: Layout) -> Tensor:
        tensor = Tensor(value.name, buffer_of(value.type, layout, self.target))
        self.tensors[value] = tensor
        return tensor

    def _alias(self, value: Value, source: Tensor, layout: Layout) -> None:
        buf = buffer_of(value.type, layout, self.target)
        tensor = Tensor(value.name, replace(buf, dtype=source.buf.dtype, zero_point=source.buf.zero_point))
        tensor.base = source.base
        self.tensors[value] = tensor

    def _copy(self, source: Tensor, buf: Buf, name: str) -> Tensor:
        """`source` in the layout and stored dtype of `buf`."""
        key = (source.name, buf.layout or row_major(len(buf.shape)), buf.dtype)
        if key not in self.copies:
            copy = Tensor(name, buf)
            self._call_copy(source.name, source, copy)
            self.copies[key] = copy
        return self.copies[key]

    def _border(self, name: str, source: Tensor, op: str) -> Tensor:
        """`source` from contiguous at the actual extents to laid out at the bounds ("Spread"), or back ("Compact")."""
        copy = Tensor(f"{name}.{op.lower()}{len(self.calls)}", source.buf)
        self._call_copy(name, source, copy, op)
        return copy

    def _call_copy(self, layer: str, source: Tensor, copy: Tensor, op: str = "Copy") -> None:
        problem = NodeProblem(op, NoAttrs(), (source.buf,), (copy.buf,), (1.0, 1.0))
        moved = source.buf.nbytes + copy.buf.nbytes
        bits = "fp32" if source.buf.dtype.startswith("float") else "w8a8"
        self.calls.append(Call(layer, op, problem, [source], [copy], bytes=moved, bits=bits))

    def _operand(self, value: Value, layout: Layout | None) -> Tensor | Array:
        """A node's operand in `layout` (None: whichever it has) and the target's stored dtype."""
        if value.is_constant:
            buf = buffer_of(value.type, layout or row_major(value.type.rank), self.target)
            return store_constant(value.array, value.type, buf)
        tensor = self.tensors[value]
        wanted = buffer_of(value.type, layout or tensor.layout, self.target)
        wanted_layout = wanted.layout or row_major(value.type.rank)
        if equivalent(wanted.shape, tensor.layout, wanted_layout) and wanted.dtype == tensor.buf.dtype:
            if tensor.layout == wanted_layout:
                return tensor
            view = Tensor(tensor.name, wanted)
            view.base = tensor.base
            return view
        return self._copy(tensor, wanted, f"{value.name}.copy{len(self.copies)}")

    def _boundary_output(self, value: Value) -> Tensor:
        """The tensor of a graph output: row-major, in the graph's own codes, and not shared with an input."""
        buf = self._boundary_buf(value.type)
        if value.is_constant:
            copy = Tensor(f"{value.name}.out{len(self.outputs)}", buf)
            if buf.size:
                problem = NodeProblem("Copy", NoAttrs(), (buf,), (buf,), (1.0, 1.0))
                self.calls.append(
                    Call(value.name, "Copy", problem, [np.ascontiguousarray(value.array)], [copy], bytes=buf.nbytes)
                )
            return copy
        tensor = self.tensors[value]
        shared = any(tensor.base is t.base for _, t in (*self.inputs, *self.outputs))
        same = tensor.buf.dtype == buf.dtype and equivalent(buf.shape, tensor.layout, row_major(len(buf.shape)))
        if not contiguous(buf):
            # What the user reads has memory of its own, so no other copy is needed.
            return self._border(value.name, tensor if same else self._copy(tensor, buf, f"{value.name}.row"), "Compact")
        if same and not shared:
            view = Tensor(value.name, buf)
            view.base = tensor.base
            return view
        copy = Tensor(f"{value.name}.out{len(self.outputs)}", buf)
        self._call_copy(value.name, tensor, copy)
        return copy

    # Nodes to problems -----------------------------------------------------------------------------------------------

    def _lower_node(self, node: Node) -> None:
        if not any(_elements(v.type) for v in node.outputs):
            # Nothing to compute; readers find an empty tensor.
            for value in node.outputs:
                self._define(value, row_major(value.type.rank))
            return
        computed = node.op == "Conv" and not all(v.is_constant for v in node.inputs[1:])
        if node.op in ("Conv", "IntConv", "Gemm", "IntGemm") and not computed:
            self._lower_weighted(node)
        elif node.op == "Transpose":
            self._lower_transpose(node)
        elif node.op == "Reshape":
            self._lower_reshape(node)
        elif node.op == "Cast" and {type(v.type.elem) for v in (*node.inputs, *node.outputs)} == {Float}:
            self._lower_conversion(node)
        elif node.op == "Recode":
            self._lower_recode(node)
        elif node.op == "Lut" and node.inputs[1].is_constant:
            self._lower_lut(node)
        else:
            self._lower_other(node)

    def _lower_transpose(self, node: Node) -> None:
        value = node.inputs[0]
        source = self._operand(value, None)
        assert isinstance(source, Tensor)
        self._alias(node.output, source, transposed(source.layout, node.attrs.perm))

    def _lower_conversion(self, node: Node) -> None:
        """Between float types: kernels convert what they load and store, so a copy does it."""
        source = self._operand(node.inputs[0], None)
        assert isinstance(source, Tensor)
        self._call_copy(_layer(node), source, self._define(node.output, source.layout))

    def _lower_reshape(self, node: Node) -> None:
        source = self._operand(node.inputs[0], row_major(node.inputs[0].type.rank))
        assert isinstance(source, Tensor)
        target = buffer_of(node.output.type, row_major(node.output.type.rank), self.target)
        if not same_memory(source.buf, target):
            names = sorted({ref.name for ref in target.dims if ref is not None})
            raise UnsupportedOp(
                f"layer {_layer(node)!r}: Reshape of {node.inputs[0].type} to {node.output.type} moves elements across a "
                f"run-time extent; bind it with --dim {names[0]}=N"
            )
        shape = target.shape
        layout = row_major(len(shape))
        if len(shape) == 4 and equivalent(shape, layout, NHWC):
            layout = NHWC
        self._alias(node.output, source, layout)

    def _lower_recode(self, node: Node) -> None:
        """Unsigned codes are what some targets store for signed ones: nothing to do there."""
        source = self._operand(node.inputs[0], None)
        assert isinstance(source, Tensor)
        if buffer_of(node.output.type, source.layout, self.target).dtype == source.buf.dtype:
            self._alias(node.output, source, source.layout)
        else:
            self._call_copy(_layer(node), source, self._define(node.output, source.layout))

    def _lower_lut(self, node: Node) -> None:
        """A table of codes, as thresholds where it climbs few steps."""
        source, table = (self._operand(value, None) for value in node.inputs)
        assert isinstance(source, Tensor)
        assert isinstance(table, np.ndarray)
        climbed = stairs(table, source.buf, buffer_of(node.output.type, source.layout, self.target))
        if climbed is None:
            self._lower_other(node)
            return
        attrs, thresholds = climbed
        result = self._define(node.output, source.layout)
        bufs = source.buf, Buf(thresholds.shape, thresholds.dtype.name)
        problem = NodeProblem("Stairs", attrs, bufs, (result.buf,), (1.0, 1.0, 1.0))
        cost = lookup(node.op).cost(node)
        operands: list[Tensor | Array] = [source, thresholds]
        self.calls.append(
            Call(_layer(node), node.op, problem, operands, [result], macs=cost.macs, bytes=cost.bytes, bits=precision_of(node))
        )

    def _lower_other(self, node: Node) -> None:
        """Any operator without a fused form of its own, with the activations that follow it as epilogue."""
        result, epilogue = self._activation_chain(node)
        layout = self._layout_for(node)
        operands: list[Tensor | Array] = []
        bufs: list[Buf] = []
        # Joining nothing is leaving it out.
        inputs = [v for v in node.inputs if node.op != "Concat" or _elements(v.type)]
        for value in inputs:
            same_rank = value.type.rank == len(layout)
            wanted = layout if node.op in WINDOWED and same_rank and not value.is_constant else None
            if needs_row_major(node.op):
                wanted = row_major(value.type.rank)
            if value.is_constant and same_rank and value.type.shape == node.outputs[0].type.shape:
                wanted = layout
            operand = self._operand(value, wanted)
            operands.append(operand)
            if isinstance(operand, Tensor):
                bufs.append(operand.buf)
            else:
                bufs.append(buffer_of(value.type, wanted or row_major(value.type.rank), self.target))
        results = (result, *node.outputs[1:])
        outputs = [
            self._define(value, layout if value.type.rank == len(layout) else row_major(value.type.rank)) for value in results
        ]
        scales = tuple(_scale(v.type) for v in (*inputs, *results))
        problem = NodeProblem(node.op, node.attrs, tuple(bufs), tuple(t.buf for t in outputs), scales, epilogue)
        op = "+".join((node.op, *(name for name, _ in epilogue)))
        cost = lookup(node.op).cost(node)
        self.calls.append(
            Call(_layer(node), op, problem, operands, outputs, macs=cost.macs, bytes=cost.bytes, bits=precision_of(node))
        )

    def _layout_for(self, node: Node) -> Layout:
        """The layout a node works in: what its kernels need, else that of its first operand of the result's rank."""
        rank = node.outputs[0].type.rank
        if node.op in WINDOWED:
            return NHWC
        if needs_row_major(node.op) or node.op in PRODUCTS:
            return row_major(rank)
        for value in node.inputs:
            if not value.is_constant and value.type.rank == rank:
                return self.tensors[value].layout
        return row_major(rank)

    def _activation_chain(self, node: Node) -> tuple[Value, tuple[tuple[str, Any], ...]]:
        """The value a float node's epilogue ends in, and the activations on the way there."""
        value = node.outputs[0]
        epilogue: list[tuple[str, Any]] = []
        while Trait.ELEMENTWISE in lookup(node.op).traits and lookup(node.op).tolerance > 0:
            user = self.graph.sole_user(value)
            if user is None or Trait.ACTIVATION not in lookup(user.op).traits:
                break
            epilogue.append((user.op, user.attrs))
            self.fused.add(user)
            value = user.output
        return value, tuple(epilogue)

    def _lower_weighted(self, node: Node) -> None:
        """Convolution or GEMM with its requantization or activation."""
        x, w = node.inputs[0], node.inputs[1]
        if not w.is_constant or (len(node.inputs) == 3 and not node.inputs[2].is_constant):
            raise UsageError(f"layer {_layer(node)!r}: {node.op} needs constant weights and bias")
        gemm = node.op in ("Gemm", "IntGemm")
        layout = row_major(x.type.rank) if gemm else NHWC
        operand = self._operand(x, layout)
        if not isinstance(operand, Tensor):
            raise UsageError(f"layer {_layer(node)!r}: {node.op} of a constant: fold constants first")
        problem = self._geometry(node, x, w, gemm=gemm, dtype=product_dtype(x.type.elem, operand.buf, self.target))
        bias = node.inputs[2].array if len(node.inputs) == 3 else np.zeros(problem.oc, np.float32)
        weights = weight_integers(w).reshape(problem.oc, -1, problem.kh, problem.kw)
        ops = [node.op]
        if node.op in ("IntConv", "IntGemm"):
            problem = low_bits(replace(problem, wide_weights=bool((weights == -128).any())), x, w)
            result, problem, constants = self._requantized(node, problem, weights, bias, operand.buf)
            if isinstance(w.type.elem, Quant) and w.type.elem.groups is not None:
                problem = with_groups(problem, w.type.elem.groups, self.target)
            if rewritten(problem, self.target):
                problem = replace(problem, light_weights=are_light(weights))
        else:
            result, problem, constants = self._activated(node, problem, weights, bias)
        if result is not node.output:
            last = result.producer
            assert last is not None
            ops.append(last.op)
        rank = result.type.rank
        output = self._define(result, row_major(rank) if gemm else NHWC)
        cost = lookup(node.op).cost(node)
        self.calls.append(
            Call(_layer(node), "+".join(ops), problem, [operand], [output], constants, cost.macs, cost.bytes, precision_of(node))
        )

    @staticmethod
    def _geometry(node: Node, x: Value, w: Value, *, gemm: bool, dtype: str) -> ConvProblem:
        shape, dims = bounded(x.type.shape)
        if gemm:
            rows, k = int(np.prod(shape[:-1])), shape[-1]
            # Behind a fixed axis the rows that exist are not the first ones, so all are computed.
            outermost = next((axis for axis, extent in enumerate(shape[:-1]) if extent > 1), 0)
            dim = dims[outermost] if dims else None
            return ConvProblem(1, 1, rows, k, w.type.static_shape[0], dtype=dtype, out_dtype="float32", dim=dim)
        a = node.attrs
        n, c, h, width = shape
        for ref in dims[1:]:
            if ref is not None:
                raise UnsupportedOp(
                    f"layer {_layer(node)!r}: {node.op} needs dimension {ref.name!r} fixed: bind it with --dim {ref.name}=N"
                )
        top, left, bottom, right = a.pads
        return ConvProblem(
            n,
            h,
            width,
            c,
            w.type.static_shape[0],
            kh=a.kernel[0],
            kw=a.kernel[1],
            stride_h=a.strides[0],
            stride_w=a.strides[1],
            dilation_h=a.dilations[0],
            dilation_w=a.dilations[1],
            pad_top=top,
            pad_left=left,
            pad_bottom=bottom,
            pad_right=right,
            groups=a.groups,
            dtype=dtype,
            dim=dims[0] if dims else None,
        )

    def _requantized(
        self, node: Node, problem: ConvProblem, weights: Array, bias: Array, x: Buf
    ) -> tuple[Value, ConvProblem, ConvConstants]:
        user = self.graph.sole_user(node.output)
        if user is None or user.op != "Requantize" or user.inputs[0] is not node.output:
            constants = ConvConstants(weights, bias, x_zero_point=x.zero_point)
            return node.output, replace(problem, out_dtype="int32"), constants
        self.fused.add(user)
        attrs: RequantizeAttrs = user.attrs
        out = buffer_of(user.output.type, row_major(user.output.type.rank), self.target)
        offset = code_offset(user.output.type.elem, out)
        limits = np.iinfo(out.dtype)
        lo, hi = attrs.lo + offset, attrs.hi + offset
        constants = ConvConstants(
            weights,
            bias,
            user.inputs[1].array.astype(np.int64),
            user.inputs[2].array.astype(np.int64),
            x.zero_point,
            out.zero_point,
            lo,
            hi,
        )
        problem = replace(problem, clamp=(lo, hi) != (limits.min, limits.max), short_factors=constants.short_factors is not None)
        return user.output, replace(problem, out_dtype=product_dtype(user.output.type.elem, out, self.target)), constants

    def _activated(
        self, node: Node, problem: ConvProblem, weights: Array, bias: Array
    ) -> tuple[Value, ConvProblem, ConvConstants]:
        user = self.graph.sole_user(node.output)
        stored = (user if user is not None and user.op in ("Relu", "Clip") else node).output.type.dtype.name
        problem = replace(problem, out_dtype=stored)
        if user is None or user.op not in ("Relu", "Clip"):
            return node.output, problem, ConvConstants(weights, bias)
        self.fused.add(user)
        if user.op == "Relu":
            return user.output, replace(problem, relu=True), ConvConstants(weights, bias, lo=0.0)
        clip: ClipAttrs = user.attrs
        return user.output, replace(problem, clamp=True), ConvConstants(weights, bias, lo=clip.lo, hi=clip.hi)


def _elements(type_: TensorType) -> int:
    """Elements at the bounds of symbolic dimensions."""
    return prod(d if isinstance(d, int) else d.hi or 1 for d in type_.shape)


def _scale(type_: TensorType) -> float:
    return type_.elem.scale[0] if isinstance(type_.elem, Quant) and type_.elem.per_tensor else 1.0


def _layer(node: Node) -> str:
    return node.loc or node.outputs[0].name
