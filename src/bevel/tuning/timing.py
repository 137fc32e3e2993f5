"""Times batches of kernels on a device: compile, link, send, run, judge.

In: candidates of several problems and an open `Transport`. Out: a `Timing` of each. Blocks are judged as in the measuring
protocol (docs/measuring.md): those of another clock, and those during which the program did not have its core, do not count,
and processes are repeated until enough do. On a busy machine too few may remain; then preempted blocks count as well, as calls
are timed one by one and the slow ones cut off, and what is made of them says `disturbed`.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bevel.backends.objects import compile_kernels
from bevel.benchmarking.protocol import CLOCK_TOLERANCE, judge
from bevel.devices.conditions import choose_cpus, sample
from bevel.devices.errors import RemoteFailed
from bevel.devices.measurements import Block
from bevel.devices.transport import Transport
from bevel.errors import CheckFailed
from bevel.ir.protocols import Target
from bevel.runtime.toolchain import find_toolchain
from bevel.tuning.program import BenchProgram, Candidate, make_program
from bevel.tuning.workload import exact

# Accepted blocks that a median stands on, and processes after which no more are tried.
LEAST_BLOCKS, MOST_PROCESSES = 7, 3
# Memory walked through between two calls of a kernel, at most: no cache of a core is larger.
MOST_WALKED = 32 * 1024**2
# A process is for hangs limited to this; kernels of boards take a hundred times what they take here.
_LIMIT_S = 600.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Timing:
    """What was found of one kernel.

    Attributes:
        ns: median over blocks; of a kernel that was given up early its fastest call.
        spread: standard error of the median relative to it; the noise two kernels of one batch are compared within.
        blocks: it stands on; 0 when it was given up early, as several times slower than another.
        canary_noise: relative spread of the canary in those blocks.
        disturbed: too few blocks were calm.
    """

    ns: float
    spread: float
    blocks: int
    canary_noise: float
    disturbed: bool = False


class KernelTimer(Protocol):
    """Times kernels."""

    def time(self, batch: Sequence[Sequence[Candidate]]) -> list[list[Timing]]:
        """A timing of every candidate of `batch`, one sequence for each problem."""
        ...


@dataclass
class DeviceTimer:
    """Times kernels on a device.

    Attributes:
        transport: open, and locked for this.
        target: what kernels are compiled for.
        model_bytes: constants of the whole model: what is not the batch's lies between two calls of a kernel.
        say: progress of the compilation.
        seconds: spent so far, by "compile" and "measure".
    """

    transport: Transport
    target: Target
    model_bytes: int
    say: Progress
    seconds: dict[str, float]

    def time(self, batch: Sequence[Sequence[Candidate]]) -> list[list[Timing]]:
        """See `KernelTimer.time`.

        Raises:
            ToolchainError: a kernel does not compile.
            DeviceError: the device failed.
            CheckFailed: two kernels of an integer problem compute different results; names them: a defect of a generator.
        """
        begin = time.monotonic()
        program = make_program(batch, self.target)
        objects = compile_kernels(
            list({kernel.symbol: kernel for kernel in program.kernels}.values()),
            self.target,
            progress=lambda done, total: self.say("kernels", done, total),
        )
        with tempfile.TemporaryDirectory(prefix="bevel-tune-") as folder:
            file = Path(folder) / "kernel-bench"
            program.link(find_toolchain(self.target.arch), objects, file)
            (Path(folder) / "data.bin").write_bytes(program.data)
            compiled = time.monotonic()
            try:
                lines = self._measure(Path(folder), max(0, self.model_bytes - program.pass_bytes))
            finally:
                self.seconds["compile"] = self.seconds.get("compile", 0.0) + compiled - begin
                self.seconds["measure"] = self.seconds.get("measure", 0.0) + time.monotonic() - compiled
        check_results(program, [line["digests"] for line in lines if "kernels" in line])
        timings = {kernel.symbol: timing for kernel, timing in zip(program.kernels, summarize(lines), strict=True)}
        return [[timings[candidate.kernel(self.target).symbol] for candidate in candidates] for candidates in batch]

    def _measure(self, folder: Path, other_bytes: int) -> list[dict[str, Any]]:
        """Lines of as many processes as it takes."""
        transport = self.transport
        remote = f"{transport.scratch()}/tune"
        lines: list[dict[str, Any]] = []
        try:
            transport.upload(folder / "kernel-bench", f"{remote}/kernel-bench")
            transport.upload(folder / "data.bin", f"{remote}/data.bin")
            pins = choose_cpus(sample(transport).cpus, 1)
            arguments = ["./kernel-bench", "data.bin", "--walk", str(min(other_bytes, MOST_WALKED) // 1024)]
            arguments += ["--pin", str(pins[0])] if pins else []
            for _ in range(MOST_PROCESSES):
                result = transport.run(arguments, cwd=remote, timeout_s=_LIMIT_S)
                if result.exit_status != 0:
                    message = result.stderr.decode(errors="replace").strip()
                    raise RemoteFailed(
                        transport.label, f"kernel-bench failed ({message})", "Tune with --tune=off, or see its message"
                    )
                try:
                    lines += [json.loads(line) for line in result.stdout.splitlines()]
                except ValueError as error:
                    raise RemoteFailed(
                        transport.label, f"kernel-bench printed no JSON ({error})", "Run the command again"
                    ) from error
                if len(calm(lines)) >= LEAST_BLOCKS:
                    break
        finally:
            transport.discard(remote)
        return lines


def calm(lines: Sequence[Mapping[str, Any]], *, preempted: bool = False) -> list[Mapping[str, Any]]:
    """Blocks that count; with `preempted` also those during which the program did not have its core."""
    blocks = [line for line in lines if "block" in line]
    baseline = float(np.median([block["canary_ns"] for block in blocks]))
    found = []
    for line in blocks:
        if preempted:
            good = abs(line["canary_ns"] / baseline - 1) <= CLOCK_TOLERANCE
        else:
            block = Block(
                0, line["block"], 1, line["wall_ns"], line["cpu_ns"], canary_ns=line["canary_ns"], switches=line["switches"]
            )
            good = judge(block, baseline, single_thread=True) is None
        if good:
            found.append(line)
    return found


def summarize(lines: Sequence[Mapping[str, Any]]) -> list[Timing]:
    """Timings of the kernels in the program's order, from all lines of its processes."""
    least = np.min([line["least_ns"] for line in lines if "kernels" in line], axis=0)
    blocks = calm(lines)
    disturbed = len(blocks) < LEAST_BLOCKS
    if disturbed:
        blocks = calm(lines, preempted=True) or [line for line in lines if "block" in line]
    canaries = [block["canary_ns"] for block in blocks]
    noise = float(np.std(canaries) / np.median(canaries))
    table = np.array([block["ps"] for block in blocks], np.float64) / 1e3
    ran = ~np.isnan(table).all(axis=0)
    table[:, ran] /= _levels(table[:, ran])
    found = []
    for index, fastest in enumerate(least):
        times = table[~np.isnan(table[:, index]), index]
        if not times.size:
            found.append(Timing(float(max(fastest, 1)), 0.0, 0, noise, disturbed))
            continue
        median = float(np.median(times))
        # Of the median of a sample, by the median absolute deviation (1.4826 times it estimates the standard deviation).
        deviation = 1.4826 * float(np.median(np.abs(times - median)))
        error = np.sqrt(np.pi / 2) * deviation / np.sqrt(times.size) / max(median, 1e-3)
        found.append(Timing(max(median, 1e-3), float(error), times.size, noise, disturbed))
    return found


def _levels(table: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """How slow each block was for all kernels alike, [blocks, 1], around 1.

    What shares the core, the caches or the power with this program slows whole blocks by up to a half, and the canary, which
    waits for one multiplier, sees nothing of it. All kernels take part in every block, so only what differs between them is left.
    One or two kernels cannot tell.

    Args:
        table: times [blocks, kernels]; not a number where a kernel did not take part.
    """
    if table.shape[1] < 3:
        return np.ones((len(table), 1))
    levels: npt.NDArray[np.float64] = np.nanmedian(table / np.nanmedian(table, axis=0), axis=1, keepdims=True)
    return levels


def check_results(program: BenchProgram, digests: Sequence[Sequence[str]]) -> None:
    """Compare what the kernels of each exact problem computed.

    Raises:
        CheckFailed: two differ; names both kernels.
    """
    for found in digests:
        first: dict[object, tuple[Candidate, str]] = {}
        for candidate, digest in zip(program.order, found, strict=True):
            if not exact(candidate.problem):
                continue
            other, expected = first.setdefault(candidate.problem, (candidate, digest))
            if digest != expected:
                raise CheckFailed(
                    f"kernel {_name(candidate)} computes other results than {_name(other)} for {candidate.problem}: a defect of "
                    "one of the two generators; report it, and compile with --tune=off"
                )


def _name(candidate: Candidate) -> str:
    tile = ", ".join(f"{key}={value}" for key, value in candidate.choice.tile.items())
    return f"{candidate.choice.generator.name}({tile})"
