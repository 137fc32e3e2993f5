"""Runs generated aarch64 kernels under qemu-user: many kernels and calls in one static executable."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.backends.kernel import Array
from bevel.backends.tvm import compile_object
from bevel.ir.protocols import Target

A72 = Target("a72", "aarch64", frozenset({"neon"}), "cortex-a72", "aarch64-linux-gnu")
A76 = Target("a76", "aarch64", frozenset({"neon", "dotprod"}), "cortex-a76", "aarch64-linux-gnu", ("+dotprod",))

# Reads calls from argv[1] and writes every output, with 64 guard bytes on both sides, to argv[2]. Memory past inputs
# and in fresh scratch is 0xff, a NaN as float32: what a kernel over-reads must not matter.
_MAIN = """
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
%(declarations)s
static int32_t call(int f, void **a, int32_t lo, int32_t hi, void *s) {
  switch (f) {
%(cases)s
  }
  return -1;
}
static FILE *in;
static int32_t get(void) { int32_t v; if (fread(&v, 4, 1, in) != 1) exit(3); return v; }
static uint8_t *fresh(size_t n, int fill) {
  uint8_t *p = aligned_alloc(64, (n + 191) / 64 * 64);
  if (!p) exit(4);
  memset(p, fill, (n + 191) / 64 * 64);
  return p;
}
int main(int argc, char **argv) {
  in = fopen(argv[1], "rb");
  FILE *out = fopen(argv[2], "wb");
  if (argc != 3 || !in || !out) return 2;
  for (int32_t calls = get(); calls > 0; --calls) {
    int32_t f = get(), inputs = get(), bytes = get(), scratch = get(), ranges = get();
    void *a[16];
    for (int32_t i = 0; i < inputs; ++i) {
      int32_t n = get();
      a[i] = fresh(n, 0xff);
      if (n && fread(a[i], n, 1, in) != 1) return 3;
    }
    uint8_t *y = fresh(bytes + 64, 0x5a), *s = fresh(scratch, 0xff), guard[64];
    memset(guard, 0xff, 64);
    a[inputs] = y + 64;
    for (; ranges > 0; --ranges) {
      int32_t lo = get(), hi = get();
      memset(s, 0xff, scratch + 64);
      if (call(f, a, lo, hi, s)) { fprintf(stderr, "kernel %%d failed\\n", f); return 5; }
      if (memcmp(s + scratch, guard, 64)) { fprintf(stderr, "kernel %%d wrote past its scratch\\n", f); return 6; }
    }
    fwrite(y, 1, (size_t)bytes + 128, out);
    for (int32_t i = 0; i < inputs; ++i) free(a[i]);
    free(y);
    free(s);
  }
  return fclose(out) != 0;
}
"""


@dataclass(frozen=True)
class Call:
    """One call of a kernel: `inputs` is every buffer before the output, `ranges` cover the parallel axis."""

    symbol: str
    inputs: Sequence[Array]
    shape: tuple[int, ...]
    dtype: str
    ranges: Sequence[tuple[int, int]]
    scratch_bytes: int

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


def _require(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed (Debian: qemu-user gcc-aarch64-linux-gnu)")
    return path


class Emulator:
    """Collects kernels and calls, then compiles, links and runs them all at once."""

    def __init__(self, folder: Path) -> None:
        self.a72, self.a76 = A72, A76
        self._folder = folder
        self._compiler, self._qemu = _require("aarch64-linux-gnu-gcc"), _require("qemu-aarch64")
        self._functions: dict[str, Any] = {}
        self._calls: list[Call] = []

    def add(self, symbol: str, function: Any) -> None:
        """A kernel to link; calls name it by `symbol`."""
        self._functions[symbol] = function

    def call(
        self,
        symbol: str,
        inputs: Sequence[Array],
        shape: tuple[int, ...],
        dtype: str,
        ranges: Sequence[tuple[int, int]] = ((0, 1),),
        scratch_bytes: int = 0,
    ) -> None:
        """A call whose output becomes one result of `run`."""
        self._calls.append(Call(symbol, inputs, shape, dtype, ranges, scratch_bytes))

    def run(self, target: Target) -> list[Array]:
        """Every call's output under qemu with the target's CPU; forgets the kernels and calls."""
        functions, calls = self._functions, self._calls
        self._functions, self._calls = {}, []
        folder = self._folder
        (folder / "kernels.o").write_bytes(compile_object(functions, target))
        arity = {call.symbol: len(call.inputs) + 1 for call in calls}
        index = {symbol: i for i, symbol in enumerate(arity)}
        declarations = "\n".join(f"int32_t {s}({'void *, ' * n}int32_t, int32_t, void *);" for s, n in arity.items())
        cases = "\n".join(
            f"  case {index[s]}: return {s}({', '.join(f'a[{i}]' for i in range(n))}, lo, hi, s);"
            for s, n in arity.items()
        )
        (folder / "main.c").write_text(_MAIN % {"declarations": declarations, "cases": cases})
        stream = bytearray(struct.pack("<i", len(calls)))
        for call in calls:
            header = (index[call.symbol], len(call.inputs), call.nbytes, call.scratch_bytes, len(call.ranges))
            stream += struct.pack("<5i", *header)
            for array in call.inputs:
                stream += struct.pack("<i", array.nbytes) + np.ascontiguousarray(array).tobytes()
            for lo, hi in call.ranges:
                stream += struct.pack("<2i", lo, hi)
        (folder / "in").write_bytes(stream)
        command = [self._compiler, "-O1", "-static", "-w", "-o", "main", "main.c", "kernels.o"]
        subprocess.run(command, cwd=folder, check=True)
        subprocess.run([self._qemu, "-cpu", target.cpu, "./main", "in", "out"], cwd=folder, check=True)
        raw, outputs, at = (folder / "out").read_bytes(), [], 0
        for call in calls:
            guards = raw[at : at + 64] + raw[at + 64 + call.nbytes : at + 128 + call.nbytes]
            assert guards == b"\x5a" * 128, f"{call.symbol} wrote outside its output"
            data = np.frombuffer(raw, call.dtype, int(np.prod(call.shape)), at + 64)
            outputs.append(data.reshape(call.shape))
            at += call.nbytes + 128
        return outputs


@pytest.fixture
def emulator(tmp_path: Path) -> Emulator:
    """An empty `Emulator`; skips with a reason where qemu or the cross compiler is missing."""
    return Emulator(tmp_path)
