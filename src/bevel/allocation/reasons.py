"""Refusals in words: why a layer does not run at some precision, for people who might change that."""

from __future__ import annotations

from bevel.allocation.costs import STATIC, Cost
from bevel.allocation.layers import Layer, Work
from bevel.devices.profile import Profile

# A kernel for 8 bits at this share of what its instruction can do leaves little to save but multiplications.
BUSY = 0.5
# Share of a kernel's time that does not depend on the number of output channels, from which on these are too few.
TOO_FEW = 0.3


def why_refused(layer: Layer, work: Work, cost: Cost, eight: Cost, best: Cost, least: float, profile: Profile) -> str:
    """Why `layer` does not run at `cost`.

    Args:
        layer: says what is allowed.
        work: at 8 bits.
        cost: of the layer at fewer bits.
        eight: of the layer at 8 bits.
        best: what was chosen instead.
        least: gain over more bits from which on fewer are taken.
        profile: the device.
    """
    if cost.bits not in layer.allowed:
        if layer.is_end:
            return "the first and the last layer keep 8 bits unless the plan names them"
        return "not among the bits that the plan allows"
    if not cost.kernel:
        return cost.why_none
    found = cost.gain(eight)
    if found is None:
        return f"the time of {cost.kernel} is not known: it estimates none and was not measured"
    gain, source = found
    if gain < 1:
        return _why_slower(work, cost, eight, source, profile)
    other = best.gain(eight) if best is not eight else None
    if other is not None:
        more = f"gains {gain:.2f}x, {best.bits} {other[0]:.2f}x"
        return f"{more}: less than {least:.2f}x for giving up more bits" if gain > other[0] else more
    return f"gains {gain:.2f}x, less than the {least:.2f}x for which bits are given up"


def _why_slower(work: Work, cost: Cost, eight: Cost, source: str, profile: Profile) -> str:
    """Why fewer bits take longer than 8."""
    mine, theirs = cost.measured_us, eight.measured_us
    if source == STATIC:
        mine, theirs = cost.predicted_us, eight.predicted_us
    assert mine is not None
    assert theirs is not None
    if mine <= theirs:
        took = f"bringing its input to {cost.bits.activations} bits takes {cost.conversion_us:.1f} us"
        return f"{cost.kernel} gains {theirs / mine:.2f}x, but {took}"
    longer = f"takes {mine / theirs:.2f} times as long"
    # Estimates are at the clock that the peak is for.
    peak = profile.peaks.int8_gmacs.value
    rate = work.problem.macs / (eight.predicted_us or theirs) / 1e3
    runs = f"int8 runs at {min(rate, peak):.0f} of {peak:.0f} GMAC/s of its instruction"
    if rate >= BUSY * peak:
        return f"compute-bound: {runs}, and few bits take no fewer operations: {cost.kernel} {longer}"
    if cost.channelless >= TOO_FEW:
        share = f"{100 * cost.channelless:.0f} % of the time of {cost.kernel} does not depend on their number"
        what = "tables of inputs, whole vectors of channels"
        return f"{work.problem.oc} output channels are too few: {share} ({what}), and it {longer}"
    return f"{cost.kernel} {longer}: {runs} with {eight.kernel}"
