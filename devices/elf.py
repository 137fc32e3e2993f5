"""Reads from an ELF file's first bytes which architecture it was built for."""

from __future__ import annotations

HEADER_BYTES = 20
# e_machine values of the ELF specification, named as `uname -m` names the machines.
MACHINES = {3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "armv7", 62: "x86_64", 183: "aarch64", 243: "riscv"}


def elf_arch(head: bytes) -> str | None:
    """Architecture of an ELF file from its first `HEADER_BYTES` bytes; None when it is not ELF."""
    if len(head) < HEADER_BYTES or not head.startswith(b"\x7fELF"):
        return None
    machine = int.from_bytes(head[18:20], "big" if head[5] == 2 else "little")
    return MACHINES.get(machine, f"ELF machine {machine}")
