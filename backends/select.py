"""Kernel choice: which generator and which tile compute a problem on a target.

Generators stand in order of preference: those written for an instruction set first, the derived loop kernels last. A
`KernelRanker` (the tuner's) may choose another of the legal candidates; without one the order decides and the tile is the one
its generator calls statically best. The loop kernels are always legal, and every report names and counts them.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from bevel.backends.kernel import (
    ConvProblem,
    Estimated,
    Generator,
    Problem,
    Rewriting,
    RuntimeExtent,
    Selective,
    Summing,
    Tile,
    is_dynamic,
    problem_dims,
)
from bevel.errors import UnsupportedOp
from bevel.ir.protocols import KernelKey, Target
from bevel.ir.types import Groups


@dataclass(frozen=True)
class Choice:
    """A generator with a tile."""

    generator: Generator
    tile: Tile


class KernelRanker(Protocol):
    """Chooses among legal candidates by what it knows of their speed."""

    def choose(self, problem: Problem, target: Target) -> Choice | None:
        """One of the `candidates` of `problem`; None where it knows nothing."""
        ...


def kernel_symbol(problem: Problem, choice: Choice, target: Target) -> str:
    """C name of a kernel, derived from its content key."""
    tile = ",".join(f"{k}={v}" for k, v in sorted(choice.tile.items()))
    key = KernelKey(choice.generator.name, repr(problem), tile, target_key(target))
    return "bevel_k_" + hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def target_key(target: Target) -> str:
    """What of a target decides the code generated for it."""
    return f"{target.arch} {target.triple} {target.cpu} {','.join(target.attrs)} {','.join(sorted(target.features))}"


@functools.cache
def generators(arch: str) -> tuple[Generator, ...]:
    """All generators for an architecture, most specialized first."""
    from bevel.backends import generic
    from bevel.backends.custom import CustomGenerator

    derived = (*generic.GENERATORS, CustomGenerator())
    if arch == "x86_64":
        from bevel.backends import x86

        return (*x86.GENERATORS, *derived)
    if arch in ("aarch64", "armv7"):
        from bevel.backends import arm

        return (*arm.GENERATORS[arch], *derived)
    return derived


def candidates(problem: Problem, target: Target) -> list[Choice]:
    """Every kernel for `problem`: first what `choose` takes without a ranker, then by estimated cycles, then the others."""
    first = choose(problem, target, "")
    found = [Choice(g, tile) for g in _legal(problem, target, []) for tile in g.tiles(problem, target)]

    def cost(choice: Choice) -> float:
        generator = choice.generator
        return generator.cycles(problem, target, choice.tile) if isinstance(generator, Estimated) else math.inf

    return [first, *sorted((choice for choice in found if choice != first), key=cost)]


def choose(problem: Problem, target: Target, layer: str, ranker: KernelRanker | None = None) -> Choice:
    """The kernel for `problem`.

    Args:
        problem: what to compute.
        target: where.
        layer: name of the layer, for the error.
        ranker: may choose another of the candidates than the statically best.

    Raises:
        UnsupportedOp: no generator is legal; lists each one's reason.
    """
    if ranker is not None and (known := ranker.choose(problem, target)) is not None:
        return known
    reasons: list[str] = []
    reluctant: Choice | None = None
    for generator in _legal(problem, target, reasons):
        choice = Choice(generator, generator.tiles(problem, target)[0])
        if not isinstance(generator, Selective) or generator.pays(problem, target):
            return choice
        reluctant = reluctant or choice
    if reluctant is None:
        raise UnsupportedOp(_refusal(problem, target, layer, reasons))
    return reluctant


def _legal(problem: Problem, target: Target, reasons: list[str]) -> Iterator[Generator]:
    """Generators that compute `problem`, in order of preference; `reasons` gets why the others do not."""
    for generator in generators(target.arch):
        reason = why_illegal(generator, problem, target)
        if reason is None:
            yield generator
        else:
            reasons.append(f"{generator.name}: {reason}")


def why_illegal(generator: Generator, problem: Problem, target: Target) -> str | None:
    """Why a generator does not compute `problem`, run-time extents and sums included; None when it does."""
    if is_dynamic(problem) and not isinstance(generator, RuntimeExtent):
        return "takes no run-time extents"
    reason = generator.legal(problem, target)
    if reason is None and isinstance(problem, ConvProblem) and problem.addend:
        adds = isinstance(generator, Summing) and generator.sums(problem)
        reason = None if adds else "has no sum in its epilogue"
    return reason


def _refusal(problem: Problem, target: Target, layer: str, reasons: list[str]) -> str:
    if is_dynamic(problem):
        return _needs_fixed(problem, layer, reasons)
    return f"layer {layer!r}: no kernel computes {problem} on {target.name} ({'; '.join(reasons)})"


def with_groups(problem: ConvProblem, groups: Groups, target: Target) -> ConvProblem:
    """`problem` with the groups of its weights where a kernel makes use of them; elsewhere layers of equal shape share code."""
    told = replace(problem, weight_group=groups.size, group_bits=groups.codes.bits)
    same = choose(told, target, "").generator is choose(problem, target, "").generator
    return problem if same else told


def rewritten(problem: Problem, target: Target) -> bool:
    """Whether a kernel for `problem` depends on how heavy its weights are; elsewhere layers of equal shape share code."""
    return any(
        isinstance(generator, Rewriting) and generator.rewrites(problem) and generator.legal(problem, target) is None
        for generator in generators(target.arch)
    )


def _needs_fixed(problem: Problem, layer: str, reasons: list[str]) -> str:
    """Why no kernel computes a problem with run-time extents, and which dimension to bind."""
    op = "convolution" if isinstance(problem, ConvProblem) else problem.op
    names = problem_dims(problem)
    if isinstance(problem, ConvProblem) and problem.dim is not None:
        names = (problem.dim.name,)
    fixed = " or ".join(f"--dim {name}=N" for name in names)
    why = "; ".join(reason for reason in reasons if op in reason) or "no generator takes them"
    return f"layer {layer!r}: no kernel computes {op} with extents chosen at run time; bind them with {fixed} ({why})"
