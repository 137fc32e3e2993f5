"""The proof that an exported file computes what its source computes.

In: the file, the source as a function of arrays, and cases (arrays for every input). Out: the greatest error, or a `ParityError`.
The file is run by onnxruntime. Exporters are trusted with nothing: a branch or a length that was true of the traced example only
makes a file that loads, runs and is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import ParityError
from bevel.exporting.extra import require
from bevel.exporting.inputs import InputSpec

Array = npt.NDArray[Any]
Reference = Callable[[Mapping[str, Array]], Sequence[Array]]
Say = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Case:
    """One comparison to make: where its values come from, for messages, and an array for every input."""

    origin: str
    feeds: Mapping[str, Array]


@dataclass(frozen=True)
class Proof:
    """What the comparisons found.

    Attributes:
        cases: how many were made.
        error: the greatest max|d| / max|reference| of any output.
        worst: the case and output it was found at.
        tolerance: what it had to stay below.
    """

    cases: int
    error: float
    worst: str
    tolerance: float


def prove(
    model: Path,
    reference: Reference,
    inputs: Sequence[InputSpec],
    outputs: Sequence[str],
    cases: Sequence[Case],
    tolerance: float,
    say: Say,
) -> Proof:
    """Run every case through the file and through its source, and compare all outputs.

    Args:
        model: ONNX file.
        reference: the source; arrays by input name -> arrays in the order of `outputs`.
        inputs: what the file must take; named dimensions must have stayed named.
        outputs: names that the file must give its outputs.
        cases: at least one.
        tolerance: of max|d| / max|reference|, per output and case; integers and truth values must be equal.
        say: progress.

    Raises:
        ParityError: another interface, a case that the file cannot run, an error above the tolerance, nothing finite to compare.
    """
    ort = require("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ParityError(f"onnxruntime cannot load the exported model ({_first_line(error)})", math.inf) from error
    taken = _check_interface(session, inputs, outputs)
    worst, where, compared = -1.0, "", False
    for number, case in enumerate(cases):
        say("parity", number, len(cases))
        expected = [np.asarray(array) for array in reference(case.feeds)]
        try:
            found = session.run(None, {name: case.feeds[name] for name in taken})
        except Exception as error:
            raise ParityError(
                f"{case.origin}: onnxruntime cannot run the exported model ({_first_line(error)})", math.inf
            ) from error
        for name, wanted, got in zip(outputs, expected, found, strict=True):
            error_size = difference(wanted, got)
            compared = compared or bool(wanted.size and np.isfinite(wanted).any())
            if not error_size <= tolerance:
                raise ParityError(
                    f"{case.origin}: output {name!r} is wrong: {_describe(wanted, got, error_size)}, allowed {tolerance:g}. "
                    "The exporter lost something that the traced example did not show; nothing was written",
                    error_size,
                )
            if error_size > worst:
                worst, where = error_size, f"{case.origin}, output {name}"
    say("parity", len(cases), len(cases))
    if not compared:
        raise ParityError(
            f"the source gave no finite value in {len(cases)} cases, so nothing is proven; check its weights", math.inf
        )
    return Proof(len(cases), worst, where, tolerance)


def difference(expected: Array, found: Array) -> float:
    """max|d| / max|expected| over elements that are finite in `expected`; max|d| where that is all zero.

    Infinite when shapes, element kinds, integers or truth values differ, or when NaN and infinity stand in other places.
    """
    if expected.shape != found.shape or expected.dtype.kind != found.dtype.kind:
        return math.inf
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else math.inf
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], found[~finite], equal_nan=True):
        return math.inf
    a, b = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    if not a.size:
        return 0.0
    if not np.isfinite(b).all():
        return math.inf
    scale = float(np.abs(a).max())
    return float(np.abs(a - b).max()) / (scale or 1.0)


def _describe(expected: Array, found: Array, error: float) -> str:
    if expected.shape != found.shape or expected.dtype.kind != found.dtype.kind:
        return f"{found.dtype}{list(found.shape)} instead of {expected.dtype}{list(expected.shape)}"
    if expected.dtype.kind != "f":
        return f"{int((expected != found).sum())} of {expected.size} {expected.dtype} values differ"
    if math.isinf(error):
        return "NaN or infinity in other places"
    return f"max|d|/max|reference| is {error:.3g}"


def _check_interface(session: Any, inputs: Sequence[InputSpec], outputs: Sequence[str]) -> list[str]:
    """Names of the inputs that the file takes: exporters leave out what has no influence."""
    specs = {spec.name: spec for spec in inputs}
    for value in session.get_inputs():
        if value.name not in specs:
            raise ParityError(f"the exported model has an input {value.name!r}; expected {list(specs)}", math.inf)
        wanted = specs[value.name].shape
        fixed = [w for w, f in zip(wanted, value.shape, strict=False) if isinstance(w, str) and isinstance(f, int)]
        if len(wanted) != len(value.shape) or fixed:
            raise ParityError(
                f"input {value.name!r} was exported as {value.shape}, asked for {list(wanted)}: "
                "the model works at the traced example's size only",
                math.inf,
            )
    names = [value.name for value in session.get_outputs()]
    if names != list(outputs):
        raise ParityError(f"the exported model has outputs {names}; expected {list(outputs)}", math.inf)
    return [value.name for value in session.get_inputs()]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
