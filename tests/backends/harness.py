"""Compile kernels for a target and call them on numpy arrays, natively or under qemu, with guard bytes around every output.

Used by all kernel tests: `Compiled` holds many kernels in one object, because a compiler call costs more than a kernel.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import platform
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends.half import HALF
from bevel.backends.kernel import Array, Buf, ConvConstants, ConvProblem, Generator, Tile
from bevel.backends.tvm import PrimFunc, compile_object
from bevel.devices.resolve import QEMU
from bevel.devices.tcg import count_blocks
from bevel.errors import ToolchainError
from bevel.ir.protocols import Target
from bevel.runtime.toolchain import find_toolchain

FLOATS = ("float32", HALF)
GUARD = 192
GUARD_BYTE = 0xA5
# Behind an input and in scratch: what a kernel may read but must not depend on. As float32 it is a NaN.
TAIL_BYTE = 0xFF

X86_BASE = Target("test-x86", "x86_64", frozenset({"sse2"}), "x86-64", "x86_64-linux-gnu")
X86_AVX2 = Target("test-avx2", "x86_64", frozenset({"avx2", "fma"}), "haswell", "x86_64-linux-gnu")
X86_AVX512 = Target(
    "test-avx512",
    "x86_64",
    frozenset({"avx2", "fma", "avx512"}),
    "skylake-avx512",
    "x86_64-linux-gnu",
    ("-prefer-256-bit",),
)
X86_VNNI = Target(
    "test-vnni",
    "x86_64",
    frozenset({"avx2", "fma", "avx512", "avx512_vnni"}),
    "cascadelake",
    "x86_64-linux-gnu",
    ("-prefer-256-bit",),
)
X86_VPOPCNTDQ = replace(
    X86_VNNI,
    name="test-vpopcntdq",
    features=X86_VNNI.features | {"avx512_vpopcntdq"},
    attrs=(*X86_VNNI.attrs, "+avx512vpopcntdq"),
)
X86_AVX_VNNI = Target(
    "test-avxvnni", "x86_64", frozenset({"avx2", "fma", "avx_vnni"}), "haswell", "x86_64-linux-gnu", ("+avxvnni",)
)
X86_AMX = Target(
    "test-amx",
    "x86_64",
    frozenset({"avx2", "fma", "avx512", "avx512_vnni", "amx_int8"}),
    "cascadelake",
    "x86_64-linux-gnu",
    ("+amx-tile", "+amx-int8", "-prefer-256-bit"),
)
A72 = Target("test-a72", "aarch64", frozenset({"neon"}), "cortex-a72", "aarch64-linux-gnu")
A53 = Target("test-a53", "aarch64", frozenset({"neon"}), "cortex-a53", "aarch64-linux-gnu")
A76 = Target(
    "test-a76",
    "aarch64",
    frozenset({"neon", "dotprod", "fp16"}),
    "cortex-a76",
    "aarch64-linux-gnu",
    ("+dotprod", "+fullfp16"),
)

A7 = Target(
    "test-a7", "armv7", frozenset({"neon", "vfpv4"}), "cortex-a7", "armv7-linux-gnueabihf", ("+neon", "+vfp4", "+use-misched")
)

X3 = Target(
    "test-x3",
    "aarch64",
    frozenset({"neon", "dotprod", "fp16", "i8mm"}),
    "cortex-a78",
    "aarch64-linux-gnu",
    ("+dotprod", "+i8mm", "+fullfp16"),
)
# What runs the instructions of a core that qemu does not know.
_QEMU_CPUS = {"cortex-a78": "max"}

GNU_TRIPLES = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf"}

_CPU_FLAGS = {
    "avx2": ("avx2",),
    "fma": ("fma",),
    "avx512": ("avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_vpopcntdq": ("avx512_vpopcntdq",),
    "avx_vnni": ("avx_vnni",),
    "amx_int8": ("amx_tile", "amx_int8"),
}
# System call and arguments that ask Linux for permission to use AMX's tiles.
_ARCH_PRCTL, _REQ_XCOMP_PERM, _XTILEDATA = 158, 0x1023, 18


@functools.cache
def host_flags() -> frozenset[str]:
    """CPU flags of this machine."""
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def skip_unless_runs(target: Target) -> None:
    """Skip the calling test, with the reason, when `target` cannot be executed here."""
    if target.arch == "x86_64":
        if platform.machine() != "x86_64":
            pytest.skip(f"{target.name} needs an x86-64 host, this is {platform.machine()}")
        missing = [f for name in target.features for f in _CPU_FLAGS.get(name, ()) if f not in host_flags()]
        if missing:
            pytest.skip(f"{target.name} needs CPU flags this host lacks: {', '.join(missing)}")
        if target.has("amx_int8") and ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQ_XCOMP_PERM, _XTILEDATA) != 0:
            pytest.skip(f"{target.name}: the system does not permit AMX")
        return
    if platform.machine() == target.arch:
        return
    for tool in (QEMU[target.arch], f"{GNU_TRIPLES[target.arch]}-nm"):
        if shutil.which(tool) is None:
            pytest.skip(f"{target.name} needs {tool}: apt-get install qemu-user binutils-{GNU_TRIPLES[target.arch]}")
    try:
        find_toolchain(target.arch)
    except ToolchainError as error:
        pytest.skip(f"{target.name}: {error}")


@dataclass(frozen=True)
class Call:
    """One kernel, its input buffers (constants included), its outputs' (shape, dtype), and the ranges to run in turn."""

    symbol: str
    inputs: Sequence[Array]
    outputs: Sequence[tuple[tuple[int, ...], str]]
    ranges: Sequence[tuple[int, int]]
    scratch_bytes: int = 0


def _aligned(nbytes: int, fill: int) -> Array:
    """`nbytes` at a 64-byte boundary."""
    raw = np.full(nbytes + 64, fill, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + nbytes]


def _before_guard_page(nbytes: int, fill: int) -> Array:
    """`nbytes` (a multiple of 64) that end where reading faults, so that a kernel which reads too far dies."""
    page = mmap.PAGESIZE
    total = -(-nbytes // page) * page
    memory = mmap.mmap(-1, total + page)
    whole = np.frombuffer(memory, np.uint8)
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    code = protect(ctypes.c_void_p(whole.ctypes.data + total), ctypes.c_size_t(page), 0)
    assert code == 0, f"mprotect failed: {os.strerror(ctypes.get_errno())}"
    value = whole[total - nbytes : total]
    value[:] = fill
    return value


class Compiled:
    """Kernels compiled into one object and linked so that they can be called here.

    Attributes:
        object_path: the relocatable object.
    """

    def __init__(self, functions: Mapping[str, PrimFunc], target: Target, folder: Path) -> None:
        self.target = target
        self.object_path = folder / "kernels.o"
        self.object_path.write_bytes(compile_object(functions, target))
        self._native = platform.machine() == target.arch
        prefix = "" if self._native else f"{GNU_TRIPLES[target.arch]}-"
        undefined = _check([f"{prefix}nm", "-u", str(self.object_path)]).split()[1::2]
        assert not undefined, f"kernels call {', '.join(undefined)}; the kernel ABI allows no undefined symbol"
        if self._native:
            library = folder / "kernels.so"
            _check(["cc", "-shared", "-nostdlib", "-o", str(library), str(self.object_path)])
            self._library = ctypes.CDLL(str(library))
        else:
            self._runner = folder / "runner"
            self._folder = folder
            _link_runner(sorted(functions), target, self.object_path, self._runner)

    def run(self, calls: Sequence[Call]) -> list[list[Array]]:
        """Outputs of every call; asserts that nothing outside outputs and scratch was written."""
        prepared = [_Prepared(call) for call in calls]
        if self._native:
            for item in prepared:
                function = getattr(self._library, item.call.symbol)
                for lo, hi in item.call.ranges:
                    pointers = [ctypes.c_void_p(a.ctypes.data) for a in item.arguments()]
                    code = function(*pointers, ctypes.c_int32(lo), ctypes.c_int32(hi), item.scratch_pointer())
                    assert code == 0, f"{item.call.symbol} returned {code}"
        else:
            self._emulate(prepared)
        return [item.results() for item in prepared]

    def instructions(self, call: Call) -> int:
        """Instructions that `call` executes under qemu, without those that start the emulated program and read its request."""
        emulator = [QEMU[self.target.arch], "-cpu", _QEMU_CPUS.get(self.target.cpu, self.target.cpu)]
        request = [str(self._folder / name) for name in ("request.bin", "answer.bin")]
        totals = []
        for times in (1, 2):
            self.run([replace(call, ranges=[*call.ranges] * times)])
            blocks = count_blocks(emulator, [str(self._runner), *request])
            totals.append(sum(block.instructions * block.executions for block in blocks))
        return totals[1] - totals[0]

    def _emulate(self, prepared: Sequence[_Prepared]) -> None:
        """Run all calls in one emulator process; buffers travel through a file in both directions."""
        symbols = {item.call.symbol for item in prepared}
        index = {name: i for i, name in enumerate(_runner_symbols(self._runner)) if name in symbols}
        request = bytearray(struct.pack("<i", len(prepared)))
        for item in prepared:
            buffers = [*item.arguments(), item.scratch]
            request += struct.pack("<iii", index[item.call.symbol], len(buffers), len(item.call.ranges))
            for lo, hi in item.call.ranges:
                request += struct.pack("<ii", lo, hi)
            for whole, offset in item.whole():
                request += struct.pack("<ii", whole.nbytes, offset) + whole.tobytes()
        source, answer = self._folder / "request.bin", self._folder / "answer.bin"
        source.write_bytes(request)
        cpu = _QEMU_CPUS.get(self.target.cpu, self.target.cpu)
        _check([QEMU[self.target.arch], "-cpu", cpu, str(self._runner), str(source), str(answer)])
        data, at = answer.read_bytes(), 0
        for item in prepared:
            for whole, _ in item.whole():
                whole[:] = np.frombuffer(data, np.uint8, whole.nbytes, at)
                at += whole.nbytes


class _Prepared:
    """A call with its buffers laid out: inputs with a NaN tail before a guard page, outputs and scratch between guard bytes."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._inputs, self._originals = [], []
        for value in call.inputs:
            flat = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            whole = _before_guard_page(-(-flat.nbytes // 64) * 64 + 64, TAIL_BYTE)
            whole[: flat.nbytes] = flat
            self._inputs.append(whole)
            self._originals.append(whole.copy())
        sizes = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in call.outputs]
        self._outputs = [_aligned(size + 2 * GUARD, GUARD_BYTE) for size in sizes]
        self.scratch = _aligned(call.scratch_bytes + 2 * GUARD, GUARD_BYTE)
        self.scratch[GUARD:-GUARD] = TAIL_BYTE

    def arguments(self) -> list[Array]:
        """Buffers in ABI order, where the kernel sees them."""
        return [*self._inputs, *(out[GUARD:] for out in self._outputs)]

    def scratch_pointer(self) -> ctypes.c_void_p:
        """Where the kernel's scratch begins."""
        return ctypes.c_void_p(self.scratch[GUARD:].ctypes.data)

    def whole(self) -> list[tuple[Array, int]]:
        """Every buffer with its guards, and the offset of what the kernel sees."""
        guarded = [*self._outputs, self.scratch]
        return [*((a, 0) for a in self._inputs), *((a, GUARD) for a in guarded)]

    def results(self) -> list[Array]:
        """Outputs, after checking guards and inputs."""
        name = self.call.symbol
        for got, original in zip(self._inputs, self._originals, strict=True):
            assert np.array_equal(got, original), f"{name} wrote to an input"
        values = []
        for out, (shape, dtype) in zip(self._outputs, self.call.outputs, strict=True):
            assert (out[:GUARD] == GUARD_BYTE).all(), f"{name} wrote before an output"
            assert (out[-GUARD:] == GUARD_BYTE).all(), f"{name} wrote behind an output"
            values.append(out[GUARD:-GUARD].view(np.dtype(dtype)).reshape(shape))
        assert (self.scratch[:GUARD] == GUARD_BYTE).all(), f"{name} wrote before its scratch"
        assert (self.scratch[-GUARD:] == GUARD_BYTE).all(), f"{name} wrote behind its scratch"
        return values


def _check(command: Sequence[str]) -> str:
    """Output of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed ({done.returncode}): {done.stderr[-2000:]}"
    return done.stdout


_RUNNER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
typedef int32_t (*kernel)(void *, ...);
%(declarations)s
static void *const table[] = {%(table)s};
static int32_t word(FILE *f) { int32_t v; if (fread(&v, 4, 1, f) != 1) exit(3); return v; }
int main(int argc, char **argv) {
  FILE *in = fopen(argv[1], "rb"), *out = fopen(argv[2], "wb");
  for (int32_t calls = word(in); calls > 0; calls--) {
    int32_t index = word(in), buffers = word(in), ranges = word(in);
    int32_t range[64][2];
    char *whole[16]; int32_t bytes[16]; intptr_t a[16];
    if (ranges > 64 || buffers > 16) return 4;
    for (int32_t r = 0; r < ranges; r++) { range[r][0] = word(in); range[r][1] = word(in); }
    for (int32_t b = 0; b < buffers; b++) {
      bytes[b] = word(in);
      int32_t offset = word(in);
      whole[b] = aligned_alloc(64, (bytes[b] + 127) / 64 * 64);
      if (fread(whole[b], 1, bytes[b], in) != (size_t)bytes[b]) return 5;
      a[b] = (intptr_t)(whole[b] + offset);
    }
    for (int32_t r = 0; r < ranges; r++) {
      int32_t lo = range[r][0], hi = range[r][1], code = 6;
      typedef intptr_t p;
      switch (buffers - 1) {
        %(cases)s
      }
      if (code) return code;
    }
    for (int32_t b = 0; b < buffers; b++) { fwrite(whole[b], 1, bytes[b], out); free(whole[b]); }
  }
  return fclose(out);
}
"""


def _link_runner(symbols: Sequence[str], target: Target, kernels: Path, runner: Path) -> None:
    """A static program that executes the calls of a request file."""
    cases = []
    for n in range(1, 13):
        types = ", ".join(["p"] * n + ["int32_t", "int32_t", "p"])
        values = ", ".join([*(f"a[{i}]" for i in range(n)), "lo", "hi", f"a[{n}]"])
        cases.append(f"case {n}: code = ((int32_t (*)({types}))table[index])({values}); break;")
    source = runner.with_suffix(".c")
    source.write_text(
        _RUNNER
        % {
            "declarations": "\n".join(f"extern int32_t {s}();" for s in symbols),
            "table": ", ".join(f"(void *){s}" for s in symbols),
            "cases": "\n        ".join(cases),
        }
    )
    runner.with_suffix(".symbols").write_text("\n".join(symbols))
    _check([*find_toolchain(target.arch).static, "-O1", "-w", "-static", "-o", str(runner), str(source), str(kernels)])


def _runner_symbols(runner: Path) -> list[str]:
    return runner.with_suffix(".symbols").read_text().split("\n")


# Convolutions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvCase:
    """A convolution to check: x is NHWC in the stored dtype, and so is what is added to the result, where something is."""

    generator: Generator
    problem: ConvProblem
    tile: Tile
    x: Array
    constants: ConvConstants
    addend: Array | None = None


def run_convs(cases: Sequence[ConvCase], target: Target, folder: Path) -> list[Array]:
    """NHWC results of every case, each range computed in two unequal parts to prove that ranges partition the output."""
    functions: dict[str, PrimFunc] = {}
    known: dict[object, str] = {}
    calls = []
    for case in cases:
        g, p = case.generator, case.problem
        reason = g.legal(p, target)
        assert reason is None, f"{g.name} refuses {p}: {reason}"
        key = (g.name, p, tuple(sorted(case.tile.items())))
        if key not in known:
            known[key] = f"k{len(known)}"
            functions[known[key]] = g.emit(p, case.tile, target, known[key])
        extent = g.parallel_extent(p, case.tile)
        cut = extent // 3
        ranges = [(cut, extent), (0, cut)] if cut else [(0, extent)]
        packed = g.pack(p, case.tile, target, case.constants)
        shape = (p.batch, p.oh, p.ow, p.oc)
        calls.append(
            Call(
                known[key],
                [case.x, *([] if case.addend is None else [case.addend]), *packed],
                [(shape, p.out_dtype)],
                ranges,
                g.scratch_bytes(p, case.tile),
            )
        )
    return [outputs[0] for outputs in Compiled(functions, target, folder).run(calls)]


def _windows(p: ConvProblem, x: Array, fill: float) -> Array:
    """Padded x as float64 windows [batch, oh, ow, kh, kw, c]."""
    pads = ((0, 0), (p.pad_top, p.pad_bottom), (p.pad_left, p.pad_right), (0, 0))
    padded = np.pad(x.astype(np.float64), pads, constant_values=fill)
    out = np.empty((p.batch, p.oh, p.ow, p.kh, p.kw, p.c))
    for kh in range(p.kh):
        for kw in range(p.kw):
            top, left = kh * p.dilation_h, kw * p.dilation_w
            out[:, :, :, kh, kw] = padded[
                :,
                top : top + (p.oh - 1) * p.stride_h + 1 : p.stride_h,
                left : left + (p.ow - 1) * p.stride_w + 1 : p.stride_w,
            ]
    return out


def reference_sums(p: ConvProblem, x: Array, constants: ConvConstants) -> Array:
    """Exact sums (integers: every partial sum is below 2^53; floats: float64) with bias, [batch, oh, ow, oc]."""
    zero = 0 if p.dtype in FLOATS else constants.x_zero_point
    windows = _windows(p, x, zero) - zero
    weights = constants.weights.astype(np.float64)
    if p.groups == 1:
        sums = np.einsum("bhwijc,ocij->bhwo", windows, weights, optimize=True)
    else:
        per_in, per_out = p.c // p.groups, p.oc // p.groups
        grouped = windows.reshape(*windows.shape[:5], p.groups, per_in)
        filters = weights.reshape(p.groups, per_out, per_in, p.kh, p.kw)
        sums = np.einsum("bhwijgc,gocij->bhwgo", grouped, filters, optimize=True)
        sums = sums.reshape(p.batch, p.oh, p.ow, p.oc)
    result: Array = sums + constants.bias.astype(np.float64)
    return result


def reference_conv(p: ConvProblem, x: Array, constants: ConvConstants) -> Array:
    """What a kernel must compute: exact for integers (Python integers for the requantization), float64 for floats."""
    sums: Array = reference_sums(p, x, constants)
    if p.dtype in FLOATS:
        if p.relu:
            sums = np.maximum(sums, 0)
        return np.clip(sums, constants.lo, constants.hi) if p.clamp else sums
    if p.out_dtype == "int32":
        return sums.astype(np.int64).astype(np.int32)
    assert constants.multiplier is not None
    assert constants.shift is not None
    info = np.iinfo(p.out_dtype)
    lo, hi = max(constants.lo, info.min), min(constants.hi, info.max)
    m, n = constants.multiplier.astype(object), constants.shift.astype(object)
    exact = sums.astype(np.int64).astype(object) * m + np.array([1 << (int(s) - 1) for s in n], object)
    codes = (exact >> n) + constants.y_zero_point
    result: Array = np.clip(codes, lo, hi).astype(p.out_dtype)
    return result


def activation(p: ConvProblem, target: Target) -> Buf:
    """The input of `p` as lowering would describe it."""
    return Buf((p.batch, p.h, p.w, p.c), p.dtype if p.dtype in FLOATS else target.activation_dtype)
