"""CompressionPlan: what to do to a model, as one JSON document that search writes, passes apply and people edit.

    {
      "bevel_plan": 1,
      "model": "<sha256 of the model file, or empty for any model>",
      "bits": "w4a8",
      "stream": 8,
      "calibration": "percentile",
      "granularity": "channel",
      "scales": "auto",
      "levels": "uniform",
      "rounding": "nearest",
      "layers": {"conv1": {"bits": "w8a8"}}
    }

Bits may be left to the device: `"bits": "auto-lowbit", "allow": ["w8a8", "w4a8", "w2a2"]` asks for the fastest of these in every
layer that does not say its own (docs/quantization.md), and `bevel.allocation` makes such a plan one that names every layer's.

Layers are named by the value they compute in the original model, channel indices count in the original model. A field left out
takes the document's default. Nothing is ever ignored: unknown fields are refused when a plan is read, unknown layers and what no
pass implements when it is validated against a graph.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bevel.errors import InvalidPlan
from bevel.ir.graph import Graph
from bevel.ir.types import GROUP_SIZES, MOST_GROUPED_BITS

PLAN_VERSION = 1
_FLOAT_BITS = 32
_CODE_BITS = 8
_SHORT = {"8": "w8a8", "4": "w4a8"}
_BITS = re.compile(r"w([1-8]|1\.58)a([1-8]|32)")
# Bits of a weight that is -1, 0 or +1: log2(3), as the literature has it.
TERNARY = 1.58
_SPARSITY = re.compile(r"[1-9]\d{0,3}:[1-9]\d{0,3}|0\.\d{1,6}")


@dataclass(frozen=True)
class Bits:
    """Precision of one layer: bits of its weights and of its activations; 32 and 16 stand for floating point.

    Weights of 1 bit are -1 or +1, those of `TERNARY` bits -1, 0 or +1.
    """

    weights: float
    activations: int

    @property
    def is_float(self) -> bool:
        """True where the layer computes in floating point."""
        return self.activations > _CODE_BITS

    def __str__(self) -> str:
        if self.weights == self.activations and self.weights > 8:
            return f"fp{self.weights}"
        return f"w{self.weights}a{self.activations}"


FP32 = Bits(_FLOAT_BITS, _FLOAT_BITS)
FP16 = Bits(16, 16)
W8A8 = Bits(8, 8)
W4A8 = Bits(4, 8)

# Bits chosen layer by layer for a device; "auto-lowbit:w4a8,w2a2" says among which.
AUTO = "auto-lowbit"
# Among these unless the plan says otherwise: what rounding weights to 4 bits costs is small (docs/quantization.md).
DEFAULT_ALLOWED = (W8A8, W4A8)

# Calibration methods, by name; "NAME:PARAMETER" for those that take one (docs/calibration.md).
CALIBRATIONS = ("minmax", "moving-average", "percentile", "mse", "entropy")
DEFAULT_CALIBRATION = "percentile"

# How weights become codes (docs/quantization.md).
SCALES = ("auto", "minmax", "mse")
LEVELS = ("uniform", "kmeans", "nf4", "powers")
ROUNDINGS = ("nearest", "gptq")

_GROUPED = {f"group{size}": size for size in GROUP_SIZES}
GRANULARITIES = ("channel", "tensor", *_GROUPED)

# What the passes of this version carry out. Everything else a plan can say is read, written and refused by `validate`.
_IMPLEMENTED = {
    "calibration": CALIBRATIONS,
    "granularity": GRANULARITIES,
    "scales": SCALES,
    "levels": LEVELS,
    "rounding": ROUNDINGS,
}


def parse_bits(spec: str) -> Bits:
    """The precision spelled `spec`: "fp32", "fp16", "w8a8" (= "8"), "w4a8" (= "4"), "w2a2", weight-only "w4a32".

    Raises:
        InvalidPlan: no such spelling.
    """
    if spec in ("fp32", "fp16"):
        return Bits(int(spec[2:]), int(spec[2:]))
    match = _BITS.fullmatch(_SHORT.get(spec, spec))
    if match is None:
        raise InvalidPlan(
            f"bits {spec!r}: expected fp32, fp16, w8a8 (= 8), w4a8 (= 4), or wNaM with N in 1..8 or 1.58 and M in 1..8 or 32"
        )
    return Bits(TERNARY if "." in match[1] else int(match[1]), int(match[2]))


def group_size(granularity: str) -> int | None:
    """Inputs in a group of granularity "group32"; None where weights are in no groups."""
    return _GROUPED.get(granularity)


def granularity_of(group: int | None, bits: Bits) -> str:
    """The granularity of groups of `group` inputs, where that is what is asked for, for weights of at most so many bits.

    Raises:
        InvalidPlan: there are no such groups, or none of so many bits.
    """
    if group is None:
        return "channel"
    if group not in GROUP_SIZES:
        raise InvalidPlan(f"weights in groups of {group} inputs: expected {', '.join(map(str, GROUP_SIZES))}")
    if bits.weights > MOST_GROUPED_BITS:
        raise InvalidPlan(
            f"weights in groups of {group} inputs with bits {bits}: expected weights of 1 to {MOST_GROUPED_BITS} bits"
        )
    return f"group{group}"


def parse_allowed(spec: str) -> tuple[Bits, ...]:
    """What "auto-lowbit" or "auto-lowbit:w4a8,w2a2" allows, most bits first; () for any other spelling of bits.

    Raises:
        InvalidPlan: it allows what has no codes, or what is no precision.
    """
    name, colon, listed = spec.partition(":")
    if name != AUTO:
        return ()
    return _allowed(listed.split(",")) if colon else DEFAULT_ALLOWED


def _allowed(specs: Iterable[str]) -> tuple[Bits, ...]:
    """Precisions to choose among, most bits first; w8a8, which the others are weighed against, is always one of them."""
    found = {W8A8, *(parse_bits(spec) for spec in specs)}
    if reals := [str(bits) for bits in found if bits.is_float]:
        raise InvalidPlan(f"{AUTO} chooses among bits of codes, wNaM with N and M up to 8, not {reals[0]}")
    return tuple(sorted(found, key=lambda bits: (-bits.weights, -bits.activations)))


@dataclass(frozen=True)
class LayerPlan:
    """What a plan says of one layer; None takes the plan's default.

    Attributes:
        bits: precision of weights and activations.
        granularity: what shares a weight scale, of `GRANULARITIES`: "channel", "tensor", or "group32": one scale for each output
            channel and an integer factor for each group of 32 inputs.
        scales: how weight scales are chosen, of `SCALES`: "minmax" clips nothing, "mse" has least squared error, "auto" is
            "mse" below 4 bits and for groups.
        levels: the values that weights round to, of `LEVELS`: "uniform", or a table of integers.
        rounding: how weights become codes, of `ROUNDINGS`: "nearest", or "gptq" by what they multiply (layers below 8 bits).
        dropped: the layer is bypassed.
        kept_channels: output channels that stay, by original index, ascending; None keeps all.
        sparsity: zero pattern of the weights: "2:4", or a fraction such as "0.5".
        allow: precisions to choose among, in a plan that leaves bits to the device.
    """

    bits: Bits | None = None
    granularity: str | None = None
    scales: str | None = None
    levels: str | None = None
    rounding: str | None = None
    dropped: bool = False
    kept_channels: tuple[int, ...] | None = None
    sparsity: str | None = None
    allow: tuple[Bits, ...] | None = None


@dataclass(frozen=True)
class CompressionPlan:
    """The whole plan of a model.

    Attributes:
        model: sha256 of the model file that names and channel indices refer to; "" for a plan that fits any model.
        bits: precision of layers that say nothing else. Below 8 bits the first and last layers are 8 bits unless they say so.
        allow: precisions among which a device chooses that of layers which say nothing else, most bits first; `bits` is w8a8.
            () where bits are not left to the device.
        stream: bits of what additions make and of what they and other layers read: the residual stream.
        calibration: how activation ranges are chosen.
        granularity: what shares a weight scale.
        scales: how weight scales are chosen.
        levels: the values that weights round to.
        rounding: how weights become codes.
        layers: exceptions by layer name.
    """

    model: str = ""
    bits: Bits = W8A8
    stream: int = _CODE_BITS
    calibration: str = DEFAULT_CALIBRATION
    granularity: str = "channel"
    scales: str = "auto"
    levels: str = "uniform"
    rounding: str = "nearest"
    allow: tuple[Bits, ...] = ()
    layers: Mapping[str, LayerPlan] = field(default_factory=dict)

    def bits_of(self, layer: str) -> Bits:
        """Precision of the layer that computes value `layer`."""
        return self.layers.get(layer, LayerPlan()).bits or self.bits

    def layer(self, name: str) -> LayerPlan:
        """What the plan says of the layer that computes value `name`, defaults filled in."""
        own = self.layers.get(name, LayerPlan())
        shared = ("bits", "granularity", "scales", "levels", "rounding")
        return replace(own, **{field: getattr(self, field) for field in shared if getattr(own, field) is None})

    def layers_at(self, bits: Bits, graph: Graph) -> frozenset[str]:
        """Names of the node results of `graph` whose precision is `bits`."""
        return frozenset(name for name in _layer_names(graph) if self.bits_of(name) == bits)

    def validate(self, graph: Graph) -> None:
        """Check that this version of bevel can apply the plan to `graph` in full.

        Raises:
            InvalidPlan: the plan belongs to another model, names a layer that does not exist (with near matches), or asks for
                what no pass implements.
        """
        if self.model and graph.source_hash and self.model != graph.source_hash:
            raise InvalidPlan(
                f"the plan was made for the model with sha256 {self.model}, {graph.name!r} has {graph.source_hash}; "
                "make a plan for this model, or set its field 'model' to \"\" if the layers are the same"
            )
        names = _layer_names(graph)
        for name, layer in self.layers.items():
            if name not in names:
                raise InvalidPlan(f"layer {name!r} does not exist in {graph.name!r}{_near(name, names)}")
            if layer.allow is not None and (layer.bits is not None or not self.allow):
                raise InvalidPlan(
                    f"layer {name!r} allows {', '.join(map(str, layer.allow))}, but "
                    + ("says its bits too" if layer.bits is not None else f"the plan's bits are {self.bits}, not {AUTO!r}")
                )
        _require_implemented("the plan", self)
        for name, layer in self.layers.items():
            _require_implemented(f"layer {name!r}", layer)

    def dumps(self) -> str:
        """The plan as JSON; `loads_plan` reads it back equal. Fields at their defaults are left out of layers."""
        document: dict[str, Any] = {
            "bevel_plan": PLAN_VERSION,
            "model": self.model,
            "bits": AUTO if self.allow else str(self.bits),
            **({"allow": [str(bits) for bits in self.allow]} if self.allow else {}),
            "stream": self.stream,
        }
        document |= {name: getattr(self, name) for name in _IMPLEMENTED}
        document["layers"] = {name: _layer_json(layer) for name, layer in self.layers.items()}
        return json.dumps(document, indent=2) + "\n"

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON to `path`."""
        Path(path).write_text(self.dumps(), encoding="utf-8")


def loads_plan(text: str, origin: str = "plan") -> CompressionPlan:
    """The plan in a JSON document.

    Args:
        text: JSON.
        origin: what to call it in errors.

    Raises:
        InvalidPlan: no JSON, another version, an unknown or repeated field, or a field that holds what it cannot mean.
    """
    try:
        document = json.loads(text, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        raise InvalidPlan(f"{origin} is no JSON document: {error}") from None
    except InvalidPlan as error:
        raise InvalidPlan(f"{origin}: {error}") from None
    document = _object(document, origin, ("bevel_plan", *(f.name for f in fields(CompressionPlan))))
    if document.pop("bevel_plan", None) != PLAN_VERSION:
        raise InvalidPlan(f"{origin}: expected field 'bevel_plan': {PLAN_VERSION}")
    layers = document.pop("layers", {})
    if not isinstance(layers, dict):
        raise InvalidPlan(f"{origin}: field 'layers' is {layers!r}, expected an object with one entry for each layer")
    if auto := document.get("bits") == AUTO:
        del document["bits"]
    values = {name: _field(name, value, origin) for name, value in document.items()}
    if auto:
        values.setdefault("allow", DEFAULT_ALLOWED)
    elif "allow" in values:
        raise InvalidPlan(f"{origin}: field 'allow' is for bits {AUTO!r}, these are {document.get('bits', str(W8A8))!r}")
    return CompressionPlan(**values, layers={name: _layer(value, f"{origin}: layer {name!r}") for name, value in layers.items()})


def load_plan(path: str | Path) -> CompressionPlan:
    """The plan stored at `path`.

    Raises:
        InvalidPlan: the file cannot be read, or see `loads_plan`.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPlan(f"plan {path}: {error}") from None
    return loads_plan(text, f"plan {path}")


def _layer(value: Any, where: str) -> LayerPlan:
    document = _object(value, where, tuple(f.name for f in fields(LayerPlan)))
    return LayerPlan(**{name: _field(name, v, where) for name, v in document.items()})


def _layer_json(layer: LayerPlan) -> dict[str, Any]:
    found = {f.name: getattr(layer, f.name) for f in fields(layer) if getattr(layer, f.name) != f.default}
    if layer.bits is not None:
        found["bits"] = str(layer.bits)
    if layer.allow is not None:
        found["allow"] = [str(bits) for bits in layer.allow]
    if layer.kept_channels is not None:
        found["kept_channels"] = list(layer.kept_channels)
    return found


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InvalidPlan(f"{name!r} is given twice")
        found[name] = value
    return found


def _object(value: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidPlan(f"{where} is {value!r}, expected a JSON object")
    for name in value:
        if name not in known:
            raise InvalidPlan(f"{where}: unknown field {name!r}{_near(name, known)}; known are {', '.join(known)}")
    return dict(value)


def _field(name: str, value: Any, where: str) -> Any:
    """One field of a plan or a layer from its JSON value."""
    if name == "dropped":
        expected, valid = "true or false", isinstance(value, bool)
    elif name == "kept_channels":
        integers = isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value)
        expected, valid = (
            "ascending distinct channel indices, at least one",
            bool(integers and value and value == sorted(set(value))),
        )
    elif name == "allow":
        expected, valid = (
            "a list of precisions such as w4a8, at least one",
            isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value),
        )
    elif name == "stream":
        expected, valid = "a number of bits, 1 to 8", type(value) is int and 1 <= value <= _CODE_BITS
    elif name == "sparsity":
        expected, valid = 'a pattern such as "2:4" or a fraction such as "0.5"', _is_sparsity(value)
    else:
        expected, valid = "a text", isinstance(value, str)
    if not valid:
        raise InvalidPlan(f"{where}: field {name!r} is {value!r}, expected {expected}")
    if name in ("bits", "allow"):
        try:
            return _allowed(value) if name == "allow" else parse_bits(value)
        except InvalidPlan as error:
            raise InvalidPlan(f"{where}: {error}") from None
    return tuple(value) if name == "kept_channels" else value


def _is_sparsity(value: Any) -> bool:
    if not isinstance(value, str) or not _SPARSITY.fullmatch(value):
        return False
    kept, colon, of = value.partition(":")
    return int(kept) < int(of) if colon else True


def _layer_names(graph: Graph) -> dict[str, None]:
    return {value.name: None for node in graph.nodes for value in node.outputs}


def _near(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(repr(m) for m in matches)}?" if matches else ""


def _require_implemented(where: str, plan: CompressionPlan | LayerPlan) -> None:
    def refuse(what: str, found: object, supported: Collection[object]) -> None:
        raise InvalidPlan(
            f"{where} asks for {what} {found}, which no pass implements; supported: {', '.join(map(str, supported))}"
        )

    if plan.bits is not None and plan.bits.is_float and plan.bits != FP32:
        refuse("bits", plan.bits, (FP32, "wNaM with N and M up to 8"))
    for name, supported in _IMPLEMENTED.items():
        found = getattr(plan, name, None)
        if found is not None and (found.partition(":")[0] if name == "calibration" else found) not in supported:
            refuse(name, repr(found), supported)
    if isinstance(plan, LayerPlan):
        if plan.dropped:
            refuse("dropping the layer", "(dropped)", ["false"])
        if plan.kept_channels is not None:
            refuse("pruning", f"to {len(plan.kept_channels)} channels (kept_channels)", ["all channels"])
        if plan.sparsity is not None:
            refuse("sparsity", plan.sparsity, ["dense weights"])
