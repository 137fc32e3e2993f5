"""What looks against the direction of dependencies: targets, costs and measurements, as protocols.

`devices` and `runtime` implement these, `cli` wires them, `backends` and `passes` only call them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from bevel.ir.graph import Graph, Node


@dataclass(frozen=True)
class Cache:
    """One cache level as one core sees it."""

    level: int
    bytes: int
    line: int = 64


@dataclass(frozen=True)
class Target:
    """What code generation must know of a device: instruction set, operating system ABI, caches.

    Attributes:
        name: profile name, for messages.
        arch: "x86_64", "aarch64" or "armv7".
        features: ISA features kernels test for: "avx2", "fma", "avx512", "avx512_vnni", "avx512_vpopcntdq", "amx_int8", "neon",
            "vfpv4" (armv7), "fp16", "dotprod", "i8mm".
        cpu: LLVM -mcpu name.
        triple: LLVM target triple.
        attrs: LLVM target attributes, such as "+dotprod".
        caches: data caches, nearest first.
        cores: number of cores of the fastest kind.
    """

    name: str
    arch: str
    features: frozenset[str]
    cpu: str
    triple: str
    attrs: tuple[str, ...] = ()
    caches: tuple[Cache, ...] = ()
    cores: int = 1

    @property
    def activation_dtype(self) -> str:
        """How 8-bit activation codes are stored between kernels.

        x86 multiplies unsigned by signed bytes (vpdpbusd, pmaddubsw), so codes are stored biased by 128 as uint8; ARM
        multiplies signed by signed (smull, sdot) and stores int8. Values are the same; only the zero point's unit moves.
        """
        return "uint8" if self.arch == "x86_64" else "int8"

    def has(self, *features: str) -> bool:
        """True when every named ISA feature is present."""
        return self.features.issuperset(features)


@dataclass(frozen=True)
class Estimate:
    """A predicted or measured latency in milliseconds with an interval and where it came from.

    Attributes:
        provenance: "measured", "model" or "static".
    """

    ms: float
    lo: float
    hi: float
    provenance: str


class CostProvider(Protocol):
    """Answers what one layer costs on one device at one precision."""

    def layer_cost(self, node: Node, bits: str) -> Estimate:
        """Latency of `node` when computed at `bits` ("fp32", "w8a8", ...)."""
        ...


@dataclass(frozen=True)
class KernelKey:
    """Content key of a generated kernel: equal keys give equal object code."""

    generator: str
    problem: str
    tile: str
    target: str


class Measurer(Protocol):
    """Times kernels on a device."""

    def measure(self, keys: list[KernelKey]) -> list[Estimate]:
        """Measured latency of each kernel."""
        ...


@dataclass(frozen=True)
class Quality:
    """Accuracy of a graph on labelled or baseline data."""

    metric: str
    value: float
    n: int
    details: dict[str, float] = field(default_factory=dict)


class Evaluator(Protocol):
    """Measures the accuracy of a graph."""

    def evaluate(self, graph: Graph) -> Quality:
        """Accuracy of `graph`."""
        ...
