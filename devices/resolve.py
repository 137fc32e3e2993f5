"""Chooses how to reach a device: its SSH address or adb, else this machine when it can run the code, else qemu-user.

An address in the profile always wins: who names a board wants that board measured, even one this machine could stand in for.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bevel.devices.adb import AdbTransport
from bevel.devices.host import detect_host
from bevel.devices.local import LocalTransport
from bevel.devices.profile import Profile
from bevel.devices.ssh import SshTransport
from bevel.devices.transport import Transport
from bevel.errors import ToolchainError

QEMU = {"x86_64": "qemu-x86_64", "aarch64": "qemu-aarch64", "armv7": "qemu-arm"}
# Where Debian's cross packages put a foreign architecture's loader and libc.
SYSROOTS = {
    "x86_64": "/usr/x86_64-linux-gnu",
    "aarch64": "/usr/aarch64-linux-gnu",
    "armv7": "/usr/arm-linux-gnueabihf",
}


def emulator_command(profile: Profile) -> list[str]:
    """qemu-user command line that runs programs compiled for `profile` on this machine.

    Raises:
        ToolchainError: qemu-user is not installed, or cannot emulate this CPU.
    """
    if profile.qemu_cpu is None:
        raise ToolchainError(
            f"device {profile.name}: this machine cannot run its code and qemu-user cannot emulate its CPU. Set an SSH address: "
            f'[ssh] address = "user@host:port" in the profile'
        )
    qemu = shutil.which(QEMU[profile.arch])
    if qemu is None:
        raise ToolchainError(
            f"device {profile.name} ({profile.arch}) has no SSH address, and {QEMU[profile.arch]}, which could emulate it, "
            'is not installed. Install it (apt-get install qemu-user), or set [ssh] address = "user@host:port" in the profile'
        )
    sysroot = ["-L", SYSROOTS[profile.arch]] if Path(SYSROOTS[profile.arch]).is_dir() else []
    return [qemu, "-cpu", profile.qemu_cpu, *sysroot]


def resolve_transport(profile: Profile, host: Profile | None = None) -> Transport:
    """The transport to `profile`'s device, not yet open.

    Args:
        profile: the device.
        host: this machine's profile; detected when None.

    Raises:
        ToolchainError: there is no way to run its code; says what to install or set.
    """
    if profile.ssh is not None:
        return SshTransport(profile.ssh)
    if profile.adb is not None:
        return AdbTransport(profile.adb)
    host = host or detect_host()
    if host.arch == profile.arch and profile.features <= host.features:
        return LocalTransport(profile)
    return LocalTransport(profile, emulator_command(profile))
