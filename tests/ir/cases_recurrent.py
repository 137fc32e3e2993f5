"""Recurrent layers against onnxruntime, whose input weights are the identity: our operators take the gates."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.ir.ops.recurrent import DIRECTIONS, GruAttrs, LstmAttrs, RecurrentAttrs
from tests.ir.float_case import Case

Array = npt.NDArray[Any]
STEPS, BATCH, HIDDEN = 5, 3, 4
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
CLASSES: dict[str, type[RecurrentAttrs]] = {"LSTM": LstmAttrs, "GRU": GruAttrs, "RNN": RecurrentAttrs}


def _case(
    op: str,
    direction: str = "forward",
    functions: tuple[tuple[str, float, float], ...] = (),
    lengths: tuple[int, ...] = (),
    clip: float = 0.0,
    *,
    extra: bool = False,
    **flags: int,
) -> Case:
    """One layer; `extra` adds peepholes or the bias behind the reset."""
    rng = np.random.default_rng(len(op) + len(direction))

    def normal(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    count, width = len(DIRECTIONS[direction]), GATES[op] * HIDDEN
    chosen = functions * count or tuple((n, 0.0, 0.0) for n in DEFAULTS[op] * count)
    names, alphas, betas = (tuple(column) for column in zip(*chosen, strict=True))
    spelled = {("coupled" if k == "input_forget" else k): bool(v) for k, v in flags.items()}
    attrs = CLASSES[op](direction, names, alphas, betas, clip, lengths, **spelled)
    gates, r = normal(STEPS, BATCH, count * width), normal(count, HIDDEN, width)
    states = [normal(count, BATCH, HIDDEN) for _ in range(2 if op == "LSTM" else 1)]
    inputs = [gates, r, *states]
    identity = np.eye(count * width, dtype=np.float32).reshape(count, width, count * width)
    bias = None
    if extra:
        inputs.append(normal(count, 3 * HIDDEN if op == "LSTM" else HIDDEN))
        if op == "GRU":
            bias = np.zeros((count, 2 * width), np.float32)
            bias[:, -HIDDEN:] = inputs[-1]
    operands: list[Any] = [0, identity, np.ascontiguousarray(r.swapaxes(1, 2)), bias]
    operands += [np.asarray(lengths, np.int32) if lengths else None, *range(2, 2 + len(states))]
    if extra and op == "LSTM":
        operands.append(4)
    onnx: dict[str, Any] = {"hidden_size": HIDDEN, "direction": direction, "activations": names, **flags}
    for name, values in (("activation_alpha", alphas), ("activation_beta", betas)):
        if given := [value for value in values if value]:
            onnx[name] = given
    if clip:
        onnx["clip"] = clip
    return Case(op, inputs, attrs, onnx, outputs=1 + len(states), operands=operands)


def cases() -> list[Case]:
    """Directions, lengths, clipping, every kind of activation, and what each layer has of its own."""
    found = [_case(op, direction) for op in GATES for direction in DIRECTIONS]
    found += [_case(op, "bidirectional", lengths=(5, 2, 3)) for op in GATES]
    found += [_case(op, clip=0.7) for op in GATES]
    found += [
        _case("LSTM", "bidirectional", extra=True),
        _case("LSTM", input_forget=1),
        _case("LSTM", functions=(("HardSigmoid", 0.3, 0.4), ("Softsign", 0.0, 0.0), ("Relu", 0.0, 0.0))),
        _case("GRU", "reverse", linear_before_reset=1, extra=True),
        _case("GRU", "bidirectional", linear_before_reset=1),
        _case("GRU", functions=(("Sigmoid", 0.0, 0.0), ("ScaledTanh", 0.8, 1.2))),
    ]
    others = (
        ("Affine", 0.4, 0.1),
        ("LeakyRelu", 0.3, 0.0),
        ("ThresholdedRelu", 0.2, 0.0),
        ("Elu", 0.5, 0.0),
        ("Softplus", 0.0, 0.0),
    )
    return found + [_case("RNN", functions=(function,)) for function in others]
