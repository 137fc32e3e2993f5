"""The first cost provider: a roofline over a device profile's figures.

A layer takes the longest of its arithmetic at the core's peak and its traffic at the bandwidth of the cache level that holds
it, plus the cost of a kernel call (Williams, Waterman and Patterson, 2009). Arithmetic peaks are derated for the shapes kernels
cannot fill: output channels beyond whole vectors, depthwise convolutions, which reuse no weight across channels. Results of
int8 layers are requantized, which short reductions do not hide. Estimates are static; better providers (measured tables, learned
residuals) answer the same protocol.
"""

from __future__ import annotations

from dataclasses import dataclass

from bevel.devices.profile import Profile
from bevel.errors import UsageError
from bevel.ir.graph import Graph, Node
from bevel.ir.ops import Trait, lookup
from bevel.ir.ops.op import elements
from bevel.ir.protocols import Estimate

# Bytes of one activation and one weight element by precision.
_BYTES = {"fp32": (4, 4), "w8a8": (1, 1)}
# int8 depthwise spends most of its time in the int64 requantization; fp32 depthwise is bound by loads. Shares of the peak
# reached by good depthwise kernels on an AVX-512 core, 56x56x192 stride 1: 22 GMAC/s fp32, 47 GMAC/s int8.
_DEPTHWISE_SHARE = {"fp32": 0.26, "w8a8": 0.14}
# Elements of Add, pools and the like per cycle and 32-bit lane. Measured with 65,536 elements at 2.7 GHz: 3.4 a cycle on AVX-512,
# 2.8 on AVX2, 1.4 on SSE2, int8 and float32 alike.
_ELEMENTS_PER_LANE = 0.25
# Accumulators requantized per cycle: 1.9 on AVX-512 (ResNet-8's layers, time beyond their MACs), 1.0 on A72 (llvm-mca).
_LANES_PER_REQUANTIZED, _LEAST_REQUANTIZED = 8, 1.0
# Measured over predicted on one AVX-512 core, fp32 and int8: whole models (ResNet-8, ResNet-20, DS-CNN) 0.84 to 1.22; single
# layers 0.2 (tiny pools) to 2.3 (Pad). The interval covers whole models with room for kernels measured on no device.
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

    def _arithmetic(self, node: Node, bits: str) -> float:
        """Seconds to compute the node with its operands at hand."""
        macs, lanes, hertz = lookup(node.op).cost(node).macs, self._lanes(), self.profile.clock_ghz * 1e9
        if Trait.WEIGHTED not in lookup(node.op).traits:
            return macs / (hertz * lanes * _ELEMENTS_PER_LANE)
        peaks = self.profile.peaks
        peak = (peaks.fp32_gmacs if bits == "fp32" else peaks.int8_gmacs).value * 1e9
        weights = node.inputs[1].type.static_shape
        if len(weights) == 4 and node.attrs.groups == weights[0] and weights[1] == 1:
            return macs / (peak * _DEPTHWISE_SHARE[bits])
        filled = weights[0] / (-(-weights[0] // lanes) * lanes)
        seconds = macs / (peak * filled)
        if bits == "w8a8":
            seconds += elements((node.output.type,)) / (hertz * max(_LEAST_REQUANTIZED, lanes / _LANES_PER_REQUANTIZED))
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
        moved = elements((node.output.type,)) * activation
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


def graph_cost(graph: Graph, provider: Roofline, bits: tuple[str, ...]) -> list[LayerCost]:
    """Estimates of every layer of a canonical FLOAT graph; activations are part of the layer that feeds them."""
    layers = []
    for node in graph.nodes:
        producer = node.inputs[0].producer if node.inputs else None
        fused = Trait.ACTIVATION in lookup(node.op).traits and producer is not None
        if fused or Trait.VIEW in lookup(node.op).traits or node.op == "Transpose":
            continue
        estimates = {b: provider.layer_cost(node, b) for b in bits}
        layers.append(LayerCost(node.loc or node.outputs[0].name, node.op, lookup(node.op).cost(node).macs, estimates))
    return layers
