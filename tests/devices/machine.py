"""A machine to break: an OpenSSH server of this machine's own userland with its own network, mounts, processes and boot.

Where namespaces are allowed (to root) it hangs on a cable of its own, a veth pair: it can be unplugged, frozen, rebooted, given a
small disk or little memory, all by the kernel and not by a pretence. Where they are not it is a plain server on 127.0.0.1, and
what needs more is skipped, saying why.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from bevel.devices.board import find_program
from bevel.devices.boards.login import Keys, free_port, write_client, write_keys
from bevel.devices.profile import Ssh

PORT = 2222
# Process 1 of the machine, which ends, and all its processes with it, when the test does.
INIT = r"""
address=$1 boot=$2; shift 2
read -r plugged
ip link set lo up && ip address add "$address/30" dev eth0 && ip link set eth0 up || exit
mount --bind "$boot" /proc/sys/kernel/random/boot_id || exit
"$@" &
read -r unplugged
"""
UNSHARE = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--propagation", "private", "--kill-child"]


def why_not_isolated() -> str:
    """Why a machine cannot have namespaces of its own here; empty when it can."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install util-linux iproute2"
    name = f"bvt{os.getpid()}"
    script = f"ip link add {name} type veth peer name {name}p && ip link delete {name}"
    for command in (["sh", "-c", script], [*UNSHARE, "sh", "-c", script]):
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode != 0:
            return f"no network of one's own here, which needs root: {tried.stderr.strip()}"
    return ""


class Machine:
    """A machine for the length of a `with` block.

    Attributes:
        ssh: its address, keys and work directory.
        root: directory with its keys and its work directory; outlives a reboot.
        lacks: why it is not isolated; empty when it is.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lacks = why_not_isolated()
        number = secrets.randbelow(1 << 14)
        network = f"198.18.{number >> 6}.{4 * (number & 63)}"  # addresses set aside for testing devices (RFC 2544)
        self._near, self._far = (f"{network.rpartition('.')[0]}.{4 * (number & 63) + host}" for host in (1, 2))
        self._cable = f"bvm{os.getpid() % 100000}x{number % 1000}"
        self._init: subprocess.Popen[bytes] | None = None
        self._keys: Keys | None = None
        self.ssh = Ssh("")

    def __enter__(self) -> Self:
        self._keys = write_keys(self.root)
        (self.root / "home").mkdir()
        try:
            self.boot()
        except BaseException:
            self.power_off()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.power_off()

    # Power and cable ---------------------------------------------------------------------------------------------------

    def boot(self, *, sftp: bool = True) -> None:
        """Start it, with another boot id than before."""
        sshd = find_program("sshd", "openssh-server", "/usr/sbin", "/usr/local/sbin")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        boot = self.root / f"boot-{secrets.token_hex(4)}"
        boot.write_text("-".join(secrets.token_hex(size) for size in (4, 2, 2, 2, 6)) + "\n")
        port = free_port() if self.lacks else PORT
        self._configure(port, sftp)
        serve = [sshd, "-D", "-E", str(self.root / "sshd.log"), "-f", str(self.root / "sshd_config")]
        if self.lacks:
            self._init = subprocess.Popen(serve, stdin=subprocess.PIPE, start_new_session=True)
        else:
            command = [*UNSHARE, "sh", "-c", INIT, "init", self._far, str(boot), *serve]
            self._init = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            wait(lambda: self.pid != 0, "the machine's first process")
            _ip("link", "add", self._cable, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid))
            _ip("address", "add", f"{self._near}/30", "dev", self._cable)
            _ip("link", "set", self._cable, "up")
            assert self._init.stdin is not None
            self._init.stdin.write(b"plugged\n")
            self._init.stdin.flush()
        wait(self._greets, "the SSH server")

    def power_off(self) -> None:
        """No farewell to any connection: the cable goes first, then every process at once."""
        if self._init is None:
            return
        if not self.lacks:
            subprocess.run(["ip", "link", "delete", self._cable], capture_output=True, check=False)
        self._init.kill()
        self._init.wait()
        assert self._init.stdin is not None
        self._init.stdin.close()
        self._init = None
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def link(self, state: str) -> None:
        """Set the machine's end of the cable "up" or "down"."""
        self.shell(f"ip link set eth0 {state}")

    def answers_get_lost(self, lost: bool) -> None:
        """As behind a firewall that drops silently: what the machine sends to this one goes nowhere."""
        self.shell(f"ip route {'add' if lost else 'delete'} blackhole {self._near}")

    def freeze(self, signum: signal.Signals = signal.SIGSTOP) -> None:
        """Stop every process; SIGCONT goes on. The kernel still answers packets, as on a machine that thrashes."""
        for _ in range(2):  # a process may have started another meanwhile
            for pid in self._all():
                with suppress(ProcessLookupError):
                    os.kill(pid, signum)

    # Its inside --------------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """This machine's number of its first process; 0 when it has none yet."""
        assert self._init is not None
        if self.lacks:
            return self._init.pid
        children = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def shell(self, command: str) -> str:
        """Run a command inside it, not through SSH."""
        inside = [] if self.lacks else ["nsenter", "-t", str(self.pid), "--net", "--mount", "--pid"]
        done = subprocess.run([*inside, "sh", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def processes(self) -> list[int]:
        """What sessions started and still runs."""
        mark = f"BEVEL_LOCK_DIR={self.root}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                alive = not (folder / "stat").read_text().rpartition(")")[2].startswith(" Z")
                if alive and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue  # It ended meanwhile, or belongs to someone else.
        return found

    def find(self, program: str) -> list[int]:
        """Processes of a session that run a program of this name, of at most 15 characters."""
        found = []
        for pid in self.processes():
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == program:
                    found.append(pid)
        return found

    def files(self, folder: str) -> dict[str, int]:
        """Sizes of all files below an absolute path inside it."""
        top = Path(folder) if self.lacks else Path(f"/proc/{self.pid}/root{folder}")
        return {str(path.relative_to(top)): path.stat().st_size for path in top.rglob("*") if path.is_file()}

    def servers(self) -> list[int]:
        """The SSH server's processes that serve open connections."""
        first, commands = self.pid, self.processes()
        return [pid for pid in self._all() if pid != first and pid not in commands and _parent(pid) != first]

    @contextmanager
    def little_memory(self, size: int) -> Iterator[None]:
        """Bound what all its processes together may have in memory.

        Raises:
            OSError: control groups cannot be used here.
        """
        group = _memory_group(f"bevel-{self._cable}", size)
        try:
            for pid in self._all():
                with suppress(ProcessLookupError):
                    (group / "cgroup.procs").write_text(str(pid))
            yield
        finally:
            for pid in (group / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    (group.parent / "cgroup.procs").write_text(pid)
            wait(lambda: not (group / "cgroup.procs").read_text(), "an empty control group")
            group.rmdir()

    def _all(self) -> list[int]:
        """All processes of the machine, the server's included."""
        assert self._init is not None
        if self.lacks:
            return [self._init.pid, *self.processes()]
        space = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(folder / "ns/pid") == space:
                    found.append(int(folder.name))
            except OSError:
                continue
        return sorted(found)

    def _greets(self) -> bool:
        assert self._init is not None
        assert self._init.poll() is None, (self.root / "sshd.log").read_text()
        try:
            with socket.create_connection((self.ssh.host, self.ssh.port or 0), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def _configure(self, port: int, sftp: bool) -> None:
        assert self._keys is not None
        host, user, root = "127.0.0.1" if self.lacks else self._far, getpass.getuser(), self.root
        (root / "authorized_keys").write_text(self._keys.user + "\n")
        server = {
            "Port": port,
            "ListenAddress": host,
            "HostKey": root / "host_key",
            "AuthorizedKeysFile": root / "authorized_keys",
            "AllowUsers": user,
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "PidFile": "none",
            "SetEnv": f'"BEVEL_LOCK_DIR={root}" "HOME={root}/home"',
            **({"Subsystem": "sftp internal-sftp"} if sftp else {}),
        }
        (root / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in server.items()))
        address = write_client(root, self._keys, user, port, workdir=str(root / "work"))
        (root / "known_hosts").write_text(f"[{host}]:{port} {self._keys.host}\n")
        self.ssh = replace(address, host=host, config=None)


def wait(until: Callable[[], object], what: str, within_s: float = 20) -> None:
    """Poll until it holds."""
    end = time.monotonic() + within_s
    while not until():
        assert time.monotonic() < end, f"{what} did not appear"
        time.sleep(0.02)


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _memory_group(name: str, size: int) -> Path:
    """A control group with a memory limit, version 1 or 2, without swap."""
    first = Path("/sys/fs/cgroup/memory")
    if first.is_dir():
        group = first / name
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(size))
        if (group / "memory.memsw.limit_in_bytes").exists():
            (group / "memory.memsw.limit_in_bytes").write_text(str(size))
        return group
    group = Path("/sys/fs/cgroup") / name
    (group.parent / "cgroup.subtree_control").write_text("+memory")
    group.mkdir()
    (group / "memory.max").write_text(str(size))
    if (group / "memory.swap.max").exists():
        (group / "memory.swap.max").write_text("0")
    return group
