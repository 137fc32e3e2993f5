"""Passes and pipelines: what a pass is, how a pipeline is written, and how one is run.

A pass is a frozen dataclass with a `name` and `run(graph) -> Graph`, which works on a clone. Its fields are its command-line
syntax, so the same text serves CLI, TOML and provenance:

    fold-bn,calibrate{method=minmax,keep_float=["conv1"]},to-integer

Fields that cannot be written down (calibration data, callbacks) are declared with `field(repr=False)`; callers fill them in.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from bevel.errors import CheckFailed, UsageError, VerifyError
from bevel.ir.graph import Graph
from bevel.ir.interp import run, to_real
from bevel.ir.verify import verify as verify_graph

Array = npt.NDArray[Any]


class Pass(Protocol):
    """Graph to graph. Implementations are frozen dataclasses."""

    @property
    def name(self) -> str:
        """Name in pipelines: lower case, words joined by hyphens."""
        ...

    def run(self, graph: Graph) -> Graph:
        """The transformed graph; `graph` itself stays as it is."""
        ...


# Pass name -> "module:Class", loaded when a pipeline names it.
PASSES: dict[str, str] = {
    "bind-dims": "bevel.passes.bind_dims:BindDims",
    "channels-last": "bevel.passes.boundary:ChannelsLast",
    "float-outputs": "bevel.passes.boundary:FloatOutputs",
    "keep-states": "bevel.passes.states:KeepStates",
    "to-half": "bevel.passes.to_half:ToHalf",
    "preprocess": "bevel.passes.preprocess:Preprocess",
    "calibrate": "bevel.passes.quantize.calibrate:Calibrate",
    "canonicalize": "bevel.passes.canonicalize:Canonicalize",
    "fold-affine": "bevel.passes.fold_affine:FoldAffine",
    "fold-bn": "bevel.passes.fold_bn:FoldBn",
    "fold-constants": "bevel.passes.fold_constants:FoldConstants",
    "fold-pad": "bevel.passes.fold_pad:FoldPad",
    "fuse-activations": "bevel.passes.canonicalize_activations:FuseActivations",
    "fuse-norms": "bevel.passes.canonicalize_norms:FuseNorms",
    "globalize-pools": "bevel.passes.canonicalize_pools:GlobalizePools",
    "lift-elementwise": "bevel.passes.lift_elementwise:LiftElementwise",
    "merge-reshapes": "bevel.passes.canonicalize_reshapes:MergeReshapes",
    "merge-slices": "bevel.passes.canonicalize_slices:MergeSlices",
    "merge-transposes": "bevel.passes.canonicalize_transposes:MergeTransposes",
    "simplify-arithmetic": "bevel.passes.canonicalize_arithmetic:SimplifyArithmetic",
    "subpixel": "bevel.passes.subpixel:Subpixel",
    "to-integer": "bevel.passes.quantize.to_integer:ToInteger",
}


def lookup_pass(name: str) -> type[Any]:
    """The class of pass `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in PASSES:
        raise UsageError(f"pass {name!r} does not exist; choose from {', '.join(sorted(PASSES))}")
    module, _, attribute = PASSES[name].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), attribute)
    return found


# Text ----------------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r'\s*([{}\[\],=]|"(?:[^"\\]|\\.)*"|[^\s{}\[\],="]+)')


def parse_pipeline(text: str) -> tuple[Pass, ...]:
    """The passes that `text` writes, for example "fold-bn,calibrate{method=minmax},to-integer".

    Raises:
        UsageError: bad syntax, an unknown pass or field, or a value of the wrong type; says where.
    """
    tokens, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise UsageError(f"pipeline {text!r}: cannot read {text[position:]!r}, expected NAME{{FIELD=VALUE,...}},...")
        tokens.append(match.group(1))
        position = match.end()
    return _Parser(text, tokens).pipeline()


class _Parser:
    """Recursive descent over the tokens of one pipeline."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self.text = text
        self.tokens = tokens
        self.at = 0

    def take(self, what: str, *allowed: str) -> str:
        token = self.tokens[self.at] if self.at < len(self.tokens) else "the end"
        wrong = token not in allowed if allowed else token in "{}[],=" or token == "the end"
        if wrong:
            raise UsageError(f"pipeline {self.text!r}: found {token} at token {self.at + 1}, expected {what}")
        self.at += 1
        return token

    def accept(self, token: str) -> bool:
        found = self.at < len(self.tokens) and self.tokens[self.at] == token
        self.at += found
        return found

    def pipeline(self) -> tuple[Pass, ...]:
        passes = []
        while self.at < len(self.tokens):
            passes.append(self.one_pass())
            if self.at < len(self.tokens):
                self.take("',' or the end", ",")
        return tuple(passes)

    def one_pass(self) -> Pass:
        cls = lookup_pass(self.take("a pass name"))
        hints = _written_fields(cls)
        values: dict[str, Any] = {}
        if self.accept("{") and not self.accept("}"):
            while True:
                field = self.take("a field name")
                if field not in hints:
                    raise UsageError(f"pass {cls.name!r} has no field {field!r}; it has {sorted(hints) or 'none'}")
                self.take("'='", "=")
                values[field] = self.value(f"{cls.name}.{field}", hints[field])
                if self.take("',' or '}'", ",", "}") == "}":
                    break
        made: Pass = cls(**values)
        return made

    def value(self, what: str, hint: Any) -> Any:
        origin = get_origin(hint)
        if origin in (tuple, frozenset):
            self.take(f"'[' of the list {what}", "[")
            items: list[Any] = []
            while not self.accept("]"):
                items.append(self.value(what, get_args(hint)[0]))
                if not self.accept(","):
                    self.take("',' or ']'", "]")
                    break
            return origin(items)
        token = self.take(f"the value of {what}")
        try:
            if hint is bool:
                return {"true": True, "false": False}[token]
            return hint(json.loads(token)) if token.startswith('"') else hint(token)
        except (ValueError, KeyError):
            raise UsageError(f"pipeline {self.text!r}: {what} is {token}, expected {hint.__name__}") from None


def _written_fields(cls: type[Any]) -> dict[str, Any]:
    """Type hints of the fields that pipeline text can set."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.repr}


def print_pipeline(passes: Iterable[Pass]) -> str:
    """The text that `parse_pipeline` reads back; fields at their defaults are left out."""
    return ",".join(_print_pass(p) for p in passes)


def _print_pass(made: Any) -> str:
    shown = []
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if field.repr and value != field.default:
            shown.append(f"{field.name}={_print_value(value)}")
    return f"{made.name}{{{','.join(shown)}}}" if shown else str(made.name)


def _print_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, frozenset):
        value = tuple(sorted(value))
    if isinstance(value, tuple):
        return f"[{','.join(_print_value(v) for v in value)}]"
    text = str(value)
    return text if re.fullmatch(r"[\w.+-]+", text) else json.dumps(text)


# Running -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """Compare outputs after every pass with the original graph's.

    Attributes:
        inputs: one array for each graph input.
        tolerance: largest max|d| / max|ref| that counts as the same.
    """

    inputs: Mapping[str, Array]
    tolerance: float = 1e-4

    def outputs(self, graph: Graph) -> dict[str, Array]:
        """Reals of all outputs in the interpreter."""
        results = run(graph, self.inputs)
        return {v.name: to_real(v, results[v.name]) for v in graph.outputs}

    def compare(self, before: Mapping[str, Array], graph: Graph, name: str) -> None:
        """Check `graph`, the result of pass `name`.

        Raises:
            CheckFailed: an output is missing, has another shape or moved beyond the tolerance; names pass and output.
        """
        after = self.outputs(graph)
        for output, reference in before.items():
            if output not in after or after[output].shape != reference.shape:
                raise CheckFailed(f"pass {name!r} lost or reshaped output {output!r} of {graph.name!r}; report this as a defect")
            moved = float(np.abs(after[output].astype(np.float64) - reference).max(initial=0.0))
            largest = float(np.abs(reference).max(initial=0.0)) or 1.0
            if not moved <= self.tolerance * largest:
                raise CheckFailed(
                    f"pass {name!r} is the first to move output {output!r} of {graph.name!r} beyond {self.tolerance:g}: "
                    f"by {moved:g} where the largest value is {largest:g}; look at the graph with --dump-ir-after={name}"
                )


def run_passes(
    graph: Graph,
    passes: Sequence[Pass],
    *,
    verify: bool = True,
    dump_after: Callable[[str, Graph], None] | None = None,
    check_each: Check | None = None,
    timings: list[tuple[str, float]] | None = None,
) -> Graph:
    """Run `passes` in order.

    Args:
        graph: start; not changed.
        passes: what to run.
        verify: check the rules of the graph's level before the first and after every pass.
        dump_after: called with each pass name and its result.
        check_each: compare outputs with those of `graph` after every pass.
        timings: gets (pass name, seconds) appended.

    Raises:
        VerifyError: a graph breaks a rule; names the pass that made it.
        CheckFailed: see `Check.compare`.
    """
    if verify:
        verify_graph(graph)
    reference = check_each.outputs(graph) if check_each is not None else {}
    for step in passes:
        start = time.perf_counter()
        graph = step.run(graph)
        if timings is not None:
            timings.append((step.name, time.perf_counter() - start))
        if verify:
            try:
                verify_graph(graph)
            except VerifyError as error:
                raise VerifyError(f"after pass {step.name!r}: {error}") from error
        if dump_after is not None:
            dump_after(step.name, graph)
        if check_each is not None:
            check_each.compare(reference, graph, step.name)
    return graph
