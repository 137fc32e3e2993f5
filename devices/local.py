"""The transport to this machine: same interface as SSH, optionally with programs run under an emulator of another CPU.

In: commands and files. Out: what they print. The work directory is a temporary one and goes with the transport.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bevel.devices.profile import Profile
from bevel.devices.remote import BoardInfo
from bevel.devices.transport import GRACE_S, OnStdout, Transport

PREFIX = "bevel-run-"
ABANDONED_S = 3600  # a work directory this old and unclaimed has lost its process
POLL_MS = 500  # between looks whether the process ended while its output stays open


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
        self._lease = -1
        self._running: set[subprocess.Popen[bytes]] = set()
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
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        self._workdir = self._folder.name
        self._lease = os.open(self._workdir, os.O_RDONLY)
        fcntl.flock(self._lease, fcntl.LOCK_EX)
        _sweep(Path(self._workdir).parent)

    def _disconnect(self) -> None:
        """End what other threads still run, and remove the work directory."""
        for process in list(self._running):
            assert process.stdin is not None
            process.stdin.close()
            process.wait(GRACE_S)
        folder, self._folder = self._folder, None  # first, since another thread may close it too
        if folder is not None:
            folder.cleanup()
            os.close(self._lease)

    def _wrap(self, argv: list[str]) -> list[str]:
        return [*self._emulator, *argv]

    def _execute(self, command: str, limit_s: float, on_stdout: OnStdout | None = None) -> tuple[bytes, bytes]:
        with tempfile.TemporaryFile() as stderr:
            # A session of its own: Ctrl-C reaches bevel alone, which then ends the job through its guard.
            process = subprocess.Popen(
                ["/bin/sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, start_new_session=True
            )
            assert process.stdin is not None
            assert process.stdout is not None
            output = bytearray()
            self._running.add(process)
            with process.stdout:
                try:
                    for chunk in _chunks(process, process.stdout.fileno(), time.monotonic() + limit_s):
                        output += chunk
                        if on_stdout is not None:
                            on_stdout(chunk)
                finally:
                    process.stdin.close()  # Past the limit this ends the command; the trailer is then missing.
                    try:
                        process.wait(GRACE_S)
                    finally:
                        process.kill()
                        self._running.discard(process)
            stderr.seek(0)
            return bytes(output), stderr.read()

    def _send(self, local: Path, remote: str, offset: int) -> None:
        shutil.copyfile(local, remote)

    def _fetch(self, remote: str, local: Path) -> None:
        shutil.copyfile(remote, local)


def _sweep(parent: Path) -> None:
    """Remove the work directories of killed processes: those whose claim the kernel took back."""
    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime < ABANDONED_S:
                continue  # perhaps made this instant, and not yet claimed
            claim = os.open(folder, os.O_RDONLY)
        except OSError:
            continue  # another user's, or gone meanwhile
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(claim)


def _chunks(process: subprocess.Popen[bytes], descriptor: int, deadline: float) -> Iterator[bytes]:
    """What arrives at `descriptor` until its end, the process's end, or the deadline."""
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    ended = False
    while time.monotonic() < deadline:
        # A child that outlived the program may keep the pipe open: what is in it when the program has ended is all.
        if not ready.poll(0 if ended else POLL_MS):
            if ended:
                return
            ended = process.poll() is not None
        elif chunk := os.read(descriptor, 1 << 16):
            yield chunk
        else:
            return
