"""ARM kernels for few rows of weights of few bits, under qemu: exact, packed tightly, in registers, and chosen where they pay."""

from __future__ import annotations

import platform
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends import arm
from bevel.backends.arm.conv_unpack import CONV_UNPACK_GROUPS_SDOT, FewRowsConv
from bevel.backends.kernel import ConvConstants, ConvProblem, Generator
from bevel.backends.kernels.fields import LookupConv
from bevel.backends.kernels.generator import ConvGenerator
from bevel.backends.select import choose, with_groups
from bevel.backends.tvm import compile_object
from bevel.errors import ToolchainError
from bevel.ir.protocols import Cache, Target
from bevel.ir.types import Groups, Int
from tests.backends.arm.test_inner_loops import inner_loops
from tests.backends.harness import (
    A53,
    A72,
    A76,
    GNU_TRIPLES,
    Call,
    Compiled,
    ConvCase,
    reference_conv,
    run_convs,
    skip_unless_runs,
)
from tests.backends.low_bit_cases import SHAPES, constants_of, conv, extremes, inputs_of, variants
from tests.backends.x86 import test_groups

pytestmark = pytest.mark.qemu

GENERATORS = [g for g in arm.GENERATORS["aarch64"] if isinstance(g, FewRowsConv)]
# Whole vectors and units or not, runs of no whole K-groups, borders, strides, several taps and pixels.
FEW = {
    **{
        name: SHAPES[name]
        for name in ("gemv", "gemv_wide", "gemv_ragged", "gemm", "batch", "dilated", "narrow", "unpadded", "ragged", "tiny_map")
    },
    "channels16": conv(1, 3, 272, 75),
    "taps16": conv(3, 4, 48, 40, 3, pad_top=1, pad_left=1, stride_w=2),
}
BITS = [(4, 8), (2, 8), (3, 8), (1, 8), (4, 4), (2, 7), (3, 1)]


def least(generator: Generator) -> Target:
    """The core a generator was made for."""
    assert isinstance(generator, ConvGenerator)
    return A76 if "dotprod" in generator.features else A72


def told(p: ConvProblem, generator: Generator, weight_bits: int, x_bits: int) -> ConvProblem:
    """`p` on int8 with weights of a kind that `generator` takes."""
    if isinstance(generator, LookupConv):
        return replace(p, dtype="int8", index_bits=max(2, weight_bits), x_bits=x_bits, wide_weights=weight_bits % 2 == 0)
    return replace(p, dtype="int8", weight_bits=weight_bits, x_bits=x_bits)


def data_of(p: ConvProblem, rng: np.random.Generator) -> ConvConstants:
    """Constants whose zero point is a code of 8 bits, and whose weights are -128 only where `p` says so."""
    found = constants_of(p, rng)
    found = replace(found, x_zero_point=int(np.uint8(found.x_zero_point).view(np.int8)))
    if p.wide_weights or not p.index_bits:
        return found
    return replace(found, weights=np.maximum(found.weights, -126))


def case(generator: ConvGenerator, p: ConvProblem, target: Target, rng: np.random.Generator, tile: int = 0) -> ConvCase:
    return ConvCase(generator, p, generator.tiles(p, target)[tile], inputs_of(p, rng), data_of(p, rng))


def check(cases: list[ConvCase], target: Target, folder: Path) -> None:
    """Compare with the exact reference; name every case that differs."""
    results = run_convs(cases, target, folder)
    wrong = [
        f"{c.generator.name} {dict(c.tile)} {c.problem}"
        for c, got in zip(cases, results, strict=True)
        if not np.array_equal(got, reference_conv(c.problem, c.x, c.constants))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda g: g.name)
def test_shapes_bits_and_epilogues(generator: ConvGenerator, tmp_path: Path) -> None:
    """Every shape with bits and epilogues in turn, so that all meet; all tiles on one of them."""
    target = least(generator)
    skip_unless_runs(target)
    rng = np.random.default_rng(80)
    cases = []
    for index, base in enumerate(FEW.values()):
        for step in range(2):
            p = told(base, generator, *BITS[(index + 3 * step) % len(BITS)])
            kinds = variants(p)
            p = kinds[(index + step) % len(kinds)]
            if generator.legal(p, target) is None:
                cases.append(case(generator, p, target, rng))
    assert len(cases) >= 4
    for bits in (2, 4):
        p = told(replace(FEW["channels16"], out_dtype="int8"), generator, bits, 8)
        cases += [case(generator, p, target, rng, tile) for tile in range(len(generator.tiles(p, target)))]
    check(cases, target, tmp_path)


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda g: g.name)
def test_sums_never_overflow(generator: ConvGenerator, tmp_path: Path) -> None:
    """The largest inputs of either sign with the heaviest weights, at lengths around those where sums of 16 bits are widened."""
    target = least(generator)
    skip_unless_runs(target)
    cases = []
    for bits in (2, 3, 4):
        for channels in (128, 144, 2048):
            p = told(conv(1, 1, channels, 24, out_dtype="int32"), generator, bits, 8)
            shown = replace(p, weight_bits=bits) if not p.index_bits else p
            for _, constants in extremes(shown):
                x = np.full((1, 1, 1, channels), -128 if constants.weights.max() < 0 else 127, np.int8)
                weights = constants.weights
                if p.index_bits and not p.wide_weights:
                    weights = np.maximum(weights, -127)
                cases += [
                    ConvCase(generator, p, generator.tiles(p, target)[0], one, replace(constants, weights=weights))
                    for one in (x, np.full_like(x, -128))
                ]
    check(cases, target, tmp_path)


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda g: g.name)
def test_unpack_inverts_pack(generator: ConvGenerator) -> None:
    """Logical weights and bias come back, and weights take as many bits as they have, three the room of four."""
    target, rng = least(generator), np.random.default_rng(81)
    for base in FEW.values():
        for bits in (1, 2, 3, 4):
            p = told(replace(base, out_dtype="int8"), generator, bits, 8)
            if generator.legal(p, target) is None:
                found = case(generator, p, target, rng)
                weights, bias = generator.unpack(p, found.tile, generator.pack(p, found.tile, target, found.constants))
                assert np.array_equal(weights, found.constants.weights), p
                assert np.array_equal(bias, found.constants.bias), p
    for bits in (2, 4):
        p = told(conv(1, 1, 1024, 512, out_dtype="int8"), generator, bits, 8)
        found = case(generator, p, target, rng)
        table = 64 if isinstance(generator, LookupConv) else 0
        assert generator.pack(p, found.tile, target, found.constants)[0].nbytes == 1024 * 512 * bits // 8 + table


@pytest.mark.skipif(shutil.which(f"{GNU_TRIPLES['aarch64']}-objdump") is None, reason="needs aarch64-linux-gnu-objdump")
@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("arm_conv_unpack_sdot", A76, {"and", "sdot"}),
        ("arm_conv_lookup_sdot", A76, {"and", "tbl", "sdot"}),
        ("arm_conv_unpack_neon", A72, {"and", "smlal", "smlal2"}),
        ("arm_conv_unpack_neon", A53, {"and", "smlal", "smlal2"}),
        ("arm_conv_lookup_neon", A72, {"and", "tbl", "smull", "sadalp"}),
    ],
    ids=lambda value: getattr(value, "cpu", None),
)
def test_weights_are_unpacked_in_registers(name: str, target: Target, expected: set[str], tmp_path: Path) -> None:
    """Inner loops of all tiles have the instructions meant and leave the stack alone."""
    generator = next(g for g in GENERATORS if g.name == name)
    functions, owners = {}, {}
    for bits in (2, 4):
        for tile in generator.tiles(told(conv(1, 2, 512, 512, out_dtype="int8"), generator, bits, 8), target):
            symbol = f"k{len(functions)}"
            p = told(conv(1, tile["mr"], 512, 512, out_dtype="int8"), generator, bits, 8)
            functions[symbol] = generator.emit(p, tile, target, symbol)
            owners[symbol] = f"{bits} bits, {dict(tile)}"
    path = tmp_path / "k.o"
    path.write_bytes(compile_object(functions, target))
    # Loops around others that widen sums only look innermost, for LLVM's guards.
    widens = set() if "sadalp" in expected else {"sadalp"}
    loops = [loop for loop in inner_loops(path, target) if loop.mnemonics >= expected and loop.mnemonics.isdisjoint(widens)]
    assert {loop.symbol for loop in loops} == set(functions)
    wrong = [f"{owners[loop.symbol]}: {loop.vector_stack_references}" for loop in loops if loop.vector_stack_references]
    assert not wrong, "\n".join(wrong)


def cached(target: Target, *sizes: int) -> Target:
    """`target` with caches of so many KiB."""
    return replace(target, caches=tuple(Cache(level + 1, 1024 * size) for level, size in enumerate(sizes)))


PI5, PI4 = cached(A76, 64, 512, 2048), cached(A72, 32, 1024)


@pytest.mark.parametrize(
    ("target", "rows", "size", "fields", "kernel"),
    [
        (PI5, 1, 512, {"weight_bits": 4}, "arm_conv_unpack_sdot"),
        (PI5, 4, 2048, {"weight_bits": 2}, "arm_conv_unpack_sdot"),
        (PI5, 5, 2048, {"weight_bits": 4}, "arm_conv_int8_sdot"),
        (PI5, 1, 2048, {"index_bits": 4}, "arm_conv_lookup_sdot"),
        (PI5, 1, 512, {"index_bits": 4}, "arm_conv_int8_sdot"),
        (PI4, 1, 512, {"weight_bits": 4}, "arm_conv_unpack_neon"),
        (PI4, 2, 512, {"weight_bits": 2}, "arm_conv_unpack_neon"),
        (PI4, 3, 512, {"weight_bits": 4}, "arm_conv_int8_neon"),
        (PI4, 1, 128, {"weight_bits": 4}, "arm_conv_int8_neon"),
        (PI4, 1, 2048, {"index_bits": 2, "wide_weights": True}, "arm_conv_lookup_neon"),
        (PI4, 1, 512, {"index_bits": 2}, "arm_conv_int8_neon"),
        (PI5, 1, 2048, {}, "arm_conv_int8_sdot"),
    ],
)
def test_choice(target: Target, rows: int, size: int, fields: dict[str, int], kernel: str) -> None:
    """Few rows; with `smull` and with tables only weights that are large."""
    p = conv(1, rows, size, size, dtype="int8", out_dtype="int8", x_bits=8, **fields)
    assert choose(p, target, "layer").generator.name == kernel


@pytest.mark.parametrize(
    ("target", "limits"), [(A76, {4: 1.2, 2: 1.3}), (A72, {4: 1.05, 2: 1.1})], ids=lambda v: getattr(v, "cpu", None)
)
def test_instructions_and_bytes_relative_to_int8(target: Target, limits: dict[int, float], tmp_path: Path) -> None:
    """A whole matrix-vector product: the bytes of weights shrink by the bits, the instructions grow by little."""
    skip_unless_runs(target)
    if platform.machine() == target.arch:
        pytest.skip("instructions are counted by an emulator, and kernels run here")
    rng = np.random.default_rng(82)
    base = conv(1, 1, 2048, 256, dtype="int8", out_dtype="int8", short_factors=True, x_bits=8)
    functions, calls, nbytes = {}, {}, {}
    for bits in (8, *limits):
        p = replace(base, weight_bits=bits)
        choice = choose(p, target, "layer")
        assert isinstance(choice.generator, ConvGenerator)
        assert isinstance(choice.generator, FewRowsConv) == (bits < 8)
        generator, tile = choice.generator, choice.tile
        functions[f"w{bits}"] = generator.emit(p, tile, target, f"w{bits}")
        packed = generator.pack(p, tile, target, constants_of(replace(p, weight_bits=min(4, bits)), rng))
        nbytes[bits] = packed[0].nbytes
        ranges = [(0, generator.parallel_extent(p, tile))]
        scratch = generator.scratch_bytes(p, tile)
        calls[bits] = Call(f"w{bits}", [inputs_of(p, rng), *packed], [((1, 1, 1, 256), "int8")], ranges, scratch)
    compiled = Compiled(functions, target, tmp_path)
    try:
        counts = {bits: compiled.instructions(call) for bits, call in calls.items()}
    except ToolchainError as error:
        pytest.skip(str(error))
    shares = {bits: counts[bits] / counts[8] for bits in limits}
    assert all(shares[bits] <= limits[bits] for bits in limits), shares
    assert all(nbytes[bits] * 8 == nbytes[8] * bits for bits in limits), nbytes


def test_products_of_groups(tmp_path: Path) -> None:
    """With sdot: shapes, bits, sizes and epilogues in turn with all tiles are exact, and products and bias come back."""
    skip_unless_runs(A76)
    rng, generator, cases = np.random.default_rng(83), CONV_UNPACK_GROUPS_SDOT, []
    for index, base in enumerate(test_groups.FEW.values()):
        p = replace(test_groups.grouped(base, (4, 2, 3)[index % 3], (32, 16, 64, 128)[index % 4]), dtype="int8")
        kinds = variants(p)
        p = kinds[index % len(kinds)]
        constants = replace(data_of(p, rng), weights=test_groups.weights_of(p, rng))
        for tile in generator.tiles(p, A76):
            cases.append(ConvCase(generator, p, tile, inputs_of(p, rng), constants))
            weights, bias = generator.unpack(p, tile, generator.pack(p, tile, A76, constants))
            assert np.array_equal(weights, constants.weights), p
            assert np.array_equal(bias, constants.bias), p
    check(cases, A76, tmp_path)


def test_choice_of_groups() -> None:
    """Few rows on a core with the dot product; elsewhere problems stay as they are."""
    p = conv(1, 1, 1024, 1024, dtype="int8", out_dtype="int8")
    found = with_groups(p, Groups(Int(4), 32), A76)
    assert choose(found, A76, "layer").generator is CONV_UNPACK_GROUPS_SDOT
    assert with_groups(p, Groups(Int(4), 32), A72) == p
    assert with_groups(replace(p, w=5), Groups(Int(4), 32), A76) == replace(p, w=5)


@pytest.mark.skipif(shutil.which(f"{GNU_TRIPLES['aarch64']}-objdump") is None, reason="needs aarch64-linux-gnu-objdump")
def test_sums_of_a_group_stay_in_registers(tmp_path: Path) -> None:
    """Loops over the codes of a group leave the stack alone, whatever the tile."""
    functions, names = {}, {}
    for bits, size in ((4, 128), (2, 64)):
        p = replace(test_groups.grouped(conv(1, 2, 512, 512, out_dtype="int8"), bits, size), dtype="int8")
        for tile in CONV_UNPACK_GROUPS_SDOT.tiles(p, A76):
            symbol = f"k{len(functions)}"
            functions[symbol] = CONV_UNPACK_GROUPS_SDOT.emit(p, tile, A76, symbol)
            names[symbol] = f"{bits} bits in groups of {size}, {dict(tile)}"
    path = tmp_path / "k.o"
    path.write_bytes(compile_object(functions, A76))
    loops = [loop for loop in inner_loops(path, A76) if loop.mnemonics >= {"and", "sdot"}]
    assert {loop.symbol for loop in loops} == set(functions)
    wrong = [f"{names[loop.symbol]}: {loop.vector_stack_references}" for loop in loops if loop.vector_stack_references]
    assert not wrong, "\n".join(wrong)
