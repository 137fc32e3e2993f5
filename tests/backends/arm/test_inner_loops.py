"""The machine code of the ARM kernels: the instructions meant are there, and register tiles stay in registers.

A compiler that keeps accumulators on the stack computes the right result several times slower; only the code shows it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bevel.backends import arm
from bevel.backends.kernel import ConvProblem, Generator, Tile
from bevel.backends.kernels.matmul import MatMulGenerator
from bevel.backends.kernels.winograd_generator import WinogradGenerator
from bevel.backends.tvm import PrimFunc, compile_object
from bevel.ir.protocols import Target
from tests.backends.harness import A7, A53, A72, A76, GNU_TRIPLES, X3

MULTIPLIES = ("smmla", "sdot", "smull", "smull2", "smlal", "smlal2", "fmla", "vmull.s8", "vmlal.s8", "vfma.f32")
# Mnemonics every inner loop of a generator has.
EXPECTED = {
    "arm_conv_int8_mmla": {"smmla"},
    "arm_conv_int8_sdot": {"sdot"},
    "arm_conv_int8_neon": {"smull", "smlal2", "sadalp"},
    "arm_conv_int8_neon_wide": {"smull", "smull2", "sadalp"},
    "arm_conv_int8_short": {"smull", "sadalp", "ld1r"},
    "arm_conv_f32": {"fmla"},
    "arm_conv_f16": {"fmla"},
    "arm_depthwise_int8_sdot": {"sdot", "zip1"},
    "arm_depthwise_int8_neon": {"smull", "smlal", "saddw"},
    "arm_depthwise_int8_neon_wide": {"smull", "saddw"},
    "arm_depthwise_f32": {"fmla"},
    "arm_depthwise_f16": {"fmla"},
    "armv7_conv_int8": {"vmull.s8", "vmlal.s8", "vpadal.s16"},
    "armv7_conv_int8_wide": {"vmull.s8", "vpadal.s16"},
    "armv7_conv_int8_short": {"vmull.s8", "vpadal.s16", "vld1.32"},
    "armv7_conv_f32": {"vfma.f32"},
    "armv7_depthwise_int8": {"vmull.s8", "vmlal.s8", "vaddw.s16"},
    "armv7_depthwise_int8_wide": {"vmull.s8", "vaddw.s16"},
    "armv7_depthwise_f32": {"vfma.f32"},
}
POINTWISE = ConvProblem(1, 24, 40, 96, 160)
SQUARE = replace(POINTWISE, kh=3, kw=3, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1)
STEM = replace(POINTWISE, c=1, kh=10, kw=4, stride_h=2, stride_w=2)
DEPTHWISE = replace(SQUARE, oc=96, groups=96)


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its function and instructions ("sdot v0.4s, ...")."""

    symbol: str
    body: tuple[str, ...]

    @property
    def mnemonics(self) -> set[str]:
        return {line.split()[0] for line in self.body}

    @property
    def multiplies(self) -> bool:
        return not self.mnemonics.isdisjoint(MULTIPLIES)

    @property
    def vector_stack_references(self) -> list[str]:
        """Loads and stores of the stack; on ARMv7 also the addresses they take, which have no offsets."""
        return [line for line in self.body if re.search(r"\b[qd]\d+.*\[sp|^add\s.*, sp,", line)]


def inner_loops(path: Path, target: Target) -> list[Loop]:
    """Innermost loops of an object file: spans of backward branches that hold no other such span."""
    command = [f"{GNU_TRIPLES[target.arch]}-objdump", "-d", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    loops = []
    for symbol, text in re.findall(r"^[0-9a-f]+ <(\S+)>:\n(.*?)(?:\n\n|\Z)", listing, re.MULTILINE | re.DOTALL):
        lines = re.findall(r"^\s*([0-9a-f]+):\s+(\S.*?)\s*$", text, re.MULTILINE)
        index = {int(address, 16): i for i, (address, _) in enumerate(lines)}
        spans = set()
        for i, (_, line) in enumerate(lines):
            branch = re.match(r"(?:b|b\.\w+|b[a-z]{2}|cbn?z|tbn?z)\s(?:.*,\s)?([0-9a-f]+) <", line)
            target = index.get(int(branch[1], 16), i + 1) if branch else i + 1
            if target <= i:
                spans.add((target, i))
        for start, end in spans:
            if not any((a, b) != (start, end) and start <= a and b <= end for a, b in spans):
                loops.append(Loop(symbol, tuple(line for _, line in lines[start : end + 1])))
    return loops


@pytest.mark.parametrize("target", [A53, A72, A76, X3, A7], ids=lambda t: t.cpu)
def test_no_register_tile_spills(target: Target, tmp_path: Path) -> None:
    """Every tile of every generator, on shapes large enough that reductions are loops."""
    triple = GNU_TRIPLES[target.arch]
    if shutil.which(f"{triple}-objdump") is None:
        pytest.skip(f"{triple}-objdump is not installed (Debian: binutils-{triple})")
    functions: dict[str, PrimFunc] = {}
    owners: dict[str, tuple[str, Tile]] = {}
    for generator in (g for g in arm.GENERATORS[target.arch] if not isinstance(g, MatMulGenerator | WinogradGenerator)):
        for problem in problems(generator, target):
            for tile in generator.tiles(problem, target):
                symbol = f"k{len(functions)}"
                functions[symbol] = generator.emit(problem, tile, target, symbol)
                owners[symbol] = (generator.name, dict(tile))
    path = tmp_path / "kernels.o"
    path.write_bytes(compile_object(functions, target))
    seen = set()
    for loop in inner_loops(path, target):
        if loop.multiplies:
            name, tile = owners[loop.symbol]
            assert loop.mnemonics >= EXPECTED[name], f"{name} {tile}: {loop.body}"
            stack = loop.vector_stack_references
            if "depthwise" in name or name == "arm_conv_f16" or target is A53:
                # The loop holds a whole tile with its epilogue, or a block with its widening (on A53, whose tiles are small, LLVM
                # unrolls short reductions whole): invariants may be reloaded, sums hardly ever stored.
                stores = [line for line in loop.body if re.match(r"v?st.*\b[qd]\d+.*\[sp", line)]
                assert len(stores) <= len(loop.body) * 0.04, f"{name} {tile}: {stores}"
            else:
                assert not stack, f"{name} {tile}: {stack}"
            seen.add(loop.symbol)
    assert seen == set(owners), "a kernel without an inner loop that multiplies"


@pytest.mark.parametrize(("target", "clamps"), [(A72, {"fmax", "fmin"}), (A7, {"vmax.f32", "vmin.f32"})], ids=["a72", "a7"])
def test_floats_are_clamped_by_two_instructions(target: Target, clamps: set[str], tmp_path: Path) -> None:
    """A maximum and a minimum for each vector; comparing and selecting would take twice as many."""
    triple = GNU_TRIPLES[target.arch]
    if shutil.which(f"{triple}-objdump") is None:
        pytest.skip(f"{triple}-objdump is not installed (Debian: binutils-{triple})")
    found = 0
    for shape in (POINTWISE, DEPTHWISE):
        problem = replace(shape, dtype="float32", out_dtype="float32", clamp=True)
        for generator in arm.GENERATORS[target.arch]:
            if isinstance(generator, MatMulGenerator | WinogradGenerator) or generator.legal(problem, target) is not None:
                continue
            path = tmp_path / f"{generator.name}.o"
            function = generator.emit(problem, generator.tiles(problem, target)[0], target, "k")
            path.write_bytes(compile_object({"k": function}, target))
            command = [f"{triple}-objdump", "-d", "--no-show-raw-insn", str(path)]
            listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            used = set(re.findall(r"^\s*[0-9a-f]+:\s+(\S+)", listing, re.MULTILINE))
            assert clamps <= used, generator.name
            assert used.isdisjoint({"fcmgt", "bsl", "bif", "bit", "vcgt.f32", "vbsl", "vbif", "vbit"}), generator.name
            found += 1
    assert found >= 2


def problems(generator: Generator, target: Target) -> list[ConvProblem]:
    """Problems whose reductions `generator` was made for, in each element type it computes."""
    shapes = (STEM,) if generator.name.endswith("_short") else (POINTWISE, SQUARE, DEPTHWISE)
    every = [replace(p, dtype=t, out_dtype=t) for p in shapes for t in ("int8", "float32", "float16")]
    return [problem for problem in every if generator.legal(problem, target) is None]
