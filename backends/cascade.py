"""Cascades: convolutions that follow each other are computed together, stripe by stripe, where the tensor between them is large.

In: kernel calls with their kernels chosen. Out: groups of calls, and for each group its stripes and rolling buffers.

A tensor larger than the cache is written to memory and read back by the next layer. In a cascade the rows of a stripe are
consumed while they are in the cache; a rolling buffer keeps what the next stripe still needs (Alwani et al. 2016,
"Fused-layer CNN accelerators"). Nothing is computed twice, except where a thread begins. The numbers are the same.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from bevel.backends.calls import Call, Tensor
from bevel.backends.kernel import ConvProblem, Rowwise, is_dynamic
from bevel.backends.memory import TAIL, align
from bevel.backends.schedule import Stripe
from bevel.ir.protocols import Target

# A tensor of this share of the second cache or more is worth it: the layers around it have inputs, outputs and weights too.
LARGE_SHARE = 0.5
# What the rolling buffers of a cascade may fill of the second cache.
BUFFERS_SHARE = 0.25
# A rolling buffer is so many times as long as a stripe needs, so what is kept moves to its front once in several stripes: moves
# before each were a tenth of MobileNetV2's instructions on a Cortex-A76.
SLACK = 2
# Where a profile has no second cache.
SECOND_CACHE_BYTES = 512 * 1024
# Threads share out stripes: fewer would leave some of them waiting.
FEWEST_STRIPES = 16


@dataclass(frozen=True)
class Member:
    """A call that computes rows of pixels.

    Attributes:
        call: a convolution of one image.
        problem: what it computes.
        ends: see `Rowwise.unit_ends`.
    """

    call: Call
    problem: ConvProblem
    ends: Sequence[int]

    @property
    def pixel_bytes(self) -> int:
        """Bytes of one pixel of its result."""
        return self.problem.oc * np.dtype(self.problem.out_dtype).itemsize

    def start(self, unit: int) -> int:
        """First pixel of a unit."""
        return self.ends[unit - 1] if unit else 0

    def unit_of(self, pixel: int) -> int:
        """The unit that computes a pixel."""
        return bisect_right(self.ends, pixel)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Pixels of x needed for output pixels [start, stop): from the first one to behind the last one."""
        p = self.problem
        if (p.kh, p.kw, p.stride_h, p.stride_w) == (1, 1, 1, 1) and not p.padded:
            return start, stop
        first, last = start // p.ow, -(-stop // p.ow) - 1
        top = first * p.stride_h - p.pad_top
        bottom = last * p.stride_h - p.pad_top + p.dilation_h * (p.kh - 1) + 1
        return min(max(top, 0), p.h - 1) * p.w, min(max(bottom, 1), p.h) * p.w


def find_cascades(calls: Sequence[Call], kept: Collection[Tensor], target: Target) -> list[list[Call]]:
    """`calls` in order, those that make a cascade together.

    Args:
        calls: kernel calls with their kernels chosen.
        kept: base tensors that somebody else reads, such as the graph's outputs.
        target: whose caches decide what is large.
    """
    readers = Counter(
        id(x.base) for call in calls for x in {id(x.base): x for x in call.inputs if isinstance(x, Tensor)}.values()
    )
    held = {id(tensor) for tensor in kept}
    large = LARGE_SHARE * _second_cache(target)
    groups: list[list[Call]] = []
    for call in calls:
        between = groups[-1][-1].outputs[0] if groups else None
        joins = (
            between is not None
            and call.inputs
            and isinstance(call.inputs[0], Tensor)
            and call.inputs[0].base is between
            and between.base is between
            and readers[id(between)] == 1
            and id(between) not in held
            and between.buf.nbytes >= large
            and member(groups[-1][-1]) is not None
            and member(call) is not None
        )
        if joins:
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def member(call: Call) -> Member | None:
    """`call` as a member of a cascade, None where it cannot be one."""
    problem, choice = call.problem, call.choice
    if not isinstance(problem, ConvProblem) or is_dynamic(problem) or choice is None or not isinstance(choice.generator, Rowwise):
        return None
    ends = choice.generator.unit_ends(problem, choice.tile)
    return None if ends is None else Member(call, problem, ends)


def plan_stripes(members: Sequence[Member], target: Target) -> tuple[tuple[tuple[Stripe, ...], ...], tuple[int, ...]]:
    """The fewest stripes whose rolling buffers fit the cache, and the buffers' bytes."""
    units = len(members[-1].ends)
    count = min(units, FEWEST_STRIPES)
    most = BUFFERS_SHARE * _second_cache(target)
    while True:
        stripes = _stripes(members, [units * index // count for index in range(count + 1)])
        buffers = tuple(
            align(max(stripe[index].done - stripe[index].origin for stripe in stripes) + TAIL)
            for index in range(len(members) - 1)
        )
        if count == units or sum(buffers) <= most:
            whole = (this.ends[-1] * this.pixel_bytes for this in members)
            longer = tuple(max(size, align(min(SLACK * size, most // 2))) for size, most in zip(buffers, whole, strict=False))
            return _seldom_moved(stripes, longer), longer
        count = min(units, count + max(1, count // 4))


def _stripes(members: Sequence[Member], cuts: Sequence[int]) -> tuple[tuple[Stripe, ...], ...]:
    """Stripes that end where the last member's units are cut."""
    done = [0] * len(members)
    stripes = []
    for lo, hi in pairwise(cuts):
        last = members[-1]
        row = [Stripe(lo, lo, hi)]
        pixels = last.needs(last.start(lo), last.ends[hi - 1])
        for index in range(len(members) - 2, -1, -1):
            this = members[index]
            fresh, end = this.unit_of(pixels[0]), max(this.unit_of(pixels[1] - 1) + 1, done[index])
            start = this.start(fresh)
            origin = start * this.pixel_bytes // 64 * 64
            row.append(Stripe(fresh, max(fresh, done[index]), end, origin, this.ends[end - 1] * this.pixel_bytes))
            done[index] = end
            pixels = this.needs(start, this.ends[end - 1])
        stripes.append(tuple(reversed(row)))
    return tuple(stripes)


def _seldom_moved(stripes: Sequence[tuple[Stripe, ...]], buffers: Sequence[int]) -> tuple[tuple[Stripe, ...], ...]:
    """The same stripes, each beginning its buffers where the one before does while they have room behind it."""
    found = [stripes[0]]
    for stripe in stripes[1:]:
        row = [
            replace(this, origin=before.origin) if this.done - before.origin + TAIL <= size else this
            for this, before, size in zip(stripe[:-1], found[-1][:-1], buffers, strict=True)
        ]
        found.append((*row, stripe[-1]))
    return tuple(found)


def _second_cache(target: Target) -> int:
    return next((cache.bytes for cache in target.caches if cache.level == 2), SECOND_CACHE_BYTES)
