"""Weights to codes: every form has the levels it says, scales that hold the contract, and codes nearest to the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from bevel.errors import InvalidPlan, UnsupportedModel
from bevel.ir.groups import factored
from bevel.ir.plan import TERNARY
from bevel.ir.types import Codebook, Groups, Int, Quant, multiplied_integers
from bevel.passes.quantize.weights import LEVEL_MAX, WeightForm, quantize_weights, rounded

Array = np.ndarray[Any, Any]
WEIGHTS = np.random.default_rng(1).standard_t(3, (6, 4, 3, 3)).astype(np.float32)
BIAS = np.linspace(-1, 1, 6, dtype=np.float32)


def made(form: WeightForm, weights: Array = WEIGHTS, bias: Array = BIAS) -> tuple[Array, Quant | Codebook]:
    return quantize_weights(weights, bias, 0.05, form, "layer")


def errors(form: WeightForm) -> Array:
    """Mean squared error of each channel."""
    codes, elem = made(form)
    return np.asarray(((WEIGHTS - elem.dequantize(codes)) ** 2).reshape(6, -1).mean(axis=1))


UNIFORM: dict[float, tuple[Int, int, int]] = {
    8: (Int(8), -127, 127), 7: (Int(7), -64, 63), 4: (Int(4), -8, 7), 3: (Int(3), -4, 3), 2: (Int(2), -2, 1),
    TERNARY: (Int(2), -1, 1), 1: (Int(1), -1, 1),
}  # fmt: skip


@pytest.mark.parametrize("scales", ["minmax", "mse"])
@pytest.mark.parametrize("bits", UNIFORM)
def test_uniform_codes(bits: float, scales: str) -> None:
    storage, lo, hi = UNIFORM[bits]
    codes, elem = made(WeightForm(bits, scales=scales))
    assert isinstance(elem, Quant)
    assert (elem.storage, elem.axis, elem.zero_point, len(elem.scale)) == (storage, 0, (0,), 6)
    assert lo <= codes.min() <= codes.max() <= hi
    assert codes.dtype == np.int8
    # No other code of the form is nearer to a weight than its own.
    levels = np.asarray([-1, 1] if bits == 1 else range(lo, hi + 1))
    scale = np.asarray(elem.scale).reshape(6, 1, 1, 1, 1)
    distance = np.abs(WEIGHTS[..., None] - scale * levels)
    chosen = np.abs(WEIGHTS - elem.dequantize(codes))
    assert (chosen <= distance.min(axis=-1) + 1e-5).all()


def test_eight_bits_are_what_they_always_were() -> None:
    codes, elem = made(WeightForm())
    largest = np.abs(WEIGHTS).reshape(6, -1).max(axis=1).astype(np.float64)
    assert elem == Quant(Int(8), tuple(float(np.float32(m / 127)) for m in largest), (0,), 0)
    np.testing.assert_array_equal(np.abs(codes).reshape(6, -1).max(axis=1), 127)


@pytest.mark.parametrize("bits", [1, TERNARY, 2, 3, 4, 6])
def test_searched_scales_have_the_smaller_error(bits: float) -> None:
    searched, unclipped = errors(WeightForm(bits, scales="mse")), errors(WeightForm(bits, scales="minmax"))
    assert (searched <= unclipped * (1 + 1e-6)).all()
    assert searched.sum() < (0.9 if bits < 4 else 1.0) * unclipped.sum()
    auto = errors(WeightForm(bits))
    np.testing.assert_array_equal(auto, searched if bits < 4 else unclipped)


def test_bipolar_scales_are_mean_magnitudes() -> None:
    """Rastegari et al. 2016, XNOR-Net: the optimum of one bit is known."""
    _, elem = made(WeightForm(1))
    assert isinstance(elem, Quant)
    best = np.abs(WEIGHTS).reshape(6, -1).mean(axis=1)
    grid = np.abs(WEIGHTS).reshape(6, -1).max(axis=1) / 128
    assert (np.abs(np.asarray(elem.scale) - best) <= grid).all()


@pytest.mark.parametrize("scales", ["minmax", "mse"])
def test_one_scale_for_the_tensor(scales: str) -> None:
    _, elem = made(WeightForm(4, "tensor", scales))
    assert len(set(elem.scale)) == 1
    assert errors(WeightForm(4, "tensor", scales)).sum() > errors(WeightForm(4, "channel", scales)).sum()


TABLES: dict[str, tuple[float, int]] = {"nf4": (4, 16), "kmeans": (3, 8), "powers": (4, 15)}


@pytest.mark.parametrize("levels", TABLES)
def test_tables_hold_integers(levels: str) -> None:
    bits, entries = TABLES[levels]
    codes, elem = made(WeightForm(bits, levels=levels, scales="minmax"))
    assert isinstance(elem, Codebook)
    assert elem.codes == Int(int(bits), signed=False)
    assert len(elem.table) == entries
    assert list(elem.table) == sorted(set(elem.table))
    integers = multiplied_integers(elem, codes)
    assert integers.dtype == np.int8
    np.testing.assert_allclose(elem.dequantize(codes), integers * np.float32(elem.scale).reshape(6, 1, 1, 1), rtol=1e-6)
    if levels == "powers":
        assert set(np.abs(elem.table)) == {0, 1, 2, 4, 8, 16, 32, 64}
    if levels == "nf4":
        assert (elem.table[0], elem.table[7], elem.table[-1]) == (-LEVEL_MAX, 0, LEVEL_MAX)


def test_k_means_beats_uniform_levels_of_as_many_bits() -> None:
    assert errors(WeightForm(3, levels="kmeans", scales="minmax")).sum() < 0.7 * errors(WeightForm(3, scales="minmax")).sum()


@pytest.mark.parametrize(("levels", "bits"), [("nf4", 3), ("powers", 5), ("kmeans", 8), ("powers", TERNARY), ("kmeans", TERNARY)])
def test_tables_of_other_sizes_do_not_exist(levels: str, bits: float) -> None:
    with pytest.raises(InvalidPlan, match=levels):
        made(WeightForm(bits, levels=levels))


@pytest.mark.parametrize(
    "form", [WeightForm(8), WeightForm(2), WeightForm(1), WeightForm(4, levels="nf4"), WeightForm(3, levels="kmeans")]
)
def test_channels_and_layers_of_zeros(form: WeightForm) -> None:
    weights = WEIGHTS.copy()
    weights[2] = 0
    codes, elem = made(form, weights)
    assert np.isfinite(elem.scale).all()
    assert np.abs(elem.dequantize(codes)[2] * 0.05).max() < 1e-6 * np.abs(BIAS[2])
    codes, elem = made(form, weights, np.zeros(6, np.float32))
    assert np.abs(elem.dequantize(codes)[2]).max() < 1e-15
    _, none = made(form, np.zeros_like(weights))
    assert len(none.scale) == 6


def test_scales_leave_room_for_large_biases() -> None:
    _, elem = made(WeightForm(2), bias=np.full(6, 1e9, np.float32))
    assert (1e9 / (0.05 * np.asarray(elem.scale)) <= 2.0**30).all()


def test_weights_must_be_finite() -> None:
    bad = WEIGHTS.copy()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(UnsupportedModel, match="'layer'"):
        made(WeightForm(4), bad)


@pytest.mark.parametrize("bits", [1, TERNARY, 2, 3, 4])
@pytest.mark.parametrize("scales", ["auto", "minmax"])
def test_groups_of_inputs_are_nearer_than_channels(bits: float, scales: str) -> None:
    """Products are what their type says, in every channel; steps of groups of their own cost less than one for all."""
    rng = np.random.default_rng(4)
    weights = (rng.standard_t(4, (12, 24, 3, 3)) * rng.uniform(0.2, 1, (12, 24, 1, 1))).astype(np.float32)
    bias = np.zeros(12, np.float32)

    def error(granularity: str) -> float:
        codes, elem = made(WeightForm(bits, granularity, scales), weights, bias)
        return float(((weights - elem.dequantize(codes)) ** 2).sum())

    codes, elem = made(WeightForm(bits, "group32", scales), weights, bias)
    assert isinstance(elem, Quant)
    assert elem.groups == Groups(Int(int(np.ceil(bits))), 32)
    levels, factors = factored(codes, elem.groups)
    assert factors.shape == (12, 3, 3)
    assert set(np.unique(levels)) <= set({1: [-1, 1], TERNARY: [-1, 0, 1]}.get(bits, range(-8, 8)))
    assert error("group16") < error("group32") < error("channel")


def test_groups_of_equal_weights_and_of_zeros() -> None:
    """Nothing is divided by zero; a bias that needs a coarser scale gets it."""
    weights = np.zeros((3, 64), np.float32)
    weights[1] = 0.5
    codes, elem = made(WeightForm(4, "group32"), weights, np.asarray([0, 1, 1e9], np.float32))
    assert elem.dequantize(codes)[1] == pytest.approx(0.5, rel=0.01)
    assert not elem.dequantize(codes)[[0, 2]].any()
    assert elem.scale[2] >= 1e9 / (0.05 * 2**30)


def test_groups_of_resnet20_on_every_layer() -> None:
    """Least squares: the error of every layer is below that of one scale per channel, whatever the bits."""
    model = onnx.load(Path(__file__).parents[3] / "models" / "resnet20_cifar10.onnx")
    layers = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer if len(i.dims) == 4}
    layers = {name: w for name, w in layers.items() if w[0].size >= 64}
    assert len(layers) >= 18
    for name, weights in layers.items():
        bias = np.zeros(len(weights), np.float32)
        for bits in (2, 3, 4):
            error = {}
            for granularity in ("channel", "group32"):
                codes, elem = made(WeightForm(bits, granularity, "mse"), weights, bias)
                error[granularity] = ((weights - elem.dequantize(codes)) ** 2).sum()
            assert error["group32"] < error["channel"], f"{name} at {bits} bits"


def test_rounding_to_uneven_levels() -> None:
    levels = np.asarray([-4.0, -1.0, 0.0, 3.0])
    np.testing.assert_array_equal(rounded(np.asarray([-9, -2.6, -2.4, -0.4, 1.4, 1.6, 9]), levels), [-4, -4, -1, 0, 0, 3, 3])
