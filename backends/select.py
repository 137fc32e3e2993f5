"""Kernel choice: which generator and which tile compute a problem on a target.

Generators stand in order of preference: those written for an instruction set first, the derived loop kernels last. A
`KernelRanker` (tuner, cost model) may reorder the legal candidates; without one the order decides and the tile is the one
its generator calls statically best. The loop kernels are always legal, and every report names and counts them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol

from bevel.backends.kernel import ConvProblem, Generator, Problem, RuntimeExtent, Selective, Tile, is_dynamic, problem_dims
from bevel.errors import UnsupportedOp
from bevel.ir.protocols import Target


@dataclass(frozen=True)
class Choice:
    """A generator with a tile."""

    generator: Generator
    tile: Tile


class KernelRanker(Protocol):
    """Orders legal candidates by expected or measured speed."""

    def rank(self, problem: Problem, target: Target, candidates: list[Choice]) -> list[Choice]:
        """`candidates`, fastest first."""
        ...


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


def choose(problem: Problem, target: Target, layer: str, ranker: KernelRanker | None = None) -> Choice:
    """The kernel for `problem`.

    Args:
        problem: what to compute.
        target: where.
        layer: name of the layer, for the error.
        ranker: reorders the legal candidates.

    Raises:
        UnsupportedOp: no generator is legal; lists each one's reason.
    """
    reasons: list[str] = []
    candidates: list[Choice] = []
    reluctant: Choice | None = None
    for generator in generators(target.arch):
        if is_dynamic(problem) and not isinstance(generator, RuntimeExtent):
            reasons.append(f"{generator.name}: takes no run-time extents")
            continue
        reason = generator.legal(problem, target)
        if reason is not None:
            reasons.append(f"{generator.name}: {reason}")
            continue
        tiles = generator.tiles(problem, target)
        if ranker is None and isinstance(generator, Selective) and not generator.pays(problem, target):
            reluctant = reluctant or Choice(generator, tiles[0])
            continue
        if ranker is None:
            return Choice(generator, tiles[0])
        candidates.extend(Choice(generator, tile) for tile in tiles)
    if ranker is not None and candidates:
        return ranker.rank(problem, target, candidates)[0]
    if reluctant is not None:
        return reluctant
    if is_dynamic(problem):
        raise UnsupportedOp(_needs_fixed(problem, layer, reasons))
    raise UnsupportedOp(f"layer {layer!r}: no kernel computes {problem} on {target.name} ({'; '.join(reasons)})")


def _needs_fixed(problem: Problem, layer: str, reasons: list[str]) -> str:
    """Why no kernel computes a problem with run-time extents, and which dimension to bind."""
    op = "convolution" if isinstance(problem, ConvProblem) else problem.op
    names = problem_dims(problem)
    if isinstance(problem, ConvProblem) and problem.dim is not None:
        names = (problem.dim.name,)
    fixed = " or ".join(f"--dim {name}=N" for name in names)
    why = "; ".join(reason for reason in reasons if op in reason) or "no generator takes them"
    return f"layer {layer!r}: no kernel computes {op} with extents chosen at run time; bind them with {fixed} ({why})"
