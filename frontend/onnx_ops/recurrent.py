"""LSTM, GRU and RNN: the product with the inputs becomes a Gemm over the whole sequence, the recurrence an operator of its own.

ONNX concatenates directions and gates along axes 0 and 1 of W [D,G*H,I] and R [D,G*H,H], and biases of both products in
B [D,2*G*H]. The input product of all directions is one Gemm with [D*G*H,I], whose bias is both biases' sum, but for the part
of GRU's recurrent bias that its reset gate scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.frontend.builder import Builder, Codes, OnnxNode, Operand
from bevel.ir.ops.movement import TransposeAttrs
from bevel.ir.ops.recurrent import ACTIVATIONS, DIRECTIONS, GruAttrs, LstmAttrs, RecurrentAttrs

Array = npt.NDArray[Any]

# Defaults of alpha and beta where the functions have them (ONNX: those of the operators of the same name).
ALPHAS = {"Affine": 1.0, "LeakyRelu": 0.01, "ThresholdedRelu": 1.0, "ScaledTanh": 1.0, "HardSigmoid": 0.2, "Elu": 1.0}
BETAS = {"Affine": 0.0, "ScaledTanh": 1.0, "HardSigmoid": 0.5}
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _floats(node: OnnxNode, name: str) -> list[float]:
    values = [float(v) for v in node.raw(name) or ()]
    if not np.isfinite(values).all():
        node.refuse(f"{name}={values}", "finite numbers")
    return values


def _activations(node: OnnxNode, directions: int) -> tuple[tuple[str, ...], tuple[float, ...], tuple[float, ...]]:
    """Names, alphas and betas; given parameters go in order to the functions that have one."""
    default = DEFAULTS[node.op] * directions
    spelled = {name.lower(): name for name in ACTIVATIONS}
    given = [str(n) for n in node.raw("activations") or default]
    names = tuple(spelled.get(n.lower(), n) for n in given)
    if len(names) != len(default) or not set(names) <= set(ACTIVATIONS):
        node.refuse(f"activations={given}", f"{len(default)} of {', '.join(ACTIVATIONS)}")
    parameters = []
    for attribute, defaults in (("activation_alpha", ALPHAS), ("activation_beta", BETAS)):
        values = _floats(node, attribute)
        parameters.append(tuple((values.pop(0) if values else defaults[n]) if n in defaults else 0.0 for n in names))
    return names, parameters[0], parameters[1]


def _lengths(node: OnnxNode, steps: object, batch: object) -> tuple[int, ...]:
    lengths = node.known_ints(4, "sequence_lens") or ()
    if all(n == steps for n in lengths):
        return ()
    if not isinstance(steps, int) or len(lengths) != batch or not all(0 <= n <= steps for n in lengths):
        node.refuse(
            f"sequence_lens={list(lengths)} for {steps} steps of {batch} sequences", "one length for each, within the steps"
        )
    return lengths


def _weight(node: OnnxNode, index: int, what: str) -> Array:
    """A known weight as reals."""
    array = node.known(index, what)
    if array is None or array.ndim != (2 if what in ("bias", "peepholes") else 3) or array.dtype.kind != "f":
        node.refuse(f"{what} that are missing, or have another rank or type", "floats of the ONNX operator specification")
    return array


def _state(node: OnnxNode, index: int, shape: tuple[int, int], *, batchwise: bool) -> Operand:
    """An initial state [D,B,H]; one row of zeros where it is left out."""
    operand = node.optional(index)
    if operand is None:
        return np.zeros((shape[0], 1, shape[1]), np.float32)
    if not batchwise:
        return operand
    if isinstance(operand, np.ndarray):
        return operand.swapaxes(0, 1)
    return node.emit("Transpose", [operand], TransposeAttrs((1, 0, 2)), suffix=f".state{index}")


def convert_recurrent(_builder: Builder, node: OnnxNode) -> tuple[Operand, ...]:
    """LSTM, GRU and RNN with constant weights."""
    direction, batchwise = node.text("direction", "forward").lower(), bool(node.integer("layout", 0))
    if direction not in DIRECTIONS:
        node.refuse(f"direction={direction!r}", ", ".join(DIRECTIONS))
    directions, gates = len(DIRECTIONS[direction]), GATES[node.op]
    w, r = _weight(node, 1, "weights"), _weight(node, 2, "recurrent weights")
    hidden = node.integer("hidden_size", r.shape[2])
    if r.shape != (directions, gates * hidden, hidden) or w.shape[:2] != (directions, gates * hidden) or not hidden:
        node.refuse(f"weights {list(w.shape)} and {list(r.shape)}", f"[{directions},{gates}*hidden_size,...]")
    x = node.operand(0)
    if isinstance(x, Codes) or len(node.shape(0)) != 3:
        node.refuse(f"input {list(map(str, node.shape(0)))}", "a real sequence [T,B,I]")
    time, batch = node.shape(0)[:2][::-1] if batchwise else node.shape(0)[:2]
    names, alphas, betas = _activations(node, directions)
    common: dict[str, Any] = {
        "direction": direction,
        "activations": names,
        "alphas": alphas,
        "betas": betas,
        "clip": node.number("clip", 0.0),
        "lengths": _lengths(node, time, batch),
    }
    bias = _weight(node, 3, "bias") if node.optional(3) is not None else np.zeros((directions, 2 * gates * hidden), np.float32)
    if bias.shape != (directions, 2 * gates * hidden):
        node.refuse(f"bias {list(bias.shape)}", f"[{directions},{2 * gates * hidden}]")
    of_input, of_state = np.split(bias, 2, axis=1)
    extra: list[Operand] = [_state(node, 5, (directions, hidden), batchwise=batchwise)]
    attrs: RecurrentAttrs
    if node.op == "LSTM":
        attrs = LstmAttrs(**common, coupled=bool(node.integer("input_forget", 0)))
        extra.append(_state(node, 6, (directions, hidden), batchwise=batchwise))
        if node.optional(7) is not None:
            extra.append(_weight(node, 7, "peepholes"))
    elif node.op == "GRU":
        attrs = GruAttrs(**common, linear_before_reset=bool(node.integer("linear_before_reset", 0)))
        if attrs.linear_before_reset:
            extra.append(of_state[:, 2 * hidden :])
            of_state = of_state * (np.arange(gates * hidden) < 2 * hidden).astype(np.float32)
    else:
        attrs = RecurrentAttrs(**common)
    total = np.asarray(of_input + of_state, np.float32).reshape(-1)
    pre = node.emit("Gemm", [x, w.reshape(-1, w.shape[2]), total], suffix=".gates")
    if batchwise:
        pre = node.emit("Transpose", [pre], TransposeAttrs((1, 0, 2)), suffix=".steps")
    results = 3 if node.op == "LSTM" else 2
    suffix = ".steps" if batchwise else ""
    found = node.emit_all(node.op, [pre, r.swapaxes(1, 2), *extra], attrs, results=results, suffix=suffix)
    if not batchwise:
        return found
    perms = ((2, 0, 1, 3), *[(1, 0, 2)] * (results - 1))
    used = [i < len(node.outputs) and bool(node.outputs[i]) for i in range(results)]
    return tuple(
        node.emit("Transpose", [value], TransposeAttrs(perm), result=i) if used[i] else value
        for i, (value, perm) in enumerate(zip(found, perms, strict=True))
    )


TABLE = {"LSTM": convert_recurrent, "GRU": convert_recurrent, "RNN": convert_recurrent}
