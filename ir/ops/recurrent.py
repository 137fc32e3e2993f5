"""Recurrent layers: LSTM, GRU and RNN over sequences of pre-activations.

The product of the inputs with their weights does not depend on the recurrence, so importers make it a Gemm over the whole
sequence; these operators take its result, `gates` [T,B,D*G*H], and do what must happen step by step. D is the number of
directions, G the number of gates (4, 3, 1), H the hidden size. Recurrent weights are transposed, [D,H,G*H], so that every
output's weights lie beside its neighbour's. Initial states may have one row for the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.op import FLOAT_ONLY, Call, PruneRule, QuantRule, bounded_extent, elements, register, require
from bevel.ir.types import F32, TensorType

Array = npt.NDArray[Any]

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), dtype=x.dtype)


# Activations of the ONNX specification: x, alpha, beta.
ACTIVATIONS: dict[str, Callable[[Array, float, float], Array]] = {
    "Relu": lambda x, _a, _b: np.maximum(x, 0),
    "Tanh": lambda x, _a, _b: np.tanh(x),
    "Sigmoid": lambda x, _a, _b: sigmoid(x),
    "Affine": lambda x, a, b: a * x + b,
    "LeakyRelu": lambda x, a, _b: np.where(x < 0, a * x, x),
    "ThresholdedRelu": lambda x, a, _b: np.where(x > a, x, 0),
    "ScaledTanh": lambda x, a, b: a * np.tanh(b * x),
    "HardSigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "Elu": lambda x, a, _b: np.where(x < 0, a * np.expm1(np.minimum(x, 0)), x),
    "Softsign": lambda x, _a, _b: x / (1 + np.abs(x)),
    "Softplus": lambda x, _a, _b: np.logaddexp(x, np.zeros_like(x)),
}


@dataclass(frozen=True)
class RecurrentAttrs:
    """What all recurrent layers have.

    Attributes:
        direction: "forward", "reverse" or "bidirectional".
        activations: names of ACTIVATIONS, for each direction as many as the layer has.
        alphas, betas: their parameters, one each; 0 where a function has none.
        clip: bound on the magnitude of pre-activations; 0 for none. The cell of an LSTM is none, as in onnxruntime.
        lengths: steps of each batch entry's sequence; empty where all use every step. Results beyond are zero.
    """

    direction: str
    activations: tuple[str, ...]
    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    clip: float = 0.0
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class LstmAttrs(RecurrentAttrs):
    """LSTM: whether the forget gate is one minus the input gate."""

    coupled: bool = False


@dataclass(frozen=True)
class GruAttrs(RecurrentAttrs):
    """GRU: whether the reset gate applies after the product with the recurrent weights instead of before."""

    linear_before_reset: bool = False


def _functions(attrs: RecurrentAttrs, direction: int, count: int) -> tuple[Callable[[Array], Array], ...]:
    def bound(index: int) -> Callable[[Array], Array]:
        function, alpha, beta = ACTIVATIONS[attrs.activations[index]], attrs.alphas[index], attrs.betas[index]

        def apply(x: Array) -> Array:
            if attrs.clip > 0 and index % count < 2:
                x = np.clip(x, -attrs.clip, attrs.clip)
            return np.asarray(function(x, alpha, beta), dtype=np.float32)

        return apply

    return tuple(bound(direction * count + i) for i in range(count))


def _unroll(
    attrs: RecurrentAttrs, gates: Array, states: Sequence[Array], begin: Callable[[int], Callable[..., tuple[Array, ...]]]
) -> tuple[Array, ...]:
    """Run all directions.

    Args:
        attrs: of the layer.
        gates: [T, B, D * width].
        states: initial states [D, 1 or B, H], h first.
        begin: for a direction, the function (gates of a step [B, width], *states [B, H]) -> new states.

    Returns:
        h of every step [T, D, B, H], then every final state [D, B, H].
    """
    steps, batch, _ = gates.shape
    backward = DIRECTIONS[attrs.direction]
    hidden = states[0].shape[-1]
    y = np.zeros((steps, len(backward), batch, hidden), np.float32)
    finals = [np.zeros((len(backward), batch, hidden), np.float32) for _ in states]
    lengths = np.asarray(attrs.lengths or [steps] * batch)
    for d, reverse in enumerate(backward):
        part = np.split(gates, len(backward), axis=2)[d]
        current = [np.broadcast_to(s[d], (batch, hidden)).astype(np.float32) for s in states]
        advance = begin(d)
        for t in range(steps):
            # Each entry of the batch walks its own steps; those past their end keep their state.
            alive = t < lengths
            place = np.where(alive, lengths - 1 - t if reverse else t, 0)
            new = advance(part[place, np.arange(batch)], *current)
            current = [np.where(alive[:, None], n, c) for n, c in zip(new, current, strict=True)]
            y[place[alive], d, alive] = current[0][alive]
        for final, state in zip(finals, current, strict=True):
            final[d] = state
    return y, *finals


def _lstm_reference(call: Call, gates: Array, r: Array, h0: Array, c0: Array, p: Array | None = None) -> tuple[Array, ...]:
    at: LstmAttrs = call.attrs
    hidden = r.shape[1]

    def begin(d: int) -> Callable[..., tuple[Array, ...]]:
        f, g, h = _functions(at, d, 3)
        pi, po, pf = np.split(p[d], 3) if p is not None else (np.zeros(hidden, np.float32),) * 3

        def advance(x: Array, state: Array, cell: Array) -> tuple[Array, ...]:
            i, o, forget, c = np.split(x + state @ r[d], 4, axis=1)
            i = f(i + pi * cell)
            forget = 1 - i if at.coupled else f(forget + pf * cell)
            cell = forget * cell + i * g(c)
            return f(o + po * cell) * h(cell), cell

        return advance

    return _unroll(at, gates, (h0, c0), begin)


def _gru_reference(call: Call, gates: Array, r: Array, h0: Array, rb: Array | None = None) -> tuple[Array, ...]:
    at: GruAttrs = call.attrs
    hidden = r.shape[1]

    def begin(d: int) -> Callable[..., tuple[Array, ...]]:
        f, g = _functions(at, d, 2)

        def advance(x: Array, state: Array) -> tuple[Array, ...]:
            z, reset = np.split(f(x[:, : 2 * hidden] + state @ r[d][:, : 2 * hidden]), 2, axis=1)
            last, weights = x[:, 2 * hidden :], r[d][:, 2 * hidden :]
            if at.linear_before_reset:
                inner = state @ weights if rb is None else state @ weights + rb[d]
                candidate = g(last + reset * inner)
            else:
                candidate = g(last + (reset * state) @ weights)
            return ((1 - z) * candidate + z * state,)

        return advance

    return _unroll(at, gates, (h0,), begin)


def _rnn_reference(call: Call, gates: Array, r: Array, h0: Array) -> tuple[Array, ...]:
    def begin(d: int) -> Callable[..., tuple[Array, ...]]:
        (f,) = _functions(call.attrs, d, 1)
        return lambda x, state: (f(x + state @ r[d]),)

    return _unroll(call.attrs, gates, (h0,), begin)


def _infer(gate_count: int, functions: int, states: int) -> Callable[..., tuple[TensorType, ...]]:
    """The type rule of a layer with so many gates, activations and states."""

    def infer(attrs: RecurrentAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
        gates, r = ins[:2]
        require(all(t.elem == F32 for t in ins), "operands must be f32")
        require(attrs.direction in DIRECTIONS, f"direction {attrs.direction!r}: expected one of {', '.join(DIRECTIONS)}")
        count = len(DIRECTIONS[attrs.direction])
        require(gates.rank == 3 and r.rank == 3, f"expected gates [T,B,D*G*H] and r [D,H,G*H], found {gates} and {r}")
        steps, batch, width = gates.shape
        hidden = r.shape[1]
        require(isinstance(hidden, int), f"hidden size {hidden} must be known")
        assert isinstance(hidden, int)
        require(r.shape == (count, hidden, gate_count * hidden), f"r is {r}, expected [{count},H,{gate_count}*H]")
        require(width == count * gate_count * hidden, f"gates are {gates}, expected {count * gate_count * hidden} columns")
        for state in ins[2 : 2 + states]:
            fits = state.rank == 3 and state.shape[0] == count and state.shape[1] in (1, batch) and state.shape[2] == hidden
            require(fits, f"initial state is {state}, expected [{count},{batch},{hidden}]")
        for extra in ins[2 + states :]:
            wide = 3 * hidden if states == 2 else hidden
            require(extra.shape == (count, wide), f"operand is {extra}, expected [{count},{wide}]")
        names, total = attrs.activations, count * functions
        require(len(names) == len(attrs.alphas) == len(attrs.betas) == total, f"expected {total} activations, found {names}")
        require(set(names) <= set(ACTIVATIONS), f"activations {names}: expected some of {', '.join(ACTIVATIONS)}")
        if attrs.lengths:
            known = isinstance(steps, int) and len(attrs.lengths) == batch and all(0 <= n <= steps for n in attrs.lengths)
            require(known, f"lengths {attrs.lengths} do not fit {gates}")
        final = TensorType((count, batch, hidden), F32)
        return TensorType((steps, count, batch, hidden), F32), *[final] * states

    return infer


def _macs(_attrs: RecurrentAttrs, ins: tuple[TensorType, ...], _outs: tuple[TensorType, ...]) -> int:
    steps, batch = (bounded_extent(d) for d in ins[0].shape[:2])
    return steps * batch * elements(ins[1:2])


def _layer(name: str, doc: str, attrs: type[Any], reference: Callable[..., Any], shape: tuple[int, int, int], most: int) -> None:
    gates, functions, states = shape
    register(
        name,
        doc,
        attrs=attrs,
        arity=(2 + states, most),
        infer=_infer(gates, functions, states),
        reference=reference,
        macs=_macs,
        levels=FLOAT_ONLY,
        quant=QuantRule.FLOAT,
        integer=None,
        prune=PruneRule.BLOCKS,
    )


_layer(
    "LSTM",
    "LSTM over pre-activations [T,B,D*4*H], gates i o f c: every h, the last h, the last cell; optional peepholes [D,3*H].",
    LstmAttrs,
    _lstm_reference,
    (4, 3, 2),
    5,
)
_layer(
    "GRU",
    "GRU over pre-activations [T,B,D*3*H], gates z r h: every h, the last h; optional recurrent bias [D,H] behind the reset.",
    GruAttrs,
    _gru_reference,
    (3, 2, 1),
    4,
)
_layer(
    "RNN",
    "Elman network over pre-activations [T,B,D*H]: every h, the last h.",
    RecurrentAttrs,
    _rnn_reference,
    (1, 1, 1),
    3,
)
