"""The measuring program: what it is made of, what counts of what it prints, and that it finds a kernel that computes wrongly."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bevel.backends.kernel import ConvProblem, Tile
from bevel.backends.kernels.generator import ConvGenerator
from bevel.backends.select import Choice, candidates
from bevel.backends.tvm import PrimFunc
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.errors import CheckFailed
from bevel.ir.groups import factored
from bevel.ir.protocols import Target
from bevel.ir.types import Groups, Int
from bevel.tuning.program import Candidate, make_program
from bevel.tuning.timing import LEAST_BLOCKS, DeviceTimer, calm, check_results, summarize
from bevel.tuning.workload import constants

HOST = load_profile("host")
CONV = ConvProblem(1, 6, 6, 16, 24, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, dtype=HOST.target().activation_dtype)
INT8 = replace(CONV, out_dtype=CONV.dtype, clamp=True, wide_weights=True)
DEPTHWISE = replace(INT8, oc=16, groups=16, short_factors=True, wide_weights=False)
FLOAT = replace(CONV, dtype="float32", relu=True)
FEW_BITS = [replace(INT8, wide_weights=False, weight_bits=w, x_bits=a) for w, a in ((4, 8), (2, 2), (1, 4))]


def block(index: int, ps: list[int | None], canary: int = 100_000, switches: int = 0, wall: int = 1000) -> dict[str, Any]:
    return {"block": index, "rounds": 5, "canary_ns": canary, "wall_ns": wall, "cpu_ns": 1000, "switches": switches, "ps": ps}


def head(least: list[int]) -> dict[str, Any]:
    return {"kernels": len(least), "clock_ns": 20, "digests": ["0"] * len(least), "least_ns": least}


def test_disturbed_blocks_do_not_count() -> None:
    lines = [head([1, 2]), *(block(i, [2_000, 4_000]) for i in range(LEAST_BLOCKS))]
    lines += [
        block(90, [9_000, 1_000], canary=110_000),
        block(91, [9_000, 1_000], switches=50),
        block(92, [9_000, 1_000], wall=1100),
    ]
    assert [line["block"] for line in calm(lines)] == list(range(LEAST_BLOCKS))
    assert [line["block"] for line in calm(lines, preempted=True)] == [*range(LEAST_BLOCKS), 91, 92]
    first, second = summarize(lines)
    assert (first.ns, first.spread, first.blocks, first.disturbed) == (2.0, 0.0, LEAST_BLOCKS, False)
    assert second.ns == 4.0


def test_where_nothing_is_calm_calls_still_tell_and_say_so() -> None:
    lines = [head([1]), *(block(i, [2_000 + i], switches=50) for i in range(9))]
    (found,) = summarize(lines)
    assert found.disturbed
    assert (found.ns, found.blocks) == (2.004, 9)
    assert found.spread > 0


def test_what_slows_all_kernels_alike_does_not_count() -> None:
    """Each block runs at a speed of its own; the kernels' order and their distance come out as if all ran at one."""
    speeds = [1.0, 1.5, 1.1, 1.6, 1.0, 1.4, 1.2, 1.5]
    times = [100_000, 97_000, 110_000, 105_000]
    lines = [head([1] * 4), *(block(i, [int(ps * speed) for ps in times]) for i, speed in enumerate(speeds))]
    found = summarize(lines)
    assert [t.ns / found[0].ns for t in found] == pytest.approx([1.0, 0.97, 1.1, 1.05], rel=1e-4)
    assert max(t.spread for t in found) < 1e-4
    assert found[0].ns == pytest.approx(130, rel=0.02)


def test_a_kernel_given_up_early_has_the_time_of_its_fastest_call() -> None:
    lines = [head([10, 90]), *(block(i, [10_000, None]) for i in range(LEAST_BLOCKS)), head([11, 80])]
    assert [(t.ns, t.blocks) for t in summarize(lines)] == [(10.0, LEAST_BLOCKS), (80.0, 0)]


def test_a_batch_interleaves_the_candidates_of_its_problems() -> None:
    target = HOST.target()
    batch = [[Candidate(p, choice) for choice in candidates(p, target)[:count]] for p, count in ((INT8, 3), (FLOAT, 2))]
    program = make_program(batch, target)
    ranks = [
        (candidate.problem, [c.choice for c in batch[candidate.problem is not INT8]].index(candidate.choice))
        for candidate in program.order
    ]
    assert ranks == [(INT8, 0), (FLOAT, 0), (INT8, 1), (FLOAT, 1), (INT8, 2)]
    # Nobody finds the constants that another candidate has just read.
    sizes = [
        sum(-(-a.nbytes // 64) * 64 for a in c.choice.generator.pack(c.problem, c.choice.tile, target, constants(c.problem)))
        for c in program.order
    ]
    assert len(program.data) == sum(sizes)
    assert program.pass_bytes == sum(sizes[:2])


def test_a_wrong_result_names_both_kernels() -> None:
    target = HOST.target()
    found = [Candidate(INT8, choice) for choice in candidates(INT8, target)[:2]]
    program = make_program([found], target)
    check_results(program, [["a", "a"], ["a", "a"]])
    with pytest.raises(CheckFailed, match=rf"{found[1].choice.generator.name}\(.*\) computes other results than"):
        check_results(program, [["a", "a"], ["a", "b"]])
    # Sums of floats depend on their order.
    floats = [Candidate(FLOAT, choice) for choice in candidates(FLOAT, target)[:2]]
    check_results(make_program([floats], target), [["a", "b"]])


class Sloppy(ConvGenerator):
    """The generator it copies, for another layer: without the clamp."""

    def emit(self, problem: ConvProblem, tile: Tile, target: Target, symbol: str) -> PrimFunc:  # type: ignore[override]
        return super().emit(replace(problem, clamp=False), tile, target, symbol)


@pytest.mark.parametrize("right", [True, False])
def test_kernels_are_timed_on_this_machine(right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense, depthwise and float kernels agree, and a wrong one among them is found."""
    target = HOST.target()
    batch = [[Candidate(p, choice) for choice in candidates(p, target)[:3]] for p in (INT8, DEPTHWISE, FLOAT)]
    if not right:
        good = next(c for c in candidates(INT8, target) if type(c.generator) is ConvGenerator)
        wrong = Sloppy(**{**vars(good.generator), "name": "sloppy"})
        batch[0].append(Candidate(INT8, Choice(wrong, good.tile)))
        # In this process, where the wrong generator is.
        monkeypatch.setattr("bevel.backends.objects.generators", lambda arch: (wrong, *_generators(arch)))
        monkeypatch.setattr("bevel.backends.objects.os.cpu_count", lambda: 1)
    with resolve_transport(HOST) as transport:
        timer = DeviceTimer(transport, target, 64 * 1024, lambda *_: None, {})
        if not right:
            with pytest.raises(CheckFailed, match="sloppy"):
                timer.time(batch)
            return
        found = timer.time(batch)
    assert [len(times) for times in found] == [len(problems) for problems in batch]
    assert all(timing.ns > 0 for timing in itertools.chain(*found))
    assert all(any(timing.blocks for timing in times) for times in found)
    assert timer.seconds.keys() == {"compile", "measure"}


def test_kernels_of_few_bits_get_codes_of_few_bits() -> None:
    """Those that look sums up and those that multiply bytes compute the same, padding included."""
    target = HOST.target()
    batch = []
    for problem in FEW_BITS:
        first: dict[str, Candidate] = {}
        for choice in candidates(problem, target):
            first.setdefault(choice.generator.name, Candidate(problem, choice))
        batch.append([found for name, found in first.items() if not name.startswith("generic")])
    assert any(len(kernels) > 1 for kernels in batch)
    with resolve_transport(HOST) as transport:
        DeviceTimer(transport, target, 64 * 1024, lambda *_: None, {}).time(batch)


def _generators(arch: str) -> Any:
    from bevel.backends.select import generators

    return generators(arch)


def test_random_constants_are_those_a_problem_promises() -> None:
    found = constants(INT8)
    assert found is not None
    assert found.weights.min() == -128
    assert found.lo > np.iinfo(CONV.dtype).min
    short = constants(DEPTHWISE)
    assert short is not None
    assert short.short_factors is not None
    table = constants(replace(INT8, wide_weights=False, index_bits=2))
    assert table is not None
    assert np.unique(table.weights).size == 4
    grouped = constants(replace(INT8, wide_weights=False, weight_group=16, group_bits=4))
    assert grouped is not None
    factored(grouped.weights, Groups(Int(4), 16))
    for problem in FEW_BITS:
        few = constants(problem)
        assert few is not None
        assert problem.x_bits == 8 or 0 <= few.x_zero_point < 1 << problem.x_bits
        assert few.weights.min() == (-1 if problem.weight_bits == 1 else -(1 << (problem.weight_bits - 1)))
        assert few.weights.max() < 1 << (problem.weight_bits - 1) or problem.weight_bits == 1
    again = constants(INT8)
    assert again is not None
    assert (again.weights == found.weights).all()
