"""A worker process and the lines spoken with it (`worker.py` has the table of commands)."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bevel.benchmarking.peers.environment import clean_environ
from bevel.errors import ToolchainError

WORKER = Path(__file__).with_name("worker.py")
_PATIENCE_S = 10


class WorkerProcess:
    """One contestant's process; ends with the `with` block, by force if need be.

    Args:
        label: what messages call it.
        python: the interpreter of its environment.
        adapter: name of its adapter.
        env: variables added for it.
    """

    def __init__(self, label: str, python: Path, adapter: str, env: Mapping[str, str] | None = None) -> None:
        self.label = label
        self._command = [str(python), str(WORKER), adapter]
        # bevel's own adapter needs what makes bevel importable here, the others must not see it.
        self._env = {**(os.environ if adapter == "bevel" else clean_environ()), **(env or {})}

    def __enter__(self) -> Self:
        # A file, not a pipe: engines write as much as they like without anyone reading.
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True, env=self._env
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait(_PATIENCE_S if error is None else 0.1)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self._process.kill()
            self._process.wait()
        finally:
            self._stderr.close()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and wait for its answer.

        Raises:
            ToolchainError: the process ended instead; with the last line it wrote.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ToolchainError(f"{self.label}: the process has no pipes")
        try:
            stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise ToolchainError(f"{self.label}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr if line.strip()]
        return lines[-1] if lines else (f"ended by signal {-status}" if status < 0 else f"ended with {status}")
