"""The transport over adb: phones and other Android devices, through the `adb` program of the Android platform tools.

In: commands and files. Out: what they print. `adb` owns the link, USB or network; each command is one `adb shell` under the same
guard, heartbeats and trailer as over SSH. Android's userland (mksh, toybox) has all that guard needs, and a static runner
may be executed below /data/local/tmp. Needs Android 7 or later: older shells merge the two output streams.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bevel.devices.errors import (
    AuthenticationFailed,
    ConnectionLost,
    ConnectionRefused,
    DeviceNotFound,
    DeviceOffline,
    DiskFull,
    HostUnreachable,
    RemoteFailed,
)
from bevel.devices.profile import Adb
from bevel.devices.remote import BoardInfo
from bevel.devices.transport import OnStdout, Transport
from bevel.errors import ToolchainError

HEARTBEAT_S = 5
PATIENCE_S = 20  # as over SSH: four missed heartbeats
FAREWELL_S = 4  # the guard gives a job 1 s between TERM and KILL
QUESTION_S = 30  # a question to the adb server, which it may have to start
SLOWEST_COPY = 200_000  # bytes per second below which a copy is called stuck: adb over a poor wireless link
_ROW = re.compile(r"^(?P<serial>\S+)\s+(?P<state>no permissions|\S+)(?P<rest>.*)$")
_NETWORK_SERIAL = re.compile(r"\S+:\d+")
_SETUP = "Connect it, switch on USB debugging in its developer options, and see `adb devices`"


@dataclass(frozen=True)
class Attached:
    """One line of `adb devices`: a serial number and "device" when it can be used, else why it cannot."""

    serial: str
    state: str


def find_adb() -> str:
    """Path of the `adb` program: on PATH, else in the Android SDK that $ANDROID_HOME names.

    Raises:
        ToolchainError: there is none.
    """
    sdk = os.environ.get("ANDROID_HOME")
    path = shutil.which("adb") or (shutil.which("adb", path=f"{sdk}/platform-tools") if sdk else None)
    if path is None:
        raise ToolchainError(
            "adb is not installed; install it (apt-get install adb, or Android's platform-tools with $ANDROID_HOME set)"
        )
    return path


def parse_devices(text: str) -> list[Attached]:
    """Read the output of `adb devices`."""
    rows = [_ROW.match(line) for line in text.splitlines() if not line.startswith(("List of devices", "*"))]
    return [Attached(row["serial"], row["state"]) for row in rows if row is not None]


class AdbTransport(Transport):
    """Runs programs on an Android device.

    Args:
        adb: which one; without a serial number the only one there is.
    """

    def __init__(self, adb: Adb) -> None:
        super().__init__(f"adb:{adb.serial or 'device'}", adb.workdir, patience_s=PATIENCE_S)
        self._wanted = adb.serial
        self._base: list[str] = []
        self._running: set[subprocess.Popen[bytes]] = set()

    def probe(self) -> BoardInfo:
        """As `Transport.probe`; the Android emulator, which calls itself so in a property, counts as emulated."""
        info = super().probe()
        # Its first name, up to Android 11, and its present one; other systems that serve adb have no properties.
        asked = "for p in ro.kernel.qemu ro.boot.qemu; do getprop $p; done 2>/dev/null; :"
        if "1" in self._shell(asked, what="read properties").split():
            info = replace(info, emulator="the Android emulator")
            self._info, self.emulated = info, True
        return info

    # The carrier's side of Transport -----------------------------------------------------------------------------------

    def _connect(self) -> None:
        adb = find_adb()
        self._ask(adb, "start-server", refused=True)
        if self._wanted is not None and _NETWORK_SERIAL.fullmatch(self._wanted):
            # adb exits 0 whatever comes of it; the list of devices tells.
            self._ask(adb, "connect", self._wanted)
        serial = self._choose(parse_devices(self._ask(adb, "devices", refused=True)))
        self.label = f"adb:{serial}"
        self._base = [adb, "-s", serial]
        if "shell_v2" not in self._ask(*self._base, "features", refused=True).split():
            self._base = []
            raise RemoteFailed(
                self.label,
                "its adb shell reports neither exit status nor standard error (Android 6 or older)",
                "Use a device with Android 7 or later",
            )

    def _disconnect(self) -> None:
        """End what other threads still run; the link itself is the adb server's."""
        self._base = []
        for process in list(self._running):
            process.kill()

    def _execute(self, command: str, limit_s: float, on_stdout: OnStdout | None = None) -> tuple[bytes, bytes]:
        output = bytearray()
        with tempfile.TemporaryFile() as stderr:
            # A session of its own: Ctrl-C reaches bevel alone, which then ends the job through its guard.
            process = subprocess.Popen(
                [*self._live(), "shell", "-T", command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
            assert process.stdout is not None
            self._running.add(process)
            with process.stdout:
                try:
                    with _heartbeats(process):
                        for chunk in _chunks(process.stdout.fileno(), time.monotonic() + limit_s):
                            output += chunk
                            if on_stdout is not None:
                                on_stdout(chunk)
                finally:
                    # The closed input has reached the guard; wait for the end of what it ends.
                    try:
                        process.wait(FAREWELL_S)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
                    self._running.discard(process)
            stderr.seek(0)
            return bytes(output), stderr.read()

    def _send(self, local: Path, remote: str, offset: int) -> None:
        self._copy("push", str(local), remote, size=local.stat().st_size)

    def _fetch(self, remote: str, local: Path) -> None:
        size = int(self._shell('wc -c <"$1"', remote, what=f"measure {remote}"))
        self._copy("pull", remote, str(local), size=size)

    def _why_lost(self) -> str:
        """Ask the adb server, and the device if it is there, what became of it."""
        if not self._base:
            return super()._why_lost()
        before = self._info.boot_id if self._info else None
        listed = parse_devices(self._ask(self._base[0], "devices"))
        state = next((row.state for row in listed if row.serial == self._base[2]), None)
        if state is None:
            return "the device was unplugged, or its link went down"
        if state != "device":
            return f"the link was lost, the device is {state}"
        now = self._ask(*self._base, "shell", "-T", "cat /proc/sys/kernel/random/boot_id").strip()
        if before and now and now != before:
            return "the device rebooted while the program ran"
        return "the link was lost, the device is back"

    # How ---------------------------------------------------------------------------------------------------------------

    def _choose(self, attached: list[Attached]) -> str:
        """Serial number of the device meant, which can be used."""
        seen = ", ".join(f"{row.serial} ({row.state})" for row in attached) or "none"
        if self._wanted is None and len(attached) > 1:
            raise DeviceNotFound(
                self.label, f"several devices are connected: {seen}", 'Name one: [adb] serial = "..." in the profile'
            )
        found = next((row for row in attached if self._wanted in (None, row.serial)), None)
        if found is None:
            which = "no device is connected" if self._wanted is None else f"no such device; adb sees {seen}"
            raise DeviceNotFound(self.label, which, _SETUP)
        where = f"adb:{found.serial}"
        if found.state in ("unauthorized", "authorizing"):
            raise AuthenticationFailed(
                where,
                "the device has not allowed debugging from this computer",
                "Unlock it and accept the question on its screen",
            )
        if found.state == "no permissions":
            raise AuthenticationFailed(
                where,
                "this user may not open the USB device",
                "Install the udev rules (apt-get install android-sdk-platform-tools-common), join group plugdev, plug in again",
            )
        if found.state != "device":
            raise DeviceOffline(where, f"the device is {found.state}", "Plug it in again, or restart it; then see `adb devices`")
        return found.serial

    def _ask(self, *command: str, refused: bool = False) -> str:
        """What a short adb command prints; with `refused` its failure is an error that says the adb server does not work."""
        try:
            result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=QUESTION_S, check=False)
        except subprocess.TimeoutExpired as error:
            if refused:
                raise HostUnreachable(
                    self.label, f"`adb {command[-1]}` did not answer within {QUESTION_S} s", "Try `adb kill-server`"
                ) from error
            return ""
        if refused and result.returncode != 0:
            raise ConnectionRefused(
                self.label, f"`adb {command[-1]}` failed ({_said(result.stderr)})", "Try `adb kill-server`, then `adb devices`"
            )
        return result.stdout.decode(errors="replace")

    def _copy(self, *command: str, size: int) -> None:
        """One file; a full disk and a dead link have their errors, another refusal by the device is an OSError."""
        base = self._live()
        try:
            limit_s = QUESTION_S + size / SLOWEST_COPY
            done = subprocess.run(
                [*base, *command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=limit_s,
                check=False,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            raise ConnectionLost(
                self.label,
                f"a copy of {size} bytes did not end within {limit_s:.0f} s",
                "Check the cable or the network, then try again",
            ) from error
        if done.returncode == 0:
            return
        if self._ask(*base, "get-state").strip() != "device":
            raise ConnectionLost(self.label, self._why_lost(), "Check the cable or the network, then try again")
        said = _said(done.stderr) or _said(done.stdout)
        if "No space left on device" in said:
            raise DiskFull(self.label, f"no room for {size} bytes ({said})", "Free some space on the device")
        raise OSError(said)

    def _live(self) -> list[str]:
        if not self._base:
            raise ConnectionLost(self.label, "there is no open connection", "Call open() first")
        return self._base


@contextmanager
def _heartbeats(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Beats on the command's standard input, and closes it in the end."""
    over = threading.Event()
    pipe = process.stdin
    assert pipe is not None

    def beat() -> None:
        try:
            with pipe:
                while True:
                    pipe.write(b".")
                    pipe.flush()
                    if over.wait(HEARTBEAT_S):
                        return
        except BrokenPipeError:
            return  # adb has ended; the missing trailer tells.

    thread = threading.Thread(target=beat, name="bevel-adb", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(FAREWELL_S)


def _chunks(descriptor: int, deadline: float) -> Iterator[bytes]:
    """What arrives at `descriptor` until its end or the deadline."""
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        # poll() takes at most 2^31 ms; the holder of a lock may wait longer.
        if ready.poll(min(1000 * left, 1e6)):
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return
            yield chunk


def _said(stream: bytes) -> str:
    lines = stream.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("adb: ").removeprefix("error: ") if lines else ""
