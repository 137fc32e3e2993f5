"""ARM kernels for few bits under qemu: exact for all bits, shapes, extremes and epilogues, and chosen where they pay."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends import arm
from bevel.backends.arm.conv_bits import BitsConv
from bevel.backends.kernel import ConvProblem
from bevel.backends.kernels.tables import TableConv
from bevel.backends.select import choose
from bevel.backends.tvm import compile_object
from bevel.ir.protocols import Target
from tests.backends.arm.test_inner_loops import inner_loops
from tests.backends.harness import A7, A53, A72, A76, ConvCase, reference_conv, run_convs, skip_unless_runs
from tests.backends.low_bit_cases import SAME, SHAPES, constants_of, conv, extremes, inputs_of, variants

pytestmark = pytest.mark.qemu

GENERATORS = [g for every in arm.GENERATORS.values() for g in every if isinstance(g, BitsConv | TableConv)]
BITS = [(1, 1), (1, 2), (2, 2), (2, 1), (2, 4), (3, 3), (4, 2), (1, 4), (4, 4), (3, 5), (2, 7), (1, 6), (2, 5), (1, 7), (4, 1)]


def check(cases: list[ConvCase], target: Target, folder: Path) -> None:
    """Compare with the exact reference; name every case that differs."""
    results = run_convs(cases, target, folder)
    wrong = [
        f"{c.generator.name} {dict(c.tile)} {c.problem}"
        for c, got in zip(cases, results, strict=True)
        if not np.array_equal(got, reference_conv(c.problem, c.x, c.constants))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("target", [A72, A7], ids=lambda t: t.cpu)
@pytest.mark.parametrize("turns", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_shapes_bits_and_epilogues(turns: int, target: Target, tmp_path: Path) -> None:
    """Every shape with bits and epilogues in turn, so that all meet."""
    skip_unless_runs(target)
    rng = np.random.default_rng(70)
    cases = []
    for generator in GENERATORS:
        for index, base in enumerate(SHAPES.values()):
            for step in range(turns):
                weight_bits, x_bits = BITS[(turns * index + step) % len(BITS)]
                kinds = variants(replace(base, dtype="int8", weight_bits=weight_bits, x_bits=x_bits))
                problem = kinds[(index + step) % len(kinds)]
                if generator.legal(problem, target) is None:
                    tile = generator.tiles(problem, target)[0]
                    cases.append(ConvCase(generator, problem, tile, inputs_of(problem, rng), constants_of(problem, rng)))
    assert len(cases) >= len(BITS)
    check(cases, target, tmp_path)


@pytest.mark.parametrize("target", [A72, A53, A7], ids=lambda t: t.cpu)
def test_every_tile(target: Target, tmp_path: Path) -> None:
    """All tiles, on shapes that are uneven in every axis."""
    skip_unless_runs(target)
    rng = np.random.default_rng(71)
    cases = []
    for generator in GENERATORS:
        for base, bits in (
            (SHAPES["uneven"], ((1, 2), (4, 4))),
            (SHAPES["gemm"], ((2, 2),)),
            (SHAPES["resnet128"], ((1, 2), (2, 2))),
        ):
            for weight_bits, x_bits in bits:
                p = replace(base, dtype="int8", out_dtype="int8", weight_bits=weight_bits, x_bits=x_bits)
                if generator.legal(p, target) is None:
                    tiles = generator.tiles(p, target)
                    cases += [ConvCase(generator, p, t, inputs_of(p, rng), constants_of(p, rng)) for t in tiles]
    check(cases, target, tmp_path)


@pytest.mark.parametrize("target", [A72, A7], ids=lambda t: t.cpu)
def test_narrow_sums_never_overflow(target: Target, tmp_path: Path) -> None:
    """The largest codes with the heaviest weights of each sign, at lengths around those where sums outgrow 8 and 16 bits."""
    skip_unless_runs(target)
    cases = []
    for generator in GENERATORS:
        for weight_bits, x_bits in ((1, 2), (2, 2), (4, 4), (3, 5), (2, 7), (1, 7)):
            for channels in (128, 2048, 8256):
                p = conv(1, 7, channels, 8, dtype="int8", out_dtype="int32", weight_bits=weight_bits, x_bits=x_bits)
                if generator.legal(p, target) is None:
                    cases += [ConvCase(generator, p, generator.tiles(p, target)[0], *pair) for pair in extremes(p)]
    check(cases, target, tmp_path)


@pytest.mark.parametrize("target", [A72, A7], ids=lambda t: t.cpu)
def test_unpack_inverts_pack(target: Target) -> None:
    """Logical weights and bias come back from every layout."""
    rng = np.random.default_rng(72)
    for generator in GENERATORS:
        for base in SHAPES.values():
            for weight_bits in (1, 2, 3, 4):
                p = replace(base, dtype="int8", out_dtype="int8", weight_bits=weight_bits, x_bits=2)
                if generator.legal(p, target) is None:
                    constants = constants_of(p, rng)
                    tile = generator.tiles(p, target)[0]
                    weights, bias = generator.unpack(p, tile, generator.pack(p, tile, target, constants))
                    assert np.array_equal(weights, constants.weights), f"{generator.name} {p}"
                    assert np.array_equal(bias, constants.bias), f"{generator.name} {p}"


@pytest.mark.parametrize(
    ("target", "weight_bits", "x_bits", "kernel"),
    [
        (A72, 2, 2, "arm_conv_bits"),
        (A72, 1, 2, "arm_conv_bits"),
        (A72, 1, 4, "arm_conv_table"),
        (A72, 2, 3, "arm_conv_table"),
        (A72, 4, 4, "arm_conv_int8_neon"),
        (A72, 8, 8, "arm_conv_int8_neon"),
        (A7, 2, 2, "armv7_conv_bits"),
        (A7, 1, 1, "armv7_conv_bits"),
        (A7, 4, 4, "armv7_conv_int8"),
        (A76, 1, 1, "arm_conv_bits"),
        (A76, 2, 2, "arm_conv_int8_sdot"),
    ],
)
def test_choice(target: Target, weight_bits: int, x_bits: int, kernel: str) -> None:
    """Bits are counted where there are few pairs of planes, fewer where a dot product is the rival; tables take wider inputs."""
    p: ConvProblem = conv(28, 28, 128, 128, 3, dtype="int8", out_dtype="int8", weight_bits=weight_bits, x_bits=x_bits, **SAME)
    assert choose(p, target, "layer").generator.name == kernel


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-objdump") is None, reason="needs aarch64-linux-gnu-objdump")
@pytest.mark.parametrize("channels", [128, 256])
def test_counts_stay_in_registers(channels: int, tmp_path: Path) -> None:
    """Inner loops of all tiles count bits without touching the stack, with one widening of the counts and with several."""
    functions, owners = {}, {}
    for generator in (g for g in GENERATORS if g.arch == A72.arch):
        for weight_bits, x_bits in ((1, 2), (2, 2)):
            p = conv(28, 28, channels, 64, 3, dtype="int8", out_dtype="int8", weight_bits=weight_bits, x_bits=x_bits, **SAME)
            for tile in generator.tiles(p, A72):
                symbol = f"k{len(functions)}"
                functions[symbol] = generator.emit(p, tile, A72, symbol)
                owners[symbol] = f"{generator.name} w{weight_bits}a{x_bits} {dict(tile)}"
    path = tmp_path / "k.o"
    path.write_bytes(compile_object(functions, A72))
    # Loops that widen sums hold the others; those that make tables store them.
    others = {"umlal", "umull", "uaddw", "ushll", "usubl", "usubw", "uaddl"}
    loops = [
        loop
        for loop in inner_loops(path, A72)
        if loop.mnemonics & {"cnt", "tbl"}
        and loop.mnemonics.isdisjoint(others)
        and not any(line.startswith("st") and "[sp" not in line for line in loop.body)
    ]
    assert {loop.symbol for loop in loops} == set(functions)
    wrong = [f"{owners[loop.symbol]}: {loop.vector_stack_references}" for loop in loops if loop.vector_stack_references]
    assert not wrong, "\n".join(wrong)
