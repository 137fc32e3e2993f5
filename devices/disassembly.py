"""What the instructions of a program are: its disassembly by objdump, looked up by address."""

from __future__ import annotations

import re
import shutil
import subprocess
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bevel.errors import ToolchainError

# Debian's name of the disassembler for an architecture, and the package that has it.
_OBJDUMP = {
    "x86_64": ("x86_64-linux-gnu-objdump", "binutils-x86-64-linux-gnu"),
    "aarch64": ("aarch64-linux-gnu-objdump", "binutils-aarch64-linux-gnu"),
    "armv7": ("arm-linux-gnueabihf-objdump", "binutils-arm-linux-gnueabihf"),
}
_SYMBOL = re.compile(r"[0-9a-f]+ <(.+)>:")
_LINE = re.compile(r"\s*([0-9a-f]+):\s+(\S.*)")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a program.

    Attributes:
        address: where it is.
        symbol: the function it belongs to.
        text: mnemonic and operands.
    """

    address: int
    symbol: str
    text: str

    @property
    def mnemonic(self) -> str:
        """The operation, such as "smlal2" or "ldr"."""
        return self.text.split()[0]


class Disassembly:
    """The instructions of an executable.

    Attributes:
        instructions: in order of their addresses.
    """

    def __init__(self, instructions: Sequence[Instruction]) -> None:
        self.instructions = instructions
        self._addresses = [instruction.address for instruction in instructions]

    def block(self, address: int, count: int) -> Sequence[Instruction]:
        """The `count` instructions from `address` on; none when the program has no instruction there."""
        index = bisect_left(self._addresses, address)
        if index == len(self._addresses) or self._addresses[index] != address:
            return ()
        return self.instructions[index : index + count]


def disassemble(program: Path, arch: str) -> Disassembly:
    """Disassemble an executable that has its symbols.

    Raises:
        ToolchainError: no disassembler for `arch` is installed, or it refuses the file.
    """
    name, package = _OBJDUMP[arch]
    tool = shutil.which(name) or shutil.which("llvm-objdump")
    if tool is None:
        raise ToolchainError(f"counting instructions needs {name} or llvm-objdump; install one: apt-get install {package}")
    command = [tool, "-d", "--no-show-raw-insn", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolchainError(f"{tool} cannot disassemble {program}: {done.stderr.strip()[-400:]}")
    symbol, found = "", []
    for line in done.stdout.splitlines():
        if heading := _SYMBOL.fullmatch(line):
            symbol = heading[1]
        elif code := _LINE.fullmatch(line):
            found.append(Instruction(int(code[1], 16), symbol, " ".join(code[2].split())))
    return Disassembly(sorted(found, key=lambda instruction: instruction.address))
