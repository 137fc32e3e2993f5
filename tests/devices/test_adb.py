"""The adb transport against a stand-in for the `adb` program: programs run, each failure has its name, nothing stays behind.

What runs on the device is this machine's: once under its own shell, once under Android's (mksh with toybox), where both are
installed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bevel.cli import main
from bevel.compiler import Options, compile_model
from bevel.devices import errors
from bevel.devices.adb import AdbTransport, Attached, find_adb, parse_devices
from bevel.devices.profile import Adb, Ssh, load_profile, save_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.devices.transport import Transport
from bevel.errors import ToolchainError, UsageError

SERIAL = "R58M1"
MODEL = Path(__file__).resolve().parents[2] / "models" / "kws_dscnn_int8_qdq.onnx"


@dataclass(frozen=True)
class Phone:
    """A device behind the stand-in; `set` writes its faults."""

    home: Path

    @property
    def adb(self) -> Adb:
        return Adb(SERIAL, str(self.home / "work"))

    def set(self, devices: dict[str, str] | None = None, **faults: Any) -> None:
        partial = self.home / "state.part"
        partial.write_text(json.dumps({"devices": {SERIAL: "device"} if devices is None else devices, **faults}))
        partial.replace(self.home / "state.json")

    def runs(self) -> list[str]:
        """Command lines of what runs on the device: everything that names its directory, but for adb itself."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                line = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if str(self.home).encode() in line and b"fake_adb" not in line and int(folder.name) != os.getpid():
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        return found

    def nothing_runs(self, within_s: float = 15) -> bool:
        end = time.monotonic() + within_s
        while self.runs() and time.monotonic() < end:
            time.sleep(0.05)
        return not self.runs()


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Phone:
    """One device in order; the stand-in is the first adb on PATH."""
    home, programs = tmp_path / "phone", tmp_path / "programs"
    home.mkdir()
    programs.mkdir()
    script = programs / "adb"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_adb.py")} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_ADB", str(home))
    monkeypatch.setenv("FAKE_ADB_SHELL", "/bin/sh")
    monkeypatch.setenv("FAKE_ADB_PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    result = Phone(home)
    result.set()
    return result


@pytest.fixture(params=["this machine's shell", "Android's shell"])
def shell(request: pytest.FixtureRequest, phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test under both userlands."""
    if request.param == "Android's shell":
        mksh, toybox = shutil.which("mksh"), shutil.which("toybox")
        if mksh is None or toybox is None:
            pytest.skip("Android's shell is not installed here: apt-get install mksh toybox")
        system = tmp_path / "system"
        system.mkdir()
        (system / "sh").symlink_to(mksh)
        for name in subprocess.run([toybox], capture_output=True, text=True, check=True).stdout.split():
            if name != "sh":
                (system / name).symlink_to(toybox)
        for name in ("dd", "tr"):  # Android's toybox has them, Debian's does not.
            if not (system / name).exists():
                (system / name).symlink_to(str(shutil.which(name)))
        monkeypatch.setenv("FAKE_ADB_SHELL", str(system / "sh"))
        monkeypatch.setenv("FAKE_ADB_PATH", str(system))
    return str(request.param)


@pytest.fixture
def device(shell: str, phone: Phone) -> Iterator[Transport]:
    with AdbTransport(phone.adb) as transport:
        yield transport


# Programs ---------------------------------------------------------------------------------------------------------------


def test_output_status_stdin_environment_and_directory(device: Transport) -> None:
    result = device.run(
        ["sh", "-c", 'cat; pwd; echo "$WORD" >&2; exit 7'], cwd="a", stdin=b"in\0put\n", env={"WORD": "hi  there"}
    )
    assert result.stdout == b"in\0put\n" + device.path("a").encode() + b"\n"
    assert result.stderr == b"hi  there\n"
    assert result.exit_status == 7
    assert device.label == f"adb:{SERIAL}"


def test_output_streams_while_the_program_runs(device: Transport) -> None:
    """The first line must be here before the program is allowed to go on."""
    chunks: list[bytes] = []
    gate = Path(device.path("gate"))

    def take(chunk: bytes) -> None:
        chunks.append(chunk)
        gate.touch()

    script = "echo first; while [ ! -e gate ]; do sleep 0.05; done; echo second"
    assert device.run(["sh", "-c", script], timeout_s=30, on_stdout=take).stdout == b"first\nsecond\n"
    assert b"".join(chunks) == b"first\nsecond\n"


def test_files_go_and_come_back(device: Transport, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(bytes(range(256)) * 100)
    assert device.upload(tmp_path / "sent", "in/file") == 25600
    assert device.upload(tmp_path / "sent", "in/file") == 0
    device.download("in/file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "sent").read_bytes()


def test_artifact_passes_its_selftest(device: Transport, tmp_path: Path) -> None:
    artifact, _ = compile_model(MODEL, tmp_path / "kws.bevel", Options("host", "8"))
    answer = DeviceRunner(artifact, device, 2).selftest()
    assert answer["cases"] >= 1


def test_limit_ends_program_and_children(device: Transport, phone: Phone) -> None:
    script = "sh -c 'trap \"\" TERM; while :; do sleep 1; done' & sleep 300 & wait"
    with pytest.raises(errors.RemoteTimeout, match="limit of 1 s"):
        device.run(["sh", "-c", f": {phone.home}; {script}"], timeout_s=1)
    assert phone.nothing_runs()
    assert device.run(["echo", "next"]).stdout == b"next\n"


def test_lock_keeps_a_second_process_out(device: Transport, phone: Phone) -> None:
    with AdbTransport(phone.adb) as other:
        with (
            device.lock("the first bench", 5),
            pytest.raises(errors.DeviceBusy, match="the first bench"),
            other.lock("second", 0.2),
        ):
            pytest.fail("both hold the lock")
        with other.lock("third", 5):
            pass


# A link that ends ---------------------------------------------------------------------------------------------------------


def while_it_runs(phone: Phone, device: Transport, act: Callable[[], None]) -> str:
    """Start a program, `act` once it runs: the message of the lost connection."""
    mark = phone.home / "started"

    def wait_and_act() -> None:
        end = time.monotonic() + 30
        while not mark.exists() and time.monotonic() < end:
            time.sleep(0.02)
        act()

    actor = threading.Thread(target=wait_and_act)
    actor.start()
    with pytest.raises(errors.ConnectionLost) as lost:
        device.run(["sh", "-c", f"touch {mark}; sleep 300; : {phone.home}"], timeout_s=300)
    actor.join()
    return str(lost.value)


def test_device_that_vanishes(device: Transport, phone: Phone) -> None:
    """The program ends on the device too, and once it is back the next job works."""
    assert "unplugged" in while_it_runs(phone, device, lambda: phone.set({}))
    assert phone.nothing_runs()
    with pytest.raises(errors.ConnectionLost, match="unplugged"):
        device.run(["true"])
    phone.set()
    assert device.run(["echo", "back"]).stdout == b"back\n"


def test_device_that_goes_offline(device: Transport, phone: Phone) -> None:
    assert "the device is offline" in while_it_runs(phone, device, lambda: phone.set({SERIAL: "offline"}))
    assert phone.nothing_runs()


def test_reboot_is_told_from_a_loose_cable(phone: Phone) -> None:
    (phone.home / "boot_id").write_text("first\n")
    with AdbTransport(phone.adb) as device:

        def reboot() -> None:
            phone.set({})
            end = time.monotonic() + 15
            while "sleep 300" in " ".join(phone.runs()) and time.monotonic() < end:
                time.sleep(0.02)
            (phone.home / "boot_id").write_text("second\n")
            phone.set()

        seen: list[str] = []
        # The client looks once the link is down, which may be before the device is up again: then it was only seen to go.
        original = device._why_lost

        def wait_for_boot() -> str:
            while (phone.home / "boot_id").read_text() == "first\n":
                time.sleep(0.02)
            while json.loads((phone.home / "state.json").read_text())["devices"] == {}:
                time.sleep(0.02)
            seen.append(original())
            return seen[-1]

        device._why_lost = wait_for_boot  # type: ignore[method-assign]
        assert "rebooted" in while_it_runs(phone, device, reboot)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_bevel_leaves_nothing_running(shell: str, phone: Phone, end: signal.Signals) -> None:
    mark = phone.home / "started"
    script = textwrap.dedent(f"""
        from bevel.devices.adb import AdbTransport
        from bevel.devices.profile import Adb
        with AdbTransport({phone.adb!r}) as device:
            device.run(["sh", "-c", "touch {mark}; sleep 300; : {phone.home}"], timeout_s=300)
    """)
    client = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not mark.exists():
        assert time.monotonic() < deadline, "the program did not start"
        time.sleep(0.02)
    client.send_signal(end)
    assert client.wait(30) != 0
    assert phone.nothing_runs()


def test_closed_transport_ends_the_program_of_another_thread(shell: str, phone: Phone) -> None:
    device = AdbTransport(phone.adb)
    device.open()
    assert "no open connection" not in while_it_runs(phone, device, device.close)
    assert phone.nothing_runs()


# Refusals -----------------------------------------------------------------------------------------------------------------


def refused(error: type[Exception], adb: Adb) -> str:
    transport = AdbTransport(adb)
    with pytest.raises(error) as refusal:
        transport.open()
    assert type(refusal.value) is error
    return str(refusal.value)


@pytest.mark.parametrize(
    ("devices", "error", "says"),
    [
        ({}, errors.DeviceNotFound, "no such device; adb sees none"),
        ({"OTHER": "device"}, errors.DeviceNotFound, "adb sees OTHER (device)"),
        ({SERIAL: "unauthorized"}, errors.AuthenticationFailed, "accept the question on its screen"),
        ({SERIAL: "authorizing"}, errors.AuthenticationFailed, "Unlock it"),
        (
            {SERIAL: "no permissions (user in plugdev group; are your udev rules wrong?); see [http://x]"},
            errors.AuthenticationFailed,
            "udev rules",
        ),
        ({SERIAL: "offline"}, errors.DeviceOffline, "is offline"),
        ({SERIAL: "recovery"}, errors.DeviceOffline, "is recovery"),
    ],
)
def test_devices_that_cannot_be_used(phone: Phone, devices: dict[str, str], error: type[Exception], says: str) -> None:
    phone.set(devices)
    assert says in refused(error, phone.adb)


def test_serial_may_be_left_out_where_there_is_one_device(phone: Phone) -> None:
    anyone = replace(phone.adb, serial=None)
    with AdbTransport(anyone) as device:
        assert device.label == f"adb:{SERIAL}"
    phone.set({SERIAL: "device", "OTHER": "device"})
    assert f"{SERIAL} (device), OTHER (device)" in refused(errors.DeviceNotFound, anyone)
    phone.set({})
    assert "no device is connected" in refused(errors.DeviceNotFound, anyone)


def test_device_on_the_network_is_connected_to(phone: Phone) -> None:
    wireless = replace(phone.adb, serial="127.0.0.1:5555")
    phone.set({}, reachable=["127.0.0.1:5555"])
    with AdbTransport(wireless) as device:
        assert device.run(["echo", "hi"]).stdout == b"hi\n"
    phone.set({}, reachable=[])
    refused(errors.DeviceNotFound, wireless)


def test_android_without_exit_status(phone: Phone) -> None:
    phone.set(features=["cmd"])
    assert "Android 7" in refused(errors.RemoteFailed, phone.adb)


def test_server_that_does_not_start(phone: Phone) -> None:
    phone.set(server="adb: cannot connect to daemon at tcp:5037: Connection refused")
    assert "cannot connect to daemon" in refused(errors.ConnectionRefused, phone.adb)


def test_adb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("ANDROID_HOME", raising=False)
    assert "apt-get install adb" in refused(ToolchainError, Adb())
    tools = tmp_path / "sdk" / "platform-tools"
    tools.mkdir(parents=True)
    (tools / "adb").write_text("")
    (tools / "adb").chmod(0o755)
    monkeypatch.setenv("ANDROID_HOME", str(tmp_path / "sdk"))
    assert find_adb() == str(tools / "adb")


def test_files_the_device_refuses(phone: Phone, tmp_path: Path) -> None:
    """A full disk, a directory that may not be written, a link that ends; the next upload works and no part remains."""
    sent = tmp_path / "sent"
    sent.write_bytes(b"x" * 1000)
    with AdbTransport(phone.adb) as device:
        phone.set(push="remote write failed: No space left on device")
        with pytest.raises(errors.DiskFull, match="1000 bytes"):
            device.upload(sent, "file")
        phone.set(push="remote couldn't create file: Permission denied")
        with pytest.raises(errors.RemoteFailed, match="Permission denied"):
            device.upload(sent, "file")
        phone.set()
        assert device.upload(sent, "file") == 1000
        assert [path.name for path in Path(device.path()).iterdir()] == ["file"]
        phone.set({})
        with pytest.raises(errors.ConnectionLost, match="unplugged"):
            device.upload(sent, "other")


def test_work_directory_that_cannot_be_made(phone: Phone) -> None:
    assert "cannot be made" in refused(errors.RemoteFailed, replace(phone.adb, workdir="/proc/bevel"))


def test_android_emulator_is_marked(phone: Phone, tmp_path: Path) -> None:
    """The results of an emulator hold, its times do not."""
    getprop = tmp_path / "programs" / "getprop"
    for answer, emulated in (("0", False), ("1", True)):
        getprop.write_text(f'#!/bin/sh\n[ "$1" = ro.boot.qemu ] && echo {answer}\n')
        getprop.chmod(0o755)
        with AdbTransport(phone.adb) as device:
            assert device.emulated == emulated


# Words ----------------------------------------------------------------------------------------------------------------------


def test_list_of_devices() -> None:
    text = textwrap.dedent("""
        * daemon not running; starting now at tcp:5037
        * daemon started successfully
        List of devices attached
        emulator-5554          device product:sdk_gphone64 model:sdk device:emu64 transport_id:1
        R58M1\tunauthorized
        0123456789ABCDEF\tno permissions (user in plugdev group; are your udev rules wrong?); see [http://developer.android.com]
        192.168.1.7:5555\toffline

    """)
    assert parse_devices(text) == [
        Attached("emulator-5554", "device"),
        Attached("R58M1", "unauthorized"),
        Attached("0123456789ABCDEF", "no permissions"),
        Attached("192.168.1.7:5555", "offline"),
    ]


def test_profiles_name_an_android_device(tmp_path: Path) -> None:
    plain = replace(load_profile("raspberry-pi-4"), name="phone", ssh=None)
    for adb in (Adb(), Adb("R58M1"), Adb("10.0.0.2:5555", "/data/local/tmp/other")):
        path = save_profile(replace(plain, adb=adb), tmp_path / "phone.toml")
        assert load_profile(str(path)).adb == adb
    assert isinstance(resolve_transport(replace(plain, adb=Adb("R58M1"))), AdbTransport)
    both = save_profile(replace(plain, adb=Adb(), ssh=Ssh("board")), tmp_path / "phone.toml")
    with pytest.raises(UsageError, match="both given"):
        load_profile(str(both))
    both.write_text(both.read_text().replace("[adb]", '[adb]\nserial = "-s"').replace('[ssh]\naddress = "board"', ""))
    with pytest.raises(UsageError, match="expected a serial number"):
        load_profile(str(both))


@pytest.mark.usefixtures("shell")
def test_a_phone_is_added_by_its_serial(
    phone: Phone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`bevel devices add --adb`: the facts are asked under its own shell, and the profile says how to reach it."""
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))
    with pytest.raises(SystemExit) as leave:
        main(["devices", "add", "--adb", SERIAL, "--name", "phone", "--workdir", str(phone.home / "work"), "--quick", "--json"])
    out, err = capfd.readouterr()
    assert leave.value.code == 0, err
    assert json.loads(out)["profile"]["address"] == f"adb {SERIAL}"
    added = load_profile("phone")
    assert added.adb == phone.adb
    assert added.features == load_profile("host").features
