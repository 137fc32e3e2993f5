"""x86 kernels for weights in groups of inputs: exact for all bits, sizes, shapes and epilogues; chosen where they pay."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends import x86
from bevel.backends.kernel import Array, ConvConstants, ConvProblem
from bevel.backends.kernels.generator import ConvGenerator
from bevel.backends.select import choose, with_groups
from bevel.backends.tvm import compile_object
from bevel.ir.groups import kernel_rows, spread
from bevel.ir.types import Groups, Int
from tests.backends.harness import X86_AMX, X86_AVX2, X86_VNNI, ConvCase, reference_conv, run_convs, skip_unless_runs
from tests.backends.low_bit_cases import SHAPES, constants_of, conv, inputs_of, variants
from tests.backends.x86.test_machine_code import inner_loops

TARGETS = {"avx2": X86_AVX2, "vnni": X86_VNNI}
GENERATORS = {
    isa: next(g for g in x86.GENERATORS if isinstance(g, ConvGenerator) and g.name == f"x86_conv_unpack_groups_{isa}")
    for isa in TARGETS
}
# Runs of whole groups and others, borders, several taps and pixels, units that are cut off.
FEW = {
    **{name: SHAPES[name] for name in ("gemv", "gemv_wide", "batch", "narrow", "unpadded", "tall_dilation", "tiny_map")},
    "gemm": conv(1, 3, 200, 75),
    "long": replace(SHAPES["long"], h=2, w=2),
}


def grouped(p: ConvProblem, bits: int, size: int) -> ConvProblem:
    return replace(p, dtype="uint8", weight_group=size, group_bits=bits)


def weights_of(p: ConvProblem, rng: np.random.Generator) -> Array:
    """Codes of every value times factors of every value."""
    shape = (p.oc, p.c, p.kh, p.kw)
    half = 1 << (p.group_bits - 1)
    rows = kernel_rows(np.zeros(shape))
    factors = rng.integers(1, 16, (*rows.shape[:2], -(-rows.shape[2] // p.weight_group)))
    return (rng.integers(-half, half, shape) * spread(factors, shape, p.weight_group)).astype(np.int8)


def case(p: ConvProblem, isa: str, rng: np.random.Generator, tile: int = 0) -> ConvCase:
    generator = GENERATORS[isa]
    constants = replace(constants_of(p, rng), weights=weights_of(p, rng))
    return ConvCase(generator, p, generator.tiles(p, TARGETS[isa])[tile], inputs_of(p, rng), constants)


def check(cases: list[ConvCase], isa: str, folder: Path) -> None:
    """Compare with the exact reference; name every case that differs."""
    results = run_convs(cases, TARGETS[isa], folder)
    wrong = [
        f"{dict(c.tile)} {c.problem}"
        for c, got in zip(cases, results, strict=True)
        if not np.array_equal(got, reference_conv(c.problem, c.x, c.constants))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("isa", TARGETS)
def test_shapes_bits_and_epilogues(isa: str, tmp_path: Path) -> None:
    """Shapes with bits, sizes and epilogues in turn, so that all meet; all tiles on two of them."""
    skip_unless_runs(TARGETS[isa])
    rng = np.random.default_rng(70)
    cases = []
    for index, base in enumerate(FEW.values()):
        kinds = variants(grouped(replace(base, x_bits=(8, 8, 7)[index % 3]), (4, 2, 3)[index % 3], (32, 16, 64, 128)[index % 4]))
        cases.append(case(kinds[index % len(kinds)], isa, rng))
    for bits in (2, 4):
        p = grouped(replace(FEW["gemm"], out_dtype="uint8"), bits, 64)
        cases += [case(p, isa, rng, tile) for tile in range(len(GENERATORS[isa].tiles(p, TARGETS[isa])))]
    check(cases, isa, tmp_path)


@pytest.mark.parametrize("isa", TARGETS)
def test_narrow_sums_never_overflow(isa: str, tmp_path: Path) -> None:
    """The largest inputs with the heaviest codes of each sign and the largest factors."""
    skip_unless_runs(TARGETS[isa])
    generator, cases = GENERATORS[isa], []
    for bits, size in ((4, 32), (4, 128), (3, 64), (2, 128), (2, 16)):
        p = grouped(conv(1, 1, 2080, 40, out_dtype="int32"), bits, size)
        x = np.full((1, 1, 1, 2080), 255, np.uint8)
        top, bottom = (1 << (bits - 1)) - 1, -(1 << (bits - 1))
        for codes in (np.full(2080, top), np.full(2080, bottom), np.where(np.arange(2080) % 3 == 0, top, bottom)):
            weights = np.broadcast_to((15 * codes).astype(np.int8)[None, :, None, None], (40, 2080, 1, 1)).copy()
            constants = ConvConstants(weights, np.full(40, -(1 << 30), np.int32))
            cases.append(ConvCase(generator, p, generator.tiles(p, TARGETS[isa])[0], x, constants))
    check(cases, isa, tmp_path)


@pytest.mark.parametrize("isa", TARGETS)
def test_unpack_inverts_pack(isa: str) -> None:
    """Products and bias come back, and take 4 bits a group more than their codes."""
    rng = np.random.default_rng(71)
    generator = GENERATORS[isa]
    for base in FEW.values():
        for bits in (2, 3, 4):
            p = grouped(replace(base, out_dtype="uint8"), bits, 32)
            found = case(p, isa, rng)
            packed = generator.pack(p, found.tile, TARGETS[isa], found.constants)
            weights, bias = generator.unpack(p, found.tile, packed)
            np.testing.assert_array_equal(weights, found.constants.weights)
            np.testing.assert_array_equal(bias, found.constants.bias)
    p = grouped(conv(1, 1, 4096, 1024, out_dtype="uint8"), 4, 32)
    found = case(p, isa, rng)
    assert generator.pack(p, found.tile, TARGETS[isa], found.constants)[0].nbytes == 4096 * 1024 * (4 + 4 / 32) / 8


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
@pytest.mark.parametrize(("isa", "multiply", "around"), [("avx2", "vpmaddubsw", "vpmaddwd"), ("vnni", "vpdpbusd", "vpmuldq")])
def test_sums_of_a_group_stay_in_registers(isa: str, multiply: str, around: str, tmp_path: Path) -> None:
    """Loops over codes neither read nor write the stack, whatever the tile; with AVX-512 those over groups do not, either.

    Loops with the instruction that follows `around` them only look innermost, for LLVM's guards.
    """
    generator, functions, names = GENERATORS[isa], {}, {}
    for bits, size in ((4, 32), (2, 64), (4, 128)):
        p = grouped(conv(1, 2, 512, 512, out_dtype="uint8"), bits, size)
        for tile in generator.tiles(p, TARGETS[isa]):
            symbol = f"k{len(functions)}"
            functions[symbol] = generator.emit(p, tile, TARGETS[isa], symbol)
            names[symbol] = f"{bits} bits in groups of {size}, {dict(tile)}"
    path = tmp_path / "k.o"
    path.write_bytes(compile_object(functions, TARGETS[isa]))
    wrong = []
    for symbol, name in names.items():
        command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={symbol}", str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        loops = [
            loop
            for loop in inner_loops(listing)
            if sum(line.startswith(multiply) for line in loop) > 1 and not any(line.startswith(around) for line in loop)
        ]
        stack = [line for loop in loops for line in loop if "(%rsp)" in line and re.search(r"%[xyz]mm", line)]
        if not loops or stack:
            wrong.append(f"{name}: {len(loops)} loops, stack {stack[:2]}")
    assert not wrong, "\n".join(wrong)


def test_choice() -> None:
    """Vectors of weights in groups are unpacked; where pixels are many or no kernel takes the bits, problems stay as they are."""
    p = conv(1, 1, 1024, 1024, dtype="uint8", out_dtype="uint8")
    groups = Groups(Int(4), 32)
    assert choose(with_groups(p, groups, X86_AMX), X86_AMX, "layer").generator.name == "x86_conv_unpack_groups_vnni"
    assert choose(with_groups(p, groups, X86_AVX2), X86_AVX2, "layer").generator.name == "x86_conv_unpack_groups_avx2"
    many = replace(p, w=64)
    assert with_groups(many, groups, X86_VNNI) == many
    assert with_groups(p, Groups(Int(1), 32), X86_VNNI) == p
