"""Recurrent layers: LSTM, GRU and RNN over any layout of the pre-activations.

Loop nest: directions and sequences of the batch (the parallel axis), time steps; in each step the state's product with the
recurrent weights, whose columns are vectors held in registers, then the gates, vectors of the hidden units. State and gates
live in scratch. docs of `bevel.ir.ops.recurrent` has the operands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bevel.backends.generic import functions
from bevel.backends.generic.definition import Definition, Frame, define
from bevel.backends.generic.lanes import Lanes, cut
from bevel.backends.kernel import Array, NodeProblem
from bevel.backends.tvm import Buffer, Expr
from bevel.ir.ops.recurrent import DIRECTIONS

# Vectors of columns per step of a product: four independent accumulators hide most of the multiply-add latency.
_WIDTH = 4

ACTIVATIONS: Mapping[str, Callable[[Lanes, Expr, float, float], Expr]] = {
    "Relu": lambda v, x, _a, _b: v.max(x, v.f32(0)),
    "Tanh": lambda v, x, _a, _b: functions.tanh(v, x),
    "Sigmoid": lambda v, x, _a, _b: functions.sigmoid(v, x),
    "Affine": lambda v, x, a, b: x * v.f32(a) + v.f32(b),
    "LeakyRelu": lambda v, x, a, _b: v.select(x < v.f32(0), x * v.f32(a), x),
    "ThresholdedRelu": lambda v, x, a, _b: v.select(x > v.f32(a), x, v.f32(0)),
    "ScaledTanh": lambda v, x, a, b: v.f32(a) * functions.tanh(v, x * v.f32(b)),
    "HardSigmoid": lambda v, x, a, b: v.clamp(x * v.f32(a) + v.f32(b), 0, 1, "float32"),
    "Elu": lambda v, x, a, _b: functions.elu(v, x, a),
    "Softsign": lambda v, x, _a, _b: x / (v.f32(1) + functions.absolute(v, x)),
    "Softplus": lambda v, x, _a, _b: functions.softplus(v, x),
}


@dataclass(frozen=True)
class _Unit:
    """One direction of one sequence.

    Attributes:
        frame, problem: the kernel being written.
        d: the direction, an int.
        b: the sequence.
        gates: offset of the current step's pre-activations.
    """

    frame: Frame
    problem: NodeProblem
    d: int
    b: Expr
    gates: Expr

    @property
    def hidden(self) -> int:
        """Hidden units."""
        return self.problem.inputs[1].shape[1]

    @property
    def scratch(self) -> Buffer:
        """This thread's float32 scratch."""
        return self.frame.scratch

    def activate(self, v: Lanes, index: int, count: int, x: Expr) -> Expr:
        """Activation `index` of the `count` that each direction has; the third is of a cell, which is not clipped."""
        at, i = self.problem.attrs, self.d * count + index
        if at.clip > 0 and index < 2:
            x = v.clamp(x, -at.clip, at.clip, "float32")
        return ACTIVATIONS[at.activations[i]](v, functions.hold(v, x, "float32"), at.alphas[i], at.betas[i])

    def step_gates(self, v: Lanes, column: Expr) -> Expr:
        """Pre-activations of this step from `column` of the direction's gates on."""
        stride = self.problem.inputs[0].strides()[2]
        width = self.problem.inputs[1].shape[2]
        return v.load(self.frame.inputs[0], self.gates + (column + self.d * width) * stride, stride)

    def vectors(self, extent: int, width: int, body: Callable[[Lanes, Expr], None]) -> None:
        """`body` for every vector of `width` registers in [0, extent)."""
        for block in cut(extent, width * self.frame.lanes):
            with self.frame.k.serial(block.loops) as i:
                body(Lanes(self.frame.k, block.lanes), i * block.lanes + block.first)

    def product(self, state: int, first: int, count: int, start: Callable[[Lanes, Expr], Expr], target: int) -> None:
        """scratch[target + j] = start(j) + scratch[state...] times column j of the weights, j from `first` for `count`."""
        weights = self.problem.inputs[1].strides()

        def block(v: Lanes, index: Expr) -> None:
            column = index + first
            acc = v.k.alloc(v.n, "float32")
            v.store(acc, 0, start(v, column))
            with v.k.serial(self.hidden) as i:
                row = self.d * weights[0] + i * weights[1] + column * weights[2]
                w = v.load(self.frame.inputs[1], row, weights[2])
                v.store(acc, 0, v.load(acc, 0) + v.load(self.scratch, state + i, 0) * w)
            v.store(self.scratch, target + column, v.load(acc, 0))

        self.vectors(count, _WIDTH, block)

    def row(self, v: Lanes, operand: int, index: Expr) -> Expr:
        """Element `index` of the direction's row of an operand [D, n]."""
        strides = self.problem.inputs[operand].strides()
        return v.load(self.frame.inputs[operand], self.d * strides[0] + index * strides[1], strides[1])

    def load(self, v: Lanes, place: int, index: Expr) -> Expr:
        """scratch[place + index...]."""
        return v.load(self.scratch, place + index)

    def keep(self, v: Lanes, place: int, index: Expr, value: Expr) -> None:
        """scratch[place + index...] = value."""
        v.store(self.scratch, place + index, value)


class _Recurrent(Definition):
    """Shared walk over directions, sequences and steps.

    Attributes:
        states: initial and final states, the first of them h; they begin the scratch.
        floats: scratch elements per hidden unit.
    """

    scratch_dtype = "float32"
    states = 1
    floats = 2

    def refuse(self, problem: NodeProblem) -> str | None:
        bufs = (*problem.inputs, *problem.outputs)
        if any(buf.dtype != "float32" for buf in bufs):
            return f"{problem.op} over {', '.join(sorted({buf.dtype for buf in bufs}))}: expected float32"
        if any(buf.strides()[-1] != 1 for buf in problem.outputs):
            return f"{problem.op} into permuted memory: expected row-major results"
        return None

    def takes_dims(self, problem: NodeProblem) -> bool:
        """The number of steps may be a run-time extent, nothing else."""
        others = [*problem.inputs[1:], *problem.outputs[1:]]
        steps = [problem.inputs[0].dims[1:], problem.outputs[0].dims[1:]]
        return not any(any(buf.dims) for buf in others) and not any(any(dims) for dims in steps)

    def vectorised(self, problem: NodeProblem) -> bool:
        """Whether the columns of the recurrent weights are contiguous."""
        return problem.inputs[1].strides()[2] == 1

    def extent(self, problem: NodeProblem) -> int:
        """Sequences of all directions."""
        return len(DIRECTIONS[problem.attrs.direction]) * problem.inputs[0].shape[1]

    def tables(self, problem: NodeProblem) -> list[Array]:
        """The lengths of the sequences, where they differ from the number of steps."""
        return [np.asarray(problem.attrs.lengths, np.int32)] if problem.attrs.lengths else []

    def scratch_bytes(self, problem: NodeProblem) -> int:
        """States and gates."""
        return 4 * self.floats * problem.inputs[1].shape[1]

    def emit(self, frame: Frame, problem: NodeProblem) -> None:
        """See the module's docstring."""
        k, batch = frame.k, problem.inputs[0].shape[1]
        backward = DIRECTIONS[problem.attrs.direction]
        with k.serial(frame.lo, frame.hi) as index:
            if len(backward) == 1:
                self._sequence(frame, problem, 0, index, reverse=backward[0])
                return
            for d, reverse in enumerate(backward):
                with k.when(k.all(index >= d * batch, index < (d + 1) * batch)):
                    self._sequence(frame, problem, d, index - d * batch, reverse=reverse)

    def _sequence(self, frame: Frame, problem: NodeProblem, d: int, b: Expr, *, reverse: bool) -> None:
        k, gates, y = frame.k, problem.inputs[0], problem.outputs[0]
        steps = frame.count(gates.shape[0], gates.dim(0))
        length = k.load(frame.tables[0], b) if frame.tables else steps
        still = _Unit(frame, problem, d, b, 0)
        self._begin(still)
        ys = y.strides()
        with k.serial(k.i32(0), length) as t:
            place = length - 1 - t if reverse else t
            unit = _Unit(frame, problem, d, b, place * gates.strides()[0] + b * gates.strides()[1])
            self.step(unit)
            self._put(still, 0, 0, place * ys[0] + d * ys[1] + b * ys[2])
        if frame.tables:
            with k.serial(length, steps) as t:
                self._put(still, 0, None, t * ys[0] + d * ys[1] + b * ys[2])
        for state in range(self.states):
            strides = problem.outputs[1 + state].strides()
            self._put(still, 1 + state, state, d * strides[0] + b * strides[1])

    def _begin(self, unit: _Unit) -> None:
        """Initial states into scratch; one row serves the whole batch where there is only one."""
        for state in range(self.states):
            initial = unit.problem.inputs[2 + state]
            strides = initial.strides()
            base = unit.d * strides[0] + (unit.b * strides[1] if initial.shape[1] > 1 else 0)

            def load(v: Lanes, i: Expr, state: int = state, base: Expr = base, stride: int = strides[2]) -> None:
                value = v.load(unit.frame.inputs[2 + state], base + i * stride, stride)
                v.put(unit.scratch, state * unit.hidden + i, value, "float32")

            unit.vectors(unit.hidden, 1, load)

    def _put(self, unit: _Unit, output: int, state: int | None, base: Expr) -> None:
        """A state (None: zeros) to a row of an output."""

        def store(v: Lanes, i: Expr) -> None:
            value = v.f32(0) if state is None else unit.load(v, state * unit.hidden, i)
            v.put(unit.frame.outputs[output], base + i, value, "float32")

        unit.vectors(unit.hidden, 1, store)

    def step(self, unit: _Unit) -> None:
        """Advance the states by one step."""
        raise NotImplementedError


class _Lstm(_Recurrent):
    """Scratch: h, c, gates i o f c."""

    states = 2
    floats = 6

    def step(self, unit: _Unit) -> None:
        """Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000)."""
        n = unit.hidden
        pre, peepholes = 2 * n, len(unit.problem.inputs) > 4
        unit.product(0, 0, 4 * n, unit.step_gates, pre)

        def gates(v: Lanes, i: Expr) -> None:
            cell = unit.load(v, n, i)

            def gate(place: int, activation: int, hole: int | None, state: Expr) -> Expr:
                x = unit.load(v, pre + place * n, i)
                if peepholes and hole is not None:
                    x = x + unit.row(v, 4, i + hole * n) * state
                return functions.hold(v, unit.activate(v, activation, 3, x), "float32")

            enter = gate(0, 0, 0, cell)
            forget = v.f32(1) - enter if unit.problem.attrs.coupled else gate(2, 0, 2, cell)
            new = functions.hold(v, forget * cell + enter * gate(3, 1, None, cell), "float32")
            leave = gate(1, 0, 1, new)
            unit.keep(v, n, i, new)
            unit.keep(v, 0, i, leave * unit.activate(v, 2, 3, new))

        unit.vectors(n, 1, gates)


class _Gru(_Recurrent):
    """Scratch: h, gates z r h, reset state."""

    floats = 5

    def step(self, unit: _Unit) -> None:
        """Cho et al. (2014)."""
        n, pre, reset = unit.hidden, unit.hidden, 4 * unit.hidden
        after = unit.problem.attrs.linear_before_reset
        unit.product(0, 0, 2 * n, unit.step_gates, pre)

        def inner_bias(v: Lanes, column: Expr) -> Expr:
            return unit.row(v, 3, column - 2 * n) if len(unit.problem.inputs) > 3 else v.f32(0)

        def first(v: Lanes, i: Expr) -> None:
            unit.keep(v, pre, i, unit.activate(v, 0, 2, unit.load(v, pre, i)))
            r = functions.hold(v, unit.activate(v, 0, 2, unit.load(v, pre + n, i)), "float32")
            unit.keep(v, reset, i, r if after else r * unit.load(v, 0, i))

        def last(v: Lanes, i: Expr) -> None:
            x = unit.load(v, pre + 2 * n, i)
            if after:
                x = unit.step_gates(v, i + 2 * n) + unit.load(v, reset, i) * x
            z, h = unit.load(v, pre, i), unit.load(v, 0, i)
            unit.keep(v, 0, i, (v.f32(1) - z) * unit.activate(v, 1, 2, x) + z * h)

        unit.vectors(n, 1, first)
        unit.product(0 if after else reset, 2 * n, n, inner_bias if after else unit.step_gates, pre)
        unit.vectors(n, 1, last)


class _Rnn(_Recurrent):
    """Scratch: h, pre-activations."""

    def step(self, unit: _Unit) -> None:
        """Elman (1990)."""
        n = unit.hidden
        unit.product(0, 0, n, unit.step_gates, n)
        unit.vectors(n, 1, lambda v, i: unit.keep(v, 0, i, unit.activate(v, 0, 1, unit.load(v, n, i))))


define("LSTM", _Lstm())
define("GRU", _Gru())
define("RNN", _Rnn())
