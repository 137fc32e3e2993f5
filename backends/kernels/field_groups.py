"""Matrix-vector products of weights of few bits in groups of inputs, whose integer factors multiply the sums of a group.

Weights lie in fields of bytes as in `bevel.backends.kernels.fields`, with the factors of a group before its codes
(`bevel.backends.kernels.factors`). Fields are unsigned; what they exceed codes by is a constant times the inputs of the group,
summed beside them like one more vector of channels, so inputs need no sums of their own. vpdpbusd and sdot make sums of 32 bits,
which are multiplied by the factor once a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from bevel.backends.kernel import Array, ConvProblem, Problem, Tile
from bevel.backends.kernels.factors import WIDTH, GroupLayout, layout_of
from bevel.backends.kernels.fields import MOST_PIXELS
from bevel.backends.kernels.generator import ConvGenerator
from bevel.backends.kernels.micro import MicroKernel, RegisterTile
from bevel.backends.tvm import Buffer, Builder, Expr
from bevel.ir.protocols import Target

# Codes of one bit are seldom worth factors.
LEAST_BITS = 2


@dataclass(frozen=True)
class GroupsKernel(MicroKernel):
    """What both have in common: the layout of the weights, and loops over groups.

    Attributes:
        group, weight_bits, x_bits: of the problem.
    """

    group: int = 32
    weight_bits: int = 4
    x_bits: int = 8

    weight_dtype = "uint8"
    fetches_ahead = False
    kgroup = WIDTH

    @property
    def layout(self) -> GroupLayout:
        """Of the packed weights."""
        return layout_of(self.group, self.weight_bits, self.lanes, top_is_signed=self.top_is_signed)

    @property
    def top_is_signed(self) -> bool:
        """Whether the uppermost field holds codes as they are, in two's complement."""
        return False

    @property
    def unit(self) -> int:  # type: ignore[override]
        """Vectors that share bytes."""
        return self.layout.unit

    def tap_elements(self, run: int, nv: int) -> int:
        """See `MicroKernel.tap_elements`."""
        return self.layout.tap_bytes(run, nv)

    def block_start(self, channel: Expr, taps: int, run: int) -> Expr:
        """See `MicroKernel.block_start`."""
        return channel // (self.unit * self.lanes) * (taps * self.tap_elements(run, self.unit))

    def pack_weights(self, weights: Array, blocks: Sequence[tuple[int, int]]) -> Array:
        """See `GroupLayout`."""
        return self.layout.pack(weights, blocks)

    def unpack_weights(self, packed: Array, shape: tuple[int, int, int], blocks: Sequence[tuple[int, int]]) -> Array:
        """The inverse of `pack_weights`."""
        return self.layout.unpack(packed, shape, blocks)

    def by_groups(self, k: Builder, run: int, nv: int, some: Callable[[Expr, Expr, int], None]) -> None:
        """Loops over the groups of a run: `some` gets the first element, the first byte and the groups of 4 of each."""
        whole, rest = divmod(run, self.group)
        step = self.layout.group_bytes(nv, self.group)
        if whole:
            with k.serial(whole) as g:
                some(g * self.group, g * step, self.group // WIDTH)
        if rest:
            some(k.i32(whole * self.group), k.i32(whole * step), -(-rest // WIDTH))


@dataclass(frozen=True)
class GroupsDotKernel(GroupsKernel):
    """Multiply by bytes with fewer and fewer fields; at the end of a group take differences and multiply by factors."""

    @property
    def top_is_signed(self) -> bool:
        """Always."""
        return True

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """See `MicroKernel.accumulate`."""
        lanes, layout = self.lanes, self.layout
        width = lanes * WIDTH
        units, slots = tile.nv // self.unit, tile.slots
        # Behind the sums of every pixel and vector those of what its unsigned fields have too much.
        sums = k.alloc((slots + tile.mr) * lanes, "int32")
        excess = k.const(256 - layout.offset, "uint8", width)

        def add(slot: int, column: Expr, factors: Expr) -> None:
            k.store(sums, slot * lanes, self.mac(k, k.load(sums, slot * lanes, lanes), column, factors), lanes)

        def group(first: Expr, at: Expr, steps: int) -> None:
            for slot in range(slots + tile.mr):
                k.store(sums, slot * lanes, k.const(0, "int32", lanes), lanes)
            codes = tile.base + at + layout.factor_bytes(tile.nv)
            done = steps // tile.unroll * tile.unroll if steps >= 2 * tile.unroll else 0

            def some(start: Expr, count: int) -> None:
                places = [tile.origin + offset + first + start * WIDTH for offset in tile.offsets]
                columns = [self.operands(k, tile.x, place, count) for place in places]
                for u in range(count):
                    for i, column in enumerate(columns):
                        add(slots + i, column[u], excess)
                    for q in range(units):
                        whole = k.load(tile.weights, codes + ((start + u) * units + q) * width, width)
                        for f in range(self.unit):
                            kept = k.const((1 << (layout.field_bits * (f + 1))) - 1, "uint8", width)
                            fields = whole if f == self.unit - 1 else k.bitwise_and(whole, kept)
                            for i, column in enumerate(columns):
                                add(i * tile.nv + q * self.unit + f, column[u], fields)

            if done:
                with k.serial(done // tile.unroll) as turn:
                    some(turn * tile.unroll, tile.unroll)
            if steps > done:
                some(k.i32(done), steps - done)
            for q in range(units):
                factors = layout.load_factors(k, tile.weights, tile.base + at + q * layout.factor_bytes(self.unit))
                for f, factor in enumerate(factors):
                    for i in range(tile.mr):
                        slot = i * tile.nv + q * self.unit + f
                        total = self._total(k, sums, slot, slots + i, f) * factor
                        self._raise(k, tile.acc, slot * lanes, total)

        self.by_groups(k, run, tile.nv, group)

    def _total(self, k: Builder, sums: Buffer, slot: int, excess: int, field: int) -> Expr:
        """The sum of a field's codes."""
        lanes = self.lanes
        total = k.load(sums, slot * lanes, lanes)
        if field:
            total = total - k.load(sums, (slot - 1) * lanes, lanes)
            total = k.shift_right(total, k.const(self.layout.field_bits * field, "int32", lanes))
        return total if field == self.unit - 1 else total + k.load(sums, excess * lanes, lanes)

    def _raise(self, k: Builder, acc: Buffer, at: int, total: Expr) -> None:
        """Add to sums that wrap: they absorb the zero point."""
        before, more = (k.bitcast(v, "uint32", self.lanes) for v in (k.load(acc, at, self.lanes), total))
        k.store(acc, at, k.bitcast(k.wrapping_add(before, more, self.lanes), "int32", self.lanes), self.lanes)


@dataclass(eq=False)
class GroupsConv(ConvGenerator):
    """Convolutions and GEMMs of few pixels whose weights are known to be products."""

    def kernel(self, problem: Problem) -> MicroKernel:
        """For the bits and groups of the problem."""
        assert isinstance(problem, ConvProblem)
        assert isinstance(self.micro, GroupsKernel)
        if not problem.weight_group:
            return self.micro
        return replace(self.micro, group=problem.weight_group, weight_bits=problem.group_bits, x_bits=problem.x_bits)

    def legal(self, problem: Problem, target: Target) -> str | None:
        """Besides the loop nest's limits: groups, of codes of 2 to 4 bits, along its reduction runs."""
        reason = super().legal(problem, target)
        if reason is not None:
            return reason
        assert isinstance(problem, ConvProblem)
        if problem.group_bits < LEAST_BITS:
            return f"weights of at least {LEAST_BITS} bits in groups of inputs, these are in none or have fewer"
        if problem.groups > 1 or (problem.dilation_w > 1 and problem.kw > 1):
            return "one group of channels, kernel rows without gaps"
        return None

    def tiles(self, problem: Problem, target: Target) -> Sequence[Tile]:
        """Tiles whose blocks are whole units."""
        unit = self.kernel(problem).unit
        return self._ranked(problem, target, [(mr, nv) for mr, nv in self.shapes if nv % unit == 0])

    def rewrites(self, problem: Problem) -> bool:
        """Codes and factors are packed, not their products."""
        return True

    def pays(self, problem: Problem, target: Target) -> bool:
        """Where few pixels meet the weights."""
        assert isinstance(problem, ConvProblem)
        return problem.batch * problem.oh * problem.ow <= MOST_PIXELS
