"""What the tuner measures, in which order, what it keeps and what it chooses, with a timer that makes its times up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from bevel.backends.kernel import ConvProblem, Problem
from bevel.backends.select import Choice, candidates, choose
from bevel.devices.measurements import DeviceFingerprint
from bevel.devices.store import Store
from bevel.errors import StoreError, UsageError
from bevel.ir.protocols import Target
from bevel.tuning.options import FAST, MODES, Tuning
from bevel.tuning.program import Candidate
from bevel.tuning.timing import Timing
from bevel.tuning.tuner import BATCH, Tuner
from bevel.tuning.winners import Heat, Kernel, kernel_of, measuring_version, store_heat, stored_heats

TARGET = Target(
    "board",
    "x86_64",
    frozenset({"sse2", "avx2", "fma", "avx512", "avx512_vnni"}),
    "cascadelake",
    "x86_64-unknown-linux-gnu",
)
BOARD = DeviceFingerprint("board", "x86_64", "cascadelake", tuple(sorted(TARGET.features)), "6.1", "machine")
PROBLEM = ConvProblem(1, 14, 14, 64, 64, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, dtype="uint8", out_dtype="uint8")


def problems(count: int) -> list[Problem]:
    return [replace(PROBLEM, oc=16 * (count - index)) for index in range(count)]


@dataclass
class FakeTimer:
    """Times by kernel, one second a batch on a clock of its own.

    Attributes:
        ns: time of the candidate at each place of the static order.
        spread: of every candidate.
        dies_at: batch that is interrupted.
    """

    ns: Sequence[float]
    spread: float = 0.0
    dies_at: int | None = None
    batches: list[list[Problem]] = field(default_factory=list)

    def clock(self) -> float:
        return float(len(self.batches))

    def time(self, batch: Sequence[Sequence[Candidate]]) -> list[list[Timing]]:
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append([found[0].problem for found in batch])
        return [[Timing(ns, self.spread, 9, 0.001) for _, ns in zip(found, self.ns, strict=False)] for found in batch]


def wanted(mode: str, of: Sequence[Problem]) -> list[list[Candidate]]:
    found = []
    for problem in of:
        choices = candidates(problem, TARGET)
        found.append([Candidate(problem, choice) for choice in choices[: Tuning(mode).wanted(len(choices))]])
    return found


def tuned(timer: FakeTimer, of: Sequence[Problem], tuning: Tuning, store: Store | None = None) -> Tuner:
    """A tuner that has measured `of`."""
    tuner = Tuner(TARGET, "board", tuning)

    def keep(problem: Problem, heat: Heat, noise: float) -> None:
        if store is not None:
            store_heat(store, store.device(BOARD), TARGET, problem, heat, noise)

    tuner.run(wanted(tuning.mode, of), timer, keep, lambda *_: None, timer.clock)
    return tuner


def heat(times: dict[Kernel, tuple[float, float]]) -> Heat:
    return Heat("2026-01-01", "board", measuring_version(), times)


def test_candidates_begin_with_the_static_choice_and_hold_every_legal_tile_once() -> None:
    found = candidates(PROBLEM, TARGET)
    assert found[0] == choose(PROBLEM, TARGET, "layer")
    kernels = [kernel_of(choice) for choice in found]
    assert len(set(kernels)) == len(kernels)
    names = {name for name, _ in kernels}
    assert {"x86_conv_int8_vnni", "x86_conv_int8_avx2", "x86_conv_int8_sse2"} <= names
    # Kernels without an estimate come last.
    assert kernels[-1][0].startswith(("generic", "vector"))


@pytest.mark.parametrize("fastest", range(FAST))
def test_the_fastest_is_chosen(fastest: int) -> None:
    times = [100.0] * FAST
    times[fastest] = 60.0
    tuner = tuned(FakeTimer(times), [PROBLEM], Tuning("fast"))
    assert tuner.choose(PROBLEM, TARGET) == candidates(PROBLEM, TARGET)[fastest]
    assert tuner.decisions[repr(PROBLEM)].gain == (1.0 if fastest == 0 else pytest.approx(100 / 60, abs=1e-3))
    assert tuner.decisions[repr(PROBLEM)].heat.source == "measured"


@pytest.mark.parametrize(("spread", "kept"), [(0.0, False), (0.05, True)])
def test_within_the_noise_the_statically_better_one_stays(spread: float, kept: bool) -> None:
    tuner = tuned(FakeTimer([104.0, 100.0, 103.0], spread), [PROBLEM], Tuning("fast"))
    found = candidates(PROBLEM, TARGET)
    assert tuner.choose(PROBLEM, TARGET) == found[0 if kept else 1]
    # A difference of less than a percent is none, however sure.
    equal = tuned(FakeTimer([100.5, 100.0, 100.2]), [PROBLEM], Tuning("fast"))
    assert equal.choose(PROBLEM, TARGET) == found[0]


def test_full_measures_every_candidate() -> None:
    count = len(candidates(PROBLEM, TARGET))
    times = [100.0] * (count - 1) + [10.0]
    tuner = tuned(FakeTimer(times), [PROBLEM], Tuning("full"))
    assert tuner.choose(PROBLEM, TARGET) == candidates(PROBLEM, TARGET)[-1]
    assert tuner.decisions[repr(PROBLEM)].document()["candidates"] == count > FAST


def test_unknown_problems_are_left_to_the_static_choice() -> None:
    tuner = tuned(FakeTimer([3.0, 2.0, 1.0]), [PROBLEM], Tuning("fast"))
    assert tuner.choose(replace(PROBLEM, oc=48), TARGET) is None


def test_a_winner_that_is_generated_no_more_does_not_count() -> None:
    gone = heat({("x86_conv_gone", "mr=1"): (1.0, 0.0)})
    assert gone.winner(candidates(PROBLEM, TARGET)) is None
    assert Tuner(TARGET, "board", Tuning(), {repr(PROBLEM): gone}).choose(PROBLEM, TARGET) is None


def test_the_budget_ends_it_with_the_largest_problems_done() -> None:
    each = BATCH // FAST
    many = problems(3 * each)
    timer = FakeTimer([3.0, 2.0, 1.0])
    tuner = tuned(timer, many, Tuning("fast", budget_s=2.5))
    assert timer.batches == [many[:each], many[each : 2 * each]]
    assert tuner.unmeasured == each
    assert set(tuner.heats) == {repr(problem) for problem in many[: 2 * each]}
    assert tuner.satisfied == ()
    # A batch that cannot end in time is not begun.
    assert len(timer.batches) == 2
    # What one part of a compilation spent, the next cannot.
    tuner.tuning = Tuning("fast", budget_s=2.0)
    tuner.run(wanted("fast", many[2 * each :]), timer, lambda *_: None, lambda *_: None, timer.clock)
    assert len(timer.batches) == 2
    whole = tuned(FakeTimer([3.0, 2.0, 1.0]), many, Tuning("fast"))
    assert whole.unmeasured == 0
    assert whole.satisfied == ("fast",)
    known = whole.measured([repr(problem) for problem in many])
    assert set(known.values()) == {FAST}
    assert whole.knows(known)
    assert not tuner.knows(known)
    assert tuner.knows(dict.fromkeys(known, 0))


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    each = BATCH // FAST
    many = problems(2 * each)
    with Store.open(tmp_path / "store.sqlite") as store:
        with pytest.raises(KeyboardInterrupt):
            tuned(FakeTimer([3.0, 2.0, 1.0], dies_at=1), many, Tuning("fast"), store)
        heats = stored_heats(store, "board", TARGET)
    assert set(heats) == {repr(problem) for problem in many[:each]}
    left = [found for found in wanted("fast", many) if not _covered(heats, found)]
    assert [found[0].problem for found in left] == many[each:]


def _covered(heats: dict[str, Heat], found: list[Candidate]) -> bool:
    known = heats.get(repr(found[0].problem))
    return known is not None and known.covers([candidate.choice for candidate in found])


def test_stored_times_choose_without_measuring(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        tuned(FakeTimer([3.0, 1.0, 2.0]), [PROBLEM], Tuning("fast"), store)
        heats = stored_heats(store, "board", TARGET)
        assert not stored_heats(store, "another", TARGET)
        assert not stored_heats(store, "board", replace(TARGET, cpu="znver4"))
    cached = Tuner(TARGET, "board", Tuning("cached"), heats)
    assert cached.choose(PROBLEM, TARGET) == candidates(PROBLEM, TARGET)[1]
    decision = cached.decisions[repr(PROBLEM)]
    assert decision.document() | {"date": ""} == {
        "chosen": "cached",
        "tile": decision.document()["tile"],
        "us": 0.001,
        "gain": 3.0,
        "date": "",
        "on": "board",
        "candidates": FAST,
    }
    assert cached.digest([repr(PROBLEM)]) != cached.digest([]) == ""


def test_measurements_without_the_statically_best_do_not_count() -> None:
    """A generator that is new since then, and better, must not lose to those that were measured before it was there."""
    first, second, third, *_ = candidates(PROBLEM, TARGET)
    old = heat({kernel_of(second): (2.0, 0.0), kernel_of(third): (1.0, 0.0)})
    assert old.winner(candidates(PROBLEM, TARGET)) is None
    assert old.winner([second, third, first]) == third


def test_heats_of_today_go_before_newer_ones_of_other_generators(tmp_path: Path) -> None:
    found = candidates(PROBLEM, TARGET)
    first, second = (
        {kernel_of(choice): (ns, 0.0) for choice, ns in zip(found, times, strict=False)} for times in ((1.0, 9.0), (9.0, 1.0))
    )
    with Store.open(tmp_path / "store.sqlite") as store:
        device = store.device(BOARD)
        store_heat(store, device, TARGET, PROBLEM, Heat("2026-01-02", "board", "another version", second), 0.0)
        assert stored_heats(store, "board", TARGET)[repr(PROBLEM)].winner(found) == found[1]
        store_heat(store, device, TARGET, PROBLEM, Heat("2026-01-01", "board", measuring_version(), first), 0.0)
        today = stored_heats(store, "board", TARGET)[repr(PROBLEM)]
    assert today.winner(found) == found[0]
    assert today.covers(found[:2])
    assert not today.covers(found[:3])
    assert not Heat("2026-01-02", "board", "another version", second).covers(found[:2])


def test_times_of_emulated_devices_are_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store.sqlite") as store:
        device = store.device(replace(BOARD, emulated=True))
        with pytest.raises((UsageError, StoreError)):
            store_heat(store, device, TARGET, PROBLEM, heat({("g", "t"): (1.0, 0.0)}), 0.0)


@pytest.mark.parametrize("wrong", [Tuning("most"), Tuning("fast", 0.0), Tuning("fast", -3.0), Tuning("cached", 9.0)])
def test_what_cannot_be_meant_is_refused(wrong: Tuning) -> None:
    with pytest.raises(UsageError):
        wrong.check()


@pytest.mark.parametrize("mode", MODES)
def test_modes_say_how_much_they_measure(mode: str) -> None:
    Tuning(mode).check()
    assert Tuning(mode).wanted(10) == {"off": 0, "cached": 0, "fast": FAST, "full": 10}[mode]


def test_choices_are_equal_by_generator_and_tile() -> None:
    found = candidates(PROBLEM, TARGET)
    assert Choice(found[0].generator, dict(found[0].tile)) == found[0]
