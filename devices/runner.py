"""An artifact on a device: upload, run, bench, profile, self-test through any transport.

In: an `Artifact` and an open `Transport`. Out: arrays and the JSON that `bevel-run` prints. The device needs nothing but a
POSIX shell; what is uploaded is the runner, the weights and, for the self-test, the golden vectors.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.devices.errors import RemoteFailed
from bevel.devices.transport import RunResult, Transport
from bevel.errors import ArtifactError, CheckFailed, UsageError
from bevel.ir.protocols import Target
from bevel.runtime.artifact import Artifact

Array = npt.NDArray[Any]

# What bevel-run's own exit codes mean (runtime/c/bevel_run.c).
_EXIT_ERRORS = {1: CheckFailed, 2: UsageError, 3: ArtifactError}
# Emulation is 170-210 times slower than the host; limits are for hangs, not for speed.
_LIMIT_S = 600.0


@dataclass(frozen=True)
class BenchOptions:
    """What one measuring process does.

    Attributes:
        blocks: to time.
        block_ms: how long a block lasts, at least one call.
        warmup_ms: calls before the first block, until they agree or for five times as long.
        cold: evict the caches before every call.
        pin: CPUs to stay on; none leaves it to the system.
        dims: run-time extents; without one those of the first golden case.
        limit_s: after which the device ends the process.
    """

    blocks: int = 20
    block_ms: int = 10
    warmup_ms: int = 200
    cold: bool = False
    pin: tuple[int, ...] = ()
    dims: Mapping[str, int] = field(default_factory=dict)
    limit_s: float = _LIMIT_S

    def arguments(self) -> list[str]:
        """As bevel-run takes them."""
        args = ["--blocks", str(self.blocks), "--block-ms", str(self.block_ms), "--warmup-ms", str(self.warmup_ms)]
        args += ["--cold"] * self.cold + (["--pin", ",".join(map(str, self.pin))] if self.pin else [])
        return [*args, *_dim_args(self.dims)]


@dataclass(frozen=True)
class DeviceRunner:
    """Runs one artifact on one device.

    Attributes:
        artifact: what to run.
        transport: an open transport.
        threads: threads of the runner.
    """

    artifact: Artifact
    transport: Transport
    threads: int = 1

    @property
    def _folder(self) -> str:
        """Work directory of this artifact on the device; equal files are not sent again."""
        return f"artifacts/{self.artifact.name}-{str(self.artifact.manifest['graph_hash'])[:12]}"

    def install(self) -> None:
        """Check that the device can run the artifact and send what is missing there.

        Raises:
            DeviceError: a named subclass: wrong architecture, missing ISA, disk full, noexec, lost connection.
        """
        target = self.artifact.manifest["target"]
        needs = frozenset(target["required_features"])
        self.transport.preflight(Target(target["name"], target["arch"], needs, target["cpu"], target["triple"]))
        self.transport.upload(self.artifact.runner, f"{self._folder}/bin/bevel-run")
        self.transport.upload(self.artifact.weights, f"{self._folder}/weights.bin")

    def run(self, inputs: Mapping[str, Array], *, batch: bool = False, reset_state: bool = False) -> dict[str, Array]:
        """Run once, or once for each index of the leading axis when `batch`; outputs in the stored dtypes.

        Float inputs of a quantized model are quantized on the device. States need not be given: they start at zero, and each run
        of a batch goes on from the one before, or starts anew when `reset_state`.

        Raises:
            UsageError: names, shapes or dtypes that the model does not take.
            DeviceError: as `install`, or the run failed.
        """
        self.install()
        self.artifact.check_inputs(inputs)
        names = [str(t["name"]) for t in self.artifact.manifest["inputs"] if str(t["name"]) in inputs]
        outputs = [str(t["name"]) for t in self.artifact.manifest["outputs"]]
        files = f"{self.transport.scratch()}/io"
        remote = self.transport.path(files)
        args: list[str] = ["--batch"] * batch + ["--reset-state"] * reset_state
        try:
            with tempfile.TemporaryDirectory(prefix="bevel-io-") as local:
                for index, name in enumerate(names):
                    file = Path(local) / f"in.{index}.npy"
                    np.save(file, np.ascontiguousarray(inputs[name]), allow_pickle=False)
                    self.transport.upload(file, f"{files}/in.{index}.npy")
                    args += ["--input", f"{name}={remote}/in.{index}.npy"]
                for index, name in enumerate(outputs):
                    args += ["--output", f"{name}={remote}/out.{index}.npy"]
                self._call(args)
                result = {}
                for index, name in enumerate(outputs):
                    file = Path(local) / f"out.{index}.npy"
                    self.transport.download(f"{files}/out.{index}.npy", file)
                    result[name] = np.load(file, allow_pickle=False)
        finally:
            self.transport.discard(files)
        return result

    def bench(self, options: BenchOptions, on_line: Callable[[dict[str, Any]], None]) -> float:
        """One measuring process, `bevel-run --bench`, of an artifact that `install` has sent.

        Args:
            options: what to measure.
            on_line: gets each line as it arrives, from a thread of the transport's: {"bench": 1, ...} first, then
                {"block": i, ...} for each block, {"end": 1, ...} last. What it raises ends the process and is raised here.

        Returns:
            Seconds the process took on the device's clock, in steps of 10 ms.

        Raises:
            DeviceError: the process failed or the connection was lost; what came before has been handed on.
        """
        lines = _Lines(self.transport.label, on_line)
        result = self._execute(["--bench", *options.arguments()], lines.feed, options.limit_s)
        lines.finish()
        return result.seconds

    def start_times(self, count: int, dims: Mapping[str, int] | None = None) -> list[int]:
        """Nanoseconds from starting a process to its first result, of `count` processes: `bevel-run --start`.

        The artifact must have been sent by `install`.
        """
        return [int(ns) for ns in self._call(["--start", str(count), *_dim_args(dims)])["start_ns"]]

    def profile(self, *, runs: int, dims: Mapping[str, int] | None = None) -> dict[str, Any]:
        """Per-layer times: `bevel-run --profile`; `dims` as for `bench`."""
        self.install()
        return self._call(["--profile", "--runs", str(runs), *_dim_args(dims)])

    def selftest(self) -> dict[str, Any]:
        """Prove on the device that it computes the golden outputs and holds the right weights.

        Raises:
            CheckFailed: it does not.
        """
        self.install()
        self.transport.upload(self.artifact.path / "selftest", f"{self._folder}/selftest")
        return self._call(["--selftest", "--golden", "selftest"])

    def _call(self, args: Sequence[str]) -> dict[str, Any]:
        """Run bevel-run in its folder and parse the JSON it prints."""
        result = self._execute(args)
        try:
            answer = json.loads(result.stdout)
        except json.JSONDecodeError as problem:
            raise RemoteFailed(
                self.transport.label, f"bevel-run printed no JSON ({problem})", "Compile the artifact again"
            ) from problem
        assert isinstance(answer, dict)
        return answer

    def _execute(
        self, args: Sequence[str], on_stdout: Callable[[bytes], None] | None = None, limit_s: float = _LIMIT_S
    ) -> RunResult:
        """Run bevel-run in its folder; its exit codes become errors."""
        argv = ["bin/bevel-run", "--threads", str(self.threads), "--weights", "weights.bin", *args]
        result = self.transport.run(argv, cwd=self._folder, timeout_s=limit_s, on_stdout=on_stdout)
        if result.exit_status != 0:
            message = result.stderr.decode(errors="replace").strip()
            error = _EXIT_ERRORS.get(result.exit_status)
            if error is not None:
                raise error(f"{self.transport.label}: {message or result.stdout.decode(errors='replace').strip()}")
            raise RemoteFailed(self.transport.label, f"bevel-run failed with {result.exit_status}: {message}", "See its message")
        return result


class _Lines:
    """Cuts the stream of a bench into lines and hands each on as JSON."""

    def __init__(self, label: str, on_line: Callable[[dict[str, Any]], None]) -> None:
        self._label, self._on_line = label, on_line
        self._rest, self._ended = b"", False

    def feed(self, chunk: bytes) -> None:
        """Take what arrived."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError as problem:
                raise self._unreadable(line) from problem
            if not isinstance(found, dict):
                raise self._unreadable(line)
            self._ended = "end" in found
            self._on_line(found)

    def finish(self) -> None:
        """Check that the last line came."""
        if not self._ended:
            raise self._unreadable(self._rest)

    def _unreadable(self, line: bytes) -> RemoteFailed:
        text = line.decode(errors="replace")
        return RemoteFailed(self._label, f"bevel-run --bench printed {text[:80]!r}", "Compile the artifact again")


def _dim_args(dims: Mapping[str, int] | None) -> list[str]:
    """Extents of dimensions as bevel-run takes them."""
    return [part for name, extent in (dims or {}).items() for part in ("--dim", f"{name}={extent}")]
