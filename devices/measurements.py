"""What the measurement store holds, as plain records: devices, sessions, blocks, summaries, layers and kernels.

The protocol (`bevel.benchmarking.protocol`) and the tuner make them, `bevel.devices.store` keeps them. Times are nanoseconds per
call unless a name says otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def canonical_json(value: object) -> str:
    """JSON text that is equal for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_digest(value: object) -> str:
    """SHA-256 of a JSON-able value's canonical text, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


@dataclass(frozen=True)
class DeviceFingerprint:
    """One machine in one state of its software: what a time is true for.

    Attributes:
        name: of the profile it was measured as.
        arch: "x86_64", "aarch64" or "armv7".
        cpu: what the CPU calls itself, such as "Cortex-A72".
        features: ISA features, sorted.
        kernel: release of the operating system's kernel.
        machine: hash of the machine's own identity; empty where it has none.
        emulated: an emulator executes its programs; no time of it is ever stored.
    """

    name: str
    arch: str
    cpu: str
    features: tuple[str, ...]
    kernel: str
    machine: str
    emulated: bool = False

    @property
    def digest(self) -> str:
        """Identifies the device in every store."""
        emulated = bool(self.emulated)
        return content_digest([self.name, self.arch, self.cpu, list(self.features), self.kernel, self.machine, emulated])[:32]


@dataclass(frozen=True)
class SessionPlan:
    """What makes two sessions the same measurement.

    Attributes:
        device: row of the device (`Store.device`).
        purpose: "bench" or "profile".
        artifact: SHA-256 over the program and the weights that are measured.
        name: of the artifact, for people.
        settings: what the user chose: threads, pins, cache mode, extents, blocks.
        bevel: version of bevel.
        runtime: digest of the runtime's sources.
    """

    device: int
    purpose: str
    artifact: str
    name: str
    settings: Mapping[str, Any]
    bevel: str
    runtime: str


@dataclass(frozen=True)
class Session:
    """A session as stored.

    Attributes:
        id: its row.
        uuid: its name in every store.
        plan: what is measured.
        conditions: of the device when it began: governor, temperature, boot_id, load.
        started: ISO 8601, UTC.
        canary_ns: the canary's time when it began, which later blocks are held against; None before the first process.
        state: "open", "finished" or "abandoned".
    """

    id: int
    uuid: str
    plan: SessionPlan
    conditions: Mapping[str, Any]
    started: str
    canary_ns: float | None
    state: str


@dataclass(frozen=True)
class Block:
    """Calls timed together.

    Attributes:
        process: index of the measuring process within the session.
        index: of the block within the process.
        calls: in the block.
        wall_ns: per call.
        cpu_ns: CPU time per call, over all threads.
        min_ns: the fastest call.
        canary_ns: the canary directly before the block.
        switches: involuntary context switches.
        khz: clock of the first pinned core.
        mc: hottest thermal zone, thousandths of a degree Celsius.
        uj: energy per call, microjoule.
        rejected: why the block does not count; None when it does.
    """

    process: int
    index: int
    calls: int
    wall_ns: float
    cpu_ns: float | None = None
    min_ns: float | None = None
    canary_ns: float | None = None
    switches: int | None = None
    khz: int | None = None
    mc: int | None = None
    uj: float | None = None
    rejected: str | None = None


@dataclass(frozen=True)
class Summary:
    """What a session found.

    Attributes:
        median_ns: over processes of the medians of their accepted blocks.
        p10_ns: 10th percentile of all accepted blocks.
        lo_ns: lower end of the interval.
        hi_ns: upper end of the interval.
        interval: kind of the interval (`bevel.benchmarking.statistics`).
        spread: standard deviation of the processes' medians, relative to the median.
        cpu_ns: median CPU time.
        processes: with at least one accepted block.
        blocks: accepted.
        rejected: blocks by reason.
        unstable: why the median should not be quoted; None when it may be.
        canary_spread: relative spread of the canary over the session.
        rss_kib: peak resident set of a measuring process.
        energy_uj: median energy per call, microjoule.
    """

    median_ns: float
    p10_ns: float
    lo_ns: float
    hi_ns: float
    interval: str
    spread: float
    cpu_ns: float | None
    processes: int
    blocks: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    unstable: str | None = None
    canary_spread: float | None = None
    rss_kib: int | None = None
    energy_uj: float | None = None


@dataclass(frozen=True)
class LayerTime:
    """Median time of one layer in one profile.

    Attributes:
        step: position in the schedule.
        name: of the layer.
        op: operator.
        kernel: generator and tile.
        bits: precision.
        macs: multiply-accumulates.
        bytes: moved at least.
        ns: median.
        predicted_ns: by the cost model; None where it made no prediction.
    """

    step: int
    name: str
    op: str
    kernel: str
    bits: str
    macs: int
    bytes: int
    ns: float
    predicted_ns: float | None = None


@dataclass(frozen=True)
class KernelKey:
    """A kernel by content: equal keys are the same machine code. A change of layout is a kernel with a generator of its own.

    Attributes:
        generator: that emits it.
        problem: what is computed: shapes, types, strides, as canonical text.
        tile: the generator's choice, as canonical text.
        target: architecture and ISA the code is compiled for, as canonical text.
        macs: multiply-accumulates of one call.
        bytes: one call moves at least.
    """

    generator: str
    problem: str
    tile: str
    target: str
    macs: int = 0
    bytes: int = 0

    @property
    def digest(self) -> str:
        """Identifies the kernel in every store."""
        return content_digest([self.generator, self.problem, self.tile, self.target])[:32]


@dataclass(frozen=True)
class KernelTime:
    """One measurement of one kernel on one device.

    Attributes:
        ns: median per call.
        spread: relative spread of the repetitions.
        canary_noise: relative spread of the canary beside it.
        runtime: digest of the runtime's sources it ran on.
        date: ISO 8601, UTC.
    """

    ns: float
    spread: float
    canary_noise: float
    runtime: str
    date: str


@dataclass(frozen=True)
class HistoryRow:
    """A finished session with its device and result.

    Attributes:
        device: where.
        session: what was measured, and when.
        summary: what came out; None for a profile.
        finished: ISO 8601, UTC.
    """

    device: DeviceFingerprint
    session: Session
    summary: Summary | None
    finished: str
