"""Just enough ELF to refuse a library before the dynamic loader maps it: a truncated one ends the process with a bus error."""

from __future__ import annotations

import struct
from pathlib import Path

from bevel.errors import ArtifactError

_MACHINES = {"x86_64": 62, "aarch64": 183, "armv7": 40}
_TYPE_SHARED = 3
_PT_LOAD = 1


def check_shared_library(path: Path, arch: str) -> None:
    """Check that `path` is a whole shared library for `arch`.

    Raises:
        ArtifactError: it is another kind of file, for another architecture, or truncated.
    """
    data = path.read_bytes()
    try:
        whole = _is_whole(data, arch)
    except struct.error:
        whole = False
    if not whole:
        raise ArtifactError(f"{path}: not a whole shared library for {arch}; copy or compile the artifact again")


def _is_whole(data: bytes, arch: str) -> bool:
    # Little-endian ELF: class 2 has 64-bit fields, class 1 (armv7) 32-bit ones, in another order within a program header.
    wide = arch != "armv7"
    if data[:6] != b"\x7fELF" + bytes([2 if wide else 1, 1]):
        return False
    kind, machine = struct.unpack_from("<HH", data, 16)
    if (kind, machine) != (_TYPE_SHARED, _MACHINES[arch]):
        return False
    (table,) = struct.unpack_from("<Q", data, 32) if wide else struct.unpack_from("<I", data, 28)
    size, count = struct.unpack_from("<HH", data, 54 if wide else 42)
    loaded = 0
    for index in range(count):
        if wide:
            segment, _, offset, _, _, nbytes = struct.unpack_from("<IIQQQQ", data, table + index * size)
        else:
            segment, offset, _, _, nbytes = struct.unpack_from("<IIIII", data, table + index * size)
        if segment == _PT_LOAD:
            loaded += 1
            if offset + nbytes > len(data):
                return False
    return loaded > 0
