"""What weights.bin holds: constants of all kernel calls, each stored once."""

from __future__ import annotations

import hashlib

import numpy as np

from bevel.backends.kernel import Array
from bevel.backends.memory import align
from bevel.backends.schedule import Place


class ConstantPool:
    """Contents of weights.bin: equal arrays are stored once, each 64-byte aligned."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._places: dict[bytes, Place] = {}

    def place(self, array: Array) -> Place:
        """Where `array` is stored, adding it if it is new."""
        raw = np.ascontiguousarray(array).tobytes()
        digest = hashlib.sha256(raw).digest()
        if digest not in self._places:
            self._data.extend(bytes(align(len(self._data)) - len(self._data)))
            self._places[digest] = Place("weights", len(self._data))
            self._data.extend(raw)
        return self._places[digest]

    def blob(self) -> bytes:
        """All bytes, with the readable tail."""
        return bytes(self._data) + bytes(align(len(self._data)) - len(self._data) + 64)
