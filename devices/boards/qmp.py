"""qemu's control socket (the QEMU Machine Protocol, JSON lines over a Unix socket): stop, continue, reset a machine."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bevel.errors import ToolchainError

_TIMEOUT_S = 20


class Monitor:
    """An open control connection. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_TIMEOUT_S)

    def __enter__(self) -> Self:
        try:
            self._socket.connect(str(self._path))
            self._stream = self._socket.makefile("rb")
            self._answer()  # the greeting
            self.execute("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise ToolchainError(f"the emulated board's monitor does not answer ({error}); start the board again") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stream.close()
        self._socket.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one command and return what it returns.

        Raises:
            ToolchainError: qemu refuses the command, or is gone.
        """
        try:
            self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
            answer = self._answer()
        except OSError as error:
            raise ToolchainError(f"the emulated board's monitor ended during {command} ({error})") from error
        if "error" in answer:
            raise ToolchainError(f"qemu refuses {command}: {answer['error'].get('desc', answer['error'])}")
        return answer["return"]

    def _answer(self) -> dict[str, Any]:
        """The next message that is not an event."""
        while line := self._stream.readline():
            message: dict[str, Any] = json.loads(line)
            if "event" not in message:
                return message
        raise OSError("the connection was closed")
