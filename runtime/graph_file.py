"""graph.ir.zst: the serialised graph, without the constants that weights.bin holds already, its scales in binary.

Layout of what zstandard compresses, little-endian: `BVLGRAF2`, the length of a JSON header, the header, what is left of the
graph's bytes, int32 differences of the element positions of each cut, codes of fewer than 8 bits without the bits they do not
need, then float32 numbers of the graph's text, first all their lowest bytes. The header lists the cuts: where they go in the
graph, how long they are, the offset, element type and number of positions in weights.bin (no positions: the bytes are the same),
and whether what is there is to be normalized. It lists the codes: where they go, how many there are, their bits, the least one
and the step between them. It also lists the lists of numbers: where they go in what is left without them, and how many numbers
they have.
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
from bevel.ir.serialize import CodeSpan

_MAGIC = b"BVLGRAF2"
# A graph that unpacks to more than this is hostile: models for devices with a few GB of memory are smaller.
MAX_GRAPH_BYTES = 4 << 30
_LEVEL = 19
# Lists of at least 4 numbers in the graph's text. A scale takes 22 characters there.
_NUMBERS = re.compile(rb"(?<=\[)[0-9.e+-]+(?:,[0-9.e+-]+){3,}(?=\])")


def pack_graph(graph: bytes, stored: Sequence[Stored], codes: Sequence[CodeSpan] = ()) -> bytes:
    """The file's bytes.

    Args:
        graph: the serialised graph.
        stored: constants that are found in weights.bin; those that `graph` does not hold literally are ignored.
        codes: of fewer than 8 bits in `graph`; those that weights.bin holds are left to it.
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
    narrow = [s for s in codes if not any(start < s.at + s.count and s.at < start + item.data.nbytes for start, item in cuts)]
    rest, end = [], 0
    for at, nbytes in sorted([*((at, item.data.nbytes) for at, item in cuts), *((s.at, s.count) for s in narrow)]):
        rest.append(graph[end:at])
        end = at + nbytes
    rest.append(graph[end:])
    orders, header = [], []
    for at, item in cuts:
        count = 0 if item.order is None else item.order.size
        header.append([at, item.data.nbytes, item.data.dtype.name, item.place.offset, item.dtype, count, item.factors])
        if item.order is not None:
            orders.append(np.diff(item.order, prepend=0).astype("<i4").tobytes())
    packed = [_without_idle_bits(graph[s.at : s.at + s.count], s) for s in narrow]
    spans = [[s.at, s.count, s.bits, s.lowest, s.step] for s in narrow]
    left, numbers, lists = _without_numbers(b"".join(rest))
    text = json.dumps({"bytes": len(graph), "cuts": header, "codes": spans, "lists": lists}).encode()
    whole = b"".join([_MAGIC, struct.pack("<Q", len(text)), text, left, *orders, *packed, _planes(numbers)])
    return zstandard.ZstdCompressor(level=_LEVEL).compress(whole)


def _without_idle_bits(codes: bytes, span: CodeSpan) -> bytes:
    """Codes one after another in `span.bits` bits each, lowest bits first."""
    numbers = (np.frombuffer(codes, np.int8).astype(np.int16) - span.lowest) // span.step
    bits = np.unpackbits(numbers.astype(np.uint8)[:, None], axis=1, bitorder="little")[:, : span.bits]
    return np.packbits(bits, bitorder="little").tobytes()


def _with_idle_bits(packed: bytes, span: CodeSpan) -> bytes:
    """What `_without_idle_bits` made of."""
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), count=span.count * span.bits, bitorder="little")
    numbers = np.packbits(bits.reshape(span.count, span.bits), axis=1, bitorder="little").reshape(-1).astype(np.int16)
    return (numbers * span.step + span.lowest).astype(np.int8).tobytes()


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
    """The graph's bytes with every cut and all codes filled in."""
    spans = [CodeSpan(*numbers) for numbers in header["codes"]]
    kept = int(header["bytes"]) - sum(int(cut[1]) for cut in header["cuts"]) - sum(s.count for s in spans)
    if kept < 0 or kept > len(body) or any(s.count < 0 or not 1 <= s.bits < 8 for s in spans):
        raise ValueError("its header contradicts its size")
    filled_in: list[tuple[int, bytes]] = []
    positions = kept
    for at, nbytes, dtype, offset, packed, count, factors in header["cuts"]:
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
        filled_in.append((at, filled))
    for span in spans:
        size = -(-span.count * span.bits // 8)
        filled_in.append((span.at, _with_idle_bits(body[positions : positions + size], span)))
        positions += size
    parts, taken, end = [], 0, 0
    for at, filled in sorted(filled_in):
        parts += [body[taken : taken + at - end], filled]
        taken += at - end
        end = at + len(filled)
    return b"".join([*parts, body[taken:kept]])
