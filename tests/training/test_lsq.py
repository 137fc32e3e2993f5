"""The quantizer is the element type's, bit for bit, and its gradients are those of Esser et al. 2020."""

# ruff: noqa: E402  # what torch is needed for is imported once it is known to be there
from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `export`)")

from bevel.ir.types import Int, Quant
from bevel.training.lsq import gradient_factor, quantize, rescaled, rounded

TYPES = [
    Quant(Int(8), (0.0371,), (-128,)),
    Quant(Int(8), (0.011,), (13,)),
    Quant(Int(2, signed=False), (0.4173,), (0,)),
    Quant(Int(3, signed=False), (0.3,), (3,)),
    Quant(Int(1, signed=False), (1.25,), (0,)),
    Quant(Int(4), (0.1, 0.25, 3.5), (0,), axis=0),
    Quant(Int(1), (0.5, 1.0, 2.0), (0,), axis=0),
]


def _reals(elem: Quant) -> np.ndarray:
    """Random numbers, and the thresholds between codes, as far as float32 has them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 4000)) * 4
    x[:, :600] = np.asarray(elem.scale)[:, None] * (rng.integers(-130, 130, (3, 600)) + 0.5)
    x[:, 600:603] = 0.0, -0.0, 1e30
    return x.astype(np.float32)


@pytest.mark.parametrize("elem", TYPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_codes_are_those_of_the_element_type(elem: Quant, dtype: str) -> None:
    x, zero = _reals(elem), elem.zero_point[0]
    step = torch.tensor(np.asarray(elem.scale, np.float32)).reshape(-1, 1)
    lo, hi = elem.storage.min - zero, elem.storage.max - zero
    codes = quantize(
        torch.from_numpy(x), step, lo, hi, count=1, bipolar=elem.storage.bipolar, dtype=getattr(torch, dtype)
    ).float()
    expected = elem.quantize(x)
    assert np.array_equal(codes.numpy() + zero, expected)
    assert np.array_equal((codes * step).numpy(), elem.dequantize(expected))


@pytest.mark.parametrize(("lo", "hi"), [(0, 3), (-2, 1), (-3, 12)])
@pytest.mark.parametrize("channels", [1, 5])
def test_gradients_against_finite_differences_of_the_surrogate(lo: int, hi: int, channels: int) -> None:
    """The surrogate: rounding errors are constants, so x^ = s (clamp(x / s) + error) can be differentiated numerically."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 40)) * 2
    s = rng.uniform(0.3, 0.6, (channels, 1))
    weight = rng.standard_normal(x.shape)
    error = np.rint(np.clip(x / s, lo, hi)) - np.clip(x / s, lo, hi)

    def surrogate(x: np.ndarray, s: np.ndarray) -> float:
        return float((weight * s * (np.clip(x / s, lo, hi) + error)).sum())

    xt, st = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, s))
    codes = quantize(xt, st, lo, hi, count=40, dtype=torch.float64)
    (codes * st.detach() * torch.tensor(weight)).sum().backward()
    tiny = 1e-6
    for i in range(channels):
        moved = np.zeros_like(s)
        moved[i] = tiny
        expected = (surrogate(x, s + moved) - surrogate(x, s - moved)) / (2 * tiny)
        assert float(st.grad[i]) == pytest.approx(expected * gradient_factor(lo, hi, 40), rel=1e-5)
    for i, j in [(0, 0), (1, 7), (4, 39), (2, 20), (3, 11)]:
        moved = np.zeros_like(x)
        moved[i, j] = tiny
        expected = (surrogate(x + moved, s) - surrogate(x - moved, s)) / (2 * tiny)
        assert float(xt.grad[i, j]) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_the_gradient_of_a_step_is_that_of_the_paper() -> None:
    """Below, inside and above the range: Qn, round(v / s) - v / s, Qp, each times 1 / sqrt(n Qp)."""
    for v, expected in [(-9.0, -2.0), (0.3, 1.0 - 0.6), (9.0, 1.0)]:
        step = torch.tensor([0.5], requires_grad=True)
        (quantize(torch.tensor([v]), step, -2, 1, count=7) * step.detach()).sum().backward()
        assert float(step.grad) == pytest.approx(expected / np.sqrt(7 * 2), rel=1e-6)


def test_binary_weights_learn_within_one_step() -> None:
    x = torch.tensor([-3.0, -0.4, 0.4, 3.0], requires_grad=True)
    step = torch.tensor([1.0], requires_grad=True)
    (quantize(x, step, -1, 1, count=4, bipolar=True) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 0.0]
    assert float(step.grad) == pytest.approx((-1 - 2 + 3 + 4 - (2 * -0.4 + 3 * 0.4)) / 2)


def test_rescaling_and_rounding_pass_gradients() -> None:
    sums = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    bias, scale = torch.tensor([0.4, 1.6], requires_grad=True), torch.tensor([2.0, 3.0])
    y = rescaled(sums, rounded(bias), scale)
    assert y.tolist() == [[2.0, 12.0], [6.0, 18.0]]
    y.backward(torch.tensor([[1.0, 1.0], [10.0, 10.0]]))
    assert sums.grad.tolist() == [[2.0, 3.0], [20.0, 30.0]]
    assert bias.grad.tolist() == [22.0, 33.0]
