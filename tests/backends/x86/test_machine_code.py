"""The machine code of the x86 kernels: the instructions meant are there, register tiles stay in registers, nothing is called.

A compiler that keeps accumulators on the stack computes the right result several times slower; only the code shows it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bevel.backends import x86
from bevel.backends.kernel import ConvProblem, Generator, Tile
from bevel.backends.kernels.matmul import MatMulGenerator
from bevel.backends.kernels.winograd_generator import WinogradGenerator
from bevel.backends.tvm import PrimFunc, compile_object
from bevel.ir.protocols import Target
from tests.backends.harness import X86_AMX, X86_AVX2, X86_AVX512, X86_AVX_VNNI, X86_BASE, X86_VNNI

# Products of activations and Winograd convolutions have tests of their own.
GENERATORS = [g for g in x86.GENERATORS if not isinstance(g, MatMulGenerator | WinogradGenerator)]

TARGETS = {"sse2": X86_BASE, "avx2": X86_AVX2, "avx512": X86_AVX512, "vnni": X86_VNNI, "avxvnni": X86_AVX_VNNI, "amx": X86_AMX}
MULTIPLY = {
    "x86_conv_f32_avx512": "vfmadd",
    "x86_conv_f32_avx2": "vfmadd",
    "x86_conv_f32_sse2": "mulps",
    "x86_conv_int8_vnni": "vpdpbusd",
    "x86_conv_int8_avxvnni": "{vex} vpdpbusd",
    "x86_conv_int8_amx": "tdpbusd",
    "x86_conv_int8_maddubs_avx2": "vpmaddubsw",
    "x86_conv_int8_bytes_avx2": "vpmaddwd",
    "x86_conv_int8_avx2": "vpmaddwd",
    "x86_conv_int8_sse2": "pmaddwd",
    "x86_depthwise_f32_avx512": "vfmadd",
    "x86_depthwise_f32_avx2": "vfmadd",
    "x86_depthwise_int8_vnni": "vpdpbusd",
    "x86_depthwise_int8_avxvnni": "{vex} vpdpbusd",
    "x86_depthwise_int8_avx2": "vpmaddwd",
    "x86_depthwise_int8_sse2": "pmaddwd",
}
# Wide enough that every tile has its full size, and channels for every block of vectors.
DENSE = ConvProblem(1, 8, 168, 256, 12 * 16, 3, 3, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1)
DEPTHWISE = ConvProblem(1, 8, 96, 96, 96, 3, 3, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1, groups=96)


def inner_loops(listing: str) -> list[list[str]]:
    """Innermost loops of every function: spans of backward branches that hold no other such span."""
    loops = []
    for text in re.findall(r"^[0-9a-f]+ <\S+>:\n(.*?)(?:\n\n|\Z)", listing, re.MULTILINE | re.DOTALL):
        lines = re.findall(r"^\s*([0-9a-f]+):\s+(\S.*?)\s*$", text, re.MULTILINE)
        index = {int(address, 16): i for i, (address, _) in enumerate(lines)}
        spans = set()
        for i, (_, line) in enumerate(lines):
            branch = re.match(r"j\w+\s+([0-9a-f]+) <", line)
            if branch and index.get(int(branch[1], 16), i + 1) <= i:
                spans.add((index[int(branch[1], 16)], i))
        for start, end in spans:
            if not any((a, b) != (start, end) and start <= a and b <= end for a, b in spans):
                loops.append([line for _, line in lines[start : end + 1]])
    return loops


def target_of(generator: Generator) -> Target:
    return TARGETS[generator.name.rsplit("_", 1)[1]]


def compiled(generator: Generator, target: Target, folder: Path) -> tuple[Path, dict[str, Tile]]:
    """An object with all tiles of a generator on all shapes and result types it takes, and the tile of every symbol."""
    functions: dict[str, PrimFunc] = {}
    tiles: dict[str, Tile] = {}
    for base in (DENSE, replace(DENSE, kh=1, kw=1, pad_top=0, pad_left=0, pad_bottom=0, pad_right=0), DEPTHWISE):
        for p in (base, replace(base, dtype="uint8", out_dtype="uint8")):
            if generator.legal(p, target) is None:
                for tile in generator.tiles(p, target):
                    symbol = f"k{len(functions)}"
                    functions[symbol] = generator.emit(p, tile, target, symbol)
                    tiles[symbol] = tile
    path = folder / "k.o"
    path.write_bytes(compile_object(functions, target))
    return path, tiles


def newer_than_sse2(path: Path) -> list[str]:
    """Instructions of an object that a core with SSE2 alone lacks: VEX and EVEX forms, SSE3, SSSE3, SSE4, BMI, FMA."""
    newer = re.compile(
        r"v[a-z]\w*"
        r"|addsubp[sd]|h(add|sub)p[sd]|lddqu|mov(ddup|sldup|shdup)"
        r"|pshufb|palignr|pabs[bwd]|psign[bwd]|ph(add|sub)\w+|pmaddubsw|pmulhrsw"
        r"|pblend\w+|blendv?p[sd]|p(min|max)(sb|uw|sd|ud)|pmul(dq|ld)|pmov[sz]x\w+|p(in|ex)tr[bdq]|insertps|extractps|packusdw"
        r"|pcmpeqq|pcmpgtq|pcmp[ei]str\w+|ptest|round[sp][sd]|dpp[sd]|mpsadbw|phminposuw|movntdqa"
        r"|crc32\w*|popcnt\w*|[lt]zcnt\w*|andn\w*|bextr|bls\w+|bzhi|mulx|pdep|pext|rorx|s(ar|hl|hr)x|movbe\w*"
    )
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, text=True, check=True
    ).stdout
    lines = re.findall(r"^\s*[0-9a-f]+:\s+([a-z]\w*)(.*)$", listing, re.MULTILINE)
    # Operands of ymm and zmm registers give away whatever the list of names forgot.
    return [name + rest for name, rest in lines if newer.fullmatch(name) or re.search(r"%[yzk](mm)?\d", rest)]


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
@pytest.mark.parametrize("generator", [g for g in GENERATORS if target_of(g) is X86_BASE], ids=lambda g: g.name)
def test_baseline_kernels_need_sse2_alone(generator: Generator, tmp_path: Path) -> None:
    """Kernels for the x86-64 baseline hold no newer instruction."""
    path, _ = compiled(generator, X86_BASE, tmp_path)
    found = newer_than_sse2(path)
    assert not found, "\n".join(found[:10])


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
@pytest.mark.parametrize("cpu", ["core2", "nehalem", "sandybridge"])
def test_newer_instructions_are_seen(cpu: str, tmp_path: Path) -> None:
    """The same kernel compiled for SSSE3, SSE4 or AVX holds instructions that the check above finds."""
    generator = next(g for g in GENERATORS if g.name == "x86_depthwise_int8_sse2")
    path, _ = compiled(generator, replace(X86_BASE, cpu=cpu), tmp_path)
    assert newer_than_sse2(path)


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
@pytest.mark.parametrize("generator", GENERATORS, ids=lambda g: g.name)
def test_register_tiles_do_not_spill(generator: Generator, tmp_path: Path) -> None:
    """No tile keeps accumulators on the stack inside a multiplying inner loop.

    A depthwise loop holds whole pixels, their requantization included. It may reload spilled constants, and store a few
    values of a tile once: tiles of three pixels that store twelve vectors were measured faster than spill-free tiles of one.
    """
    path, tiles = compiled(generator, target_of(generator), tmp_path)
    spilled = []
    for symbol, tile in tiles.items():
        command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={symbol}", str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        multiply = MULTIPLY[generator.name]
        loops = [loop for loop in inner_loops(listing) if any(line.startswith(multiply) for line in loop)]
        # LLVM unrolls short reductions of AMX, whose sums no register allocator moves, whole.
        unrolled = multiply == "tdpbusd" and multiply in listing
        assert loops or unrolled, f"{generator.name} {dict(tile)} has no inner loop with {multiply}"
        for loop in loops:
            stack = [line for line in loop if "(%rsp)" in line and re.search(r"%[xyz]mm", line)]
            if "depthwise" in generator.name:
                stores = [line for line in stack if line.endswith("(%rsp)")]
                stack = stores if len(stores) * 20 > len(loop) else []
            if stack:
                spilled.append(f"{dict(tile)}: {len(stack)} of {len(loop)}, {stack[0]}")
    assert not spilled, "\n".join(spilled)
