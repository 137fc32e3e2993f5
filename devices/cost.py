"""The first cost provider: a roofline over a device profile's figures.

A layer takes the longest of its arithmetic at the core's peak and its traffic at the bandwidth of the cache level that holds
it, plus the cost of a kernel call (Williams, Waterman and Patterson, 2009). Arithmetic peaks are derated for the shapes kernels
cannot fill: output channels beyond whole vectors, depthwise convolutions, which reuse no weight across channels. Results of
int8 layers are requantized, which short reductions do not hide. Estimates are static; better providers (measured tables, learned
residuals) answer the same protocol.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bevel.devices.profile import Profile
from bevel.errors import UsageError
from bevel.ir.graph import Graph, Node
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.op import elements
from bevel.ir.protocols import Estimate
from bevel.ir.types import F16, F32
from bevel.runtime.manifest import kernel_calls

# Bytes of one activation and one weight element by precision.
_BYTES = {"fp32": (4, 4), "w8a8": (1, 1)}
# Dense kernels reach this share of a loop of nothing but the multiplying instruction: ResNet-8 and ResNet-20, fp32, on an AVX-512
# core against its measured peak. Static figures are of kernels' whole inner loops already.
_REACHED = 0.77
# Share of that loop's rate which depthwise kernels reach, by the richest feature: they load an operand for every product, and
# int8 spends most of its time in the requantization. x86: medians over 3x3 and 5x5 kernels of 96 to 192 channels, stride 1 and 2,
# and the layers of a DS-CNN, against the peaks of the same core. ARM: instructions counted under emulation, 1.15 (fp32) and 1.7
# (int8) MACs each, at two instructions a cycle.
_DEPTHWISE_SHARE = {
    "amx_int8": {"fp32": 0.2, "w8a8": 0.014},
    "avx512_vnni": {"fp32": 0.2, "w8a8": 0.10},
    "avx512": {"fp32": 0.2, "w8a8": 0.24},
    "avx_vnni": {"fp32": 0.25, "w8a8": 0.17},
    "avx2": {"fp32": 0.25, "w8a8": 0.24},
    "sse2": {"fp32": 0.64, "w8a8": 0.26},
    "dotprod": {"fp32": 0.5, "w8a8": 0.12},
    "neon": {"fp32": 0.5, "w8a8": 0.4},
}
# Elements of Add, pools and the like per cycle and 32-bit lane. Measured with 65,536 elements at 2.7 GHz: 3.4 a cycle on AVX-512,
# 2.8 on AVX2, 1.4 on SSE2, int8 and float32 alike.
_ELEMENTS_PER_LANE = 0.25
# Accumulators requantized per cycle: 1.9 on AVX-512 (ResNet-8's layers, time beyond their MACs), 1.0 on A72 (llvm-mca).
_LANES_PER_REQUANTIZED, _LEAST_REQUANTIZED = 8, 1.0
# Measured over predicted on one core with AVX-512 and AMX, fp32 and int8: whole models (ResNet-8, ResNet-20, DS-CNN) 0.7 to 1.4
# with measured figures; single layers 0.2 (tiny pools) to 2.3 (Pad). The interval covers whole models with room for kernels
# measured on no device.
_LOW, _HIGH = 0.5, 2.0


@dataclass(frozen=True)
class Roofline:
    """CostProvider over the figures of `profile`."""

    profile: Profile

    def layer_cost(self, node: Node, bits: str) -> Estimate:
        """Latency of one node of a FLOAT graph at "fp32" or "w8a8", symbolic dimensions at their lower bound.

        Raises:
            UsageError: another precision.
        """
        if bits not in _BYTES:
            raise UsageError(f"static costs are known for {', '.join(_BYTES)}, not {bits!r}")
        if Trait.VIEW in lookup(node.op).traits:
            return Estimate(0.0, 0.0, 0.0, "static")
        ms = max(self._arithmetic(node, bits), self._traffic(node, bits)) * 1e3 + self.profile.peaks.launch_us.value * 1e-3
        return Estimate(ms, ms * _LOW, ms * _HIGH, "static")

    def pass_ms(self, elements: int) -> float:
        """Milliseconds of a kernel that does one thing to every element, its call included."""
        seconds = elements / (self.profile.clock_ghz * 1e9 * self._lanes() * _ELEMENTS_PER_LANE)
        return seconds * 1e3 + self.profile.peaks.launch_us.value * 1e-3

    def _arithmetic(self, node: Node, bits: str) -> float:
        """Seconds to compute the node with its operands at hand."""
        macs, lanes, hertz = lookup(node.op).cost(node).macs, self._lanes(), self.profile.clock_ghz * 1e9
        if Trait.WEIGHTED not in lookup(node.op).traits:
            return macs / (hertz * lanes * _ELEMENTS_PER_LANE)
        figure = self.profile.peaks.fp32_gmacs if bits == "fp32" else self.profile.peaks.int8_gmacs
        peak = figure.value * 1e9
        weights = node.inputs[1].type.static_shape
        if len(weights) == 4 and node.attrs.groups == weights[0] and weights[1] == 1:
            features = self.profile.features
            share = next(shares[bits] for feature, shares in _DEPTHWISE_SHARE.items() if feature in features)
            return macs / (peak * share)
        peak *= _REACHED if figure.provenance == "measured" else 1.0
        filled = weights[0] / (-(-weights[0] // lanes) * lanes)
        seconds = macs / (peak * filled)
        if bits == "w8a8":
            seconds += elements((node.outputs[0].type,)) / (hertz * max(_LEAST_REQUANTIZED, lanes / _LANES_PER_REQUANTIZED))
        return seconds

    def _lanes(self) -> int:
        """32-bit lanes of the widest vector."""
        features = self.profile.features
        if "avx512" in features:
            return 16
        return 8 if "avx2" in features else 4

    def _traffic(self, node: Node, bits: str) -> float:
        """Seconds to move operands and results once, at the level that holds them all."""
        activation, weight = _BYTES[bits]
        moved = elements((node.outputs[0].type,)) * activation
        for value in node.inputs:
            moved += elements((value.type,)) * (weight if value.is_constant else activation)
        return moved / (self._bandwidth(moved) * 1e9)

    def _bandwidth(self, working_set: int) -> float:
        """GB/s of the nearest level at least as large as the working set."""
        bandwidth = self.profile.peaks.bandwidth_gbs
        for cache in self.profile.caches:
            if working_set <= cache.bytes and (figure := bandwidth.get(f"l{cache.level}")) is not None:
                return figure.value
        return bandwidth["dram"].value


@dataclass(frozen=True)
class LayerCost:
    """Estimates of one layer by precision."""

    name: str
    op: str
    macs: int
    bits: dict[str, Estimate]

    @property
    def pays(self) -> bool:
        """True when 8 bits are predicted to be faster than float."""
        return self.bits["w8a8"].ms < self.bits["fp32"].ms


def costed_nodes(graph: Graph) -> Iterator[Node]:
    """Nodes that are layers of their own: what is fused into the layer that feeds it, or moves nothing, is part of that."""
    for node in graph.nodes:
        producer = node.inputs[0].producer if node.inputs else None
        fused = (Trait.ACTIVATION in lookup(node.op).traits or node.op == "Requantize") and producer is not None
        if not (fused or Trait.VIEW in lookup(node.op).traits or node.op == "Transpose"):
            yield node


def predict_layers(graph: Graph, provider: Roofline) -> dict[str, float]:
    """Milliseconds of each layer by name, at the precision the graph has; {} for half precision, which has no figures."""
    predicted: dict[str, float] = {}
    for node in costed_nodes(graph):
        elem = node.outputs[0].type.elem
        if elem == F16:
            return {}
        name = node.loc or node.outputs[0].name
        bits = "fp32" if elem == F32 else "w8a8"
        predicted[name] = predicted.get(name, 0.0) + provider.layer_cost(node, bits).ms
    return predicted


def graph_cost(graph: Graph, provider: Roofline, bits: tuple[str, ...]) -> list[LayerCost]:
    """Estimates of every layer of a canonical FLOAT graph; activations are part of the layer that feeds them."""
    layers = []
    for node in costed_nodes(graph):
        estimates = {b: provider.layer_cost(node, b) for b in bits}
        layers.append(LayerCost(node.loc or node.outputs[0].name, node.op, lookup(node.op).cost(node).macs, estimates))
    return layers


def take_prediction(predicted: dict[str, float], layer: Mapping[str, Any]) -> float | None:
    """Take the time of a manifest's layer, or the sum of its members', out of `predicted`, by name; None where there is none."""
    times = [predicted.pop(call["name"]) for call in kernel_calls(layer) if call["name"] in predicted]
    return sum(times) if times else None
