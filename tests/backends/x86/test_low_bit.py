"""x86 kernels for weights of at most four bits: exact for all bits, shapes, extremes and epilogues, and chosen where they pay."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.backends import x86
from bevel.backends.kernel import ConvProblem
from bevel.backends.kernels.generator import ConvGenerator
from bevel.backends.select import choose
from bevel.backends.tvm import compile_object
from bevel.ir.protocols import Target
from tests.backends.harness import (
    X86_AMX,
    X86_AVX2,
    X86_AVX512,
    X86_AVX_VNNI,
    X86_VNNI,
    X86_VPOPCNTDQ,
    ConvCase,
    reference_conv,
    run_convs,
    skip_unless_runs,
)
from tests.backends.low_bit_cases import SHAPES, constants_of, conv, extremes, inputs_of, variants
from tests.backends.x86.test_machine_code import inner_loops

# The least target that each generator runs on.
TARGETS = {"avx2": X86_AVX2, "avx512": X86_AVX512, "vnni": X86_VNNI, "vpopcntdq": X86_VPOPCNTDQ}
KINDS = {
    "avx2": ("_table_avx2", "_low_bit_", "_unpack_avx2", "_products_avx2"),
    "avx512": ("_table_avx512", "_products_avx512"),
    "vnni": ("_unpack_vnni",),
    "vpopcntdq": ("_bits_",),
}
GENERATORS = {
    isa: [g for g in x86.GENERATORS if isinstance(g, ConvGenerator) and any(kind in g.name for kind in kinds)]
    for isa, kinds in KINDS.items()
}
# Whole vectors and not, every kind of border, stride, dilation and batch.
FEW = ("resnet64", "resnet_down", "gemv_wide", "gemm", "batch", "dilated", "narrow", "ragged", "long", "gemv_ragged")
BITS = [(1, 1), (1, 2), (2, 2), (2, 1), (2, 4), (3, 3), (4, 2), (1, 4), (4, 8), (3, 6), (2, 8), (1, 8), (2, 5), (1, 7)]


def check(cases: list[ConvCase], isa: str, folder: Path) -> None:
    """Compare with the exact reference; name every case that differs."""
    results = run_convs(cases, TARGETS[isa], folder)
    wrong = [
        f"{c.generator.name} {dict(c.tile)} {c.problem}"
        for c, got in zip(cases, results, strict=True)
        if not np.array_equal(got, reference_conv(c.problem, c.x, c.constants))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("isa", TARGETS)
@pytest.mark.parametrize(
    ("names", "turns"), [(FEW, 1), pytest.param(tuple(SHAPES), 6, marks=pytest.mark.slow)], ids=["few", "every"]
)
def test_shapes_bits_and_epilogues(names: tuple[str, ...], turns: int, isa: str, tmp_path: Path) -> None:
    """Shapes with bits and epilogues in turn, so that all meet."""
    skip_unless_runs(TARGETS[isa])
    rng = np.random.default_rng(60)
    cases = []
    for generator in GENERATORS[isa]:
        known = [bits for bits in BITS if generator.legal(wide(*bits), TARGETS[isa]) is None]
        assert known, generator.name
        for index, base in enumerate(SHAPES[name] for name in names):
            for step in range(turns):
                weight_bits, x_bits = known[(turns * index + step) % len(known)]
                kinds = variants(replace(base, dtype="uint8", weight_bits=weight_bits, x_bits=x_bits))
                problem = kinds[(index + step) % len(kinds)]
                if generator.legal(problem, TARGETS[isa]) is None:
                    tile = generator.tiles(problem, TARGETS[isa])[0]
                    cases.append(ConvCase(generator, problem, tile, inputs_of(problem, rng), constants_of(problem, rng)))
    assert len(cases) >= len(GENERATORS[isa])
    check(cases, isa, tmp_path)


@pytest.mark.parametrize("isa", TARGETS)
def test_every_tile(isa: str, tmp_path: Path) -> None:
    """All tiles, on shapes that leave some of them cut off."""
    skip_unless_runs(TARGETS[isa])
    rng = np.random.default_rng(61)
    cases = []
    for generator in GENERATORS[isa]:
        for base, bits in ((SHAPES["batch"], ((2, 2),)), (SHAPES["gemm"], ((4, 8),)), (SHAPES["resnet64"], ((1, 1),))):
            for weight_bits, x_bits in bits:
                p = replace(base, dtype="uint8", out_dtype="uint8", weight_bits=weight_bits, x_bits=x_bits)
                if generator.legal(p, TARGETS[isa]) is None:
                    cases += [
                        ConvCase(generator, p, tile, inputs_of(p, rng), constants_of(p, rng))
                        for tile in generator.tiles(p, TARGETS[isa])
                    ]
    check(cases, isa, tmp_path)


@pytest.mark.parametrize("isa", TARGETS)
def test_narrow_sums_never_overflow(isa: str, tmp_path: Path) -> None:
    """The largest codes with the heaviest weights of each sign, at lengths around those where sums outgrow 8 and 16 bits."""
    skip_unless_runs(TARGETS[isa])
    cases = []
    for generator in GENERATORS[isa]:
        for weight_bits, x_bits in ((1, 2), (2, 2), (4, 8), (3, 7), (1, 8), (2, 1)):
            for channels in (5464, 5504):
                p = conv(1, 5, channels, 24, dtype="uint8", out_dtype="int32", weight_bits=weight_bits, x_bits=x_bits)
                if generator.legal(p, TARGETS[isa]) is None and p.macs < 3e6:
                    cases += [ConvCase(generator, p, generator.tiles(p, TARGETS[isa])[0], *pair) for pair in extremes(p)]
    check(cases, isa, tmp_path)


def test_unpack_inverts_pack() -> None:
    """Logical weights and bias come back from every layout."""
    rng = np.random.default_rng(62)
    for isa, target in TARGETS.items():
        for generator in GENERATORS[isa]:
            for base in SHAPES.values():
                for weight_bits in (1, 2, 3, 4):
                    p = replace(base, dtype="uint8", out_dtype="uint8", weight_bits=weight_bits, x_bits=2)
                    if generator.legal(p, target) is None:
                        constants = constants_of(p, rng)
                        tile = generator.tiles(p, target)[0]
                        weights, bias = generator.unpack(p, tile, generator.pack(p, tile, target, constants))
                        assert np.array_equal(weights, constants.weights), f"{generator.name} {p}"
                        assert np.array_equal(bias, constants.bias), f"{generator.name} {p}"


def wide(weight_bits: int, x_bits: int, **fields: Any) -> ConvProblem:
    p = conv(28, 28, 128, 128, 3, pad_top=1, pad_left=1, pad_bottom=1, pad_right=1, **fields)
    return replace(p, dtype="uint8", out_dtype="uint8", weight_bits=weight_bits, x_bits=x_bits)


@pytest.mark.parametrize(
    ("weight_bits", "x_bits", "kernel"),
    [
        (1, 2, "x86_conv_table_avx2"),
        (2, 2, "x86_conv_table_avx2"),
        (4, 8, "x86_conv_low_bit_maddubs_avx2"),
        (4, 4, "x86_conv_low_bit_maddubs_avx2"),
        (2, 8, "x86_conv_low_bit_maddubs_avx2"),
        (8, 8, "x86_conv_int8_avx2"),
    ],
)
def test_choice_on_avx2(weight_bits: int, x_bits: int, kernel: str) -> None:
    """Tables for one or two planes and small codes, 16-bit sums for other weights of few bits, neither for eight bits."""
    assert choose(wide(weight_bits, x_bits), X86_AVX2, "layer").generator.name == kernel


@pytest.mark.parametrize(
    ("target", "bits", "kernel"),
    [
        (X86_VNNI, 2, "x86_conv_int8_vnni"),
        (X86_VNNI, 1, "x86_conv_table_avx512"),
        (X86_AMX, 1, "x86_conv_int8_amx"),
        (X86_AVX_VNNI, 1, "x86_conv_table_avx2"),
        (X86_AVX_VNNI, 4, "x86_conv_int8_avxvnni"),
        (X86_AVX512, 2, "x86_conv_table_avx512"),
        (X86_VPOPCNTDQ, 2, "x86_conv_int8_vnni"),
    ],
)
def test_choice_where_bytes_are_added_in_32_bits(target: Target, bits: int, kernel: str) -> None:
    """Large layers gain less or nothing there."""
    assert choose(wide(bits, 2), target, "layer").generator.name == kernel


LOOKUPS = {"avx2": x86.CONV_LOOKUP_AVX2, "vnni": x86.CONV_LOOKUP_VNNI}


@pytest.mark.parametrize("isa", LOOKUPS)
def test_weights_from_tables(isa: str, tmp_path: Path) -> None:
    """Any table of 8-bit weights with any codes, on ragged shapes, with all tiles and epilogues; packing is inverted."""
    skip_unless_runs(TARGETS[isa])
    rng = np.random.default_rng(63)
    generator = LOOKUPS[isa]
    cases = []
    for index, name in enumerate(("gemv", "gemv_wide", "gemm", "resnet_shortcut", "batch", "unpadded", "deep", "dilated")):
        for index_bits in (2, 3, 4):
            p = replace(SHAPES[name], dtype="uint8", index_bits=index_bits, x_bits=(8, 5)[index % 2])
            tiles = generator.tiles(p, TARGETS[isa])
            p = variants(p)[(index + index_bits) % 5]
            tile = tiles[(index + index_bits) % len(tiles)]
            constants = constants_of(p, rng)
            cases.append(ConvCase(generator, p, tile, inputs_of(p, rng), constants))
            weights, bias = generator.unpack(p, tile, generator.pack(p, tile, TARGETS[isa], constants))
            assert np.array_equal(weights, constants.weights), p
            assert np.array_equal(bias, constants.bias), p
    check(cases, isa, tmp_path)


def test_choice_of_tables_of_weights() -> None:
    """Vectors meet the small weights, larger inputs weights of eight bits; no table, or ragged groups: no lookup."""
    gemv = conv(1, 1, 1024, 1024, dtype="uint8", out_dtype="uint8", index_bits=4)
    assert choose(gemv, X86_AMX, "layer").generator is x86.CONV_LOOKUP_VNNI
    assert choose(gemv, X86_AVX2, "layer").generator is x86.CONV_LOOKUP_AVX2
    assert "int8" in choose(replace(gemv, w=64), X86_AVX2, "layer").generator.name
    assert x86.CONV_LOOKUP_AVX2.legal(replace(gemv, index_bits=0), X86_AVX2) is not None
    assert x86.CONV_LOOKUP_AVX2.legal(replace(gemv, c=1022), X86_AVX2) is not None


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_vectors_are_unpacked(bits: int) -> None:
    """A matrix-vector product is bound by its weights' bytes on every core."""
    p = conv(1, 1, 1024, 1024, dtype="uint8", out_dtype="uint8", weight_bits=bits)
    assert choose(p, X86_AMX, "layer").generator.name == "x86_conv_unpack_vnni"
    assert choose(p, X86_AVX2, "layer").generator.name in ("x86_conv_unpack_avx2", "x86_conv_table_avx2")


@pytest.mark.parametrize(
    ("target", "x_bits", "kernel"), [(X86_VPOPCNTDQ, 1, "bits"), (X86_VNNI, 1, "table"), (X86_VNNI, 8, "unpack")]
)
def test_vectors_of_few_bits_meet_weights_of_one(target: Target, x_bits: int, kernel: str) -> None:
    """Counting and lookups take several products at once, unpacking takes them one by one, with codes of any bits."""
    p = conv(1, 1, 2048, 2048, dtype="uint8", out_dtype="uint8", weight_bits=1, x_bits=x_bits)
    assert choose(p, target, "layer").generator.name.startswith(f"x86_conv_{kernel}_")


# What each kernel repeats, and what widens its sums, in the loop around: LLVM's guards make that one look innermost too.
REPEATED = {
    "_table_": ("vpshufb", "vpmaddubsw"),
    "_low_bit_": ("vpmaddubsw", "vpmaddwd"),
    "_unpack_avx2": ("vpmaddubsw", "vpmaddwd"),
    "_unpack_vnni": ("vpdpbusd", "vpsrad"),
    "_bits_": ("vpopcnt", "vpmovqd"),
    "_products_": ("vpshufb", "vpsadbw"),
    "_lookup_avx2": ("vpmaddubsw", "vpmaddwd"),
    "_lookup_vnni": ("vpdpbusd", "vpsrad"),
}


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump (binutils)")
@pytest.mark.parametrize("isa", TARGETS)
def test_narrow_sums_stay_in_registers(isa: str, tmp_path: Path) -> None:
    """Inner loops hold the instruction meant and neither read nor write the stack, whatever the tile."""
    functions, owners = {}, {}
    for generator in GENERATORS[isa]:
        for weight_bits, x_bits in ((1, 2), (2, 2), (1, 1), (4, 8)):
            p = wide(weight_bits, x_bits)
            if "_unpack_" in generator.name:
                p = replace(p, h=1, w=2, kh=1, kw=1, c=512, pad_top=0, pad_left=0, pad_bottom=0, pad_right=0)
            if generator.legal(p, TARGETS[isa]) is None:
                for tile in generator.tiles(p, TARGETS[isa]):
                    symbol = f"k{len(functions)}"
                    functions[symbol] = generator.emit(p, tile, TARGETS[isa], symbol)
                    owners[symbol] = f"{generator.name} w{weight_bits}a{x_bits} {dict(tile)}", generator.name
    if isa in LOOKUPS:
        for index_bits in (2, 4):
            p = conv(1, 2, 512, 128, dtype="uint8", out_dtype="uint8", index_bits=index_bits)
            for tile in LOOKUPS[isa].tiles(p, TARGETS[isa]):
                symbol = f"k{len(functions)}"
                functions[symbol] = LOOKUPS[isa].emit(p, tile, TARGETS[isa], symbol)
                owners[symbol] = f"{LOOKUPS[isa].name} table of {index_bits} bits {dict(tile)}", LOOKUPS[isa].name
    path = tmp_path / "k.o"
    path.write_bytes(compile_object(functions, TARGETS[isa]))
    wrong = []
    for symbol, (title, name) in owners.items():
        command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={symbol}", str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        mnemonic, widening = next(value for kind, value in REPEATED.items() if kind in name)
        loops = [
            loop
            for loop in inner_loops(listing)
            if sum(line.startswith(mnemonic) for line in loop) > 1 and not any(line.startswith(widening) for line in loop)
        ]
        if not loops:
            wrong.append(f"{title}: no loop with {mnemonic}")
        for loop in loops:
            stack = [line for line in loop if "(%rsp)" in line and re.search(r"%[xyz]mm", line)]
            if stack:
                wrong.append(f"{title}: {len(stack)} of {len(loop)} use the stack, {stack[0]}")
    assert not wrong, "\n".join(wrong)
