"""The static arena planner: offsets for tensors with known lifetimes.

Greedy by size (Pisarchyk and Lee, 2020): the largest tensor is placed first, each at the lowest gap that no tensor alive at
the same time occupies. Offsets are 64-byte aligned.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ALIGNMENT = 64
# Kernels may read this far past the end of a buffer (`backends.kernel`), so the arena ends with as many bytes.
TAIL = 64


@dataclass(frozen=True)
class Request:
    """A tensor of `nbytes` that must keep its bytes from step `first` to step `last`, both inclusive."""

    name: str
    nbytes: int
    first: int
    last: int


def align(offset: int) -> int:
    """The next multiple of the alignment."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def plan_arena(requests: Iterable[Request]) -> tuple[dict[str, int], int]:
    """Assign offsets.

    Returns:
        Offset by tensor name, and the arena's size in bytes including the readable tail.
    """
    placed: list[tuple[int, int, Request]] = []
    offsets: dict[str, int] = {}
    for request in sorted(requests, key=lambda r: (-r.nbytes, r.first, r.name)):
        size = align(request.nbytes)
        offset = 0
        for start, end, other in sorted(placed, key=lambda p: p[0]):
            if other.last < request.first or request.last < other.first:
                continue
            if offset + size <= start:
                break
            offset = max(offset, end)
        offsets[request.name] = offset
        placed.append((offset, offset + size, request))
    peak = max((end for _, end, _ in placed), default=0)
    return offsets, peak + TAIL
