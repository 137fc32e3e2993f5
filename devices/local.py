"""The transport to this machine: same interface as SSH, optionally with programs run under an emulator of another CPU.

In: commands and files. Out: what they print. The work directory is a temporary one and goes with the transport.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bevel.devices.profile import Profile
from bevel.devices.remote import BoardInfo
from bevel.devices.transport import GRACE_S, Transport


class LocalTransport(Transport):
    """Runs programs here.

    Args:
        profile: the device that is stood in for; its arch and features are reported when emulated.
        emulator: command line that runs a program of the device's architecture, such as qemu-aarch64 -cpu cortex-a72.
    """

    def __init__(self, profile: Profile, emulator: Sequence[str] = ()) -> None:
        super().__init__(f"{profile.name} under {emulator[0]}" if emulator else "this machine", "", patience_s=0)
        self._profile = profile
        self._emulator = list(emulator)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.emulated = bool(emulator)

    def probe(self) -> BoardInfo:
        """This machine, or what the emulator makes of it; see `Transport.probe`."""
        info = super().probe()
        if self._emulator:
            info = replace(
                info,
                arch=self._profile.arch,
                features=self._profile.features,
                emulator=" ".join(self._emulator),
                cpuinfo="",
            )
            self._info, self.emulated = info, True
        return info

    def _connect(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="bevel-run-")
        self._workdir = self._folder.name

    def close(self) -> None:
        """Remove the work directory."""
        self._info = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _wrap(self, argv: list[str]) -> list[str]:
        return [*self._emulator, *argv]

    def _execute(self, command: str, limit_s: float) -> tuple[bytes, bytes]:
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            # A session of its own: Ctrl-C reaches bevel alone, which then ends the job through its guard.
            process = subprocess.Popen(
                ["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=stdout, stderr=stderr, start_new_session=True
            )
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                pass  # The trailer will be missing, which the caller reports.
            finally:
                if process.stdin is not None:
                    process.stdin.close()
                try:
                    process.wait(GRACE_S)
                finally:
                    process.kill()
            stdout.seek(0)
            stderr.seek(0)
            return stdout.read(), stderr.read()

    def _send(self, local: Path, remote: str) -> None:
        shutil.copyfile(local, remote)

    def _fetch(self, remote: str, local: Path) -> None:
        shutil.copyfile(remote, local)
