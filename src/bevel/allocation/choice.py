"""The choice: for every layer the fastest of the precisions that the plan allows.

Fewer bits have to earn it: a layer goes from one precision to the next lower one only for a gain of `LEAST_MEASURED`, or
`LEAST_STATIC` where times are estimates; ties go to more bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bevel.allocation.costs import STATIC, Cost
from bevel.allocation.layers import Layer, Work
from bevel.allocation.reasons import why_refused
from bevel.devices.profile import Profile
from bevel.ir.plan import Bits

# Measurements of different batches agree within a few percent, estimates of different kernels within about ten.
LEAST_MEASURED, LEAST_STATIC = 1.05, 1.10


@dataclass
class LayerChoice:
    """What was chosen for a layer, and among what.

    Attributes:
        layer: the layer.
        work: of it at 8 bits.
        eight: what it takes at 8 bits.
        others: what it takes at fewer, most bits first, those that are not allowed included.
        refused: precisions that turned out to be slower in the company of the other layers' choices, and why.
    """

    layer: Layer
    work: Work
    eight: Cost
    others: list[Cost]
    refused: dict[Bits, str]

    def chosen(self) -> Cost:
        """The fastest that is allowed, of about equally fast ones that with most bits."""
        best, gained = self.eight, 1.0
        for cost in self.others:
            found = cost.gain(self.eight) if cost.bits in self.layer.allowed and cost.bits not in self.refused else None
            if found is not None and found[0] >= gained * least(found[1]):
                best, gained = cost, found[0]
        return best

    def reconsider(self, conversion_us: float) -> bool:
        """Whether the choice has to change, as bringing the layer's input to its bits takes that long after all."""
        cost = self.chosen()
        if cost is self.eight:
            return False
        real = replace(cost, conversion_us=conversion_us)
        found, before = real.gain(self.eight), cost.gain(self.eight)
        assert found is not None
        assert before is not None
        if found[0] >= least(found[1]):
            return False
        self.refused[cost.bits] = (
            f"gains {before[0]:.2f}x, but as others read its input at other bits, converting it takes {conversion_us:.1f} us"
        )
        return True

    def document(self, profile: Profile) -> dict[str, Any]:
        """As the manifest has it."""
        best = self.chosen()
        found = best.gain(self.eight)
        refused = []
        for cost in self.others:
            if cost is not best:
                ratio = cost.gain(self.eight)
                reason = self.refused.get(cost.bits) or why_refused(
                    self.layer, self.work, cost, self.eight, best, least(ratio[1] if ratio else STATIC), profile
                )
                refused.append(_times(cost) | {"gain": round(ratio[0], 3) if ratio else None, "reason": reason})
        return {
            "layer": self.layer.label,
            "value": self.layer.name,
            "macs": self.work.problem.macs,
            "chosen": _times(best),
            "gain": round(found[0], 3) if found is not None and best is not self.eight else 1.0,
            "by": found[1] if found is not None and best is not self.eight else self.eight.source,
            "int8": _times(self.eight),
            "refused": refused,
        }


def least(source: str) -> float:
    """Gain for which bits are given up, by where times come from."""
    return LEAST_STATIC if source == STATIC else LEAST_MEASURED


def totals(choices: list[LayerChoice]) -> Mapping[str, float]:
    """Microseconds of all layers at 8 bits and as chosen, each by what decided it; layers without times are left out."""
    eight = chosen = 0.0
    for choice in choices:
        best = choice.chosen()
        found = best.gain(choice.eight)
        us = choice.eight.predicted_us if found is None or found[1] == STATIC else choice.eight.measured_us
        if us is not None:
            eight += us
            chosen += us / found[0] if found is not None else us
    return {"int8_us": round(eight, 3), "chosen_us": round(chosen, 3)}


def _times(cost: Cost) -> dict[str, Any]:
    def rounded(us: float | None) -> float | None:
        return round(us, 3) if us is not None else None

    return {
        "bits": str(cost.bits),
        "kernel": cost.kernel,
        "predicted_us": rounded(cost.predicted_us),
        "measured_us": rounded(cost.measured_us),
        "conversion_us": rounded(cost.conversion_us),
    }
