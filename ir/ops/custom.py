"""Custom operators: a user's C function with a type rule and a reference in Python, as rows of the op table.

`mydomain.Op=op.c` names the ONNX domain and operator, and the C file. Beside it `op.py` defines

    def infer(attributes, inputs): ...      # attributes: dict; inputs: list of TensorType; returns a list of TensorType
    def reference(attributes, *arrays): ... # numpy arrays in; one array, or a tuple of them, out: the semantics

and the C file defines `int32_t Op(const bevel_custom_call *call)` (`runtime/c/bevel_custom.h`). The operator computes on reals or
plain integers; in a quantized graph it is a float island.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import BevelError, UsageError, VerifyError
from bevel.ir.ops.op import FLOAT_ONLY, Call, PruneRule, QuantRule, one_per_result, register, require, withdraw
from bevel.ir.types import TensorType

Array = npt.NDArray[Any]
Attributes = Mapping[str, Any]

_SPEC = re.compile(r"(?P<domain>[A-Za-z_][\w.-]*)\.(?P<op>[A-Za-z_]\w*)=(?P<file>.+)")
# The user's reference defines the operator; C code may round otherwise than numpy.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class CustomAttrs:
    """Attributes of the ONNX node: a JSON object of numbers, strings and lists of numbers, keys sorted."""

    values: str = "{}"

    def as_dict(self) -> dict[str, Any]:
        """The attributes by name."""
        found: dict[str, Any] = json.loads(self.values)
        return found


@dataclass(frozen=True)
class CustomOp:
    """A registered custom operator.

    Attributes:
        domain, op_type: as the ONNX file spells them.
        source: the C file.
        digest: SHA-256 over the C and the Python file: part of every cache key.
    """

    domain: str
    op_type: str
    source: Path
    digest: str

    @property
    def name(self) -> str:
        """Name in the op table."""
        return f"{self.domain}.{self.op_type}"


CUSTOM: dict[str, CustomOp] = {}


def load_custom_op(spec: str) -> CustomOp:
    """Register the operator that `DOMAIN.OP=FILE.c` names; a name registered before is replaced.

    Raises:
        UsageError: the form is wrong, a file is missing, or the Python file does not define what it must.
    """
    match = _SPEC.fullmatch(spec)
    if match is None or match["domain"] in ("ai.onnx", "ai.onnx.ml"):
        raise UsageError(f"custom operator {spec!r}: expected DOMAIN.OP=FILE.c, for example mydomain.Swirl=swirl.c")
    source = Path(match["file"]).absolute()
    rules = source.with_suffix(".py")
    if source.suffix != ".c":
        raise UsageError(f"custom operator {spec!r}: {source.name} is no .c file")
    for path, what in ((source, "its C function"), (rules, "its type rule `infer` and its `reference`")):
        if not path.is_file():
            raise UsageError(f"custom operator {match['domain']}.{match['op']}: {path}: no such file; it holds {what}")
    module = _load(rules)
    functions = [getattr(module, name, None) for name in ("infer", "reference")]
    if not all(callable(f) for f in functions):
        raise UsageError(f"{rules}: must define infer(attributes, inputs) and reference(attributes, *arrays)")
    digest = hashlib.sha256(source.read_bytes() + b"\0" + rules.read_bytes()).hexdigest()
    found = CustomOp(match["domain"], match["op"], source, digest)
    if found.name in CUSTOM:
        withdraw(found.name)
    infer, reference = functions
    assert infer is not None
    assert reference is not None
    register(
        found.name,
        f"Custom operator of {source.name}.",
        attrs=CustomAttrs,
        arity=(1, None),
        infer=_infer_rule(found.name, infer),
        reference=_reference_rule(found.name, reference),
        macs=one_per_result,
        levels=FLOAT_ONLY,
        quant=QuantRule.FLOAT,
        integer=None,
        prune=PruneRule.BLOCKS,
        tolerance=_TOLERANCE,
    )
    CUSTOM[found.name] = found
    return found


def _load(path: Path) -> ModuleType:
    """The user's Python file as a module.

    Raises:
        UsageError: it does not run.
    """
    spec = importlib.util.spec_from_file_location(f"bevel_custom_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise UsageError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from error
    return module


def _infer_rule(name: str, infer: Callable[..., Any]) -> Callable[..., tuple[TensorType, ...]]:
    def rule(attrs: CustomAttrs, ins: tuple[TensorType, ...]) -> tuple[TensorType, ...]:
        try:
            results = infer(attrs.as_dict(), list(ins))
        except BevelError:
            raise
        except Exception as error:  # whatever the user's rule raises
            raise VerifyError(f"the type rule of {name} failed: {type(error).__name__}: {error}") from error
        listed = results if isinstance(results, Sequence) else [results]
        require(
            bool(listed) and all(isinstance(t, TensorType) for t in listed),
            f"the type rule of {name} returned {results!r}, expected a list of TensorType",
        )
        return tuple(listed)

    return rule


def _reference_rule(name: str, reference: Callable[..., Any]) -> Callable[..., tuple[Array, ...]]:
    def rule(call: Call, *arrays: Array) -> tuple[Array, ...]:
        found = reference(call.attrs.as_dict(), *arrays)
        results = tuple(np.asarray(a) for a in (found if isinstance(found, tuple) else (found,)))
        expected = [(t.dtype, len(t.shape)) for t in call.outputs]
        given = [(a.dtype, a.ndim) for a in results]
        require(given == expected, f"the reference of {name} returned {given}, its type rule says {expected}")
        return results

    return rule
