"""Tells from exit status, signal, time and messages why a program failed on a device, and names it.

A status a program chose itself (1 to 123 and 125) is the caller's to judge; a failure of the board becomes an error here.
"""

from __future__ import annotations

import re
import signal

from bevel.devices.elf import elf_arch
from bevel.devices.errors import (
    BoardError,
    DiskFull,
    IllegalInstruction,
    MissingLoader,
    MissingTool,
    NotExecutable,
    OldLibc,
    OutOfMemory,
    RemoteFailed,
    RemoteTimeout,
    WrongArchitecture,
)
from bevel.devices.remote import BoardInfo, ProgramFacts, Trailer
from bevel.ir.protocols import Target

_GLIBC = re.compile(r"version `?(GLIBC_[\d.]+)'? not found")
_LOADER = re.compile(
    r"error while loading shared libraries: (?P<lib>[^:\s]+)"  # glibc
    r"|Error loading shared library (?P<musl>[^:\s]+)"
    r"|Could not open '(?P<interp>[^']+)': No such file"  # qemu-user
)


def refuse_program(where: str, program: str, facts: ProgramFacts, arch: str) -> BoardError | None:
    """Why `program` cannot start on a device of architecture `arch`, known before trying; None when it can."""
    if not facts.exists:
        return RemoteFailed(where, f"{program} is not on the device", "Upload it first")
    built_for = elf_arch(facts.head)
    if built_for is not None and built_for != arch:
        return WrongArchitecture(
            where, f"{program} is built for {built_for}, the device is {arch}", f"Compile for a device profile with arch {arch}"
        )
    if facts.noexec:
        return NotExecutable(
            where,
            f"{program} lies on a file system mounted noexec",
            "Set workdir in the device's profile to a directory on another file system",
        )
    if not facts.executable:
        return NotExecutable(where, f"{program} has no execute permission for this user", "chmod +x it, or upload it again")
    return None


def refuse_target(where: str, info: BoardInfo, target: Target) -> BoardError | None:
    """Why programs compiled for `target` cannot run on the device that `info` describes; None when they can."""
    if info.arch != target.arch:
        return WrongArchitecture(
            where, f"the device is {info.arch}, {target.name} is {target.arch}", "Pass --device with the profile of this device"
        )
    if lacking := target.features - info.features:
        return IllegalInstruction(
            where,
            f"the CPU lacks {', '.join(sorted(lacking))}, which {target.name} is compiled for; "
            f"it has {', '.join(sorted(info.features)) or 'none of the features bevel uses'}",
            "Compile for a profile with fewer features",
        )
    if info.noexec:
        return NotExecutable(
            where,
            f"the work directory {info.workdir} is on a file system mounted noexec",
            "Set workdir in the device's profile to a directory on another file system",
        )
    return None


def diagnose(where: str, program: str, trailer: Trailer, limit_s: int, stderr: str) -> BoardError | None:
    """The board failure a finished run shows, or None when the status is the program's own.

    Args:
        where: transport label for the message.
        program: argv[0].
        trailer: status and time.
        limit_s: the device-side limit it ran under.
        stderr: what it wrote to standard error.
    """
    status, last = trailer.status, " ".join(stderr.strip().splitlines()[-1:]) or "no message"
    # 124: coreutils' timeout; 137: its kill; 143: busybox, whose program dies of the signal itself. /proc/uptime ticks in 10 ms.
    if status in (124, 137, 143) and trailer.seconds >= limit_s - 0.05:
        return RemoteTimeout(
            where,
            f"{program} ran past its limit of {limit_s} s and was ended on the device",
            "Raise the limit, or see what it waits for",
        )
    if status == 128 + signal.SIGILL:
        return IllegalInstruction(
            where,
            f"{program} died of an illegal instruction: the CPU lacks a feature it was compiled for",
            "Compare the profile's features with /proc/cpuinfo on the device and compile again",
        )
    if status == 128 + signal.SIGKILL:
        return OutOfMemory(
            where,
            f"{program} was killed after {trailer.seconds:.1f} s, most likely by the out-of-memory killer",
            "See `dmesg` on the device; use a smaller model, or fewer threads",
        )
    if 128 < status < 160:
        name = signal.Signals(status - 128).name if status - 128 in list(signal.Signals) else f"signal {status - 128}"
        return RemoteFailed(
            where, f"{program} died of {name} after {trailer.seconds:.1f} s ({last})", "See `dmesg` on the device"
        )
    if status == 0:
        return None
    if match := _GLIBC.search(stderr):
        return OldLibc(
            where,
            f"{program} needs {match[1]}, which the device's C library does not have",
            "Link against an older C library, or statically",
        )
    if match := _LOADER.search(stderr):
        name = match["lib"] or match["musl"] or match["interp"]
        return MissingLoader(where, f"{program} needs {name}, which is not on the device", "Install it there, or link statically")
    if status == 127 and "/" in program:
        # It exists and may be executed (refuse_program looked), so what is missing is the loader its ELF header names.
        return MissingLoader(
            where,
            f"the dynamic loader of {program} is not on the device ({last})",
            "Install its C library there, or link statically",
        )
    if status in (126, 127) and "/" not in program:
        return MissingTool(where, f"there is no command {program} this user may run", "Install it there")
    if status == 126:
        return NotExecutable(where, f"{program} cannot be executed ({last})", "Check its permissions and format")
    if "No space left on device" in stderr:
        return DiskFull(where, f"{program} ran out of disk space ({last})", "Free some space on the device")
    return None
