"""Kernel cases of recurrent layers: those of the interpreter's tests, and ragged hidden sizes in other layouts."""

from __future__ import annotations

from collections.abc import Iterator

from bevel.ir.ops.recurrent import GruAttrs, LstmAttrs, RecurrentAttrs
from tests.backends.generic_cases import Case, plain, real
from tests.ir.cases_recurrent import cases as float_cases


def cases() -> Iterator[Case]:
    """All of them."""
    for case in float_cases():
        yield Case(case.op, case.attrs, tuple(plain(a) for a in case.arrays()))
    three, two = ("Sigmoid", "Tanh", "Tanh"), ("Sigmoid", "Tanh")
    none = (0.0,) * 6
    for hidden in (1, 7, 37):
        for layout in (None, (1, 0, 2)):
            gates = real(3, 2, 8 * hidden, layout=layout)
            r = real(2, hidden, 4 * hidden, low=-0.3, high=0.3)
            state = (real(2, 1, hidden), real(2, 2, hidden))
            yield Case("LSTM", LstmAttrs("bidirectional", three * 2, none, none), (gates, r, *state))
        gates, r = real(4, 1, 3 * hidden), real(1, hidden, 3 * hidden, low=-0.3, high=0.3)
        yield Case("GRU", GruAttrs("reverse", two, none[:2], none[:2]), (gates, r, real(1, 1, hidden)))
        yield Case(
            "RNN",
            RecurrentAttrs("forward", ("Relu",), (0.0,), (0.0,), 3.0),
            (real(4, 3, hidden), real(1, hidden, hidden, low=-0.3, high=0.3), real(1, 1, hidden)),
        )
