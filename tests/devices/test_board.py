"""The road over real SSH to an emulated board, and what only a board of another architecture can fail at.

Other failures have theirs in test_failures.py.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bevel.devices import errors
from bevel.devices.board import EmulatedBoard
from bevel.devices.profile import Ssh, load_profile
from bevel.devices.ssh import SshTransport
from bevel.devices.transport import Transport

pytestmark = [pytest.mark.ssh, pytest.mark.qemu]

Build = Callable[..., Path]


def address(board: EmulatedBoard) -> Ssh:
    assert board.profile.ssh is not None
    return board.profile.ssh


# The road ------------------------------------------------------------------------------------------------------------------


def test_board_looks_like_the_profile(board: EmulatedBoard, device: Transport) -> None:
    assert device.emulated
    assert device.info.arch == "aarch64"
    assert device.info.features == {"neon"}
    assert device.info.emulator.startswith("qemu-aarch64 -cpu cortex-a72")
    assert device.info.cpuinfo.count("processor") == 4
    device.preflight(board.profile.target())
    assert device.label.endswith(f"@127.0.0.1:{address(board).port}")


def test_program_runs_over_ssh(device: Transport, arm_program: Build) -> None:
    body = 'char b[9] = {0}; read(0, b, 8); printf("%s %s", b, getenv("WHO")); fputs("note", stderr); return 5'
    assert device.upload(arm_program("talk", body), "bin/talk") > 0
    assert device.upload(arm_program("talk", body), "bin/talk") == 0
    result = device.run(["./talk"], cwd="bin", stdin=b"hello", env={"WHO": "board"})
    assert (result.stdout, result.stderr, result.exit_status) == (b"hello board", b"note", 5)


def test_files_come_back(device: Transport, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "data").write_bytes(data)
    assert device.upload(tmp_path / "data", "d/data") == len(data)
    device.download("d/data", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data
    device.cleanup()
    assert not Path(device.info.workdir).exists()


def test_plain_ssh_logs_in(board: EmulatedBoard) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh client: apt-get install openssh-client")
    done = subprocess.run(["ssh", "-F", board.ssh_config, "board", "uname -m"], capture_output=True, check=True)
    assert done.stdout == b"aarch64\n"
    # A board refuses another machine's programs whoever starts them.
    shutil.copy(Path("/bin/true").resolve(), board.root / "home/true")
    done = subprocess.run(["ssh", "-F", board.ssh_config, "board", "~/true"], capture_output=True, check=False)
    assert done.returncode == 126
    assert b"Exec format error" in done.stderr


def test_board_leaves_nothing_behind() -> None:
    with EmulatedBoard("raspberry-pi-5") as other:
        root, server = other.root, other.server_pid
        assert other.profile.features == {"neon", "dotprod", "fp16"}
        with SshTransport(address(other)) as transport:
            assert transport.info.features == {"neon", "dotprod", "fp16"}
    assert not root.exists()
    assert not Path(f"/proc/{server}").exists()


def test_board_of_32_bits() -> None:
    with EmulatedBoard("armv7-a7") as other, SshTransport(address(other)) as transport:
        assert (transport.info.arch, transport.info.features) == ("armv7", {"neon", "vfpv4"})
        transport.preflight(other.profile.target())
        with pytest.raises(errors.WrongArchitecture, match="raspberry-pi-3 is aarch64"):
            transport.preflight(load_profile("raspberry-pi-3").target())


# Failures to connect -------------------------------------------------------------------------------------------------------


def refused_with(error: type[errors.BoardError], ssh: Ssh, timeout_s: float = 5) -> str:
    transport = SshTransport(ssh, connect_timeout_s=timeout_s)
    with pytest.raises(error) as caught:
        transport.open()
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{ssh.address}: ")
    return str(caught.value)


def test_configuration_cannot_switch_host_keys_off(board: EmulatedBoard, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host *\n  UserKnownHostsFile none\n  StrictHostKeyChecking no\n")
    ssh = replace(address(board), known_hosts=None, config=str(config))
    assert "switches host key checking off" in refused_with(errors.HostKeyRejected, ssh)


def test_configuration_is_honoured(board: EmulatedBoard) -> None:
    ssh = Ssh("board", config=str(board.ssh_config), workdir=address(board).workdir)
    with SshTransport(ssh) as transport:
        assert transport.info.arch == "aarch64"


def test_jump_host(board: EmulatedBoard, tmp_path: Path) -> None:
    config = tmp_path / "config"
    text = board.ssh_config.read_text()
    config.write_text(f"{text}Host behind\n  ProxyJump board\n{text.partition(chr(10))[2]}")
    with SshTransport(Ssh("behind", config=str(config), workdir=address(board).workdir)) as transport:
        connection = transport._connection
        assert connection is not None
        assert connection.get_extra_info("peername") == ("", 0)  # no socket of its own: it goes through another connection
        assert transport.run(["uname", "-m"]).stdout == b"aarch64\n"


def test_key_files_that_do_not_exist(board: EmulatedBoard, tmp_path: Path) -> None:
    missing = replace(address(board), known_hosts=str(tmp_path / "none"))
    assert "none does not exist" in refused_with(errors.HostKeyRejected, missing)
    missing = replace(address(board), identity=str(tmp_path / "none"))
    assert "none" in refused_with(errors.AuthenticationFailed, missing)


# Failures of programs ------------------------------------------------------------------------------------------------------


def test_wrong_architecture(board: EmulatedBoard, device: Transport) -> None:
    native = Path("/bin/true").resolve()
    with pytest.raises(errors.WrongArchitecture, match="the device is aarch64"):
        device.upload(native, "bin/true")
    shutil.copy(native, board.root / "work/true")
    with pytest.raises(errors.WrongArchitecture, match="built for"):
        device.run(["./true"])
    with pytest.raises(errors.WrongArchitecture, match="x86-64-avx2 is x86_64"):
        device.preflight(load_profile("x86-64-avx2").target())


def test_program_for_32_bits_on_64(device: Transport, tmp_path: Path) -> None:
    """Named by what it is, not by the loader such a program would lack first."""
    if shutil.which("arm-linux-gnueabihf-gcc") is None:
        pytest.skip("no compiler for 32-bit Arm: apt-get install gcc-arm-linux-gnueabihf")
    (tmp_path / "p.c").write_text("int main(void) { return 0; }\n")
    subprocess.run(["arm-linux-gnueabihf-gcc", "-o", tmp_path / "p", tmp_path / "p.c"], check=True)
    with pytest.raises(errors.WrongArchitecture, match="is built for armv7, the device is aarch64"):
        device.upload(tmp_path / "p", "p")
    shutil.copy(tmp_path / "p", Path(device.path("p")))
    with pytest.raises(errors.WrongArchitecture, match="is built for armv7, the device is aarch64"):
        device.run(["./p"])


def test_instruction_the_cpu_lacks(device: Transport, arm_program: Build) -> None:
    # sdot v0.4s, v1.16b, v2.16b: armv8.2 dot product, which a Cortex-A72 does not have.
    device.upload(arm_program("dot", '__asm__ volatile(".inst 0x4e829420")'), "dot")
    with pytest.raises(errors.IllegalInstruction, match="compiled for"):
        device.run(["./dot"])
    with pytest.raises(errors.IllegalInstruction, match="lacks dotprod"):
        device.preflight(load_profile("raspberry-pi-5").target())


def test_missing_loader(device: Transport, arm_program: Build) -> None:
    if shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("a dynamic aarch64 program needs aarch64-linux-gnu-gcc: apt-get install gcc-aarch64-linux-gnu")
    device.upload(arm_program("dynamic", "puts(argv[0])", "-Wl,--dynamic-linker=/lib/ld-none.so.9"), "dynamic")
    with pytest.raises(errors.MissingLoader, match=r"needs /lib/ld-none\.so\.9"):
        device.run(["./dynamic"])


# Its end -------------------------------------------------------------------------------------------------------------------


def test_board_ends_with_a_killed_owner(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import os
        from bevel.devices.board import EmulatedBoard
        board = EmulatedBoard()
        board.start()
        print(board.root, board.server_pid, flush=True)
        os._exit(9)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    root, pid = done.stdout.split()
    end = time.monotonic() + 10
    while (Path(root).exists() or Path(f"/proc/{pid}").exists()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(root).exists()
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_board_command_is_usable_as_a_device(tmp_path: Path, end: signal.Signals) -> None:
    """`bevel devices emulate --as NAME`: a device for as long as it runs."""
    environment = {**os.environ, "BEVEL_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "bevel", "devices", "emulate", "fast", "--of", "raspberry-pi-5", "--as", "demo"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert server.stdout is not None
        assert "emulated aarch64 board (cortex-a76) is up" in server.stdout.readline()
        profile = load_profile(tmp_path / "devices/demo.toml")
        assert profile.ssh is not None
        with SshTransport(profile.ssh) as transport:
            assert transport.info.features == {"neon", "dotprod", "fp16"}
    finally:
        server.send_signal(end)
        assert server.wait(30) == 0
    assert not (tmp_path / "devices/demo.toml").exists()
