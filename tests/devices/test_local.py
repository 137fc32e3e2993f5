"""The transport's logic on this machine: results, limits, uploads, interrupts; and the choice of a transport."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bevel.devices import errors
from bevel.devices.local import LocalTransport
from bevel.devices.profile import Ssh, load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.ssh import SshTransport
from bevel.devices.transport import Transport
from bevel.errors import ToolchainError, UsageError


@pytest.fixture
def here() -> Iterator[Transport]:
    with resolve_transport(load_profile("host")) as transport:
        yield transport


def test_probe_describes_this_machine(here: Transport) -> None:
    host = load_profile("host")
    assert here.info.arch == host.arch
    assert here.info.features == host.features
    assert here.info.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert not here.emulated
    here.preflight(host.target())


def test_output_status_stdin_environment_and_directory(here: Transport) -> None:
    script = 'cat; pwd; echo "$GREETING" >&2; exit 7'
    result = here.run(["sh", "-c", script], cwd="a/b", stdin=b"in\0put\n", env={"GREETING": "hi there"})
    assert result.stdout == b"in\0put\n" + here.path("a/b").encode() + b"\n"
    assert result.stderr == b"hi there\n"
    assert result.exit_status == 7
    assert not [path for path in Path(here.path()).rglob("*") if path.is_file()]


@pytest.mark.parametrize("status", [1, 2, 125, 255])
def test_statuses_a_program_chooses_are_its_own(here: Transport, status: int) -> None:
    assert here.run(["sh", "-c", f"exit {status}"]).exit_status == status


def test_large_output_arrives_whole(here: Transport) -> None:
    result = here.run(["sh", "-c", "dd if=/dev/zero bs=65536 count=100 2>/dev/null; printf tail >&2"])
    assert (len(result.stdout), result.stderr) == (6553600, b"tail")


def test_output_is_heard_as_it_comes(here: Transport) -> None:
    """Each step of the program waits until what it said before was heard: that it ends proves the order."""
    heard = bytearray()
    steps = Path(here.path())

    def hear(chunk: bytes) -> None:
        heard.extend(chunk)
        if heard.endswith(b"\n"):
            (steps / f"heard{heard.count(10)}").touch()

    script = "for i in 1 2 3; do echo line $i; until [ -e heard$i ]; do sleep 0.01; done; done; printf tail"
    result = here.run(["sh", "-c", script], on_stdout=hear, timeout_s=20)
    assert bytes(heard) == result.stdout == b"line 1\nline 2\nline 3\ntail"


def test_an_error_of_the_listener_ends_the_program(here: Transport, tmp_path: Path) -> None:
    def refuse(_: bytes) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        here.run(["sh", "-c", f"echo $$ >{tmp_path}/pid; echo go; exec sleep 300"], on_stdout=refuse)
    assert _gone(int((tmp_path / "pid").read_text()))


def test_output_left_open_by_a_stray_child_does_not_delay_the_result(here: Transport, tmp_path: Path) -> None:
    script = (
        f"setsid sh -c 'echo $$ >{tmp_path}/pid; exec sleep 300' & until [ -s {tmp_path}/pid ]; do sleep 0.01; done; echo done"
    )
    try:
        assert here.run(["sh", "-c", script], timeout_s=30).stdout == b"done\n"
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_limit_ends_the_whole_process_group(here: Transport, tmp_path: Path) -> None:
    # A child that ignores TERM must go as well.
    script = f"sh -c 'trap \"\" TERM; echo $$ >{tmp_path}/pid; while :; do sleep 1; done' & wait"
    with pytest.raises(errors.RemoteTimeout, match="limit of 1 s"):
        here.run(["sh", "-c", script], timeout_s=0.3)
    pid = int((tmp_path / "pid").read_text())
    assert _gone(pid)


def test_leftover_children_are_ended_with_the_program(here: Transport, tmp_path: Path) -> None:
    here.run(["sh", "-c", f"sleep 300 >/dev/null 2>&1 & echo $! >{tmp_path}/pid"])
    assert _gone(int((tmp_path / "pid").read_text()))


def _gone(pid: int, within_s: float = 10) -> bool:
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:1]:
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_or_killed_bevel_leaves_nothing_running(tmp_path: Path, end: signal.Signals) -> None:
    script = textwrap.dedent(f"""
        from bevel.devices.profile import load_profile
        from bevel.devices.resolve import resolve_transport
        with resolve_transport(load_profile("host")) as here:
            here.run(["sh", "-c", "echo $$ >{tmp_path}/pid; exec sleep 300"], timeout_s=300)
    """)
    client = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)}
    )
    pid = _read_pid(tmp_path / "pid")
    client.send_signal(end)
    assert client.wait(30) != 0
    assert _gone(pid)


def _read_pid(path: Path) -> int:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


def test_upload_skips_what_is_there(here: Transport, tmp_path: Path) -> None:
    (tmp_path / "m/lib").mkdir(parents=True)
    (tmp_path / "m/weights.bin").write_bytes(b"w" * 1000)
    (tmp_path / "m/lib/odd name'.txt").write_bytes(b"text")
    assert here.upload(tmp_path / "m", "m.bevel") == 1004
    assert here.upload(tmp_path / "m", "m.bevel") == 0
    (tmp_path / "m/weights.bin").write_bytes(b"x" * 1000)
    assert here.upload(tmp_path / "m", "m.bevel") == 1000
    remote = Path(here.path("m.bevel"))
    assert (remote / "weights.bin").read_bytes() == b"x" * 1000
    assert sorted(path.name for path in remote.rglob("*") if path.is_file()) == ["odd name'.txt", "weights.bin"]
    here.download("m.bevel/weights.bin", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"x" * 1000
    here.cleanup("m.bevel")
    assert not remote.exists()


def test_executable_bit_travels(here: Transport, tmp_path: Path) -> None:
    program = tmp_path / "p"
    program.write_text("#!/bin/sh\necho ran $1\n")
    program.chmod(0o755)
    here.upload(program, "bin/p")
    assert here.run(["./p", "x"], cwd="bin").stdout == b"ran x\n"
    program.chmod(0o644)
    here.upload(program, "bin/q")
    with pytest.raises(errors.NotExecutable, match="no execute permission"):
        here.run(["bin/q"])


def test_damaged_upload_leaves_the_old_file(here: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tmp_path / "f"
    local.write_bytes(b"old")
    here.upload(local, "f")
    local.write_bytes(b"new contents")
    monkeypatch.setattr(here, "_send", lambda source, remote, offset: Path(remote).write_bytes(source.read_bytes()[:-1]))
    with pytest.raises(errors.UploadCorrupted, match="another hash"):
        here.upload(local, "f")
    assert [path.name for path in Path(here.path()).iterdir()] == ["f"]
    assert Path(here.path("f")).read_bytes() == b"old"


def test_disk_that_fills_while_sending(here: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = tmp_path / "f"
    local.write_bytes(b"data")
    shell = here._shell
    answers = iter(["fs 100 0 100 0% /", "fs 100 100 0 100% /"])  # room at first, none afterwards

    def pretend(script: str, *args: str, what: str) -> str:
        return next(answers) if "df" in script else shell(script, *args, what=what)

    def refuse(source: Path, remote: str, offset: int) -> None:
        raise OSError("Failure")

    monkeypatch.setattr(here, "_shell", pretend)
    monkeypatch.setattr(here, "_send", refuse)
    with pytest.raises(errors.DiskFull, match=r"4 bytes do not fit .* 0 bytes left \(Failure\)"):
        here.upload(local, "f")


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x"])
def test_paths_stay_inside_the_work_directory(here: Transport, name: str) -> None:
    with pytest.raises(UsageError, match="stay inside"):
        here.path(name)


def test_absent_things_are_named(here: Transport, tmp_path: Path) -> None:
    with pytest.raises(errors.RemoteFailed, match="none is not on the device"):
        here.run(["bin/none"])
    with pytest.raises(errors.MissingTool, match="there is no command bevel-no-such"):
        here.run(["bevel-no-such"])
    with pytest.raises(errors.RemoteFailed, match="is not on the device"):
        here.download("none", tmp_path / "x")
    with pytest.raises(UsageError, match="does not exist"):
        here.upload(tmp_path / "none", "x")


def test_lost_result_is_not_a_status(here: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its trailer a command's outcome is unknown, however clean its output looks."""
    execute = here._execute
    monkeypatch.setattr(here, "_execute", lambda *args: (execute(*args)[0], b""))
    with pytest.raises(errors.ConnectionLost, match="before the result came back"):
        here.run(["true"])


def test_closed_transport_says_so() -> None:
    transport = LocalTransport(load_profile("host"))
    with pytest.raises(UsageError, match=r"not open; call open\(\) first"):
        transport.run(["true"])


@pytest.mark.qemu
def test_emulated_here(arm_program: Callable[..., Path]) -> None:
    profile = load_profile("raspberry-pi-4")
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed: apt-get install qemu-user")
    with resolve_transport(profile) as transport:
        assert transport.emulated
        assert "qemu-aarch64" in transport.label
        transport.preflight(profile.target())
        transport.upload(arm_program("hello", 'puts("hello from arm"); return argc'), "bin/hello")
        result = transport.run(["bin/hello", "a"])
        assert (result.stdout, result.exit_status) == (b"hello from arm\n", 2)
        with pytest.raises(errors.WrongArchitecture, match="built for x86_64, the device is aarch64"):
            transport.upload(Path("/bin/true").resolve(), "bin/true")


def test_address_wins_over_this_machine() -> None:
    profile = replace(load_profile("x86-64"), ssh=Ssh("nuc", "me"))
    transport = resolve_transport(profile)
    assert isinstance(transport, SshTransport)
    assert transport.label == "me@nuc"


def test_foreign_device_without_emulator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    host = load_profile("x86-64-avx2")
    with pytest.raises(ToolchainError, match=r"qemu-aarch64.*apt-get install qemu-user.*\[ssh\] address"):
        resolve_transport(load_profile("raspberry-pi-4"), host)
    # Same architecture, but an instruction set no emulator has.
    with pytest.raises(ToolchainError, match="qemu-user cannot emulate its CPU"):
        resolve_transport(load_profile("x86-64-avx512-vnni"), host)


def test_host_runs_what_its_features_cover() -> None:
    host = load_profile("x86-64-avx2")
    assert not resolve_transport(load_profile("x86-64"), host).emulated
