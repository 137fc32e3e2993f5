"""Benchmarks on this machine: several measuring rounds, each with fresh processes of the artifact and its peers, interleaved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.benchmarking.peers.contest import Contestant, Round, own_contestant, relative_difference, run_round
from bevel.benchmarking.statistics import Latency, summarize
from bevel.compiler import Say
from bevel.runtime.artifact import Artifact

Array = npt.NDArray[Any]
PROCESSES = 5
ROUNDS = 60
# A peer in fp32 that differs from the reference by more than this share computes something else; int8 may differ by the other,
# which is far beyond what quantization costs a useful model.
FP32_DIFFERS, INT8_DIFFERS = 0.01, 0.5


@dataclass(frozen=True)
class Contest:
    """Latencies of one interleaved run.

    Attributes:
        ours: the artifact.
        peers: by name.
        ratios: median over rounds of (peer median / our median): above 1, bevel is faster.
        cpu_ratios: the same of CPU time, which other programs disturb less.
        errors: by name, "bevel" too: max|d| / max|reference| of the outputs against the reference; empty without one.
        facts: by name, "bevel" too: version, and isa where the engine tells it.
        uncapped: peers of which some kernels at least were not kept within the instruction set asked for.
    """

    ours: Latency
    peers: Mapping[str, Latency]
    ratios: Mapping[str, float]
    cpu_ratios: Mapping[str, float] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    uncapped: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The peers as JSON."""
        return {
            name: {
                "latency_ms": latency.document(),
                "ratio": self.ratios[name],
                "cpu_ratio": self.cpu_ratios[name],
                # JSON has no infinity.
                "error": self.errors[name] if math.isfinite(self.errors.get(name, math.inf)) else None,
                "computes_something_else": name in self.strangers,
                "version": self.facts.get(name, {}).get("version"),
                "isa": self.facts.get(name, {}).get("isa"),
                "capped": name not in self.uncapped,
            }
            for name, latency in self.peers.items()
        }

    @property
    def strangers(self) -> tuple[str, ...]:
        """Peers whose outputs are not the model's: their times are no comparison."""
        limits = {name: INT8_DIFFERS if name.endswith("-int8") else FP32_DIFFERS for name in self.peers}
        # Written so that what is not a number counts.
        return tuple(name for name, limit in limits.items() if name in self.errors and not self.errors[name] <= limit)


def measure_host(
    artifact: Artifact,
    inputs: Mapping[str, Array],
    peers: Mapping[str, Contestant],
    *,
    threads: int,
    processes: int = PROCESSES,
    rounds: int = ROUNDS,
    reference: Sequence[Array] | None = None,
    isa: str | None = None,
    say: Say | None = None,
) -> Contest:
    """Measure `artifact`, and peers, on this machine.

    Args:
        artifact: for this machine's ISA.
        inputs: what it runs on.
        peers: what `find_peers` gave.
        threads: for every contestant.
        processes: measuring processes of each; the interval is taken over them, and up to as many more narrow it when it is wide.
        rounds: interleaved rounds in each, one block of every contestant.
        reference: what the model's outputs should be, in its order.
        isa: what peers were to be capped to.
        say: progress.

    Raises:
        ToolchainError: a measuring process ended; its last line is in the error.
    """
    named = tuple(str(tensor["name"]) for tensor in artifact.manifest["outputs"])
    # The model's own order is that of the reference.
    outputs = next((peer.outputs for peer in peers.values() if set(peer.outputs) == set(named)), named)
    everyone = {"bevel": own_contestant(artifact.path, inputs, outputs), **peers}
    runs: list[Round] = []
    latency: dict[str, Latency] = {}
    # More processes while the interval is too wide to quote, up to twice as many.
    while len(runs) < processes or (len(runs) < 2 * processes and processes > 1 and latency["bevel"].unstable):
        runs.append(run_round(everyone, threads, rounds))
        measured = [run.measured for run in runs]
        latency = {
            name: summarize(
                [run.wall_ms[name] for run in measured],
                [run.cpu_ms[name] for run in measured],
                [run.disturbed[name] for run in measured],
            )
            for name in everyone
        }
        if say is not None:
            say("measure", len(runs), max(processes, len(runs)))
    ratios = {name: _ratio([run.measured.wall_ms for run in runs], name) for name in peers}
    cpu_ratios = {name: _ratio([run.measured.cpu_ms for run in runs], name) for name in peers}
    errors: dict[str, float] = {}
    if reference is not None:
        errors = {name: max(relative_difference(run.outputs[name], list(reference)) for run in runs) for name in everyone}
    facts = runs[-1].facts
    uncapped = tuple(n for n, peer in peers.items() if isa is not None and (not peer.capped or "beyond_cap" in facts[n]))
    return Contest(latency.pop("bevel"), latency, ratios, cpu_ratios, errors, facts, uncapped)


def _ratio(runs: Sequence[Mapping[str, Sequence[float]]], name: str) -> float:
    return float(np.median([np.median(times[name]) / np.median(times["bevel"]) for times in runs]))
