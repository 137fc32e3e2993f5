"""A whole emulated machine under qemu: Debian's kernel and userland on an ARM core of a chosen kind, reached by real SSH.

In: a device profile. Out: a board at an SSH address of 127.0.0.1, with nothing reachable from it but that. What one cannot do to
the board of `bevel.devices.board`, one can do to this one: halt it, reset it, take its network away. It says that it is emulated
(/etc/bevel-emulated and its device tree), so its times are refused wherever times are kept. Needs `qemu-system-arm`, no root.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bevel.devices.board import SERVE, find_program
from bevel.devices.boards.image import MARK, USER, Image, cpio, debian_image
from bevel.devices.boards.login import free_port, greets, write_client, write_keys
from bevel.devices.boards.packages import File
from bevel.devices.boards.qmp import Monitor
from bevel.devices.errors import BoardError
from bevel.devices.profile import Profile, Ssh, load_profile
from bevel.devices.ssh import SshTransport
from bevel.errors import ToolchainError, UsageError

# 7 s (cortex-a53) to 34 s (max) on two idle cores; many times that on a busy small machine.
BOOT_TIMEOUT_S = 300
_QEMU = "qemu-system-aarch64"


class SystemBoard:
    """A board for the length of a `with` block.

    Args:
        profile: device to stand in for; its qemu_cpu is the machine's core.
        cpu: qemu CPU instead of the profile's.
        cores: processors of the machine.
        memory_mib: memory of the machine; the image takes about 200.
        disk_mib: size of the disk at /home, which survives a reset.

    Attributes:
        profile: the given profile with the board's SSH address; hand it to `resolve_transport`.
        root: the board's directory on this machine (keys, disk, console.log); gone after the block.

    Raises:
        ToolchainError: qemu-system-arm, mke2fs or the image is missing, or the machine does not start.
    """

    def __init__(
        self,
        profile: Profile | str = "raspberry-pi-4",
        cpu: str | None = None,
        *,
        cores: int = 2,
        memory_mib: int = 512,
        disk_mib: int = 256,
    ) -> None:
        base = load_profile(profile) if isinstance(profile, str) else profile
        if base.arch != "aarch64" or not (cpu or base.qemu_cpu):
            raise UsageError(
                f"device {base.name} is {base.arch}; whole machines are emulated for aarch64 profiles with a qemu_cpu"
            )
        self.profile = replace(base, qemu_cpu=cpu or base.qemu_cpu, ssh=None)
        self.root = Path()
        self._cores, self._memory_mib, self._disk_mib = cores, memory_mib, disk_mib
        self._machine: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Boot the machine and wait until one can log in."""
        qemu = find_program(_QEMU, "qemu-system-arm")
        mke2fs = find_program("mke2fs", "e2fsprogs", "/usr/sbin", "/sbin")
        image = debian_image()
        self.root = Path(tempfile.mkdtemp(prefix="bevel-board-")).resolve()
        try:
            self._boot(qemu, mke2fs, image)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Switch the machine off and remove its directory."""
        machine, self._machine = self._machine, None
        if machine is not None:
            machine.kill()
            machine.wait()
        shutil.rmtree(self.root, ignore_errors=True)
        if machine is not None and machine.stdin is not None:
            machine.stdin.close()  # last: the watcher must find the directory gone

    def monitor(self, command: str, **arguments: Any) -> Any:
        """Run a command of qemu's monitor protocol and return its answer.

        `stop` halts the processors and `cont` lets them go on; `system_reset` presses the reset button;
        `set_link` with name="net0" and up=False or True pulls the network cable and plugs it in again.

        Raises:
            ToolchainError: qemu refuses the command, or the board is not running.
        """
        with Monitor(self.root / "monitor") as monitor:
            return monitor.execute(command, **arguments)

    def wait(self) -> None:
        """Wait until one can log in, at the start and after a reset.

        Raises:
            ToolchainError: the machine ended, or does not answer in time; shows the end of its console.
        """
        assert self.profile.ssh is not None
        deadline, patience = time.monotonic() + BOOT_TIMEOUT_S, 1.0
        while not greets(self._port, timeout_s=patience):
            patience *= 1.5  # calls into a machine that is not up are never answered, and one on a busy host answers late
            if self._machine is None or self._machine.poll() is not None:
                raise ToolchainError(f"the emulated board's machine ended: {self.console()}")
            if time.monotonic() > deadline:
                raise ToolchainError(f"the emulated board does not answer after {BOOT_TIMEOUT_S} s: {self.console()}")
            time.sleep(0.05)
        try:
            with SshTransport(self.profile.ssh, connect_timeout_s=BOOT_TIMEOUT_S):
                pass
        except BoardError as error:
            raise ToolchainError(f"the emulated board does not let its user in: {error} (console: {self.console()})") from error

    @property
    def administrator(self) -> Ssh:
        """The same address for the board's root user: to mount, to limit memory, to reboot."""
        if self.profile.ssh is None:
            raise UsageError("the emulated board is not running")
        return replace(self.profile.ssh, user="root", workdir="/home/root")

    @property
    def ssh_config(self) -> Path:
        """Client configuration with which plain `ssh -F FILE board` logs in."""
        return self.root / "ssh_config"

    @property
    def process(self) -> int:
        """Process id of the emulator."""
        if self._machine is None:
            raise UsageError("the emulated board is not running")
        return self._machine.pid

    def console(self) -> str:
        """The end of what the machine wrote to its console and qemu to its log."""
        texts = [
            (self.root / name).read_text(errors="replace") for name in ("qemu.log", "console.log") if (self.root / name).exists()
        ]
        return " | ".join("\n".join(texts).splitlines()[-12:]) or "nothing"

    # How ---------------------------------------------------------------------------------------------------------------

    def _boot(self, qemu: str, mke2fs: str, image: Image) -> None:
        keys = write_keys(self.root)
        machine = [qemu, "-M", "virt", "-cpu", str(self.profile.qemu_cpu), "-smp", str(self._cores), "-m", str(self._memory_mib)]
        own = {
            "etc/ssh/host_key": File(stat.S_IFREG | 0o600, (self.root / "host_key").read_bytes()),
            "etc/ssh/authorized_keys": File(stat.S_IFREG | 0o644, keys.user.encode() + b"\n"),
            MARK: File(stat.S_IFREG | 0o644, " ".join([_QEMU, *machine[1:]]).encode() + b"\n"),
        }
        # The kernel unpacks archives that follow each other in turn.
        with image.initramfs.open("rb") as shared, (self.root / "initramfs").open("wb") as mine:
            shutil.copyfileobj(shared, mine)
            mine.write(cpio(own))
        disk = self.root / "disk"
        made = subprocess.run(
            [mke2fs, "-q", "-t", "ext4", disk, f"{self._disk_mib}M"], capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            raise ToolchainError(f"mke2fs cannot make {disk}: {made.stderr.strip()}")
        for _ in range(3):
            self._port = free_port()
            address = write_client(self.root, keys, USER, self._port, workdir=f"/home/{USER}/bevel")
            self.profile = replace(self.profile, ssh=address)
            self._launch([*machine, *self._devices(image)])
            if not self._ended_at_once():
                break
        self.wait()

    def _devices(self, image: Image) -> list[str]:
        network = f"user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:{self._port}-:22"
        return [
            *("-nodefaults", "-no-user-config", "-display", "none", "-serial", f"file:{self.root / 'console.log'}"),
            *("-kernel", str(image.kernel), "-initrd", str(self.root / "initramfs")),
            *("-append", "console=ttyAMA0 loglevel=4 panic=1"),
            *("-netdev", network, "-device", "virtio-net-device,netdev=net0"),
            *("-drive", f"file={self.root / 'disk'},if=none,format=raw,id=disk0", "-device", "virtio-blk-device,drive=disk0"),
            *("-qmp", f"unix:{self.root / 'monitor'},server=on,wait=off"),
        ]

    def _launch(self, command: list[str]) -> None:
        with (self.root / "qemu.log").open("wb") as log:
            self._machine = subprocess.Popen(
                ["sh", "-c", SERVE, "board", str(self.root), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _ended_at_once(self) -> bool:
        """Whether qemu refused to start, as when another program took the port meanwhile."""
        assert self._machine is not None
        try:
            self._machine.wait(0.5)
        except subprocess.TimeoutExpired:
            return False
        return True
