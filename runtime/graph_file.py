"""graph.ir.zst: the serialised graph, without the constants that weights.bin holds already, its scales in binary.

Layout of what zstandard compresses, little-endian: `BVLGRAF2`, the length of a JSON header, the header, what is left of the
graph's bytes, int32 differences of the element positions of each cut, then float32 numbers of the graph's text, first all their
lowest bytes. The header lists the cuts: where they go in the graph, how long they are, the offset, element type and number of
positions in weights.bin (no positions: the bytes are the same), and whether what is there is to be normalized. It also lists the
lists of numbers: where they go in what is left without them, and how many numbers they have.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from bevel.backends.packing import LEAST_BYTES, Stored, normalized

_MAGIC = b"BVLGRAF2"
# A graph that unpacks to more than this is hostile: models for devices with a few GB of memory are smaller.
MAX_GRAPH_BYTES = 4 << 30
_LEVEL = 19
# Lists of at least 4 numbers in the graph's text. A scale takes 22 characters there.
_NUMBERS = re.compile(rb"(?<=\[)[0-9.e+-]+(?:,[0-9.e+-]+){3,}(?=\])")


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
        header.append([at, item.data.nbytes, item.data.dtype.name, item.place.offset, item.dtype, count, item.factors])
        if item.order is not None:
            orders.append(np.diff(item.order, prepend=0).astype("<i4").tobytes())
    rest.append(graph[end:])
    left, numbers, lists = _without_numbers(b"".join(rest))
    text = json.dumps({"bytes": len(graph), "cuts": header, "lists": lists}).encode()
    whole = b"".join([_MAGIC, struct.pack("<Q", len(text)), text, left, *orders, _planes(numbers)])
    return zstandard.ZstdCompressor(level=_LEVEL).compress(whole)


def _without_numbers(rest: bytes) -> tuple[bytes, npt.NDArray[np.float32], list[list[int]]]:
    """`rest` without lists of numbers that float32 holds exactly as printed, the numbers, and each list's [position, count]."""
    left, numbers, lists, end, length = [], [], [], 0, 0
    for match in _NUMBERS.finditer(rest):
        found = _float32(match[0])
        if found is None:
            continue
        left.append(rest[end : match.start()])
        length += len(left[-1])
        end = match.end()
        lists.append([length, found.size])
        numbers.append(found)
    left.append(rest[end:])
    return b"".join(left), np.concatenate([np.zeros(0, np.float32), *numbers]), lists


def _float32(text: bytes) -> npt.NDArray[np.float32] | None:
    """The numbers of a list, if printing them gives `text` again."""
    try:
        with np.errstate(over="ignore"):
            found = np.array([float(number) for number in text.split(b",")]).astype(np.float32)
    except ValueError:
        return None
    return found if _printed(found) == text else None


def _printed(numbers: npt.NDArray[np.float32]) -> bytes:
    """A list as the text form of graphs prints it."""
    return ",".join(map(repr, numbers.astype(np.float64).tolist())).encode()


def _planes(numbers: npt.NDArray[np.float32]) -> bytes:
    """The lowest bytes of all numbers, then the next: exponents compress, and only among themselves."""
    return numbers.astype("<f4").view(np.uint8).reshape(-1, 4).T.tobytes()


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
        return _joined(_with_numbers(whole[16 + length :], header["lists"]), header, payload)
    except (zstandard.ZstdError, struct.error, KeyError, TypeError, IndexError) as error:
        raise ValueError(str(error)) from error


def _with_numbers(body: bytes, lists: Sequence[Sequence[int]]) -> bytes:
    """`body` with its numbers, which follow it, printed where they belong."""
    counts = [int(count) for _, count in lists]
    end = len(body) - 4 * sum(counts)
    if end < 0 or min(counts, default=0) < 0:
        raise ValueError("its header contradicts its size")
    numbers = np.frombuffer(body, np.uint8, offset=end).reshape(4, -1).T.copy().view("<f4").reshape(-1)
    parts, taken, first = [], 0, 0
    for (position, _), count in zip(lists, counts, strict=True):
        parts += [body[taken:position], _printed(numbers[first : first + count])]
        taken, first = position, first + count
    return b"".join([*parts, body[taken:end]])


def _joined(body: bytes, header: dict[str, Any], payload: bytes) -> bytes:
    """The graph's bytes with every cut filled in."""
    kept = int(header["bytes"]) - sum(int(cut[1]) for cut in header["cuts"])
    if kept < 0 or kept > len(body):
        raise ValueError("its header contradicts its size")
    parts, taken, end, positions = [], 0, 0, kept
    for at, nbytes, dtype, offset, packed, count, factors in header["cuts"]:
        parts.append(body[taken : taken + at - end])
        taken += at - end
        end = at + nbytes
        if count == 0:
            filled = payload[offset : offset + nbytes]
        else:
            order = np.cumsum(np.frombuffer(body, "<i4", count, positions), dtype=np.int64)
            positions += 4 * count
            held = np.frombuffer(payload, np.dtype(packed), (len(payload) - offset) // np.dtype(packed).itemsize, offset)
            numbers = normalized(held[order]) if factors else held[order]
            filled = numbers.astype(np.dtype(dtype)).tobytes()
        if len(filled) != nbytes:
            raise ValueError("a constant is not where it should be")
        parts.append(filled)
    parts.append(body[taken:kept])
    return b"".join(parts)
