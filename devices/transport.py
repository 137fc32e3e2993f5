"""One way to use a device, whatever carries the commands: probe it, send files, run programs, fetch results.

In: local files and argument lists. Out: `BoardInfo`, `RunResult`, or one of the named errors of `bevel.devices.errors`. The
logic is here and the same for every carrier; `bevel.devices.ssh` and `bevel.devices.local` only execute a shell command and
copy a file. Calls are synchronous; an interrupt (Ctrl-C) or a lost connection leaves nothing running on the device.
"""

from __future__ import annotations

import posixpath
import secrets
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bevel.devices.diagnosis import diagnose, refuse_program, refuse_target
from bevel.devices.errors import (
    ConnectionLost,
    DeviceBusy,
    DiskFull,
    MissingTool,
    RemoteFailed,
)
from bevel.devices.files import FileTransfer
from bevel.devices.lock import ANSWER_S, HOLD_LIMIT_S, HOLDER, SCRATCH, Hold, hold_lock
from bevel.devices.remote import (
    INSPECT,
    PROBE,
    BoardInfo,
    Trailer,
    launch_command,
    parse_inspection,
    parse_probe,
    split_trailer,
)
from bevel.errors import UsageError
from bevel.ir.protocols import Target

SHELL_LIMIT_S = 120  # file system work on a slow SD card: hashing 1 GB at 20 MB/s, with room
OnStdout = Callable[[bytes], None]
FAREWELL_S = 5  # for ending a command that waits for nothing else
GRACE_S = 15  # beyond the device-side limit before the client calls the connection lost


@dataclass(frozen=True)
class RunResult:
    """A program that ran to its own end.

    Attributes:
        stdout: what it wrote.
        stderr: what it wrote.
        exit_status: its own exit status, 0 to 127.
        seconds: wall time on the device's clock, in steps of 10 ms: for limits and reports, not for benchmarks.
    """

    stdout: bytes
    stderr: bytes
    exit_status: int
    seconds: float


class Transport(FileTransfer):
    """A device one can run programs on. Use as a context manager: opens on entry, closes on exit.

    Attributes:
        label: what messages call the device.
        emulated: True when programs run under an emulator: results hold, times mean nothing.
    """

    def __init__(self, label: str, workdir: str, patience_s: int) -> None:
        self.label = label
        self.emulated = False
        self._workdir = workdir
        self._patience_s = patience_s
        self._info: BoardInfo | None = None
        self._inspected: set[str] = set()
        self._turn = threading.RLock()
        self._locked = False
        self._scratch: tuple[str, Hold] | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # What a carrier provides -------------------------------------------------------------------------------------------

    @abstractmethod
    def _connect(self) -> None:
        """Make commands possible."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Release the connection. Harmless when there is none."""

    @abstractmethod
    def _execute(self, command: str, limit_s: float, on_stdout: OnStdout | None = None) -> tuple[bytes, bytes]:
        """Run a shell command in the login directory, its standard input open for heartbeats; gives stdout and stderr.

        A connection that ends early gives what arrived. Past `limit_s` the command's input is closed, which ends it.
        `on_stdout` gets each chunk of standard output as it arrives, from any thread; what it raises ends the command and is
        raised here. Several threads may each have a command running.
        """

    def _why_lost(self) -> str:
        """What is known about the end of the connection, for the message."""
        return "the connection ended before the result came back"

    def _wrap(self, argv: list[str]) -> list[str]:
        """The command line that runs `argv` on this device."""
        return argv

    # What callers use --------------------------------------------------------------------------------------------------

    def open(self) -> BoardInfo:
        """Connect and probe; a second call reconnects.

        Raises:
            BoardError: a named subclass says why the device cannot be used.
        """
        self.close()
        self._inspected.clear()
        try:
            self._connect()
            return self.probe()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the connection and what it holds on the device. Harmless when there is none."""
        scratch, self._scratch = self._scratch, None
        try:
            if scratch is not None:
                scratch[1].release()
        finally:
            self._info = None
            self._disconnect()

    @property
    def info(self) -> BoardInfo:
        """What the probe found when the device was opened."""
        if self._info is None:
            raise UsageError(f"{self.label} is not open; call open() first")
        return self._info

    def probe(self) -> BoardInfo:
        """Look at the device anew: architecture, libc, ISA, boot, memory, disk.

        Raises:
            MissingTool: a command the transport needs is missing.
            RemoteFailed: the work directory cannot be made.
        """
        result = self._run(["sh", "-c", PROBE, "probe", self._workdir], limit_s=SHELL_LIMIT_S)
        text = result.stdout.decode(errors="replace")
        if result.exit_status == 127:
            raise MissingTool(
                self.label, f"a basic command is missing ({_last(result.stderr)})", "Install coreutils and util-linux, or busybox"
            )
        if result.exit_status == 73:
            raise RemoteFailed(
                self.label,
                f"the work directory {self._workdir} cannot be made or entered ({_last(result.stderr)})",
                "Set workdir in the device's profile to a directory you may write",
            )
        try:
            info, missing = parse_probe(text)
        except (ValueError, KeyError, IndexError) as error:
            raise RemoteFailed(
                self.label,
                f"the probe's answer makes no sense ({error!r})",
                "The device must be a Linux system with a POSIX shell",
            ) from error
        if missing:
            raise MissingTool(self.label, f"{', '.join(missing)} not found", "Install coreutils and util-linux, or busybox")
        self._info = info
        self.emulated = bool(info.emulator)
        return info

    def preflight(self, target: Target) -> None:
        """Check that programs compiled for `target` can run here.

        Raises:
            WrongArchitecture, IllegalInstruction, NotExecutable: they cannot, and why.
        """
        refusal = refuse_target(self.label, self.info, target)
        if refusal is not None:
            raise refusal

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str = ".",
        stdin: bytes | None = None,
        timeout_s: float = 60,
        env: Mapping[str, str] | None = None,
        on_stdout: OnStdout | None = None,
    ) -> RunResult:
        """Run a program to its end under a device-side limit.

        Args:
            argv: program and arguments; a program with a slash is relative to `cwd`.
            cwd: directory inside the work directory; made when missing.
            stdin: what the program reads; nothing by default.
            timeout_s: limit on the device, rounded up to whole seconds.
            env: variables set for the program.
            on_stdout: called with each chunk of standard output as it arrives, in order, from a thread of the transport's that
                also keeps the connection alive: be brief. What it raises ends the program and is raised here. After a lost
                connection it has seen what arrived.

        Returns:
            The program's output and its own exit status, which may be nonzero.

        Raises:
            BoardError: the program could not start, was killed, ran past the limit, or the connection was lost.
        """
        limit_s = max(1, int(-(-timeout_s // 1)))
        directory = self.path(cwd)
        program = argv[0]
        if "/" in program:
            self._inspect(posixpath.normpath(posixpath.join(directory, program)))
        for key in env or {}:
            if not key.isidentifier():
                raise UsageError(f"{key!r} is not a name of an environment variable")
        inner = [f"{key}={value}" for key, value in (env or {}).items()]
        wrapped = self._wrap(list(argv)) if "/" in program else list(argv)
        # The inner shell also keeps env(1) from reading a program name with "=" as one more variable.
        command = ["env", *inner, "sh", "-c", 'mkdir -p -- "$0" && cd -- "$0" && exec "$@"', directory, *wrapped]
        source = None
        if stdin is not None:
            source = self.path(f"{self.scratch()}/stdin-{secrets.token_hex(8)}")
            self._put_bytes(stdin, source)
        try:
            return self._run(command, limit_s=limit_s, stdin=source, program=program, on_stdout=on_stdout)
        finally:
            if source is not None:
                self._forget(source)

    def scratch(self) -> str:
        """A directory for files nobody wants once the job is over, relative to the work directory; made when first asked for.

        It goes when the transport is closed, and also when this process dies or the connection is lost, since the device looks
        after it like after a running program; what a reboot leaves goes when the device is next opened.
        """
        if self._scratch is None or not self._scratch[1].alive:
            hold = self._hold(SCRATCH, self.info.workdir)
            try:
                word = hold.word(ANSWER_S) or "no answer"
            except BaseException:
                hold.release()
                raise
            if not word.startswith("made "):
                hold.release()
                raise RemoteFailed(
                    self.label,
                    f"no scratch directory can be made in {self.info.workdir} ({word})",
                    "Check the work directory on the device",
                )
            self._scratch = word.removeprefix("made "), hold
        return self._scratch[0]

    def discard(self, remote_rel: str) -> None:
        """Remove a file or directory of `scratch`, on the way out: a lost connection, which removes it anyway, is no error."""
        self._forget(self.path(remote_rel))

    def cleanup(self, remote_rel: str = ".") -> None:
        """Remove a file or directory of the work directory; by default the whole work directory."""
        self._inspected.clear()
        self._shell('rm -rf -- "$1"', self.path(remote_rel), what="clean up")

    @contextmanager
    def lock(self, purpose: str, wait_s: float = 600, say: Callable[[str], None] | None = None) -> Iterator[None]:
        """Exclusive use of the device for a `with` block, among all bevel processes on all hosts and all their users.

        The device itself keeps the lock (`bevel.devices.lock`), for as long as this connection lasts: it is free again when the
        block ends, this process dies, the connection is lost (within `patience`) or the device reboots. A lock within a lock of
        the same thread and transport does nothing; another thread waits its turn.

        Args:
            purpose: what for, shown to those who wait.
            wait_s: how long to wait for whoever holds it.
            say: called with one line that says who holds it, when one has to wait.

        Raises:
            DeviceBusy: it was held for `wait_s`; names the holder, what for and since when.
            MissingTool: the device has no flock.
            ConnectionLost: the connection was lost; also at the end of the block, when the lock was lost on the way.
        """
        if not self._turn.acquire(timeout=max(0.0, wait_s)):
            raise DeviceBusy(self.label, "another thread of this process holds the device's lock", "Wait for it to finish")
        try:
            if self._locked:
                yield
                return
            with hold_lock(self.label, self._hold, self._holder, purpose, wait_s, say):
                self._locked = True
                try:
                    yield
                finally:
                    self._locked = False
        finally:
            self._turn.release()

    # How ---------------------------------------------------------------------------------------------------------------

    def _holder(self) -> str:
        """What `HOLDER` prints."""
        return self._shell(HOLDER, what="look who holds the lock")

    def _hold(self, script: str, *args: str) -> Hold:
        """Start a command that stays on the device until released, or until the connection ends."""

        def start(take: OnStdout) -> None:
            _, message, trailer = self._launch(["sh", "-c", script, "bevel", *args], limit_s=HOLD_LIMIT_S, on_stdout=take)
            if trailer is None:
                raise ConnectionLost(
                    self.label, f"the connection ended ({_last(message)})", "Check power and network, then run again"
                )

        def end(pid: str) -> None:
            # The shell's own kill: a small system may have no other.
            self._launch(["sh", "-c", 'kill -s TERM "$1"', "bevel", pid], limit_s=FAREWELL_S)

        return Hold(start, end)

    def _launch(
        self, argv: list[str], *, limit_s: int, stdin: str | None = None, on_stdout: OnStdout | None = None
    ) -> tuple[bytes, bytes, Trailer | None]:
        """Launch a command under its guard; gives stdout, stderr and the trailer, None when it did not arrive."""
        nonce = f"bevel-{secrets.token_hex(12)}"
        patience = self._patience_s or limit_s + GRACE_S
        command = launch_command(argv, nonce=nonce, limit_s=limit_s, patience_s=patience, stdin=stdin or "/dev/null")
        stdout, stderr = self._execute(command, limit_s + GRACE_S, on_stdout)
        return stdout, *split_trailer(stderr, nonce)

    def _run(
        self,
        argv: list[str],
        *,
        limit_s: int,
        stdin: str | None = None,
        program: str | None = None,
        on_stdout: OnStdout | None = None,
    ) -> RunResult:
        """Launch a command and wait for its trailer; with `program`, board failures become errors."""
        stdout, message, trailer = self._launch(argv, limit_s=limit_s, stdin=stdin, on_stdout=on_stdout)
        if trailer is None:
            text = message.decode(errors="replace").strip()
            why = self._why_lost() + (f" (last message: {text.splitlines()[-1]})" if text else "")
            raise ConnectionLost(
                self.label, why, "What ran is ended on the device itself; check power and network, then run again"
            )
        if program is not None:
            failure = diagnose(self.label, program, trailer, limit_s, message.decode(errors="replace"))
            if failure is not None:
                raise failure
        return RunResult(stdout, message, trailer.status, trailer.seconds)

    def _changed(self, remotes: Sequence[str]) -> None:
        self._inspected.difference_update(remotes)

    def _shell(self, script: str, *args: str, what: str) -> str:
        """Run a short script of ours; its failure is the device's."""
        result = self._run(["sh", "-c", script, "bevel", *args], limit_s=SHELL_LIMIT_S)
        if result.exit_status != 0:
            if b"No space left on device" in result.stderr:
                raise DiskFull(self.label, f"no room to {what}", f"Free some space for {self.info.workdir}")
            raise RemoteFailed(
                self.label,
                f"could not {what} (status {result.exit_status}: {_last(result.stderr)})",
                "Check the work directory on the device",
            )
        return result.stdout.decode(errors="replace")

    def _inspect(self, program: str) -> None:
        """Refuse what cannot start, before starting it: exec's own errors do not tell the causes apart."""
        if program in self._inspected:
            return
        facts = parse_inspection(self._shell(INSPECT, program, what=f"inspect {program}"))
        refusal = refuse_program(self.label, program, facts, self.info.arch)
        if refusal is not None:
            raise refusal
        self._inspected.add(program)

    def _put_bytes(self, data: bytes, remote: str) -> None:
        """Store bytes in a file on the device."""
        with tempfile.TemporaryDirectory(prefix="bevel-") as folder:
            local = Path(folder) / "stdin"
            local.write_bytes(data)
            self.upload(local, posixpath.relpath(remote, self.info.workdir))

    def _forget(self, *remotes: str) -> None:
        """Remove temporary files on the way out; a lost connection must not hide the error that led here."""
        self._launch(["rm", "-rf", "--", *remotes], limit_s=SHELL_LIMIT_S)


def _last(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"
