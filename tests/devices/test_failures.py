"""Every way a job on a device fails, from its real cause: the named error, nothing left on the device, and the next job works.

Each row of `ROWS` breaks something (cable, power, disk, memory, program, key), asks for the error that names it, and is then
judged alike: the message is one line that says where, what and what to do; no process and no file of the job is left on the
device; and once the cause is gone the next job runs. What needs network or mounts of its own is skipped, with the reason, where
the system does not allow them.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import asyncssh
import pytest

from bevel.devices import errors
from bevel.devices import ssh as ssh_module
from bevel.devices.profile import Ssh, load_profile
from bevel.devices.ssh import SshTransport
from tests.devices.machine import Machine, wait

pytestmark = pytest.mark.ssh

SLEEP = (
    "sleep(300)"  # silent: a program that writes dies of SIGPIPE with its connection, whether or not the device looks after it
)
PATIENCE_S = 4  # of the device, in these tests: enough for a loaded machine to send heartbeats, short enough to wait for


@dataclass
class Scene:
    """One failure in the making.

    Attributes:
        machine: the device.
        folder: for files of this test, on this side.
        ssh: address the job uses; rows change it.
        kept: files in the work directory that are there on purpose.
        undo: puts the cause right again, last first.
    """

    machine: Machine
    folder: Path
    monkeypatch: pytest.MonkeyPatch
    ssh: Ssh
    kept: set[str] = field(default_factory=set)
    undo: list[Callable[[], object]] = field(default_factory=list)
    opened: list[SshTransport] = field(default_factory=list)

    def device(self) -> SshTransport:
        """An open connection under the address of the moment."""
        device = SshTransport(self.ssh, connect_timeout_s=5)
        device._patience_s = PATIENCE_S
        self.opened.append(device)
        device.open()
        return device

    def program(self, name: str, body: str, *options: str) -> Path:
        """A program of this machine's architecture from the body of its main."""
        compiler = shutil.which("cc") or pytest.skip("no C compiler: apt-get install gcc")
        headers = "".join(f"#include <{header}.h>\n" for header in ("stdio", "stdlib", "string", "unistd", "signal"))
        source, program = self.folder / f"{name}.c", self.folder / name
        source.write_text(f"{headers}int main(void) {{ {body}; return 0; }}\n")
        subprocess.run([compiler, "-O1", "-o", program, source, *options], check=True)
        return program

    def run(self, name: str, body: str, *options: str, timeout_s: float = 30) -> None:
        """Send such a program and run it."""
        device = self.device()
        device.upload(self.program(name, body, *options), name)
        self.kept.add(name)
        device.run([f"./{name}"], timeout_s=timeout_s)

    def breaking(self, then: Callable[[], object]) -> None:
        """Run a silent program, and do `then` while it runs; scratch, and the lock, are held meanwhile."""
        device = self.device()
        device.upload(self.program("sleeper", SLEEP), "sleeper")
        self.kept.add("sleeper")
        (self.folder / "input").write_text("input")
        device.upload(self.folder / "input", f"{device.scratch()}/input")

        def interfere() -> None:
            wait(lambda: self.machine.find("sleeper"), "the program")
            then()

        thread = threading.Thread(target=interfere)
        thread.start()
        try:
            with device.lock("a bench", 5):
                device.run(["./sleeper"], timeout_s=120)
        finally:
            thread.join()

    def disk(self, options: str) -> None:
        """A file system of its own for the work directory."""
        folder = self.machine.root / "disk"
        folder.mkdir(exist_ok=True)
        self.machine.shell(f"mount -t tmpfs -o {options} tmpfs {folder}")
        self.undo.append(lambda: self.machine.shell(f"umount -l {folder}"))
        self.ssh = replace(self.ssh, workdir=str(folder / "work"))

    def identity(self, name: str, data: bytes) -> str:
        """A private file."""
        (self.folder / name).touch(mode=0o600)
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)


# What breaks ---------------------------------------------------------------------------------------------------------------


def unknown_host_key(scene: Scene) -> None:
    scene.ssh = replace(scene.ssh, known_hosts=scene.identity("known_hosts", b""))
    try:
        scene.device()
    finally:
        assert (scene.folder / "known_hosts").read_text() == ""  # never accepted unseen


def changed_host_key(scene: Scene) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    known = f"[{scene.ssh.host}]:{scene.ssh.port} {other}"
    scene.ssh = replace(scene.ssh, known_hosts=scene.identity("known_hosts", known.encode()))
    scene.device()


def unknown_user_key(scene: Scene) -> None:
    key = asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh")
    scene.ssh = replace(scene.ssh, identity=scene.identity("other_key", key))
    scene.device()


def closed_port(scene: Scene) -> None:
    scene.ssh = replace(scene.ssh, port=1)
    scene.device()


def no_such_name(scene: Scene) -> None:
    scene.ssh = replace(scene.ssh, host="no-such-board.invalid")
    scene.device()


def cable_out(scene: Scene) -> None:
    scene.machine.link("down")
    scene.undo.append(lambda: scene.machine.link("up"))
    scene.device()


def no_route(scene: Scene) -> None:
    host = "198.19.255.254"
    subprocess.run(["ip", "route", "add", "unreachable", host], check=True)
    scene.undo.append(lambda: subprocess.run(["ip", "route", "delete", "unreachable", host], check=True))
    scene.ssh = replace(scene.ssh, host=host)
    scene.device()


def firewall(scene: Scene) -> None:
    scene.machine.answers_get_lost(True)
    scene.undo.append(lambda: scene.machine.answers_get_lost(False))
    SshTransport(scene.ssh, connect_timeout_s=0.5).open()


def frozen_before(scene: Scene) -> None:
    scene.machine.freeze()
    scene.undo.append(lambda: scene.machine.freeze(signal.SIGCONT))
    SshTransport(scene.ssh, connect_timeout_s=0.5).open()


def link_drops(scene: Scene) -> None:
    """After longer than the device's patience: until then heartbeats kept the program alive."""

    def drop() -> None:
        time.sleep(PATIENCE_S + 1)
        assert scene.machine.find("sleeper")
        scene.machine.link("down")

    scene.undo.append(lambda: scene.machine.link("up"))
    scene.breaking(drop)


def server_killed(scene: Scene) -> None:
    scene.breaking(lambda: [os.kill(pid, signal.SIGKILL) for pid in scene.machine.servers()])


def freezes(scene: Scene) -> None:
    scene.undo.append(lambda: scene.machine.freeze(signal.SIGCONT))
    scene.breaking(scene.machine.freeze)


def reboots(scene: Scene) -> None:
    def reboot() -> None:
        scene.machine.power_off()
        scene.machine.boot()

    scene.breaking(reboot)


def big_file(scene: Scene, size: int) -> Path:
    path = scene.folder / "big"
    path.write_bytes(os.urandom(size))
    return path


def disk_too_small(scene: Scene) -> None:
    scene.disk("size=4m")
    scene.device().upload(big_file(scene, 6_000_000), "big")


def disk_fills_meanwhile(scene: Scene) -> None:
    """There was room when bevel looked; then someone else took it."""
    scene.disk("size=4m")
    device = scene.device()
    send = device._send

    def send_too_late(local: Path, remote: str, offset: int) -> None:
        scene.machine.shell(f"dd if=/dev/zero of={scene.machine.root}/disk/other bs=1M count=3 2>/dev/null")
        send(local, remote, offset)

    scene.monkeypatch.setattr(device, "_send", send_too_late)
    device.upload(big_file(scene, 3_000_000), "big")


def program_fills_disk(scene: Scene) -> None:
    scene.disk("size=4m")
    device = scene.device()
    device.run(["sh", "-c", f"cat /dev/zero >{device.path(device.scratch())}/out"])


def noexec_seen_beforehand(scene: Scene) -> None:
    scene.disk("size=4m,noexec")
    scene.device().preflight(load_profile("host").target())


def noexec(scene: Scene) -> None:
    scene.disk("size=4m,noexec")
    scene.run("quick", 'puts("never")')


def no_permission(scene: Scene) -> None:
    program = scene.program("plain", 'puts("never")')
    program.chmod(0o644)
    device = scene.device()
    device.upload(program, "plain")
    scene.kept.add("plain")
    device.run(["./plain"])


def foreign_program(scene: Scene) -> Path:
    """The head of a program for another architecture, as a linker writes it: machine 183 is aarch64, 62 is x86-64."""
    other = 183 if os.uname().machine == "x86_64" else 62
    path = scene.folder / "foreign"
    compiler = shutil.which("aarch64-linux-gnu-gcc") if other == 183 else None
    if compiler is None:
        pytest.skip("no compiler for another architecture: apt-get install gcc-aarch64-linux-gnu")
    (scene.folder / "foreign.c").write_text("int main(void) { return 0; }\n")
    subprocess.run([compiler, "-static", "-o", path, scene.folder / "foreign.c"], check=True)
    return path


def wrong_architecture_sent(scene: Scene) -> None:
    scene.device().upload(foreign_program(scene), "foreign")


def wrong_architecture_run(scene: Scene) -> None:
    device = scene.device()
    shutil.copy(foreign_program(scene), scene.machine.root / "work/foreign")
    scene.kept.add("foreign")
    device.run(["./foreign"])


def missing_loader(scene: Scene) -> None:
    scene.run("musl", 'puts("never")', "-Wl,--dynamic-linker=/lib/ld-bevel-none.so.1")


def missing_library(scene: Scene) -> None:
    library = scene.folder / "libbevelnone.so"
    (scene.folder / "none.c").write_text("int none(void) { return 0; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, scene.folder / "none.c"], check=True)
    scene.run("linked", "int none(void); none()", f"-L{scene.folder}", "-lbevelnone")


def old_libc(scene: Scene) -> None:
    """Linked against a C library of the future, and started by the real loader of this one."""
    (scene.folder / "future.c").write_text("int bevel_future(void) { return 0; }\n")
    (scene.folder / "future.map").write_text("GLIBC_2.99 { bevel_future; };\n")
    future = scene.folder / "libfuture.so"
    options = ["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libc.so.6", f"-Wl,--version-script={scene.folder}/future.map"]
    subprocess.run(["cc", *options, "-o", future, scene.folder / "future.c"], check=True)
    scene.run("newer", "int bevel_future(void); bevel_future()", "-nostdlib", "-Wl,-e,main", str(future))


def illegal_instruction(scene: Scene) -> None:
    scene.run("illegal", "__builtin_trap()" if os.uname().machine == "x86_64" else '__asm__(".inst 0")')


def out_of_memory(scene: Scene) -> None:
    device = scene.device()
    body = "char *all = malloc(512u << 20); memset(all, 1, 512u << 20); puts(all + 5)"
    device.upload(scene.program("hungry", body), "hungry")
    scene.kept.add("hungry")
    try:
        with scene.machine.little_memory(64 << 20):
            device.run(["./hungry"])
    except OSError as error:
        pytest.skip(f"control groups cannot be used here: {error}")


def killed_from_outside(scene: Scene) -> None:
    scene.breaking(lambda: [os.kill(pid, signal.SIGKILL) for pid in scene.machine.find("sleeper")])


def hangs(scene: Scene) -> None:
    scene.run("sleeper", SLEEP, timeout_s=1)


def hangs_and_ignores_being_told(scene: Scene) -> None:
    scene.run("stubborn", "signal(SIGTERM, SIG_IGN); fork();" + SLEEP, timeout_s=1)


def crashes(scene: Scene) -> None:
    scene.run("crash", "abort()")


def no_work_directory(scene: Scene) -> None:
    scene.ssh = replace(scene.ssh, workdir="/proc/bevel")
    scene.device()


def no_sftp(scene: Scene) -> None:
    def reboot(sftp: bool) -> None:
        scene.machine.power_off()
        scene.machine.boot(sftp=sftp)

    reboot(False)
    scene.undo.append(lambda: reboot(True))
    scene.ssh = scene.machine.ssh
    scene.device().upload(big_file(scene, 1000), "big")


def tool_missing(scene: Scene) -> None:
    tool = shutil.which("sha256sum")
    scene.machine.shell(f"mount --bind /dev/null {tool}")
    scene.undo.append(lambda: scene.machine.shell(f"umount {tool}"))
    scene.device()


def command_missing(scene: Scene) -> None:
    scene.device().run(["bevel-no-such-command"])


def storage_flips_a_bit(scene: Scene) -> None:
    device = scene.device()
    send = device._send

    def send_to_bad_storage(local: Path, remote: str, offset: int) -> None:
        send(local, remote, offset)
        with Path(remote).open("r+b") as stream:
            stream.seek(500)
            stream.write(bytes([stream.read(1)[0] ^ 1]))

    scene.monkeypatch.setattr(device, "_send", send_to_bad_storage)
    device.upload(big_file(scene, 1000), "big")


def held_by_another_process(scene: Scene) -> None:
    script = textwrap.dedent(f"""
        import signal
        from bevel.devices.profile import Ssh
        from bevel.devices.ssh import SshTransport
        with SshTransport({scene.ssh!r}) as device, device.lock("a long bench", 0):
            print("taken", flush=True)
            signal.pause()
    """)
    holder = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "taken\n"

    def kill() -> None:
        holder.kill()
        holder.wait()

    scene.undo.append(kill)
    with scene.device().lock("mine", 0.5):
        pass


@dataclass(frozen=True)
class Row:
    """A failure: what breaks, the error that names it, and what its message must say.

    `isolated`: needs network, mounts or processes of its own. `unaided`: the device ends the job while the cause lasts.
    `reopened`: what is left goes when the device is next opened.
    """

    act: Callable[[Scene], None]
    error: type[errors.BoardError]
    says: str
    isolated: bool = False
    unaided: bool = False
    reopened: bool = False

    @property
    def name(self) -> str:
        return self.act.__name__


ROWS = [
    Row(unknown_host_key, errors.HostKeyRejected, "host key is unknown.*log in once with ssh by hand"),
    Row(changed_host_key, errors.HostKeyRejected, "host key is not the one accepted before.*ssh-keygen -R"),
    Row(unknown_user_key, errors.AuthenticationFailed, "authorized_keys"),
    Row(closed_port, errors.ConnectionRefused, "nothing listens"),
    Row(no_such_name, errors.HostUnreachable, "name does not resolve"),
    Row(cable_out, errors.HostUnreachable, "No route to host", isolated=True),
    Row(no_route, errors.HostUnreachable, "No route to host", isolated=True),
    Row(firewall, errors.ConnectTimeout, r"no answer within 0\.5 s", isolated=True),
    Row(frozen_before, errors.ConnectTimeout, r"no answer within 0\.5 s", isolated=True),
    Row(link_drops, errors.ConnectionLost, "the device does not answer", isolated=True, unaided=True),
    Row(server_killed, errors.ConnectionLost, "the connection was lost, the device is up", isolated=True),
    Row(freezes, errors.ConnectionLost, "the device does not answer", isolated=True),
    Row(reboots, errors.ConnectionLost, "the device rebooted", isolated=True, reopened=True),
    Row(disk_too_small, errors.DiskFull, "6000000 bytes do not fit", isolated=True),
    Row(disk_fills_meanwhile, errors.DiskFull, "3000000 bytes do not fit", isolated=True),
    Row(program_fills_disk, errors.DiskFull, "ran out of disk space", isolated=True),
    Row(noexec_seen_beforehand, errors.NotExecutable, "mounted noexec.*workdir", isolated=True),
    Row(noexec, errors.NotExecutable, "mounted noexec.*workdir", isolated=True),
    Row(no_permission, errors.NotExecutable, "no execute permission"),
    Row(wrong_architecture_sent, errors.WrongArchitecture, "is built for aarch64, the device is x86_64"),
    Row(wrong_architecture_run, errors.WrongArchitecture, "is built for aarch64, the device is x86_64"),
    Row(missing_loader, errors.MissingLoader, "dynamic loader of ./musl is not on the device"),
    Row(missing_library, errors.MissingLoader, r"needs libbevelnone\.so"),
    Row(old_libc, errors.OldLibc, r"needs GLIBC_2\.99"),
    Row(illegal_instruction, errors.IllegalInstruction, "illegal instruction"),
    Row(out_of_memory, errors.OutOfMemory, "was killed after .*out-of-memory.*dmesg", isolated=True),
    Row(killed_from_outside, errors.OutOfMemory, "was killed after"),
    Row(hangs, errors.RemoteTimeout, "limit of 1 s"),
    Row(hangs_and_ignores_being_told, errors.RemoteTimeout, "limit of 1 s"),
    Row(crashes, errors.RemoteFailed, "died of SIGABRT"),
    Row(no_work_directory, errors.RemoteFailed, "/proc/bevel cannot be made"),
    Row(no_sftp, errors.RemoteFailed, "SFTP is not available.*Subsystem"),
    Row(tool_missing, errors.MissingTool, "sha256sum not found", isolated=True),
    Row(command_missing, errors.MissingTool, "there is no command bevel-no-such-command"),
    Row(storage_flips_a_bit, errors.UploadCorrupted, "another hash"),
    Row(held_by_another_process, errors.DeviceBusy, r"in use by .*\(process \d+\), a long bench, since \d\d:\d\d"),
]


@pytest.fixture
def scene(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    monkeypatch.setattr(ssh_module, "HEARTBEAT_S", 0.5)
    monkeypatch.setattr(ssh_module, "RETURN_S", 1)  # this machine boots at once
    scene = Scene(machine, tmp_path, monkeypatch, machine.ssh)
    yield scene
    for device in scene.opened:
        device.close()
    for undo in reversed(scene.undo):
        undo()
    shutil.rmtree(machine.root / "work", ignore_errors=True)


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in ROWS])
def test_failure(scene: Scene, row: Row) -> None:
    machine = scene.machine
    if row.isolated and machine.lacks:
        pytest.skip(machine.lacks)
    with pytest.raises(errors.BoardError) as caught:
        row.act(scene)
    message = str(caught.value)
    print(message)
    assert type(caught.value) is row.error, message
    assert re.search(row.says, message), message
    assert message.startswith(f"{scene.ssh.address}: ")
    assert "\n" not in message
    while scene.opened:
        scene.opened.pop().close()
    if scene.ssh.workdir.startswith(f"{machine.root}/disk"):
        assert machine.files(scene.ssh.workdir).keys() <= scene.kept  # before the disk goes
    if row.unaided:
        wait(lambda: not machine.processes(), "the end of all processes of the job", within_s=3 * PATIENCE_S)
    while scene.undo:
        scene.undo.pop()()
    wait(lambda: not machine.processes(), "the end of all processes of the job", within_s=3 * PATIENCE_S)
    scene.ssh = machine.ssh
    if row.reopened:
        scene.device().close()
    assert machine.files(scene.ssh.workdir).keys() <= scene.kept
    with scene.device() as device, device.lock("the next job", 0):
        assert device.upload(big_file(scene, 1000), "next") == 1000
        assert device.run(["wc", "-c", "next"], timeout_s=10).stdout == b"1000 next\n"


def test_every_error_has_a_row() -> None:
    """Those of adb alone have theirs in test_adb.py."""
    named = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.BoardError)}
    assert {row.error.__name__ for row in ROWS} == named - {"BoardError", "DeviceNotFound", "DeviceOffline"}
