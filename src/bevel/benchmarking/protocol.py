"""The measuring protocol: processes of blocks on any device, judged as they come, kept as they come, until the median is known.

In: an artifact's `DeviceRunner` and the `Store`. Out: `Measurement`. A session is a number of processes; each times blocks of
calls and, before each block, a canary whose time follows the core's clock alone. A block is rejected when the clock was not the
session's, when the process did not have its core, when the device throttled or when others used it; rejected blocks are kept with
their reason, and more processes take their place. Every block is in the store before the next one begins, so an interrupted
session goes on where it stopped. It ends when the median over processes is known well enough, or at the time limit, and then
says `unstable`. The same code measures this machine, boards over SSH or adb, and emulated boards, whose blocks are forgotten at
the end.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from typing import Any

import numpy as np

from bevel import __version__
from bevel.benchmarking.statistics import MOST_REJECTED, PRECISION, Drift, Latency, learn_drift, summarize
from bevel.compiler import Say
from bevel.devices.conditions import Sample, choose_cpus, fingerprint, sample
from bevel.devices.errors import RemoteFailed
from bevel.devices.local import LocalTransport
from bevel.devices.measurements import Block, Session, SessionPlan, Summary
from bevel.devices.runner import BenchOptions, DeviceRunner
from bevel.devices.store import Store
from bevel.runtime.artifact import Artifact

# A canary that differs by more from the session's saw another clock: governors step by 5 % and more.
CLOCK_TOLERANCE = 0.03
# On one thread wall time beyond CPU time by more than this share means that the process did not have its core.
PREEMPTED = 0.05
# Involuntary switches that a quiet system makes: a kernel thread now and then.
SWITCHES_PER_BLOCK, SWITCHES_PER_SECOND = 2, 20
# Others may use this share of all CPUs, and a hypervisor this share of one, while a process measures.
OTHERS, STOLEN = 0.10, 0.05
# An open session older than this is another day's measurement.
RESUME_WITHIN = timedelta(hours=6)
# Medians of sessions within this time tell how much sessions drift.
DRIFT_WITHIN = timedelta(days=90)
# On a busy device a session ends after this many times the processes asked for: more of the same would not help.
MOST_REPLACED = 3
LOCK_WAIT_S = 600.0

Note = Callable[[str], None]


@dataclass(frozen=True)
class Effort:
    """When a session may end.

    Attributes:
        processes: at least, with an accepted block each.
        time_limit_s: no process begins after this time; None for no limit.
        most: processes at most; None for no bound but the time.
    """

    processes: int = 5
    time_limit_s: float | None = 60.0
    most: int | None = None


@dataclass
class Measurement:
    """What a session found.

    Attributes:
        latency: median and interval, milliseconds.
        conditions: governor, khz, temperature_c, boot_id, pinned, canary_spread, rejected, load.
        blocks: all of them, with their verdicts.
        rss_kib: peak resident set; None when no process came to its end.
        energy_mj: median energy a call, millijoule; None where it is not measured.
        resumed: blocks that an earlier run of the command had finished.
    """

    latency: Latency
    conditions: dict[str, Any]
    blocks: list[Block]
    rss_kib: int | None
    energy_mj: float | None
    resumed: int = 0

    @property
    def why_unstable(self) -> str | None:
        """What speaks against quoting the median, with the reason most blocks were rejected for; None when nothing does."""
        why, rejected = self.latency.why_unstable, self.conditions["rejected"]
        return f"{why} (mostly: {max(rejected, key=rejected.get)})" if why is not None and rejected else why


def artifact_digest(artifact: Artifact) -> str:
    """SHA-256 over what is measured: the program and the weights."""
    files = artifact.manifest["files"]
    text = "".join(
        str(files[path.relative_to(artifact.path).as_posix()]["sha256"]) for path in (artifact.runner, artifact.weights)
    )
    return hashlib.sha256(text.encode()).hexdigest()


def session_plan(runner: DeviceRunner, device: int, purpose: str, settings: Mapping[str, Any]) -> SessionPlan:
    """What a session of `runner` measures."""
    artifact = runner.artifact
    settings = {"threads": runner.threads} | dict(settings)
    runtime = str(artifact.manifest["runtime"])
    return SessionPlan(device, purpose, artifact_digest(artifact), artifact.name, settings, __version__, runtime)


def judge(block: Block, baseline_ns: float | None, *, single_thread: bool) -> str | None:
    """Why a block does not count, by what it says itself; None when it does.

    Args:
        block: to judge.
        baseline_ns: the session's canary; None before it is known.
        single_thread: a call's wall time should be its CPU time.
    """
    if baseline_ns and block.canary_ns and abs(block.canary_ns / baseline_ns - 1) > CLOCK_TOLERANCE:
        return "clock"
    if single_thread and block.cpu_ns and block.wall_ns > block.cpu_ns * (1 + PREEMPTED):
        return "preempted"
    seconds = block.wall_ns * block.calls / 1e9
    if block.switches is not None and block.switches > SWITCHES_PER_BLOCK + SWITCHES_PER_SECOND * seconds:
        return "switches"
    return None


def judge_process(before: Sample, after: Sample, own_cpus: float, throttled: int | None) -> str | None:
    """Why none of a process's blocks counts, by what the device says; None when nothing speaks against them.

    Args:
        before: conditions before the process.
        after: and after it.
        own_cpus: mean number of CPUs bevel itself kept busy meanwhile.
        throttled: how often the device throttled meanwhile.
    """
    if throttled:
        return "throttled"
    used = after.busy_since(before)
    if used is None:
        return None
    busy, stolen = used
    if stolen > STOLEN:
        return "stolen"
    return "load" if busy - own_cpus > OTHERS * after.count else None


@dataclass
class _Process:
    """What one measuring process said."""

    blocks: list[Block] = field(default_factory=list)
    rss_kib: int | None = None
    throttled: int | None = None


class Protocol:
    """One session of one artifact on one device.

    Args:
        runner: with an open transport.
        store: where blocks go.
        device: name of the device's profile.
        options: of every process; with `pin` None the CPUs are chosen.
        pin: CPUs to stay on; None chooses them, an empty tuple leaves it to the system.
        fresh: do not go on with an unfinished session.
        say: progress.
        note: gets one line for people when there is something to tell.
    """

    def __init__(
        self,
        runner: DeviceRunner,
        store: Store,
        device: str,
        options: BenchOptions,
        *,
        pin: Sequence[int] | None = None,
        fresh: bool = False,
        say: Say | None = None,
        note: Note | None = None,
    ) -> None:
        self._runner, self._store, self._device, self._options = runner, store, device, options
        self._pin, self._fresh = pin, fresh
        self._say = say or (lambda stage, done, total: None)
        self._note = note or (lambda line: None)
        self._blocks: list[Block] = []
        self._drift = Drift()

    @property
    def kept(self) -> int:
        """Blocks that are in the store, to go on from."""
        return len(self._blocks)

    def run(self, effort: Effort) -> Measurement:
        """Measure.

        Raises:
            DeviceError: the device failed; what was finished is kept.
            DeviceBusy: another process measured there all the time.
            StoreError: blocks cannot be kept.
        """
        transport = self._runner.transport
        with transport.lock(f"bench of {self._runner.artifact.name}", LOCK_WAIT_S, self._note):
            self._runner.install()
            before, looking_s = self._look()
            session, options = self._open(before)
            resumed = self.kept
            samples, rss = [before], 0
            deadline = time.monotonic() + effort.time_limit_s if effort.time_limit_s is not None else None
            ran = 0
            while self._wanting(effort) and (deadline is None or ran == 0 or time.monotonic() < deadline):
                own, clock = time.process_time(), time.monotonic()
                index = 1 + max((block.process for block in self._blocks), default=-1)
                process, seconds = self._process(session, index, self._shorter(options, deadline, effort, ran))
                # On this machine bevel's own work is not somebody else's.
                ours_s = time.process_time() - own if isinstance(transport, LocalTransport) else 0.0
                # Nor is starting a command on the device, once for the process and once to look.
                ours_s += 2 * looking_s
                samples.append(sample(transport))
                own_cpus = (_cpu_s(process, seconds) + ours_s) / max(time.monotonic() - clock, 1e-3)
                self._settle(session, index, judge_process(samples[-2], samples[-1], own_cpus, process.throttled))
                rss = max(rss, process.rss_kib or 0)
                ran += 1
                if effort.most is not None and ran >= effort.most:
                    break
            return self._close(session, options, samples, rss or None, resumed)

    # How ---------------------------------------------------------------------------------------------------------------

    def _look(self) -> tuple[Sample, float]:
        """Conditions, and the CPU seconds that looking costs the device: much on a small one."""
        first, begin = sample(self._runner.transport), time.monotonic()
        second = sample(self._runner.transport)
        used = second.busy_since(first)
        return second, used[0] * (time.monotonic() - begin) if used is not None else 0.0

    def _open(self, found: Sample) -> tuple[Session, BenchOptions]:
        """Begin a session, or go on with the one an interruption left."""
        known = fingerprint(self._runner.transport, self._device, found)
        device = self._store.device(known)
        pin = tuple(self._pin) if self._pin is not None else choose_cpus(found.cpus, self._runner.threads)
        options = replace(self._options, pin=pin)
        settings = {key: value for key, value in asdict(options).items() if key != "limit_s"}
        plan = session_plan(self._runner, device, "bench", settings)
        self._drift = learn_drift(self._store.repeated_medians(device, DRIFT_WITHIN))
        session = None if self._fresh else self._store.unfinished(plan, RESUME_WITHIN)
        if session is None:
            return self._store.begin(plan, session_facts(found)), options
        self._blocks = self._store.blocks(session)
        processes = len({block.process for block in self._blocks})
        started = session.started[11:16]
        self._note(
            f"going on with the session of {started} UTC: {self.kept} blocks of {processes} processes (--fresh starts anew)"
        )
        return session, options

    def _process(self, session: Session, index: int, options: BenchOptions) -> tuple[_Process, float]:
        """Run one process, its blocks judged and stored as they come."""
        found = _Process()
        baseline = session.canary_ns or _median(block.canary_ns for block in self._blocks)
        single = self._runner.threads == 1

        def take(line: dict[str, Any]) -> None:
            nonlocal baseline
            try:
                if "block" in line:
                    block = _block(index, line)
                    block = replace(block, rejected=judge(block, baseline, single_thread=single))
                    self._store.add_block(session, block)
                    found.blocks.append(block)
                    self._blocks.append(block)
                    self._say(f"process {index + 1}", len(found.blocks), options.blocks)
                elif "bench" in line:
                    baseline = baseline or _median(line["canary_ns"])
                elif "end" in line:
                    found.rss_kib, found.throttled = line["rss_kib"], line["throttled"]
            except (KeyError, TypeError, ValueError) as error:
                raise RemoteFailed(
                    self._runner.transport.label,
                    f"bevel-run --bench printed {line!r:.80} ({error!r})",
                    "Compile the artifact again",
                ) from error

        return found, self._runner.bench(options, take)

    def _settle(self, session: Session, index: int, why: str | None) -> None:
        """Judge all blocks again: against the session's clock as now known, and this process by what the device says."""
        baseline = _median(block.canary_ns for block in self._blocks)
        single = self._runner.threads == 1
        settled = []
        for block in self._blocks:
            # What was said of a whole process stays.
            whole = why if block.process == index else (block.rejected if block.rejected in _OF_PROCESSES else None)
            settled.append(replace(block, rejected=whole or judge(block, baseline, single_thread=single)))
        changed = [block for block, old in zip(settled, self._blocks, strict=True) if block != old]
        if changed:
            self._store.add_blocks(session, changed)
        if baseline:
            self._store.set_canary(session, baseline)
        self._blocks = settled

    def _wanting(self, effort: Effort) -> bool:
        """Whether the median is not known well enough yet."""
        accepted = accepted_times(self._blocks)
        latency = self._latency() if self._blocks else None
        if latency is None:
            return True
        ran = len({block.process for block in self._blocks})
        if latency.disturbed > MOST_REJECTED:
            # What is rejected is replaced as long as that may help.
            return ran < MOST_REPLACED * effort.processes
        return len(accepted) < effort.processes or (len(accepted) > 1 and latency.precision > PRECISION)

    def _shorter(self, options: BenchOptions, deadline: float | None, effort: Effort, ran: int) -> BenchOptions:
        """Fewer blocks a process where calls are so slow that not all processes would begin in time."""
        if deadline is None or not self._blocks:
            return options
        block_s = float(np.median([block.wall_ns * block.calls for block in self._blocks])) / 1e9
        left = max(1, effort.processes - ran)
        fit = int(max(0.0, deadline - time.monotonic()) / left / block_s)
        return replace(options, blocks=min(options.blocks, max(MIN_BLOCKS, fit)))

    def _latency(self) -> Latency:
        accepted = accepted_times(self._blocks)
        if not accepted:
            # Those that only the device speaks against, else all; their share says that they should not be believed.
            baseline, single = _median(block.canary_ns for block in self._blocks), self._runner.threads == 1
            calm = [block for block in self._blocks if judge(block, baseline, single_thread=single) is None]
            accepted = _by_process(calm or self._blocks)
        walls = [[block.wall_ns / 1e6 for block in blocks] for blocks in accepted]
        cpus = [[block.cpu_ns / 1e6 for block in blocks if block.cpu_ns] for blocks in accepted]
        rejected = sum(block.rejected is not None for block in self._blocks) / len(self._blocks)
        return summarize(walls, cpus if all(cpus) else None, [rejected], self._drift)

    def _close(
        self, session: Session, options: BenchOptions, samples: Sequence[Sample], rss_kib: int | None, resumed: int
    ) -> Measurement:
        if not self._blocks:
            raise RemoteFailed(self._runner.transport.label, "bevel-run --bench timed nothing", "Compile the artifact again")
        latency = self._latency()
        canaries = [block.canary_ns for block in self._blocks if block.canary_ns]
        spread = float(np.std(canaries) / np.median(canaries)) if canaries else None
        rejected = dict(Counter(block.rejected for block in self._blocks if block.rejected))
        energy = [block.uj for block in self._blocks if block.uj is not None and block.rejected is None]
        conditions = session_facts(samples[-1]) | {"pinned": list(options.pin), "canary_spread": spread, "rejected": rejected}
        hot = [block.mc for block in self._blocks if block.mc is not None]
        if hot:
            conditions["temperature_c"] = max(hot) / 1000
        found = Measurement(
            latency, conditions, self._blocks, rss_kib, float(np.median(energy)) / 1e3 if energy else None, resumed
        )
        if self._runner.transport.emulated:
            self._store.discard(session)
        else:
            self._store.finish(session, _summary(found))
        return found


# Reasons that `judge_process` gives.
_OF_PROCESSES = frozenset({"throttled", "stolen", "load"})
# A process of fewer blocks is not worth its start.
MIN_BLOCKS = 3


def accepted_times(blocks: Sequence[Block]) -> list[list[Block]]:
    """The accepted blocks of each process that has some."""
    return _by_process([block for block in blocks if block.rejected is None])


def _by_process(blocks: Sequence[Block]) -> list[list[Block]]:
    found: dict[int, list[Block]] = {}
    for block in blocks:
        found.setdefault(block.process, []).append(block)
    return list(found.values())


def _block(process: int, line: Mapping[str, Any]) -> Block:
    """A block as `bevel-run --bench` prints it."""
    keys = ("wall_ns", "cpu_ns", "min_ns", "canary_ns", "uj")
    times = {key: float(line[key]) if line[key] is not None else None for key in keys}
    counts = {key: int(line[key]) if line[key] is not None else None for key in ("switches", "khz", "mc")}
    if not times["wall_ns"]:
        raise ValueError("a block of no time")
    return Block(process, int(line["block"]), int(line["calls"]), **times, **counts)  # type: ignore[arg-type]


def _cpu_s(process: _Process, seconds: float) -> float:
    """CPU seconds of a measuring process: it computes, or spins in its canary, from start to end."""
    shares = [block.cpu_ns / block.wall_ns for block in process.blocks if block.cpu_ns]
    return seconds * (float(np.median(shares)) if shares else 1.0)


def session_facts(found: Sample) -> dict[str, Any]:
    """What a document says of the conditions."""
    return {
        "governor": found.governor,
        "khz": found.khz,
        "temperature_c": found.temperature_c,
        "boot_id": found.boot_id,
        "load": found.load,
    }


def _median(values: Any) -> float | None:
    known = [value for value in values if value]
    return float(np.median(known)) if known else None


def _summary(found: Measurement) -> Summary:
    latency, accepted = found.latency, accepted_times(found.blocks)
    return Summary(
        median_ns=latency.median * 1e6,
        p10_ns=latency.p10 * 1e6,
        lo_ns=latency.interval.lo * 1e6,
        hi_ns=latency.interval.hi * 1e6,
        interval=latency.interval.kind,
        spread=latency.spread,
        cpu_ns=latency.cpu * 1e6 if latency.cpu is not None else None,
        processes=len(accepted),
        blocks=sum(len(blocks) for blocks in accepted),
        rejected=found.conditions["rejected"],
        unstable=found.why_unstable,
        canary_spread=found.conditions["canary_spread"],
        rss_kib=found.rss_kib,
        energy_uj=found.energy_mj * 1e3 if found.energy_mj is not None else None,
    )
