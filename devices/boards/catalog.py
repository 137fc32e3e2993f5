"""The emulated boards one starts by name, from the command line (`bevel devices emulate`) and in tests."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from bevel.devices.board import EmulatedBoard
from bevel.devices.boards.system import SystemBoard
from bevel.errors import UsageError


@dataclass(frozen=True)
class Emulation:
    """One emulated board.

    Attributes:
        description: one line for listings.
        profile: the device it stands in for.
        whole: a machine with a kernel of its own, rather than programs under qemu-user.
    """

    description: str
    profile: str
    whole: bool


EMULATIONS = {
    "fast": Emulation(
        "a Raspberry Pi 4's programs under qemu-user, this machine's kernel; up in a second", "raspberry-pi-4", False
    ),
    "armv7": Emulation("a 32-bit Cortex-A7 board's programs under qemu-user, this machine's kernel", "armv7-a7", False),
    "system-a53": Emulation("a whole Debian arm64 machine with Cortex-A53 cores; up in seconds", "raspberry-pi-3", True),
    "system-a72": Emulation("a whole Debian arm64 machine with Cortex-A72 cores; up in seconds", "raspberry-pi-4", True),
    "system-a76": Emulation("a whole Debian arm64 machine with Cortex-A76 cores; up in seconds", "raspberry-pi-5", True),
}


def emulated_board(name: str, profile: str | None = None) -> EmulatedBoard | SystemBoard:
    """The board of that name, not yet started; `profile` is the device it stands in for instead of its own.

    Raises:
        UsageError: there is no such board; lists those there are.
    """
    if name not in EMULATIONS:
        close = difflib.get_close_matches(name, EMULATIONS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"no emulated board {name!r}.{hint} Known: {', '.join(EMULATIONS)}")
    chosen = EMULATIONS[name]
    return (SystemBoard if chosen.whole else EmulatedBoard)(profile or chosen.profile)
