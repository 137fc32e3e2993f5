"""The road over real SSH to an emulated board, and each way it fails: one named error, and nothing left running."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from bevel.devices import errors
from bevel.devices import ssh as ssh_module
from bevel.devices.board import EmulatedBoard
from bevel.devices.profile import Ssh, load_profile
from bevel.devices.ssh import SshTransport
from bevel.devices.transport import Transport

pytestmark = [pytest.mark.ssh, pytest.mark.qemu]

Build = Callable[..., Path]
# Silent: a program that writes dies of SIGPIPE when the connection goes, whether or not the device looks after it.
SLEEP = "sleep(300)"


def address(board: EmulatedBoard) -> Ssh:
    assert board.profile.ssh is not None
    return board.profile.ssh


def nothing_runs(board: EmulatedBoard, within_s: float = 15) -> bool:
    """True once no process of any session is left on the board."""
    end = time.monotonic() + within_s
    while board.processes():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def wait_for_program(board: EmulatedBoard, name: str) -> None:
    """Wait until a program put on the board is running."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for pid in board.processes():
            try:
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"qemu" in arguments[0] and any(part.endswith(name.encode()) for part in arguments):
                return
        time.sleep(0.02)
    raise AssertionError(f"{name} did not start")


def session_servers(board: EmulatedBoard) -> list[int]:
    """The SSH server's processes that serve open connections."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    commands = set(board.processes())
    family, grown = {board.server_pid}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in family} - family - commands
        family, grown = family | more, bool(more)
    return sorted(family - {board.server_pid})


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


def test_host_key_of_another_machine(board: EmulatedBoard, tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known = tmp_path / "known_hosts"
    known.write_text(f"[127.0.0.1]:{address(board).port} {other}")
    assert "ssh by hand" in refused_with(errors.HostKeyRejected, replace(address(board), known_hosts=str(known)))


def test_unknown_host_key_is_never_accepted(board: EmulatedBoard, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("")
    refused_with(errors.HostKeyRejected, replace(address(board), known_hosts=str(known)))
    assert known.read_text() == ""
    missing = replace(address(board), known_hosts=str(tmp_path / "none"))
    assert "none does not exist" in refused_with(errors.HostKeyRejected, missing)


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


def test_key_the_board_does_not_know(board: EmulatedBoard, tmp_path: Path) -> None:
    identity = tmp_path / "other_key"
    identity.touch(mode=0o600)
    identity.write_bytes(asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh"))
    ssh = replace(address(board), identity=str(identity))
    assert "authorized_keys" in refused_with(errors.AuthenticationFailed, ssh)
    missing = replace(address(board), identity=str(tmp_path / "none"))
    assert "none" in refused_with(errors.AuthenticationFailed, missing)


def test_closed_port(board: EmulatedBoard) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused_with(errors.ConnectionRefused, replace(address(board), port=port))


def test_port_that_accepts_and_says_nothing(board: EmulatedBoard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ssh = replace(address(board), port=silent.getsockname()[1])
        assert "no answer within 0.5 s" in refused_with(errors.ConnectTimeout, ssh, timeout_s=0.5)


def test_port_that_swallows_packets(board: EmulatedBoard) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        # A full queue of pending connections: Linux drops further SYNs, as a blackhole does.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        refused_with(errors.ConnectTimeout, replace(address(board), port=full.getsockname()[1]), timeout_s=0.5)
        for filler in fillers:
            filler.close()


def test_name_that_does_not_resolve(board: EmulatedBoard) -> None:
    refused_with(errors.HostUnreachable, replace(address(board), host="no-such-board.invalid", config=None), timeout_s=10)


# Failures of the disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / "disk"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount a tmpfs here, which needs root: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def test_disk_full(
    board: EmulatedBoard, small_disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = small_disk("size=4m")
    (tmp_path / "big").write_bytes(os.urandom(6_000_000))
    with SshTransport(replace(address(board), workdir=str(disk / "w"))) as transport:
        with pytest.raises(errors.DiskFull, match="6000000 bytes do not fit"):
            transport.upload(tmp_path / "big", "big")
        # The look beforehand can be outdated: the same disk filling up while the file arrives.
        require, calls = transport._require_room, []

        def later(size: int, symptom: str = "") -> None:
            calls.append(size)
            if len(calls) > 1:
                require(size, symptom)

        monkeypatch.setattr(transport, "_require_room", later)
        with pytest.raises(errors.DiskFull, match="do not fit"):
            transport.upload(tmp_path / "big", "big")
        assert len(calls) == 2
        assert list((disk / "w").iterdir()) == []


def test_noexec(board: EmulatedBoard, small_disk: Callable[[str], Path], arm_program: Build) -> None:
    disk = small_disk("size=4m,noexec")
    with SshTransport(replace(address(board), workdir=str(disk))) as transport:
        assert transport.info.noexec
        with pytest.raises(errors.NotExecutable, match=r"mounted noexec.*workdir"):
            transport.preflight(board.profile.target())
        transport.upload(arm_program("quick", "puts(argv[0])"), "quick")
        with pytest.raises(errors.NotExecutable, match="mounted noexec"):
            transport.run(["./quick"])


def test_work_directory_that_cannot_be_made(board: EmulatedBoard) -> None:
    with pytest.raises(errors.RemoteFailed, match="cannot be made or entered"):
        SshTransport(replace(address(board), workdir="/proc/bevel")).open()


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


def test_killed(device: Transport, arm_program: Build) -> None:
    device.upload(arm_program("die", "raise(SIGKILL)"), "die")
    with pytest.raises(errors.OutOfMemory, match=r"killed after .*dmesg"):
        device.run(["./die"], timeout_s=30)


def test_crash(device: Transport, arm_program: Build) -> None:
    device.upload(arm_program("crash", "abort()"), "crash")
    with pytest.raises(errors.RemoteFailed, match="died of SIGABRT"):
        device.run(["./crash"], timeout_s=30)


@pytest.mark.parametrize("body", [SLEEP, "signal(SIGTERM, SIG_IGN);" + SLEEP], ids=["sleeps", "ignores TERM"])
def test_hang(board: EmulatedBoard, device: Transport, arm_program: Build, body: str) -> None:
    name = "hang" if body == SLEEP else "stubborn"
    device.upload(arm_program(name, body), name)
    with pytest.raises(errors.RemoteTimeout, match="limit of 1 s"):
        device.run([f"./{name}"], timeout_s=1)
    assert nothing_runs(board)
    assert device.run(["true"]).exit_status == 0  # the connection is as good as before


# Failures of the connection ------------------------------------------------------------------------------------------------


class Background:
    """A run in a thread, so that the test can break the connection under it."""

    def __init__(self, device: Transport, program: str) -> None:
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(device, program))
        self._thread.start()

    def _run(self, device: Transport, program: str) -> None:
        try:
            device.run([program], timeout_s=120)
        except BaseException as error:
            self.error = error

    def join(self) -> BaseException | None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.error


def test_connection_lost_while_running(board: EmulatedBoard, device: Transport, arm_program: Build) -> None:
    device.upload(arm_program("lost", SLEEP), "lost")
    run = Background(device, "./lost")
    wait_for_program(board, "lost")
    for pid in session_servers(board):
        os.kill(pid, signal.SIGKILL)
    error = run.join()
    assert type(error) is errors.ConnectionLost
    assert "the connection was lost, the device is up" in str(error)
    assert nothing_runs(board)
    with pytest.raises(errors.ConnectionLost):
        device.run(["true"])
    with pytest.raises(errors.ConnectionLost):
        device.upload(arm_program("lost", SLEEP), "again")
    device.open()
    assert device.run(["true"]).exit_status == 0


def test_reboot_is_told_from_a_lost_link(
    board: EmulatedBoard, device: Transport, arm_program: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.upload(arm_program("lost", SLEEP), "lost")
    run = Background(device, "./lost")
    wait_for_program(board, "lost")
    device._info = replace(device.info, boot_id="of the boot before")
    for pid in session_servers(board):
        os.kill(pid, signal.SIGKILL)
    error = run.join()
    assert type(error) is errors.ConnectionLost
    assert "the device rebooted" in str(error)
    assert nothing_runs(board)


def test_silent_link_ends_the_program_on_the_device(
    board: EmulatedBoard, device: Transport, arm_program: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that drops without a word: no more heartbeats come, and the device ends the program by itself."""
    device.upload(arm_program("silent", SLEEP), "silent")
    device._patience_s = 4
    monkeypatch.setattr(ssh_module, "HEARTBEAT_S", 0.5)
    run = Background(device, "./silent")
    wait_for_program(board, "silent")
    time.sleep(5)
    wait_for_program(board, "silent")  # heartbeats kept it alive past its patience
    servers = session_servers(board)
    for pid in servers:
        os.kill(pid, signal.SIGSTOP)
    try:
        assert nothing_runs(board)
    finally:
        for pid in servers:
            os.kill(pid, signal.SIGCONT)
    assert isinstance(run.join(), errors.BoardError)


def test_interrupt_ends_the_program_on_the_device(board: EmulatedBoard, device: Transport, arm_program: Build) -> None:
    device.upload(arm_program("inter", SLEEP), "inter")
    script = textwrap.dedent(f"""
        from bevel.devices.profile import Ssh
        from bevel.devices.ssh import SshTransport
        with SshTransport({address(board)!r}) as device:
            device.run(["./inter"], timeout_s=120)
    """)
    client = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    wait_for_program(board, "inter")
    client.send_signal(signal.SIGINT)
    _, message = client.communicate(timeout=30)
    assert b"KeyboardInterrupt" in message
    assert nothing_runs(board, within_s=5)


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
