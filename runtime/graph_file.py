"""graph.ir.zst: the serialised graph, without the constants that weights.bin holds already.

Layout of what zstandard compresses, little-endian: `BVLGRAF1`, the length of a JSON header, the header, what is left of the
graph's bytes, then int32 differences of the element positions of each cut. The header lists the cuts: where they go in the graph,
how long they are, and the offset, element type and number of positions in weights.bin (no positions: the bytes are the same).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import zstandard

from bevel.backends.packing import LEAST_BYTES, Stored

_MAGIC = b"BVLGRAF1"
# A graph that unpacks to more than this is hostile: models for devices with a few GB of memory are smaller.
MAX_GRAPH_BYTES = 4 << 30
# Weights are noise to a compressor; a higher level takes seconds and gains 2 %.
_LEVEL = 9


def pack_graph(graph: bytes, stored: Sequence[Stored]) -> bytes:
    """The file's bytes.

    Args:
        graph: the serialised graph.
        stored: constants that are found in weights.bin; those that `graph` does not hold literally are ignored.
    """
    cuts: list[tuple[int, Stored]] = []
    taken: set[int] = set()
    for item in sorted(stored, key=lambda s: -s.data.nbytes):
        raw = item.data.tobytes()
        at = graph.find(raw) if len(raw) >= LEAST_BYTES else -1
        # Equal constants are found at the first one's place; the second keeps its bytes.
        if at >= 0 and not any(start < at + len(raw) and at < start + s.data.nbytes for start, s in cuts):
            cuts.append((at, item))
            taken.add(at)
    cuts.sort(key=lambda cut: cut[0])
    rest, orders, header, end = [], [], [], 0
    for at, item in cuts:
        rest.append(graph[end:at])
        end = at + item.data.nbytes
        count = 0 if item.order is None else item.order.size
        header.append([at, item.data.nbytes, item.data.dtype.name, item.place.offset, item.dtype, count])
        if item.order is not None:
            orders.append(np.diff(item.order, prepend=0).astype("<i4").tobytes())
    rest.append(graph[end:])
    text = json.dumps({"bytes": len(graph), "cuts": header}).encode()
    whole = b"".join([_MAGIC, struct.pack("<Q", len(text)), text, *rest, *orders])
    return zstandard.ZstdCompressor(level=_LEVEL).compress(whole)


def unpack_graph(data: bytes, payload: bytes) -> bytes:
    """The serialised graph.

    Args:
        data: the file's bytes.
        payload: contents of weights.bin behind its header.

    Raises:
        ValueError: the file is damaged or does not belong to `payload`.
    """
    try:
        whole = zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_GRAPH_BYTES)
        if whole[:8] != _MAGIC:
            raise ValueError("it has another format")
        (length,) = struct.unpack_from("<Q", whole, 8)
        header: dict[str, Any] = json.loads(whole[16 : 16 + length])
        return _joined(whole[16 + length :], header, payload)
    except (zstandard.ZstdError, struct.error, KeyError, TypeError, IndexError) as error:
        raise ValueError(str(error)) from error


def _joined(body: bytes, header: dict[str, Any], payload: bytes) -> bytes:
    """The graph's bytes with every cut filled in."""
    kept = int(header["bytes"]) - sum(int(cut[1]) for cut in header["cuts"])
    if kept < 0 or kept > len(body):
        raise ValueError("its header contradicts its size")
    parts, taken, end, positions = [], 0, 0, kept
    for at, nbytes, dtype, offset, packed, count in header["cuts"]:
        parts.append(body[taken : taken + at - end])
        taken += at - end
        end = at + nbytes
        if count == 0:
            filled = payload[offset : offset + nbytes]
        else:
            order = np.cumsum(np.frombuffer(body, "<i4", count, positions), dtype=np.int64)
            positions += 4 * count
            held = np.frombuffer(payload, np.dtype(packed), (len(payload) - offset) // np.dtype(packed).itemsize, offset)
            filled = held[order].astype(np.dtype(dtype)).tobytes()
        if len(filled) != nbytes:
            raise ValueError("a constant is not where it should be")
        parts.append(filled)
    parts.append(body[taken:kept])
    return b"".join(parts)
