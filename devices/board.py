"""An emulated board on this machine, reached by real SSH: for demos and tests without hardware.

An OpenSSH server of its own listens on 127.0.0.1, with its own host key, user key, known_hosts and configuration. Its sessions
are this machine's shell in which programs of the board's architecture run under qemu-user with the board's CPU, programs of
other architectures are refused, and uname and /proc/cpuinfo are the board's (see board_exec.c). So the whole road of a real
board is taken (keys, SFTP, limits, signals, missing instructions), but its userland is native and its times mean nothing:
transports to it are marked emulated. Needs `openssh-server`, `qemu-user` and a C compiler; no root.

`bevel devices emulate` runs one until Ctrl-C.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from bevel.devices.boards.login import free_port, greets, write_client, write_keys
from bevel.devices.errors import BoardError
from bevel.devices.host import arm_part
from bevel.devices.profile import Profile, load_profile
from bevel.devices.resolve import emulator_command
from bevel.devices.ssh import SshTransport
from bevel.errors import ToolchainError, UsageError

# e_machine and uname of each architecture a board can have, and how its Linux spells features in /proc/cpuinfo.
_MACHINES = {"aarch64": (183, "aarch64"), "armv7": (40, "armv7l")}
_CPUINFO_FLAGS = {
    "aarch64": {
        "neon": "fp asimd evtstrm crc32 cpuid",
        "fp16": "fphp asimdhp",
        "dotprod": "asimddp",
        "i8mm": "i8mm",
    },
    "armv7": {"neon": "half thumb fastmult vfp edsp neon vfpv3", "vfpv4": "tls vfpv4 idiva idivt"},
}
START_TIMEOUT_S = 20
# The server in the foreground, and beside it a watcher that ends it and removes its directory ($1) when bevel dies without
# doing so: the watcher's end of the pipe then closes.
SERVE = r"""
root=$1; shift
exec 3<&0 </dev/null
((cat <&3; [ -d "$root" ] && kill "$$" && rm -rf -- "$root") >/dev/null 2>&1 &)
exec "$@" 3<&-
"""


def find_program(program: str, package: str, *places: str) -> str:
    """Absolute path of a program (sshd insists on being started by one); `places` are searched after PATH.

    Raises:
        ToolchainError: it is not installed; names its Debian package.
    """
    path = shutil.which(program, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if path is None:
        raise ToolchainError(f"the emulated board needs {program}; install it: apt-get install {package}")
    return path


class EmulatedBoard:
    """A board for the length of a `with` block.

    Args:
        profile: device to stand in for; its arch, features and qemu_cpu count.
        cpu: qemu CPU instead of the profile's.

    Attributes:
        profile: the given profile with the board's SSH address; hand it to `resolve_transport`.
        root: the board's own directory; gone after the block.

    Raises:
        ToolchainError: sshd, qemu-user or a C compiler is missing, or sshd does not start.
    """

    def __init__(self, profile: Profile | str = "raspberry-pi-4", cpu: str | None = None) -> None:
        base = load_profile(profile) if isinstance(profile, str) else profile
        if base.arch not in _MACHINES:
            raise UsageError(f"cannot emulate a board of {base.arch}; expected one of {', '.join(_MACHINES)}")
        self.profile = replace(base, qemu_cpu=cpu or base.qemu_cpu, ssh=None)
        self.root = Path()
        self._server: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until one can log in."""
        self.root = Path(tempfile.mkdtemp(prefix="bevel-board-")).resolve()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and all that runs on the board, and remove its directory."""
        server, self._server = self._server, None
        if server is not None:
            server.terminate()
            server.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        shutil.rmtree(self.root, ignore_errors=True)
        if server is not None and server.stdin is not None:
            server.stdin.close()  # last: the watcher must find the directory gone

    def processes(self) -> list[int]:
        """Process ids of everything a session started on the board and that still runs."""
        mark = f"BEVEL_BOARD_ROOT={self.root}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                alive = not (folder / "stat").read_text().rpartition(")")[2].startswith(" Z")
                if alive and mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue  # It ended meanwhile, or belongs to someone else.
        return found

    @property
    def server_pid(self) -> int:
        """Process id of the listening server."""
        if self._server is None:
            raise UsageError("the emulated board is not running")
        return self._server.pid

    @property
    def ssh_config(self) -> Path:
        """Client configuration with which plain `ssh -F FILE board` logs in."""
        return self.root / "ssh_config"

    # How ---------------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        sshd = find_program("sshd", "openssh-server", "/usr/sbin", "/usr/local/sbin")
        environment = self._environment(emulator_command(self.profile))
        keys = write_keys(self.root)
        user = getpass.getuser()
        if os.geteuid() == 0:
            # Debian's service makes sshd's empty directory; it must be there when the service never ran.
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        for _ in range(3):
            port = free_port()
            self._configure(port, user, keys.user, environment)
            log = (self.root / "sshd.log").open("wb")
            command = ["sh", "-c", SERVE, "board", str(self.root), sshd, "-D", "-e", *self._options(sshd)]
            self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
            log.close()
            if self._answers(port):
                break
        else:
            raise ToolchainError(f"the emulated board's sshd does not start: {self._log()}")
        self.profile = replace(
            self.profile,
            ssh=write_client(self.root, keys, user, port, workdir=str(self.root / "work")),
        )
        assert self.profile.ssh is not None
        try:
            with SshTransport(self.profile.ssh):
                pass
        except BoardError as error:
            raise ToolchainError(f"the emulated board does not let its user in: {error} (sshd says: {self._log()})") from error

    def _options(self, sshd: str) -> list[str]:
        """Configuration arguments; newer servers lock out an address after failed log-ins, which tests make on purpose."""
        options = ["-f", str(self.root / "sshd_config")]
        forgiving = [*options, "-o", "PerSourcePenalties=no"]
        known = subprocess.run([sshd, "-t", *forgiving], capture_output=True, check=False).returncode == 0
        return forgiving if known else options

    def _answers(self, port: int) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while self._server is not None and self._server.poll() is None and time.monotonic() < deadline:
            if greets(port, timeout_s=1):
                return True
            time.sleep(0.02)
        return False

    def _log(self) -> str:
        return " ".join((self.root / "sshd.log").read_text(errors="replace").split()[-40:]) or "nothing"

    def _environment(self, emulator: list[str]) -> dict[str, str]:
        """What every session's environment holds; builds the library that makes it a board."""
        machine, uname = _MACHINES[self.profile.arch]
        library = self.root / "board_exec.so"
        compiler = os.environ.get("CC") or find_program("cc", "gcc")
        source = Path(__file__).with_name("board_exec.c")
        options = ["-shared", "-fPIC", "-O1", f"-DBOARD_MACHINE={machine}", f'-DBOARD_UNAME="{uname}"']
        built = subprocess.run([*compiler.split(), *options, "-o", library, source, "-ldl"], capture_output=True, check=False)
        if built.returncode != 0:
            raise ToolchainError(f"{compiler} cannot compile {source}: {built.stderr.decode(errors='replace').strip()}")
        names = _CPUINFO_FLAGS[self.profile.arch]
        flags = " ".join(flag for feature, flag in names.items() if feature in self.profile.features)
        part = arm_part(self.profile.qemu_cpu or "")
        identity = f"CPU implementer\t: 0x41\nCPU architecture: {7 if self.profile.arch == 'armv7' else 8}\n"
        identity += f"CPU part\t: {part:#x}\n" if part is not None else ""
        core = "processor\t: {}\nFeatures\t: " + flags + "\n" + identity + "\n"
        cpuinfo = self.root / "cpuinfo"
        cpuinfo.write_text("".join(core.format(index) for index in range(self.profile.cores)))
        home = self.root / "home"
        home.mkdir()
        environment = {
            # Not the user's: a shell started by sshd reads ~/.bashrc, and a board knows nothing of this machine's.
            "HOME": str(home),
            "LD_PRELOAD": str(library),
            "BEVEL_BOARD_ROOT": str(self.root),
            "BEVEL_LOCK_DIR": str(self.root),
            "BEVEL_BOARD_CPUINFO": str(cpuinfo),
            "BEVEL_BOARD_QEMU": emulator[0],
            "BEVEL_BOARD_EMULATOR": " ".join([Path(emulator[0]).name, *emulator[1:]]),
            "QEMU_CPU": self.profile.qemu_cpu or "",
        }
        if "-L" in emulator:
            environment["QEMU_LD_PREFIX"] = emulator[emulator.index("-L") + 1]
        return environment

    def _configure(self, port: int, user: str, user_key: str, environment: dict[str, str]) -> None:
        root = self.root
        (root / "authorized_keys").write_text(user_key + "\n")
        server = {
            "Port": port,
            "ListenAddress": "127.0.0.1",
            "HostKey": root / "host_key",
            "AuthorizedKeysFile": root / "authorized_keys",
            "AllowUsers": user,
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",
            "PidFile": "none",
            "PrintMotd": "no",
            "Subsystem": "sftp internal-sftp",
            "SetEnv": " ".join(f'"{key}={value}"' for key, value in environment.items()),
        }
        (root / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in server.items()))
