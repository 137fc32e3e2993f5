"""weights.bin: the packed constants of a schedule behind a small checked header (layout in c/weights.h)."""

from __future__ import annotations

import hashlib
import struct

from bevel.backends.schedule import Schedule

MAGIC = b"BEVELWTS"
VERSION = 1
HEADER_BYTES = 192
HASH_CHARS = 64


def weights_image(schedule: Schedule) -> bytes:
    """Return the whole file: header, then `schedule.weights`.

    Raises:
        ValueError: the graph hash is not 1 to 64 ASCII characters.
    """
    graph_hash = schedule.graph_hash.encode("ascii", "replace")
    if not 1 <= len(graph_hash) <= HASH_CHARS or b"?" in graph_hash:
        raise ValueError(f"graph hash {schedule.graph_hash!r}: expected 1 to {HASH_CHARS} ASCII characters")
    payload = schedule.weights
    header = struct.pack("<8sIIQQ", MAGIC, VERSION, HEADER_BYTES, len(payload), 0)
    header += hashlib.sha256(payload).digest() + graph_hash.ljust(HASH_CHARS, b"\0")
    return header.ljust(HEADER_BYTES, b"\0") + payload
