"""Light weights: terms hold what they came from, never overflow 16 bits, and the kernel that adds them is exact for any."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends.kernel import Array, ConvConstants, ConvProblem
from bevel.backends.kernels.int16_sums import WIDTH, are_light, arrange, restore
from bevel.backends.select import choose
from bevel.backends.x86.conv_int8_maddubs import CONV_INT8_MADDUBS
from tests.backends.harness import (
    X86_AVX2,
    X86_VNNI,
    ConvCase,
    reference_conv,
    run_convs,
    skip_unless_runs,
)

SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}


def weights(shape: tuple[int, ...]) -> Iterator[tuple[str, Array]]:
    """Every kind of weights, by name: as trained layers have them, seven bits, at the limit, and the heaviest."""
    rng = np.random.default_rng(30)
    normal = rng.standard_normal(shape)
    peaks = np.abs(normal).reshape(shape[0], -1).max(axis=1).reshape(-1, *[1] * (len(shape) - 1))
    yield "normal", np.round(normal / peaks * 127).astype(np.int8)
    yield "normal of seven bits", np.round(normal / peaks * 63).astype(np.int8)
    yield "uniform", rng.integers(-128, 128, shape).astype(np.int8)
    yield "uniform of seven bits", rng.integers(-64, 64, shape).astype(np.int8)
    yield "sparse and large", np.where(rng.random(shape) < 0.05, rng.choice([-128, 127], shape), 0).astype(np.int8)
    for value in (64, 65, -64, -65, 127, -128, 0):
        yield f"all {value}", np.full(shape, value, np.int8)
    yield "signs by turns", np.where(np.arange(int(np.prod(shape))).reshape(shape) % 2, 127, -128).astype(np.int8)


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("run", [4, 8, 36, 400])
def test_terms_hold_the_weights_and_fit_16_bits(channels: int, run: int) -> None:
    """The terms at each place sum to the weights there; no choice of codes takes a term, or a pair of terms, out of int16."""
    for name, values in weights((channels, run)):
        terms = arrange(values)
        assert np.array_equal(restore(terms, run), values), name
        assert set(terms.places) == set(range(0, run, WIDTH)), name
        neighbours = terms.weights.reshape(len(terms.places), channels, 2, 2).astype(np.int64)
        paired = neighbours[: 2 * terms.pairs].reshape(-1, 2, channels, 2, 2)
        for group, axis in ((neighbours, ()), (paired, (1,))):
            high = (np.maximum(group, 0) * 255).sum(axis=(*axis, -1))
            low = (np.minimum(group, 0) * 255).sum(axis=(*axis, -1))
            assert high.max(initial=0) < 1 << 15, name
            assert low.min(initial=0) >= -(1 << 15), name


def test_few_terms_for_light_weights() -> None:
    """Weights of seven bits need one term for each place, nearly all of them paired where they are as trained layers' are."""
    by_name = dict(weights((16, 400)))
    light = arrange(by_name["normal of seven bits"])
    assert len(light.places) == 100
    assert light.pairs >= 45
    assert len(arrange(by_name["uniform of seven bits"]).places) == 100
    assert len(arrange(by_name["all -128"]).places) == 200


def test_what_is_light() -> None:
    """Seven bits always are; eight bits are for long reductions of normal weights, and not where all sizes are as frequent."""
    found = {name: are_light(values) for name, values in weights((32, 128, 3, 3))}
    assert found["normal"]
    assert found["normal of seven bits"]
    assert found["uniform of seven bits"]
    assert found["all 64"]
    assert not found["uniform"]
    assert not found["all 65"]
    assert not found["all -128"]


def test_the_kernel_is_chosen_for_light_weights_alone() -> None:
    """With many pixels; vpdpbusd needs no such kernel."""
    p = ConvProblem(1, 14, 14, 64, 64, 3, 3, **SAME, dtype="uint8", out_dtype="uint8")
    light = replace(p, light_weights=True)
    assert choose(light, X86_AVX2, "layer").generator is CONV_INT8_MADDUBS
    assert choose(p, X86_AVX2, "layer").generator.name == "x86_conv_int8_avx2"
    gemv = ConvProblem(1, 1, 1, 512, 512, dtype="uint8", out_dtype="uint8", light_weights=True)
    assert choose(gemv, X86_AVX2, "layer").generator.name == "x86_conv_int8_bytes_avx2"
    assert "16 bits" in (CONV_INT8_MADDUBS.legal(light, X86_VNNI) or "")


def test_any_weights_are_exact(tmp_path: Path) -> None:
    """Every kind of weights with random and with extreme codes, on shapes with several blocks, taps, groups and ragged runs."""
    skip_unless_runs(X86_AVX2)
    rng = np.random.default_rng(31)
    shapes = (
        ConvProblem(1, 5, 11, 7, 21, 3, 3, **SAME),
        ConvProblem(1, 9, 9, 5, 9, 3, 2, dilation_h=2, dilation_w=3, pad_bottom=1, pad_right=2),
        ConvProblem(1, 6, 7, 24, 16, 3, 3, groups=2, **SAME),
        ConvProblem(1, 1, 45, 130, 40),
    )
    cases, names = [], []
    for p in (replace(shape, dtype="uint8", out_dtype="int32") for shape in shapes):
        for name, values in weights((p.oc, p.c // p.groups, p.kh, p.kw)):
            for low in (0, 255):
                x = rng.choice([0, 255] if name.startswith(("all", "signs")) else range(256), (1, p.h, p.w, p.c)).astype(np.uint8)
                x[:, :, : p.w // 2] = low
                constants = ConvConstants(values, rng.integers(-999, 999, p.oc).astype(np.int32), x_zero_point=low)
                cases += [ConvCase(CONV_INT8_MADDUBS, p, t, x, constants) for t in CONV_INT8_MADDUBS.tiles(p, X86_AVX2)]
                names += [f"{name}, {p}"] * (len(cases) - len(names))
    results = run_convs(cases, X86_AVX2, tmp_path)
    wrong = [
        name
        for name, case, got in zip(names, cases, results, strict=True)
        if not np.array_equal(got, reference_conv(case.problem, case.x, case.constants))
    ]
    assert not wrong, "\n".join(wrong)
