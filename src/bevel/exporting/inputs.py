"""What a model takes: names, shapes with named bounded dimensions, element types, and random values to try it on.

In: descriptions such as `1,seq[1:256]:int64[0:30522]`, or example arrays. Out: `InputSpec`s, the bounds of the named dimensions,
and arrays of given sizes drawn from a seed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import UsageError

Array = npt.NDArray[Any]
Bounds = tuple[int, int]

_DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")
_DIM = re.compile(r"(?P<name>[A-Za-z_]\w*)(?:\[(?P<low>\d+):(?P<high>\d+)\])?|(?P<fixed>\d+)")
_TYPE = re.compile(r"(?P<dtype>\w+)(?:\[(?:(?P<mask>mask)|(?P<low>[-+.\deE]+):(?P<high>[-+.\deE]+))\])?")
_FORM = "expected dimensions, then optionally a type and a range of values, as in 1,3,224,224 or 1,seq[1:256]:int64[0:30522]"
# Extents that examples of named dimensions take beyond their lower bound. They differ, so that two dimensions are not taken for
# one, and are above 1, which exporters specialize.
_EXAMPLE_EXTENTS = (13, 17, 19, 23, 29, 31, 37, 41)


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: name in the exported file.
        shape: extents; a str names a dimension.
        dtype: numpy's name of the element type.
        low: least random value; None for the default (a normal distribution for reals, 0 for integers).
        high: bound of random values, not reached; None for the default (2 for integers).
        mask: values are ones followed by zeros along the last axis, as in an attention mask.
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str = "float32"
    low: float | None = None
    high: float | None = None
    mask: bool = False

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of its dimensions, in order, each once."""
        return tuple(dict.fromkeys(extent for extent in self.shape if isinstance(extent, str)))

    def extents(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with `sizes` for its named dimensions."""
        return tuple(sizes[extent] if isinstance(extent, str) else extent for extent in self.shape)

    def draw(self, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
        """Random values of the shape with `sizes`."""
        shape, dtype = self.extents(sizes), np.dtype(self.dtype)
        if self.mask:
            length = shape[-1] if shape else 1
            ones = rng.integers(1, length + 1, (*shape[:-1], 1))
            return np.broadcast_to(np.arange(length) < ones, shape).astype(dtype)
        if dtype.kind == "f":
            if self.low is None or self.high is None:
                return rng.standard_normal(shape).astype(dtype)
            return rng.uniform(self.low, self.high, shape).astype(dtype)
        low, high = (0 if self.low is None else int(self.low)), (2 if self.high is None else int(self.high))
        return rng.integers(low, high, shape).astype(dtype)


def parse_input(name: str, text: str) -> tuple[InputSpec, dict[str, Bounds]]:
    """An input written as text, and the bounds that the text gives to dimensions.

    Raises:
        UsageError: the text has another form, an unknown type, or empty bounds.
    """
    shape_text, separator, type_text = _split_type(text)
    shape: list[int | str] = []
    bounds: dict[str, Bounds] = {}
    for part in shape_text.split(",") if shape_text else []:
        match = _DIM.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"input {name}={text}: dimension {part!r} found; {_FORM}")
        if match["fixed"]:
            shape.append(int(match["fixed"]))
            continue
        shape.append(match["name"])
        if match["low"]:
            _bind(bounds, match["name"], (int(match["low"]), int(match["high"])))
    typed = _TYPE.fullmatch(type_text) if separator else None
    if separator and typed is None:
        raise UsageError(f"input {name}={text}: type {type_text!r} found; {_FORM}")
    dtype = typed["dtype"] if typed else "float32"
    if dtype not in _DTYPES:
        raise UsageError(f"input {name}={text}: type {dtype!r} is unknown; choose one of {', '.join(_DTYPES)}")
    low = high = None
    if typed and typed["low"]:
        low, high = _number(typed["low"], name, text), _number(typed["high"], name, text)
        if not low < high:
            raise UsageError(f"input {name}={text}: no value lies in [{low:g}:{high:g}]; the second must be above the first")
    return InputSpec(name, tuple(shape), dtype, low, high, bool(typed and typed["mask"])), bounds


def describe_example(name: str, example: Array) -> InputSpec:
    """An input that looks like `example`: its shape and type, and random values within its range.

    Raises:
        UsageError: not an array of numbers, or an array without elements.
    """
    if example.dtype.name not in _DTYPES or not example.size:
        raise UsageError(f"example {name!r} is {example.dtype}{list(example.shape)}, expected numbers: {', '.join(_DTYPES)}")
    low, high = float(example.min()), float(example.max())
    if example.dtype.kind == "f" and not low < high:
        return InputSpec(name, example.shape, example.dtype.name)
    return InputSpec(name, example.shape, example.dtype.name, low, high + (example.dtype.kind != "f"))


def merge_bounds(bounds: Mapping[str, Bounds], others: Iterable[Mapping[str, Bounds]]) -> dict[str, Bounds]:
    """All bounds together.

    Raises:
        UsageError: a dimension has two different ones.
    """
    merged = dict(bounds)
    for other in others:
        for name, bound in other.items():
            _bind(merged, name, bound)
    return merged


def bounds_of(specs: Iterable[InputSpec], bounds: Mapping[str, Bounds]) -> dict[str, Bounds]:
    """The bounds of every dimension that `specs` name, in order.

    Raises:
        UsageError: a dimension has none, or bounds are given for one that no input has.
    """
    named = dict.fromkeys(symbol for spec in specs for symbol in spec.symbols)
    for symbol in named:
        if symbol not in bounds:
            raise UsageError(
                f"dimension {symbol!r} has no bounds; write {symbol}[1:256] in an input, or give --dim {symbol}=1:256"
            )
    if unknown := sorted(set(bounds) - set(named)):
        raise UsageError(f"bounds for {unknown}, which no input has; its dimensions are {list(named)}")
    return {symbol: bounds[symbol] for symbol in named}


def example_sizes(bounds: Mapping[str, Bounds]) -> dict[str, int]:
    """The extents to trace a model with: above 1 where the bounds allow it, and different from each other."""
    sizes = {}
    for index, (name, (low, high)) in enumerate(bounds.items()):
        sizes[name] = min(high, max(low, 2) + _EXAMPLE_EXTENTS[index % len(_EXAMPLE_EXTENTS)])
    return sizes


def trial_sizes(bounds: Mapping[str, Bounds], rng: np.random.Generator) -> list[dict[str, int]]:
    """Extents to compare at: the example's, all bounds, every dimension at each of its bounds alone, and two random sets."""
    example = example_sizes(bounds)
    trials = [example, {n: low for n, (low, _) in bounds.items()}, {n: high for n, (_, high) in bounds.items()}]
    trials += [{**example, name: bound} for name, ends in bounds.items() for bound in ends]
    trials += [{n: int(rng.integers(low, high + 1)) for n, (low, high) in bounds.items()} for _ in range(2)]
    return [dict(unique) for unique in dict.fromkeys(tuple(trial.items()) for trial in trials)]


def _bind(bounds: dict[str, Bounds], name: str, found: Bounds) -> None:
    low, high = found
    if not 1 <= low <= high:
        raise UsageError(f"dimension {name}[{low}:{high}]: expected 1 <= lower <= upper bound")
    if bounds.setdefault(name, found) != found:
        raise UsageError(f"dimension {name!r} has bounds {list(bounds[name])} and {list(found)}; give one pair")


def _split_type(text: str) -> tuple[str, str, str]:
    """At the first colon outside of brackets: shape, colon, type."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == ":" and depth == 0:
            return text[:index].strip(), ":", text[index + 1 :].strip()
    return text.strip(), "", ""


def _number(text: str, name: str, whole: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"input {name}={whole}: {text!r} is not a number; {_FORM}") from None
