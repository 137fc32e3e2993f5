"""What was measured of a problem's kernels before, and which of them to take.

Candidates of a problem are measured together and only then compared: such a *heat* has one date. In: the measurement store, and
the heats that ship with the package (`heats.json`, made by benchmarks/tuning/ship.py). Out: the heat that counts for a problem,
and the candidate that won it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from bevel.backends.kernel import ConvProblem, Problem, Tile
from bevel.backends.objects import generation
from bevel.backends.select import Choice, target_key
from bevel.devices.measurements import KernelKey, KernelTime, content_digest
from bevel.devices.store import Store
from bevel.ir.protocols import Target
from bevel.runtime.codegen import C_DIR

# Candidates this close are equal: blocks of one process agree within half of it.
TIE = 0.01
# And so are candidates that differ by fewer standard errors.
ERRORS = 2.0
_SOURCES = ("kernel_bench.c", "kernel_bench.h", "measure.c")
SHIPPED = "heats.json"

Kernel = tuple[str, str]
"""Generator and canonical text of the tile."""


@dataclass(frozen=True)
class Heat:
    """Times of a problem's candidates that were measured together.

    Attributes:
        date: ISO 8601, UTC.
        device: that measured them, for people.
        version: `measuring_version` of that time.
        times: (ns, spread) by kernel.
        shipped: came with the package, and is of another machine with the same instruction set.
        fresh: was measured by this process.
    """

    date: str
    device: str
    version: str
    times: Mapping[Kernel, tuple[float, float]]
    shipped: bool = False
    fresh: bool = False

    @property
    def source(self) -> str:
        """How a report calls a choice by this heat."""
        return "measured" if self.fresh else "shipped" if self.shipped else "cached"

    @property
    def digest(self) -> str:
        """Identifies what a choice by this heat depends on."""
        return content_digest(sorted([*kernel, *time] for kernel, time in self.times.items()))[:32]

    def covers(self, choices: Sequence[Choice]) -> bool:
        """Whether every one of `choices` took part, as today's bevel generates and measures it."""
        return self.version == measuring_version() and all(kernel_of(choice) in self.times for choice in choices)

    def winner(self, candidates: Sequence[Choice]) -> Choice | None:
        """The fastest of `candidates` that took part; of those the measurement cannot tell from it, the statically best.

        None when the statically best did not take part: generators have changed since.
        """
        if not candidates or kernel_of(candidates[0]) not in self.times:
            return None
        ran = [(choice, *self.times[kernel_of(choice)]) for choice in candidates if kernel_of(choice) in self.times]
        _, best, noise = min(ran, key=lambda entry: entry[1])
        return next(choice for choice, ns, spread in ran if ns <= best * (1 + TIE + ERRORS * (noise**2 + spread**2) ** 0.5))


def tile_text(tile: Tile) -> str:
    """Canonical text of a tile."""
    return ",".join(f"{key}={value}" for key, value in sorted(tile.items()))


def kernel_of(choice: Choice) -> Kernel:
    """How heats name a candidate."""
    return choice.generator.name, tile_text(choice.tile)


@functools.cache
def measuring_version() -> str:
    """Hash of what decides a kernel's time besides kernel and device: the generators, TVM and the program that times."""
    digest = hashlib.sha256(generation().encode())
    for name in _SOURCES:
        digest.update((C_DIR / name).read_bytes())
    return digest.hexdigest()[:32]


def stored_heats(store: Store, device: str, target: Target) -> dict[str, Heat]:
    """The heat that counts for every problem measured on the device of that name, by the text of the problem.

    That is the newest of today's generators, else the newest of all: another version's order of candidates is a better guess than
    none.
    """
    key, version = target_key(target), measuring_version()
    found: dict[tuple[str, str, str], dict[Kernel, tuple[float, float]]] = {}
    for row, fingerprint in store.devices(device).items():
        if fingerprint.emulated:
            continue
        for kernel, time in store.kernels(row):
            if kernel.target == key:
                times = found.setdefault((kernel.problem, time.runtime, time.date), {})
                times[kernel.generator, kernel.tile] = (time.ns, time.spread)
    heats: dict[str, Heat] = {}
    for (problem, runtime, date), times in sorted(found.items(), key=lambda item: (item[0][1] == version, item[0][2])):
        heats[problem] = Heat(date, device, runtime, times)
    return heats


def store_heat(store: Store, device: int, target: Target, problem: Problem, heat: Heat, canary_noise: float) -> None:
    """Keep a heat that was just measured."""
    macs = problem.macs if isinstance(problem, ConvProblem) else 0
    for (generator, tile), (ns, spread) in heat.times.items():
        key = KernelKey(generator, repr(problem), tile, target_key(target), macs)
        store.add_kernel(key, device, KernelTime(ns, spread, canary_noise, heat.version, heat.date))


def problem_digest(text: str) -> str:
    """How shipped heats name a problem."""
    return hashlib.sha256(text.encode()).hexdigest()[:20]


# Features that only kernels of one or two bits use: what was measured without them holds.
RARELY_USED = frozenset({"avx512_vpopcntdq"})


def isa_class(target: Target) -> str:
    """Targets of one class run the same kernels, except of one or two bits; their caches and clocks may differ."""
    return f"{target.arch} {' '.join(sorted(target.features - RARELY_USED))}"


@functools.cache
def _shipped() -> Mapping[str, Any]:
    file = resources.files("bevel.tuning") / SHIPPED
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def shipped_heats(target: Target) -> dict[str, Heat]:
    """Heats that ship for the class of `target`, by the digest of the problem's text."""
    entry = _shipped().get(isa_class(target))
    if entry is None:
        return {}
    heats = {}
    for digest, rows in entry["heats"].items():
        times = {(generator, tile): (float(ns), float(spread)) for generator, tile, ns, spread in rows}
        heats[digest] = Heat(entry["date"], entry["machine"], "", times, shipped=True)
    return heats
