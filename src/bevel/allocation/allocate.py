"""From a plan that leaves bits to a device to one that names them: the road of `--bits auto-lowbit`.

The model is prepared and lowered once for each precision, with all open layers at it, so that layers are weighed as the compiler
would run them: with its kernels, its residual stream and the conversions in front of layers that read others' values at fewer
bits. A few calibration samples do for that. With `--tune=fast` or `full` the tuner measures what it does not know. What was
chosen is prepared together, and layers that lose by what others chose go back to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bevel.allocation.choice import LEAST_MEASURED, LEAST_STATIC, LayerChoice, totals
from bevel.allocation.costs import Costs
from bevel.allocation.layers import Layer, Work, open_layers, resolved, works
from bevel.backends.calls import Call
from bevel.backends.lower import kernel_calls
from bevel.backends.select import candidates
from bevel.compiler import Options, Say, Trace, bind, prepare
from bevel.devices.cost import Roofline
from bevel.devices.profile import Profile
from bevel.errors import UsageError
from bevel.ir.graph import Graph, Level
from bevel.ir.plan import W4A8, W8A8, Bits, CompressionPlan, LayerPlan
from bevel.tuning.program import Candidate
from bevel.tuning.tuner import Tuner

# Calibration samples to weigh precisions on: kernels do not depend on ranges.
SAMPLES = 4
# Weighed by estimate even where they are not allowed, so that the report says what allowing them would gain.
ALWAYS_WEIGHED = (W4A8, Bits(2, 2))


@dataclass(frozen=True)
class Allocation:
    """Chosen bits.

    Attributes:
        plan: an ordinary plan, which gives the same graph when it is compiled.
        choices: what was weighed, layer by layer, in execution order.
        problems: texts of the problems whose measurements decide.
        profile: the device.
        allowed: what the plan allowed.
    """

    plan: CompressionPlan
    choices: list[LayerChoice]
    problems: list[str]
    profile: Profile
    allowed: tuple[Bits, ...]

    def manifest_field(self) -> dict[str, Any]:
        """`allocation`: what was allowed, how it was decided, and every layer (`LayerChoice.document`)."""
        layers = [choice.document(self.profile) for choice in self.choices]
        sources: dict[str, int] = {}
        for layer in layers:
            sources[layer["by"]] = sources.get(layer["by"], 0) + 1
        found = {
            "allowed": [str(bits) for bits in self.allowed],
            "least_gain": {"measured": LEAST_MEASURED, "static": LEAST_STATIC},
            "by": sources,
            **totals(self.choices),
            "layers": layers,
        }
        return {"allocation": found}


def allocate(graph: Graph, options: Options, profile: Profile, batch: Mapping[str, int], tuner: Tuner, say: Say) -> Allocation:
    """Choose the bits that the plan of `options` leaves open.

    Args:
        graph: the float model as imported.
        options: of the compilation.
        profile: the device.
        batch: extents of symbolic dimensions.
        tuner: of the device.
        say: progress.

    Raises:
        UsageError: the model is quantized already.
        CalibrationError: see `prepare`.
        DeviceError: the device failed while kernels were measured.
    """
    if graph.level is not Level.FLOAT:
        raise UsageError(
            f"{graph.name!r} is already quantized, so its bits are not open to choice: compile the float model with --bits "
            "auto-lowbit, or this one without --bits, which keeps the bits it has"
        )
    plan = options.whole_plan()
    plan.validate(graph)
    names = {value.name for node in graph.nodes for value in node.outputs}

    def called(chosen: Mapping[str, Bits], trace: Trace | None = None) -> list[Call]:
        own = replace(options, plan=_quick(resolved(plan, chosen)), samples=min(options.samples, SAMPLES), bias_correction=False)
        return kernel_calls(bind(prepare(graph, own, trace=trace), batch), profile.target(), ranker=tuner)

    say("bits", 0, 1)
    canonical: list[Graph] = []
    first = called({}, Trace(lambda _, after: canonical.append(after) if after.level is Level.FLOAT else None))
    layers = open_layers(canonical[-1], plan, names)
    eight = works(layers, first)
    layers = [layer for layer in layers if layer in eight]
    weighed = {bits for layer in layers for bits in layer.allowed}.union(ALWAYS_WEIGHED, plan.allow) - {W8A8}
    widths = sorted(weighed, key=lambda bits: (-bits.weights, -bits.activations))
    few: dict[Bits, dict[Layer, Work]] = {}
    for number, bits in enumerate(widths):
        say("bits", number + 1, len(widths) + 2)
        few[bits] = works(layers, called({layer.name: bits for layer in layers}))
    costs = Costs(profile, tuner)
    allowed = [(layer, bits) for layer in layers for bits in layer.allowed if bits != W8A8]
    _measure(costs, [(few[bits][layer], eight[layer]) for layer, bits in allowed], first, graph.name, say)
    choices = [
        LayerChoice(
            layer,
            eight[layer],
            costs.eight(eight[layer], W8A8),
            [costs.few(few[bits][layer], bits, eight[layer]) for bits in widths],
            {},
        )
        for layer in layers
    ]
    say("bits", len(widths) + 1, len(widths) + 2)
    _settle(choices, called, Roofline(profile))
    texts = [repr(work.problem) for work in (*eight.values(), *(few[bits][layer] for layer, bits in allowed))]
    chosen = {choice.layer.name: choice.chosen().bits for choice in choices}
    return Allocation(resolved(plan, chosen), choices, list(dict.fromkeys(texts)), profile, plan.allow)


def _quick(plan: CompressionPlan) -> CompressionPlan:
    """A plan with the same kernels, whose weights round at once."""
    layers = {name: replace(layer, scales=None, rounding=None) for name, layer in plan.layers.items()}
    return replace(plan, scales="minmax", rounding="nearest", layers={k: v for k, v in layers.items() if v != LayerPlan()})


def _measure(costs: Costs, pairs: Sequence[tuple[Work, Work]], calls: Sequence[Call], name: str, say: Say) -> None:
    """Measure, where the tuner's mode asks for it, what it does not know of layers at fewer bits and at 8."""
    tuner, target = costs.tuner, costs.tuner.target
    missing: dict[str, list[Candidate]] = {}
    for work, eight in pairs:
        best = next(iter(costs.of_few_bits(work.problem)), None)
        if best is None:
            continue
        for problem, more in ((eight.problem, []), (work.problem, [best])):
            choices = candidates(problem, target)
            if wanted := choices[: tuner.tuning.wanted(len(choices))]:
                wanted += [choice for choice in more if choice not in wanted]
                heat = tuner.heats.get(repr(problem))
                if len(wanted) > 1 and (heat is None or not heat.covers(wanted)):
                    missing[repr(problem)] = [Candidate(problem, choice) for choice in wanted]
    # Equal work stands together, so that what is compared is measured in one batch.
    ordered = sorted(missing.values(), key=lambda found: -found[0].problem.macs)  # type: ignore[union-attr]
    weights = sum(call.constants.weights.nbytes for call in calls if call.constants is not None)
    tuner.measure_candidates(costs.profile, ordered, name, weights, say)


def _settle(choices: Sequence[LayerChoice], called: Callable[[Mapping[str, Bits]], list[Call]], roofline: Roofline) -> None:
    """Take back what does not pay once all layers have their bits."""
    changed = True
    while changed:
        chosen = {choice.layer.name: choice.chosen().bits for choice in choices}
        if all(bits == W8A8 for bits in chosen.values()):
            return
        found = works([choice.layer for choice in choices], called(chosen))
        changed = False
        for choice in choices:
            elements = max(0, found[choice.layer].converted - choice.work.converted)
            changed |= choice.reconsider(roofline.pass_ms(elements) * 1e3 if elements else 0.0)
