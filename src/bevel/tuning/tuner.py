"""Decides which kernel computes each problem of a model, and what is measured for that.

In: a device profile, what the user wants (`Tuning`) and a lowered model. Out: a `KernelRanker` for lowering it again, and for
the manifest how each kernel was chosen. Problems are measured in batches, those with the largest share of the work first; each
batch is in the store before the next begins, so that a killed run loses one at most and the same command goes on where it
stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bevel.backends.kernel import Problem
from bevel.backends.schedule import Schedule
from bevel.backends.select import Choice, candidates
from bevel.devices.conditions import fingerprint, sample
from bevel.devices.measurements import content_digest
from bevel.devices.profile import Profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.store import Store, now
from bevel.errors import ToolchainError
from bevel.ir.protocols import Target
from bevel.tuning.options import Tuning
from bevel.tuning.program import Candidate
from bevel.tuning.timing import DeviceTimer, KernelTimer, Progress
from bevel.tuning.winners import (
    Heat,
    kernel_of,
    measuring_version,
    problem_digest,
    shipped_heats,
    store_heat,
    stored_heats,
    tile_text,
)
from bevel.tuning.workload import measurable

# Kernels of one batch, if its problems are not single ones of more: enough to pay for the compilers' start, few enough to lose.
BATCH = 36
LOCK_WAIT_S = 600.0
# What an addend puts into the text of a problem.
ADDEND = ", addend=True"

Clock = Callable[[], float]


@dataclass(frozen=True)
class Decision:
    """A choice by measurement.

    Attributes:
        choice: generator and tile.
        heat: what decided.
        gain: time of the statically best candidate over that of the chosen one; None where it was not measured.
    """

    choice: Choice
    heat: Heat
    gain: float | None

    def document(self) -> dict[str, Any]:
        """As the manifest has it."""
        heat = self.heat
        us = round(heat.times[kernel_of(self.choice)][0] / 1e3, 3)
        found = {"chosen": heat.source, "tile": tile_text(self.choice.tile), "us": us, "gain": self.gain}
        return found | {"date": heat.date, "on": heat.device, "candidates": len(heat.times)}


@dataclass
class Tuner:
    """Chooses kernels for one device; a `KernelRanker`.

    Attributes:
        target: the device, as code generation sees it.
        device: name of its profile.
        tuning: what the user wants.
        heats: what was measured, by the text of the problem.
        shipped: what came with the package, by the digest of that text.
        decisions: what was chosen by measurement, by the text of the problem; the other kernels are the statically best.
        why_static: why nothing was measured although asked for; empty when nothing stood in the way.
        unmeasured: problems that the budget left out.
        seconds: spent measuring, by "compile" and "measure".
        spent_s: of the budget.
    """

    target: Target
    device: str
    tuning: Tuning
    heats: dict[str, Heat] = field(default_factory=dict)
    shipped: Mapping[str, Heat] = field(default_factory=dict)
    decisions: dict[str, Decision] = field(default_factory=dict)
    why_static: str = ""
    unmeasured: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    spent_s: float = 0.0

    @classmethod
    def load(cls, profile: Profile, tuning: Tuning) -> Tuner:
        """The tuner of a device, with what its store and the package know.

        Raises:
            StoreError: the store is damaged or locked.
        """
        tuner = cls(profile.target(), profile.name, tuning)
        if tuning.mode != "off":
            with Store.open(read_only=True) as store:
                tuner.heats = stored_heats(store, profile.name, tuner.target)
            tuner.shipped = shipped_heats(tuner.target)
        return tuner

    # Choosing ----------------------------------------------------------------------------------------------------------

    def heat_of(self, text: str) -> Heat | None:
        """What decides for a problem, by its text.

        An addend costs all kernels of a problem the same, so one without times of its own goes by those of the bare problem.
        """
        texts = dict.fromkeys((text, text.replace(ADDEND, "")))
        known = (self.heats.get(one) or self.shipped.get(problem_digest(one)) for one in texts)
        return next((heat for heat in known if heat is not None), None)

    def choose(self, problem: Problem, target: Target) -> Choice | None:
        """See `KernelRanker.choose`."""
        text = repr(problem)
        if text not in self.decisions and (heat := self.heat_of(text)) is not None:
            ordered = candidates(problem, target)
            winner = heat.winner(ordered)
            if winner is not None:
                static = heat.times.get(kernel_of(ordered[0]))
                gain = round(static[0] / heat.times[kernel_of(winner)][0], 4) if static is not None else None
                self.decisions[text] = Decision(winner, heat, gain)
        return self.decisions[text].choice if text in self.decisions else None

    def digest(self, texts: Iterable[str]) -> str:
        """Identifies what would be chosen for problems, by their texts: part of the key of a compilation."""
        heats = {text: heat.digest for text in texts if (heat := self.heat_of(text)) is not None}
        return content_digest([heats, self.why_static])[:32] if heats or self.why_static else ""

    def document(self, schedule: Schedule) -> dict[str, Any]:
        """What the manifest says: how most of the work was chosen, `source`, and how each kernel was, by symbol."""
        kernels: dict[str, dict[str, Any]] = {}
        for kernel in schedule.kernels:
            decision = self.decisions.get(repr(kernel.problem))
            static = {"chosen": "static", "tile": tile_text(kernel.tile)}
            kernels[kernel.symbol] = decision.document() if decision is not None else static
        work: dict[str, int] = {}
        for step in schedule.calls:
            source = kernels[step.symbol]["chosen"]
            work[source] = work.get(source, 0) + step.macs
        found: dict[str, Any] = {"source": max(work, key=lambda source: work[source], default="static"), "macs": work}
        if self.why_static:
            found["why_static"] = self.why_static
        if self.unmeasured:
            found["unmeasured"] = self.unmeasured
        return found | {"kernels": kernels}

    def measured(self, texts: Iterable[str]) -> dict[str, int]:
        """How many candidates of problems, by their texts, were measured on the device; 0 where the mode asks for none."""
        asked = self.tuning.mode in ("fast", "full")
        return {text: len(self.heats[text].times) if asked and text in self.heats else 0 for text in texts}

    def knows(self, measured: Mapping[str, int]) -> bool:
        """Whether what an earlier compilation had `measured` is known here, and as of today."""
        today = measuring_version()
        heats = ((self.heats.get(text), count) for text, count in measured.items() if count)
        return all(heat is not None and heat.version == today and len(heat.times) >= count for heat, count in heats)

    @property
    def satisfied(self) -> tuple[str, ...]:
        """Modes of which this compilation is the result: its own, if nothing is missing, or those that measure nothing."""
        if self.tuning.mode in ("off", "cached"):
            return ("off", "cached")
        return () if self.unmeasured or self.why_static else (self.tuning.mode,)

    # Measuring ---------------------------------------------------------------------------------------------------------

    def missing(self, schedule: Schedule) -> list[list[Candidate]]:
        """What must be measured for `schedule`: candidates of each problem, those with the largest share of the work first."""
        problems = {kernel.symbol: kernel.problem for kernel in schedule.kernels}
        work: dict[Problem, int] = {}
        for step in schedule.calls:
            problem = problems[step.symbol]
            work[problem] = work.get(problem, 0) + step.macs
        found = []
        for problem in sorted(work, key=lambda problem: -work[problem]):
            if not measurable(problem):
                continue
            choices = candidates(problem, self.target)
            wanted = choices[: self.tuning.wanted(len(choices))]
            heat = self.heats.get(repr(problem))
            if len(wanted) > 1 and (heat is None or not heat.covers(wanted)):
                found.append([Candidate(problem, choice) for choice in wanted])
        return found

    def measure(self, profile: Profile, schedule: Schedule, say: Progress) -> bool:
        """Measure on the device what `schedule` lacks, if the mode asks for it; without a way to run its code, note why not.

        Returns:
            Whether something was measured, so that other kernels may be chosen.

        Raises:
            DeviceError: the device failed; what was finished is kept.
            CheckFailed: two kernels of one problem compute different results.
            StoreError: times cannot be kept.
        """
        return self.measure_candidates(profile, self.missing(schedule), schedule.name, len(schedule.weights), say)

    def measure_candidates(
        self, profile: Profile, missing: Sequence[Sequence[Candidate]], model: str, weight_bytes: int, say: Progress
    ) -> bool:
        """Measure `missing`, candidates of each problem in order of importance; see `measure`.

        Args:
            profile: the device.
            missing: what to measure.
            model: whose kernels they are, for who waits.
            weight_bytes: constants of the whole model.
            say: progress, in problems.
        """
        if not missing:
            return False
        with _native(profile) as transport:
            if isinstance(transport, str):
                self.why_static = transport
                return False
            with transport.lock(f"tuning of {model}", LOCK_WAIT_S), Store.open() as store:
                device = store.device(fingerprint(transport, profile.name, sample(transport)))
                timer = DeviceTimer(transport, self.target, weight_bytes, say, self.seconds)

                def keep(problem: Problem, heat: Heat, noise: float) -> None:
                    store_heat(store, device, self.target, problem, heat, noise)

                self.run(missing, timer, keep, say)
        self.decisions.clear()
        return True

    def run(
        self,
        missing: Sequence[Sequence[Candidate]],
        timer: KernelTimer,
        keep: Callable[[Problem, Heat, float], None],
        say: Progress,
        clock: Clock = time.monotonic,
    ) -> None:
        """Measure `missing` batch by batch until the budget, what was spent of it before included, ends.

        Args:
            missing: candidates of each problem, in order of importance.
            timer: that measures.
            keep: stores a heat and the noise of its canary.
            say: progress, in problems.
            clock: seconds, for the budget.
        """
        begin, done, longest = clock(), 0, 0.0
        for batch in _batches(missing):
            before = clock()
            # A batch that would not end in time is not begun.
            if self.tuning.budget_s is not None and self.spent_s + before - begin + longest >= self.tuning.budget_s:
                break
            say("tune", done, len(missing))
            for found, timings in zip(batch, timer.time(batch), strict=True):
                times = {kernel_of(c.choice): (t.ns, t.spread) for c, t in zip(found, timings, strict=True)}
                heat = Heat(now(), self.device, measuring_version(), times, fresh=True)
                keep(found[0].problem, heat, timings[0].canary_noise)
                self.heats[repr(found[0].problem)] = heat
                done += 1
            longest = max(longest, clock() - before)
        say("tune", done, len(missing))
        self.spent_s += clock() - begin
        self.unmeasured += len(missing) - done


def _batches(missing: Sequence[Sequence[Candidate]]) -> Iterator[list[Sequence[Candidate]]]:
    """Problems in order, as many as make a batch."""
    batch: list[Sequence[Candidate]] = []
    for found in missing:
        if batch and sum(map(len, batch)) + len(found) > BATCH:
            yield batch
            batch = []
        batch.append(found)
    if batch:
        yield batch


@contextmanager
def _native(profile: Profile) -> Iterator[Any]:
    """An open transport to a device that runs its code natively, or why there is none."""
    try:
        transport = resolve_transport(profile)
    except ToolchainError as error:
        yield str(error)
        return
    if transport.emulated:
        yield f"{transport.label}: times under emulation mean nothing"
        return
    with transport:
        # A board may turn out to be an emulated one.
        yield f"{transport.label} is emulated: its times mean nothing" if transport.emulated else transport
