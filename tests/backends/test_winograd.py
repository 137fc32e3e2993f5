"""Winograd convolutions against float64 on every ISA that runs here, where they are chosen, and their machine code."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.backends.arm.winograd import ARMV7_WINOGRAD, WINOGRAD
from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Tile
from bevel.backends.kernels.winograd_generator import WinogradGenerator
from bevel.backends.select import candidates, choose
from bevel.backends.tvm import PrimFunc, compile_object
from bevel.backends.x86.winograd import WINOGRAD_AVX2, WINOGRAD_AVX512
from bevel.ir.protocols import Cache, Target
from tests.backends.arm import test_inner_loops as arm_code
from tests.backends.harness import (
    A7,
    A53,
    A72,
    GNU_TRIPLES,
    X86_AVX2,
    X86_AVX512,
    X86_BASE,
    ConvCase,
    reference_conv,
    reference_sums,
    run_convs,
    skip_unless_runs,
)
from tests.backends.x86 import test_machine_code as x86_code

SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}
ISAS = {
    "avx512": (WINOGRAD_AVX512, X86_AVX512),
    "avx2": (WINOGRAD_AVX2, X86_AVX2),
    "a72": (WINOGRAD, A72),
    "a7": (ARMV7_WINOGRAD, A7),
}
# Of the largest sum: bounds of docs/numerics.md.
ERROR = {2: 2e-6, 4: 1.5e-5}


def conv(h: int, w: int, c: int, oc: int, **fields: Any) -> ConvProblem:
    return ConvProblem(**({"batch": 1, "h": h, "w": w, "c": c, "oc": oc, "kh": 3, "kw": 3} | fields))


PROBLEMS = {
    "resnet16": conv(9, 32, 16, 16, **SAME),
    "resnet64": conv(8, 8, 64, 64, **SAME),
    "whole_patches": conv(16, 12, 24, 40, **SAME),
    "ragged": conv(5, 11, 7, 13, batch=2, **SAME),
    "channels_left": conv(7, 6, 37, 21, **SAME),
    "unpadded": conv(6, 9, 4, 17),
    "one_side": conv(7, 10, 9, 5, pad_top=1, pad_right=2),
    "wide_padding": conv(3, 2, 3, 18, pad_top=6, pad_left=7, pad_bottom=5, pad_right=6),
    "narrow": conv(5, 1, 9, 8, **SAME),
    "tiny_maps": conv(2, 2, 20, 40, batch=3, **SAME),
    "one_result": conv(3, 3, 18, 33),
    "images": conv(10, 9, 8, 8, batch=3, **SAME),
}


def case(generator: WinogradGenerator, p: ConvProblem, tile: Tile, rng: np.random.Generator) -> ConvCase:
    x = rng.standard_normal((p.batch, p.h, p.w, p.c)).astype(np.float32)
    weights = rng.standard_normal((p.oc, p.c, 3, 3)).astype(np.float32)
    return ConvCase(generator, p, tile, x, ConvConstants(weights, rng.standard_normal(p.oc).astype(np.float32), lo=-0.75, hi=1.5))


def errors(cases: list[ConvCase], target: Target, folder: Path) -> list[float]:
    """Largest error of each case, as a share of the largest sum: rounding follows the sums, which a clamp may hide."""
    found = []
    for item, got in zip(cases, run_convs(cases, target, folder), strict=True):
        scale = np.abs(reference_sums(item.problem, item.x, item.constants)).max()
        found.append(float(np.abs(got - reference_conv(item.problem, item.x, item.constants)).max() / scale))
    return found


def check(cases: list[ConvCase], target: Target, folder: Path) -> None:
    """No case errs by more than the bound of its patches; a NaN, from beyond the image or stale scratch, is an error too."""
    wrong = [
        f"{error:.1e} {item.generator.name} {dict(item.tile)} {item.problem}"
        for item, error in zip(cases, errors(cases, target, folder), strict=True)
        if not error <= ERROR[max(item.tile["mh"], item.tile["mw"])]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("isa", ISAS)
def test_shapes_tiles_and_epilogues(isa: str, tmp_path: Path) -> None:
    """Two sizes of patches on every shape and all tiles on one, in unequal ranges; results plain, rectified and clamped."""
    generator, target = ISAS[isa]
    skip_unless_runs(target)
    rng = np.random.default_rng(40)
    kinds: list[Callable[[ConvProblem], ConvProblem]] = [
        lambda p: p,
        lambda p: replace(p, relu=True),
        lambda p: replace(p, clamp=True),
    ]
    cases = []
    for index, (name, base) in enumerate(PROBLEMS.items()):
        sizes = dict[tuple[int, int], Tile]()
        tiles = generator.tiles(base, target)
        for tile in tiles:
            sizes.setdefault((tile["mh"], tile["mw"]), tile)
        assert set(sizes) == {(2, 2), (2, 4), (4, 2), (4, 4)}
        some = ((2, 4), (4, 4)) if index % 2 else ((2, 2), (4, 2))
        chosen = list(tiles) if name == "ragged" else [sizes[size] for size in some]
        cases += [case(generator, kinds[(index + i) % 3](base), tile, rng) for i, tile in enumerate(chosen)]
    check(cases, target, tmp_path)


@pytest.mark.parametrize("isa", ISAS)
def test_every_unit_computes_its_own_results(isa: str, tmp_path: Path) -> None:
    """Bands of unequal height over several images, and channel blocks where there is one band, with tiles of their own."""
    generator, target = ISAS[isa]
    skip_unless_runs(target)
    rng = np.random.default_rng(41)
    mr, nv = generator.direct.shapes[0]
    cases = []
    for rows, p in ((2, conv(19, 9, 5, 7, batch=2, **SAME)), (5, conv(18, 5, 20, 3 * nv * 16 + 5, **SAME))):
        tile = {"mh": 4, "mw": 4, "rows": rows, "mr": mr, "nv": nv, "unroll": 4}
        assert generator.parallel_extent(p, tile) > 2
        cases.append(case(generator, p, tile, rng))
    check(cases, target, tmp_path)


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_long_reductions_stay_within_the_bound(isa: str, tmp_path: Path) -> None:
    """512 channels of inputs that are all positive, as after a rectifier: sums do not cancel, rounding errors add."""
    generator, target = ISAS[isa]
    skip_unless_runs(target)
    rng = np.random.default_rng(42)
    p = conv(7, 7, 512, 16, **SAME)
    cases = []
    for tile in generator.tiles(p, target):
        item = case(generator, p, tile, rng)
        cases.append(replace(item, x=np.abs(item.x)))
    check(cases, target, tmp_path)


def test_what_is_not_covered_says_why() -> None:
    """Strides, dilations, groups, other kernels and element types."""
    p = conv(12, 12, 16, 16, **SAME)
    for problem, reason in (
        (replace(p, stride_w=2), "stride 1, the problem is 3x3 of 1x2"),
        (replace(p, kh=5), "3x3 kernels"),
        (replace(p, dilation_h=2), "dilation"),
        (replace(p, groups=2, c=32, oc=32), "groups"),
        (replace(p, dtype="uint8", out_dtype="uint8"), "float32"),
        (replace(p, h=1, pad_top=0), "empty output"),
    ):
        assert reason in (WINOGRAD_AVX512.legal(problem, X86_AVX512) or "")
    assert "test-x86" in (WINOGRAD_AVX512.legal(p, X86_BASE) or "")


@dataclass(frozen=True)
class Layer:
    """A layer, and whether transforms are expected to be worth it."""

    problem: ConvProblem
    worth: bool


LAYERS = {
    "cifar": Layer(conv(32, 32, 16, 16, **SAME), True),
    "cifar_deep": Layer(conv(8, 8, 64, 64, **SAME), True),
    "imagenet": Layer(conv(56, 56, 64, 64, **SAME), True),
    # Nothing to amortize the transforms over.
    "three_channels": Layer(conv(32, 32, 3, 4, **SAME), False),
    # Sixteen megabytes of weights instead of nine for a patch.
    "few_pixels": Layer(conv(1, 1, 512, 512, **SAME), False),
}


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_chosen_where_it_pays(name: str) -> None:
    """By the estimate alone; the tuner may always measure both."""
    layer = LAYERS[name]
    caches = (Cache(1, 48 << 10, 64), Cache(2, 1 << 20, 64))
    for generator, target in ISAS.values():
        target = replace(target, caches=caches)
        chosen = choose(layer.problem, target, name).generator
        assert chosen is (generator if layer.worth else generator.direct)
        found = {choice.generator.name for choice in candidates(layer.problem, target)}
        assert found >= {generator.name, generator.direct.name}


@pytest.mark.parametrize("isa", ISAS)
def test_scratch_stays_in_the_second_cache(isa: str) -> None:
    """But for images so wide that a single row of patches does not fit."""
    generator, target = ISAS[isa]
    target = replace(target, caches=(Cache(1, 32 << 10, 64), Cache(2, 512 << 10, 64)))
    for p in (*PROBLEMS.values(), *(layer.problem for layer in LAYERS.values()), conv(28, 28, 128, 128, **SAME)):
        for tile in generator.tiles(p, target):
            assert generator.scratch_bytes(p, tile) <= 256 << 10 or tile["rows"] == 1


@pytest.mark.parametrize("target", [X86_AVX512, X86_AVX2, A72, A53], ids=lambda t: t.name)
def test_products_stay_in_registers(target: Target, tmp_path: Path) -> None:
    """No loop that multiplies transformed inputs by weights touches the stack; every register tile has such a loop.

    On ARM a sum may be stored and loaded again once in a loop (of more than a hundred instructions), on A53 twice.
    """
    generator = WINOGRAD if target.arch == "aarch64" else WINOGRAD_AVX512 if target.has("avx512") else WINOGRAD_AVX2
    objdump = f"{GNU_TRIPLES[target.arch]}-objdump" if target.arch == "aarch64" else "objdump"
    if shutil.which(objdump) is None:
        pytest.skip(f"{objdump} is not installed (Debian: binutils)")
    p = conv(8, 4 * 28 * 3, 64, 12 * 16, **SAME)
    functions: dict[str, PrimFunc] = {}
    for mr, nv in generator.direct.shapes:
        tile = {"mh": 4, "mw": 4, "rows": 1, "mr": mr, "nv": nv, "unroll": generator.direct.pipeline.unroll}
        symbol = f"k{len(functions)}"
        functions[symbol] = generator.emit(p, tile, target, symbol)
    path = tmp_path / "kernels.o"
    path.write_bytes(compile_object(functions, target))
    for symbol, body in loops(path, target, list(functions)):
        # Only products broadcast elements; constants of the transforms come from beside the code or the stack.
        if any(BROADCAST[target.arch](line) for line in body):
            functions.pop(symbol, None)
            stack = [line for line in body if STACK[target.arch].search(line)]
            assert len(stack) <= STACK_ACCESSES.get(target.cpu, 0), f"{symbol}: {stack} of {len(body)}"
    assert not functions, f"no loop of products in {list(functions)}"


STACK_ACCESSES = {A72.cpu: 2, A53.cpu: 4}
BROADCAST: dict[str, Callable[[str], bool]] = {
    "x86_64": lambda line: ("1to16" in line or "vbroadcastss" in line) and not re.search(r"%rip|%rsp", line),
    "aarch64": lambda line: line.startswith("fmla") and ".s[" in line,
}
STACK = {"x86_64": re.compile(r"\(%rsp.*%[xyz]mm|%[xyz]mm.*\(%rsp"), "aarch64": re.compile(r"\b[qd]\d+.*\[sp")}


def loops(path: Path, target: Target, symbols: list[str]) -> list[tuple[str, list[str]]]:
    """Innermost loops of an object with the functions they are in."""
    if target.arch == "aarch64":
        return [(loop.symbol, list(loop.body)) for loop in arm_code.inner_loops(path, target)]
    found = []
    for symbol in symbols:
        command = ["objdump", "-d", "--no-show-raw-insn", f"--disassemble={symbol}", str(path)]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found += [(symbol, body) for body in x86_code.inner_loops(listing)]
    return found


def test_weights_are_rounded_once() -> None:
    """Transformed in float64: of weights that are multiples of 900 every transform is a whole number."""
    p = conv(8, 8, 3, 5, **SAME)
    rng = np.random.default_rng(43)
    weights: Array = (900.0 * rng.integers(-9, 10, (5, 3, 3, 3))).astype(np.float32)
    for tile in WINOGRAD_AVX512.tiles(p, X86_AVX512):
        packed, bias = WINOGRAD_AVX512.pack(p, tile, X86_AVX512, ConvConstants(weights, np.arange(5, dtype=np.float32)))
        assert packed.dtype == np.float32
        assert np.abs(packed - np.rint(packed)).max() < 1e-9
        assert np.array_equal(bias[16:21], np.arange(5))
