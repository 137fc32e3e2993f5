"""An artifact on a device: upload, run, bench, profile, self-test through any transport.

In: an `Artifact` and an open `Transport`. Out: arrays and the JSON that `bevel-run` prints. The device needs nothing but a
POSIX shell; what is uploaded is the runner, the weights and, for the self-test, the golden vectors.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        with tempfile.TemporaryDirectory(prefix="bevel-io-") as local:
            for index, name in enumerate(names):
                file = Path(local) / f"in.{index}.npy"
                np.save(file, np.ascontiguousarray(inputs[name]), allow_pickle=False)
                self.transport.upload(file, f"{files}/in.{index}.npy")
                args += ["--input", f"{name}={remote}/in.{index}.npy"]
            for index, name in enumerate(outputs):
                args += ["--output", f"{name}={remote}/out.{index}.npy"]
            try:
                self._call(args)
                result = {}
                for index, name in enumerate(outputs):
                    file = Path(local) / f"out.{index}.npy"
                    self.transport.download(f"{files}/out.{index}.npy", file)
                    result[name] = np.load(file, allow_pickle=False)
            finally:
                self.transport.cleanup(files)
        return result

    def bench(self, *, warmup: int, runs: int, dims: Mapping[str, int] | None = None) -> dict[str, Any]:
        """One process of `runs` timed blocks: first and last line of `bevel-run --bench` in one, and "samples_ns" of the blocks.

        Without `warmup` nothing runs before them but one call. `dims` chooses run-time extents; without it they are those of the
        first golden case.
        """
        self.install()
        blocks = ["--blocks", str(runs), "--block-ms", "1", *(["--warmup-ms", "0"] if warmup <= 1 else [])]
        head, *timed, end = self._lines(["--bench", *blocks, *_dim_args(dims)], least=2)
        return {**head, **end, "samples_ns": [block["wall_ns"] for block in timed]}

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
        """Run bevel-run in its folder and parse the JSON object it prints."""
        return self._lines(args, least=1)[0]

    def _lines(self, args: Sequence[str], *, least: int) -> list[dict[str, Any]]:
        """Run bevel-run in its folder and parse the JSON objects it prints, one a line and at least `least`."""
        argv = ["bin/bevel-run", "--threads", str(self.threads), "--weights", "weights.bin", *args]
        result: RunResult = self.transport.run(argv, cwd=self._folder, timeout_s=_LIMIT_S)
        message = result.stderr.decode(errors="replace").strip()
        if result.exit_status != 0:
            error = _EXIT_ERRORS.get(result.exit_status)
            if error is not None:
                raise error(f"{self.transport.label}: {message or result.stdout.decode(errors='replace').strip()}")
            raise RemoteFailed(self.transport.label, f"bevel-run failed with {result.exit_status}: {message}", "See its message")
        try:
            lines = [json.loads(line) for line in result.stdout.splitlines()]
        except json.JSONDecodeError as problem:
            raise RemoteFailed(
                self.transport.label, f"bevel-run printed no JSON ({problem})", "Compile the artifact again"
            ) from problem
        if len(lines) < least:
            raise RemoteFailed(
                self.transport.label, f"bevel-run printed {len(lines)} lines of JSON", "Compile the artifact again"
            )
        return lines


def _dim_args(dims: Mapping[str, int] | None) -> list[str]:
    """Extents of dimensions as bevel-run takes them."""
    return [part for name, extent in (dims or {}).items() for part in ("--dim", f"{name}={extent}")]
