"""Assembly: kernel calls become a Schedule. Constants are packed, cascades found, the arena planned.

In: the calls of a graph in order, their kernels chosen. Out: steps with every argument at its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from bevel.backends.calls import Array, Call, Tensor
from bevel.backends.cascade import find_cascades, member, plan_stripes
from bevel.backends.constant_pool import ConstantPool
from bevel.backends.kernel import Rewriting, RuntimeExtent, problem_dims
from bevel.backends.memory import Request, align, plan_arena
from bevel.backends.packing import LEAST_BYTES, Stored, find_stored
from bevel.backends.schedule import Cascade, IoTensor, Kernel, Lifetime, Place, Schedule, Step
from bevel.backends.select import kernel_symbol
from bevel.ir.graph import Graph, Value
from bevel.ir.protocols import Target
from bevel.ir.serialize import graph_hash
from bevel.ir.types import Dim, Quant

Boundary = Sequence[tuple[Value, Tensor]]


def assemble(graph: Graph, target: Target, calls: Sequence[Call], inputs: Boundary, outputs: Boundary) -> Schedule:
    """The schedule of `calls`.

    Args:
        graph: what was lowered.
        target: for which device.
        calls: in an order that can be executed; every call has its kernel.
        inputs: the graph's inputs and their tensors.
        outputs: the graph's outputs and their tensors.
    """
    groups = find_cascades(calls, [tensor.base for _, tensor in (*inputs, *outputs)], target)
    plan = _plan(groups, inputs, outputs)
    work = _Assembly(target, plan)
    steps = tuple(work.step(group) for group in groups)
    # Computed dimensions belong to inputs: no value has another.
    symbols = {d.name: d for v in graph.inputs for d in v.type.shape if isinstance(d, Dim) and d.lo != d.hi}
    ins, outs = [v.name for v, _ in inputs], [v.name for v, _ in outputs]
    return Schedule(
        graph.name,
        target,
        steps,
        tuple(work.kernels.values()),
        tuple(_io(value, tensor, plan) for value, tensor in inputs),
        tuple(_io(value, tensor, plan) for value, tensor in outputs),
        plan.nbytes,
        align(max((step.scratch_bytes for step in steps), default=0)),
        work.weights.blob(),
        graph_hash(graph),
        graph.level.value,
        plan.lifetimes,
        tuple(symbols[name] for name in sorted(symbols)),
        tuple(work.stored),
        tuple((ins.index(name), outs.index(output)) for name, output in graph.states.items()),
    )


@dataclass(frozen=True)
class _Arena:
    """Where tensors live.

    Attributes:
        offsets: byte by name of a base tensor; those within cascades have none.
        nbytes: of the arena.
        lifetimes: for reports.
    """

    offsets: dict[str, int]
    nbytes: int
    lifetimes: tuple[Lifetime, ...]

    def place(self, tensor: Tensor) -> Place:
        """Where a tensor begins."""
        return Place("arena", self.offsets[tensor.base.name])


@dataclass
class _Assembly:
    """What grows while steps are made."""

    target: Target
    arena: _Arena
    weights: ConstantPool = field(default_factory=ConstantPool)
    kernels: dict[str, Kernel] = field(default_factory=dict)
    stored: list[Stored] = field(default_factory=list)

    def step(self, group: Sequence[Call]) -> Step | Cascade:
        """The step of calls that belong together."""
        if len(group) == 1:
            return self.call(group[0], {})
        buffers = {id(call.outputs[0].base): Place("buffer", index) for index, call in enumerate(group[:-1])}
        members = [found for found in map(member, group) if found is not None]
        stripes, sizes = plan_stripes(members, self.target)
        return Cascade(tuple(self.call(call, buffers) for call in group), stripes, sizes)

    def call(self, call: Call, buffers: dict[int, Place]) -> Step:
        """One kernel call; `buffers` are the places of tensors within a cascade."""
        assert call.choice is not None
        generator, tile = call.choice.generator, call.choice.tile
        symbol = kernel_symbol(call.problem, call.choice, self.target)
        self.kernels.setdefault(symbol, Kernel(symbol, generator.name, call.problem, tile))

        def place(tensor: Tensor) -> Place:
            return buffers.get(id(tensor.base)) or self.arena.place(tensor)

        args = [place(operand) if isinstance(operand, Tensor) else self.weights.place(operand) for operand in call.inputs]
        self.stored += [
            Stored(operand, at, operand.dtype.name, None)
            for operand, at in zip(call.inputs, args, strict=True)
            if not isinstance(operand, Tensor) and operand.nbytes >= LEAST_BYTES
        ]
        packed = generator.pack(call.problem, tile, self.target, call.constants)
        places = [self.weights.place(array) for array in packed]
        self.stored += self._found(call, packed, places)
        names = problem_dims(call.problem)
        extent = (
            generator.runtime_extent(call.problem, tile)
            if isinstance(generator, RuntimeExtent)
            else generator.parallel_extent(call.problem, tile)
        )
        return Step(
            call.layer,
            call.op,
            symbol,
            (*args, *places, *([Place("dims", 0)] if names else []), *map(place, call.outputs)),
            extent,
            generator.scratch_bytes(call.problem, tile),
            call.macs,
            call.bytes,
            call.bits,
            names,
        )

    def _found(self, call: Call, packed: list[Array], places: list[Place]) -> list[Stored]:
        """The constants of `call` that are found among the buffers they were packed into."""
        constants, choice = call.constants, call.choice
        if constants is None or choice is None:
            return []
        if isinstance(choice.generator, Rewriting) and choice.generator.rewrites(call.problem):
            return []
        return find_stored(lambda c: choice.generator.pack(call.problem, choice.tile, self.target, c), constants, packed, places)


def _io(value: Value, tensor: Tensor, arena: _Arena) -> IoTensor:
    elem = value.type.elem
    scale = elem.scale[0] if isinstance(elem, Quant) else 0.0
    dims = tuple(ref.name if ref is not None else None for ref in tensor.buf.dims)
    return IoTensor(value.name, tensor.buf.shape, tensor.buf.dtype, arena.place(tensor), scale, tensor.buf.zero_point, dims)


def _plan(groups: Sequence[Sequence[Call]], inputs: Boundary, outputs: Boundary) -> _Arena:
    """Arena offsets. Inputs keep their bytes for the whole run, so that a caller may run again without setting them."""
    last = len(groups)
    spans: dict[str, Request] = {}

    def touch(tensor: Tensor, step: int) -> None:
        base = tensor.base
        old = spans.get(base.name)
        spans[base.name] = (
            Request(base.name, base.buf.nbytes, step, step)
            if old is None
            else replace(old, first=min(old.first, step), last=max(old.last, step))
        )

    for _, tensor in inputs:
        touch(tensor, 0)
        touch(tensor, last)
    for step, group in enumerate(groups):
        within = {id(call.outputs[0].base) for call in group[:-1]}
        for call in group:
            tensors = [operand for operand in call.inputs if isinstance(operand, Tensor)]
            for tensor in (*tensors, *call.outputs):
                if id(tensor.base) not in within:
                    touch(tensor, step)
    for _, tensor in outputs:
        touch(tensor, last)
    offsets, size = plan_arena(spans.values())
    lifetimes = tuple(Lifetime(r.name, offsets[r.name], r.nbytes, r.first, r.last) for r in spans.values())
    return _Arena(offsets, size, lifetimes)
