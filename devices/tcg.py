"""Counts the instructions a program executes, block by block, with a plugin of qemu-user's code translator (TCG).

In: an executable of the device's architecture and the emulator's command line. Out: how often each block of instructions ran.
The counts are exact and the same every time; they say nothing about time. See devices/insn_plugin.c.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bevel.backends.objects import cache_dir
from bevel.errors import ToolchainError

_SOURCE = Path(__file__).with_name("insn_plugin.c")
# The oldest plugin interface each release accepts has all that is used here; 9.0 dropped version 1.
_FIRST_WITH_VERSION_2 = 9
_TIMEOUT_S = 600


@dataclass(frozen=True)
class BlockRuns:
    """Executions of one translated block.

    Attributes:
        scope: 0 before the first marker, then i + 1 since the i-th marker was passed.
        address: of its first instruction.
        instructions: how many it has.
        executions: how often it ran.
        code: the bytes of its instructions, where they were asked for.
    """

    scope: int
    address: int
    instructions: int
    executions: int
    code: bytes = b""


def count_blocks(
    emulator: Sequence[str], argv: Sequence[str], markers: Sequence[int] = (), *, stdin: bytes = b"", code: bool = False
) -> list[BlockRuns]:
    """Run a program under qemu-user and count what its first thread executes.

    Args:
        emulator: qemu-user command line, such as `emulator_command` gives.
        argv: the program and its arguments.
        markers: addresses where scopes begin, in the order in which the program passes them, over and over.
        stdin: what the program reads.
        code: say what the instructions are.

    Returns:
        One entry for each block and scope, in no particular order.

    Raises:
        ToolchainError: the plugin cannot be built or loaded, or the program failed.
    """
    plugin = _plugin(emulator[0])
    with tempfile.TemporaryDirectory(prefix="bevel-count-") as folder:
        out, listed = Path(folder) / "counts", Path(folder) / "markers"
        listed.write_text("".join(f"{address:x}\n" for address in markers))
        option = f"{plugin},out={out},markers={listed}" + (",code=on" if code else "")
        # An empty environment: the C library reads it at start, and counts should be the same for everyone.
        command = [emulator[0], "-plugin", option, *emulator[1:], *argv]
        try:
            done = subprocess.run(command, env={}, input=stdin, capture_output=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise ToolchainError(f"{argv[0]} did not end within {_TIMEOUT_S} s under {emulator[0]}") from error
        if done.returncode != 0 or not out.exists():
            message = (done.stderr or done.stdout).decode(errors="replace").strip()[-800:]
            raise ToolchainError(
                f"{' '.join(command[:3])} failed with {done.returncode}: {message or 'no message'}. qemu-user must be built with "
                "plugins, as Debian's package qemu-user is and qemu-user-static is not"
            )
        rows = [line.split() for line in out.read_text().splitlines()]
    return [
        BlockRuns(int(scope), int(address, 16), int(length), int(runs), bytes.fromhex("".join(rest)))
        for scope, address, length, runs, *rest in rows
    ]


def _plugin(qemu: str) -> Path:
    """The plugin, compiled for this emulator's release; kept in the cache."""
    version = re.search(r"version (\d+)", subprocess.run([qemu, "--version"], capture_output=True, text=True, check=False).stdout)
    if version is None:
        raise ToolchainError(f"{qemu} does not say its version; reinstall it: apt-get install qemu-user")
    interface = 1 if int(version[1]) < _FIRST_WITH_VERSION_2 else 2
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise ToolchainError("counting instructions needs a C compiler; install one: apt-get install gcc libc6-dev")
    options = ["-shared", "-fPIC", "-O2", "-fvisibility=hidden", f"-DBEVEL_QEMU_PLUGIN_VERSION={interface}"]
    key = hashlib.sha256(repr((compiler, options)).encode() + _SOURCE.read_bytes()).hexdigest()[:24]
    path = cache_dir() / "plugin" / f"{key}.so"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may build it: each writes its own and the last rename wins.
    handle, partial = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    try:
        done = subprocess.run(
            [*compiler.split(), *options, str(_SOURCE), "-o", partial], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise ToolchainError(f"{compiler} cannot compile {_SOURCE}: {done.stderr.strip()[-800:]}")
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)
    return path
