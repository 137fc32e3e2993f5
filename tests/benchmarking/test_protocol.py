"""The measuring protocol on a device that is played: which blocks count, when a session ends, and what it leaves in the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from bevel.benchmarking.protocol import (
    CLOCK_TOLERANCE,
    MIN_BLOCKS,
    MOST_REPLACED,
    Effort,
    Measurement,
    Protocol,
    judge,
    judge_process,
)
from bevel.devices.conditions import choose_cpus, cpu_list, parse_sample
from bevel.devices.errors import ConnectionLost, RemoteFailed
from bevel.devices.measurements import Block
from bevel.devices.runner import BenchOptions, DeviceRunner
from bevel.devices.store import Store
from bevel.runtime.artifact import Artifact

CONDITIONS = """boot_id=b1
machine=0123
serial=10000000abcd
allowed=0-3
stat=cpu  {busy} 0 0 {idle} 0 0 0 {steal} 0 0
load=0.50 0.40 0.30 1/99 1234
online=0-3
max.0=1500000
max.2=2000000
max.3=2000000
khz.0=600000
khz.2=1800000
governor.0=ondemand
governor.2=ondemand
siblings.2=2-3
siblings.3=2-3
mc=45000
mc=51500
"""
CALM = Block(0, 0, 100, 1e5, 1e5, 9e4, 5e4, 0)


class Device:
    """A transport and runner whose every process prints what `process` makes of its number."""

    label, emulated, threads = "the board", False, 1

    def __init__(self) -> None:
        self.info = SimpleNamespace(cpuinfo="", arch="aarch64", features=frozenset({"neon"}), kernel="6.1", emulator="")
        files = {"bin/bevel-run": {"sha256": "aa"}, "weights.bin": {"sha256": "bb"}}
        self.artifact = Artifact(Path("net.bevel"), {"name": "net", "files": files, "runtime": "r"})
        self.transport = self
        self.jobs: list[BenchOptions] = []
        self.busy, self.idle, self.steal = 0.0, 0, 0
        self.others = 0.0
        self.now, self.looking_s = 0.0, 0.0
        self.locked = False
        self.times: Callable[[int], float] = lambda process: 1e5
        self.change: Callable[[int, int, dict[str, Any]], None] = lambda process, block, line: None
        self.throttled: int | None = 0
        self.ends: Callable[[int, int], None] = lambda process, block: None

    @contextlib.contextmanager
    def lock(self, purpose: str, wait_s: float, say: object) -> Iterator[None]:
        self.locked = True
        yield
        self.locked = False

    def install(self) -> None:
        assert self.locked, "sent under the lock: a bench of another artifact may be running"

    def run(self, argv: list[str]) -> SimpleNamespace:
        assert argv[:2] == ["sh", "-c"]
        self.busy, self.idle, self.now = (
            self.busy + 100 * self.looking_s,
            self.idle + int(300 * self.looking_s),
            self.now + self.looking_s,
        )
        text = CONDITIONS.format(busy=int(self.busy), idle=self.idle, steal=self.steal)
        return SimpleNamespace(exit_status=0, stdout=text.encode(), stderr=b"")

    def bench(self, options: BenchOptions, on_line: Callable[[dict[str, Any]], None]) -> float:
        """One process, of half a second at least."""
        number = len(self.jobs)
        self.jobs.append(options)
        on_line({"bench": 1, "canary_ns": [5e4, 5e4]})
        for index in range(options.blocks):
            self.ends(number, index)
            ns = self.times(number)
            keys: dict[str, Any] = {"wall_ns": ns, "cpu_ns": ns, "min_ns": ns, "canary_ns": 5e4, "uj": 2000.0}
            line = {"block": index, "calls": 10, "switches": 0, "khz": 1_800_000, "mc": 50_000 + index} | keys
            self.change(number, index, line)
            on_line(line)
        on_line({"end": 1, "blocks": options.blocks, "rss_kib": 2048, "throttled": self.throttled})
        # Ticks of 10 ms of all four CPUs, of which this process kept one busy, and others some.
        seconds = max(0.5, options.blocks * 10 * self.times(number) / 1e9)
        self.busy, self.idle = self.busy + 100 * seconds * (1 + self.others), self.idle + int(100 * seconds * (3 - self.others))
        self.now += seconds
        return seconds


@dataclass
class Bench:
    device: Device
    store: Store
    notes: list[str] = field(default_factory=list)

    def run(self, effort: Effort | None = None, **options: Any) -> Measurement:
        return self.protocol(**options).run(effort or Effort(5, None))

    def protocol(self, given: BenchOptions | None = None, **options: Any) -> Protocol:
        runner = cast(DeviceRunner, self.device)
        return Protocol(runner, self.store, "pi", given or BenchOptions(blocks=4), note=self.notes.append, **options)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    device = Device()
    clock = SimpleNamespace(monotonic=lambda: device.now, process_time=lambda: 0.0)
    monkeypatch.setattr("bevel.benchmarking.protocol.time", clock)
    return Bench(device, Store.open(tmp_path / "store.sqlite"))


# Which blocks count -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (CALM, None),
        (replace(CALM, canary_ns=5e4 * (1 + 0.9 * CLOCK_TOLERANCE)), None),
        (replace(CALM, canary_ns=5e4 * (1 + 1.1 * CLOCK_TOLERANCE)), "clock"),
        (replace(CALM, canary_ns=5e4 * (1 - 1.1 * CLOCK_TOLERANCE)), "clock"),
        (replace(CALM, wall_ns=1.04e5), None),
        (replace(CALM, wall_ns=1.06e5), "preempted"),
        (replace(CALM, switches=2), None),
        (replace(CALM, switches=3), "switches"),
        # A block of a second may see twenty more.
        (replace(CALM, switches=21, calls=10_000), None),
        (replace(CALM, canary_ns=None, cpu_ns=None, switches=None), None),
    ],
)
def test_what_a_block_says_of_itself(block: Block, why: str | None) -> None:
    assert judge(block, 5e4, single_thread=True) == why


def test_threads_share_cpu_time_and_a_clock_must_be_known() -> None:
    assert judge(replace(CALM, cpu_ns=3e4), 5e4, single_thread=False) is None
    assert judge(replace(CALM, canary_ns=9e4), None, single_thread=True) is None


def test_what_the_device_says_of_a_process() -> None:
    """Four CPUs for 100 ticks each: one of them was bevel's."""
    before = parse_sample(CONDITIONS.format(busy=0, idle=0, steal=0))

    def after(busy: int, idle: int, steal: int = 0, boot: str = "b1") -> Any:
        return parse_sample(CONDITIONS.format(busy=busy, idle=idle, steal=steal).replace("b1", boot))

    assert judge_process(before, after(130, 270), 1.0, 0) is None, "0.3 of four CPUs"
    assert judge_process(before, after(150, 250), 1.0, 0) == "load"
    assert judge_process(before, after(150, 250), 1.3, None) is None, "what bevel itself used does not count"
    assert judge_process(before, after(100, 280, 20), 1.0, 0) == "stolen"
    assert judge_process(before, after(100, 300), 1.0, 2) == "throttled"
    assert judge_process(before, after(150, 250, boot="b2"), 1.0, 0) is None, "counters start anew with the device"


def test_conditions_are_read() -> None:
    found = parse_sample(CONDITIONS.format(busy=100, idle=300, steal=7))
    assert (found.boot_id, found.governor, found.khz, found.temperature_c) == ("b1", "ondemand", 1_800_000, 51.5)
    assert (found.load, found.ticks, found.count) == (0.5, (407, 100, 7), 4)
    assert len(found.machine) == 16
    assert found.machine != parse_sample("machine=0124\n").machine
    assert [(cpu.number, cpu.max_khz, cpu.core) for cpu in found.cpus] == [
        (0, 1_500_000, 0), (1, 0, 1), (2, 2_000_000, 2), (3, 2_000_000, 2)
    ]  # fmt: skip


def test_a_device_that_tells_nothing() -> None:
    found = parse_sample("")
    assert (found.governor, found.khz, found.temperature_c, found.load, found.ticks, found.machine) == (None,) * 5 + ("",)
    assert found.busy_since(found) is None
    assert parse_sample("governor.0=ondemand\ngovernor.1=performance\n").governor == "mixed"


def test_cpus_are_the_fastest_and_one_a_core() -> None:
    cpus = parse_sample(CONDITIONS).cpus
    assert choose_cpus(cpus, 1) == (3,)
    assert choose_cpus(cpus, 2) == (0, 3), "CPU 2 shares the core of CPU 3"
    assert choose_cpus(cpus, 4) == (0, 1, 2, 3)
    assert choose_cpus(cpus, 5) == ()
    assert cpu_list("0-2,5,x,") == (0, 1, 2, 5)


# When a session ends ---------------------------------------------------------------------------------------------------


def test_a_calm_device_is_measured_by_as_many_processes_as_asked_for(bench: Bench) -> None:
    found = bench.run()
    assert len(bench.device.jobs) == 5
    assert found.latency.median == pytest.approx(0.1)
    assert found.latency.precision == 0.0
    assert found.why_unstable is None
    assert (found.rss_kib, found.energy_mj, found.resumed) == (2048, 2.0, 0)
    assert found.conditions == {
        "governor": "ondemand", "khz": 1_800_000, "temperature_c": 50.003, "boot_id": "b1", "load": 0.5, "pinned": [3],
        "canary_spread": 0.0, "rejected": {},
    }  # fmt: skip
    assert bench.device.jobs[0].pin == (3,)
    [row] = bench.store.history("pi")
    assert row.summary is not None
    assert (row.summary.median_ns, row.summary.blocks, row.summary.processes) == (pytest.approx(1e5), 20, 5)
    assert (row.session.canary_ns, row.session.plan.settings["pin"]) == (5e4, [3])
    assert not bench.device.locked


def test_more_processes_until_the_median_is_known(bench: Bench) -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.04, 1000))
    bench.device.times = lambda process: 1e5 * noise[process]
    found = bench.run()
    assert 10 < len(bench.device.jobs) < 60
    assert found.latency.precision < 0.02
    assert not found.why_unstable


def test_the_time_limit_ends_a_session_as_unstable(bench: Bench) -> None:
    noise = np.exp(np.random.default_rng(0).normal(0, 0.3, 1000))
    bench.device.times = lambda process: 1e5 * noise[process]
    found = bench.run(Effort(5, 10.0))
    assert len(bench.device.jobs) == 20, "half a second each"
    assert "processes differ" in str(found.why_unstable)
    assert "processes differ" in str(bench.store.history()[0].summary.unstable)  # type: ignore[union-attr]


def test_slow_models_get_fewer_blocks(bench: Bench) -> None:
    """Forty blocks of a second take long: what is left is shared by the other processes, down to a few blocks each."""
    bench.device.times = lambda process: 1e8
    bench.run(Effort(5, 60.0), given=BenchOptions(blocks=40))
    assert [job.blocks for job in bench.device.jobs] == [40, 5, 5, 5, 5]
    bench.device.jobs.clear()
    bench.run(Effort(5, 41.0), given=BenchOptions(blocks=40))
    assert [job.blocks for job in bench.device.jobs] == [40, MIN_BLOCKS], "no process begins after the limit"


def test_disturbed_blocks_are_kept_with_their_reason_and_replaced(bench: Bench) -> None:
    def disturb(process: int, block: int, line: dict[str, Any]) -> None:
        if process == 0:  # another program has its core two thirds of the time
            line.update(wall_ns=3e5)
        if process == 2 and block == 1:
            line.update(wall_ns=1.1e5)
        if process == 1 and block == 0:
            line.update(canary_ns=6e4, wall_ns=1.2e5, cpu_ns=1.2e5)

    bench.device.change = disturb
    found = bench.run()
    assert len(bench.device.jobs) == 6, "the first process gave nothing"
    assert found.conditions["rejected"] == {"load": 4, "clock": 1, "preempted": 1}
    assert found.latency.median == pytest.approx(0.1)
    assert found.why_unstable is None
    [row] = bench.store.history()
    stored = bench.store.blocks(row.session)
    assert [block.rejected for block in stored[:5]] == ["load"] * 4 + ["clock"]


def test_a_busy_device_is_unstable_within_bounds(bench: Bench) -> None:
    bench.device.others = 1.0
    found = bench.run()
    assert len(bench.device.jobs) == MOST_REPLACED * 5
    assert found.conditions["rejected"] == {"load": 60}
    assert found.why_unstable == "100 % of the blocks were disturbed (mostly: load)"
    assert found.latency.median == pytest.approx(0.1), "what there is is shown"


def test_a_small_device_that_is_busy_answering_is_not_busy(bench: Bench) -> None:
    """Half a second of CPU time for every command: bevel's own doing, known from looking twice."""
    bench.device.looking_s = 0.5
    assert bench.run().conditions["rejected"] == {}


def test_a_device_that_throttles_is_unstable(bench: Bench) -> None:
    bench.device.throttled = 3
    assert "throttled" in str(bench.run().why_unstable)


def test_the_clock_of_most_blocks_is_the_sessions(bench: Bench) -> None:
    """A governor that is still slow when the session begins: its blocks are rejected, not all that follow."""

    def ramp(process: int, block: int, line: dict[str, Any]) -> None:
        if (process, block) < (1, 1):
            line.update(canary_ns=1e5, wall_ns=2e5, cpu_ns=2e5)

    bench.device.change = ramp
    found = bench.run()
    assert found.conditions["rejected"] == {"clock": 5}
    assert found.latency.median == pytest.approx(0.1)


def test_a_reboot_in_the_middle_does_not_end_a_session(bench: Bench) -> None:
    def die(process: int, block: int) -> None:
        if (process, block) == (2, 3):
            raise ConnectionLost("the board", "the device rebooted", "")

    bench.device.ends = die
    protocol = bench.protocol()
    with pytest.raises(ConnectionLost):
        protocol.run(Effort(5, None))
    assert protocol.kept == 11
    found = bench.run()
    assert found.resumed == 11
    assert len(bench.device.jobs) == 3 + 2, "an interrupted process counts with the blocks it has"
    assert len({(block.process, block.index) for block in found.blocks}) == 11 + 8
    assert "going on with the session of" in bench.notes[-1]
    assert "11 blocks of 3 processes" in bench.notes[-1]
    assert len(bench.store.history()) == 1
    assert bench.run().resumed == 0, "what is finished is not gone on with"


@pytest.mark.parametrize("change", [{"fresh": True}, {"given": BenchOptions(blocks=4, cold=True)}, {"pin": (1,)}])
def test_another_measurement_starts_anew(bench: Bench, change: dict[str, Any]) -> None:
    def die(process: int, block: int) -> None:
        if len(bench.device.jobs) == 1 and block == 2:
            raise ConnectionLost("the board", "lost", "")

    bench.device.ends = die
    with pytest.raises(ConnectionLost):
        bench.run()
    assert bench.run(**change).resumed == 0


def test_yesterdays_session_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(process: int, block: int) -> None:
        if len(bench.device.jobs) == 1 and block == 2:
            raise ConnectionLost("the board", "lost", "")

    bench.device.ends = die
    with pytest.raises(ConnectionLost):
        bench.run()
    monkeypatch.setattr("bevel.benchmarking.protocol.RESUME_WITHIN", timedelta(0))
    assert bench.run().resumed == 0


def test_emulated_sessions_resume_and_leave_nothing(bench: Bench) -> None:
    """Their blocks are a journal: there while the session is open, gone when it ends, never a measurement."""
    bench.device.emulated = True  # type: ignore[misc]

    def die(process: int, block: int) -> None:
        if len(bench.device.jobs) == 1 and block == 2:
            raise ConnectionLost("the board", "lost", "")

    bench.device.ends = die
    with pytest.raises(ConnectionLost):
        bench.run()
    assert bench.run(Effort(2, None)).resumed == 2
    assert bench.store.history() == []
    with contextlib.closing(bench.store._connection.cursor()) as sql:
        assert sql.execute("SELECT count(*) FROM sessions").fetchone()[0] == 0
        assert sql.execute("SELECT count(*) FROM blocks").fetchone()[0] == 0


def test_sessions_teach_how_much_they_drift(bench: Bench) -> None:
    """The same measurement every day, each day 10 % apart: the interval learns to hold that."""
    days = np.exp(np.random.default_rng(3).normal(0, 0.1, 30))
    widths = []
    for day in days:
        bench.device.times = lambda process, day=day: 1e5 * day  # type: ignore[misc]
        latency = bench.run().latency
        widths.append(latency.interval.hi / latency.median - 1)
    assert widths[0] < 0.03
    assert 0.15 < widths[-1] < 0.45


@pytest.mark.parametrize(
    "line",
    [{"block": 0}, {"block": 0, "calls": 1, "wall_ns": 0, "cpu_ns": 1, "min_ns": 1, "canary_ns": 1, "uj": 1}, {"bench": 1}],
)
def test_lines_that_make_no_sense_are_named(bench: Bench, line: dict[str, Any]) -> None:
    bench.device.bench = lambda options, on_line: on_line(line)  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(RemoteFailed, match="bevel-run --bench printed"):
        bench.run()
