"""How a graph is trained: the numbers, and the stages of falling bits. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bevel.errors import InvalidPlan, UsageError
from bevel.ir.graph import Graph
from bevel.ir.ops import Trait, lookup
from bevel.ir.plan import TERNARY, W8A8, Bits, CompressionPlan, LayerPlan
from bevel.ir.types import Quant

AUGMENTATIONS = ("flip", "crop")
# Bits that weights and activations pass on their way down.
_LADDER = (4, 3, 2)
# Bits that a ternary code is stored in.
_TERNARY_STORAGE = 2


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: how often every sample is seen, in all; None where `minutes` decides.
        minutes: of the processor, all threads together, that training may take; the rate falls to zero within them.
        batch: samples of a step.
        learning_rate: of Adam at its highest; parameters are free of scale (`fake_quant`).
        step_rate: learning rate of step sizes, relative to that of weights and biases.
        distillation: weight of the float model's outputs in the loss, 0 to 1; labels have the rest.
        temperature: at which outputs are compared.
        augment: of `AUGMENTATIONS`: images are mirrored, and moved by up to 4 pixels.
        progressive: train at 4 and 3 bits on the way to fewer.
        exact: multiply codes in float32 instead of bfloat16 while training.
        calibration: samples that the quantized start is made with.
        seed: of the order of samples and of augmentation.
    """

    epochs: float | None = 3.0
    minutes: float | None = None
    batch: int = 128
    learning_rate: float = 0.01
    step_rate: float = 1.0
    distillation: float = 0.5
    temperature: float = 2.0
    augment: frozenset[str] = frozenset()
    progressive: bool = False
    exact: bool = False
    calibration: int = 256
    seed: int = 0

    def check(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            UsageError: not exactly one of epochs and minutes, or a number out of its range.
        """
        if (self.epochs is None) == (self.minutes is None):
            raise UsageError("training takes either --epochs or --minutes")
        positive = {
            "--epochs": self.epochs,
            "--minutes": self.minutes,
            "--batch": self.batch,
            "--learning-rate": self.learning_rate,
            "--step-rate": self.step_rate,
            "--temperature": self.temperature,
            "--samples": self.calibration,
        }
        for name, number in positive.items():
            if number is not None and not number > 0:
                raise UsageError(f"{name} {number}: expected a positive number")
        if not 0 <= self.distillation <= 1:
            raise UsageError(f"--distillation {self.distillation}: expected 0 to 1")
        if unknown := sorted(self.augment - set(AUGMENTATIONS)):
            raise UsageError(f"--augment {unknown[0]}: expected {' or '.join(AUGMENTATIONS)}")


@dataclass(frozen=True)
class Stage:
    """Training at one precision.

    Attributes:
        plan: the precision of every layer.
        share: of all steps.
    """

    plan: CompressionPlan
    share: float


def stages(plan: CompressionPlan, progressive: bool) -> list[Stage]:
    """The stages that end at `plan`; the last has half of the steps, those before it share the rest.

    Raises:
        InvalidPlan: the plan asks for what is not trained.
    """
    _require_trainable(plan)
    lowest = min(bits.weights for bits in _all_bits(plan))
    rungs = [rung for rung in _LADDER if rung > lowest] if progressive else []
    before = [Stage(_at_least(plan, rung), 0.5 / len(rungs)) for rung in rungs]
    before = [stage for stage in before if stage.plan != plan]
    final = replace(plan, rounding="gptq")
    return [*before, Stage(final, 1 - sum(stage.share for stage in before))]


def lowest_codes(plan: CompressionPlan, graph: Graph) -> Mapping[str, int]:
    """Least weight codes of the ternary layers of an ANNOTATED graph, which use three codes, by the name of their result."""
    found = {}
    for node in graph.nodes:
        if Trait.WEIGHTED not in lookup(node.op).traits:
            continue
        elem, name = node.inputs[1].type.elem, node.output.name
        # The first and the last layer have 8 bits, unless the plan names them.
        if isinstance(elem, Quant) and elem.storage.bits == _TERNARY_STORAGE and plan.bits_of(name).weights == TERNARY:
            found[name] = -1
    return found


def _all_bits(plan: CompressionPlan) -> list[Bits]:
    return [plan.bits, *(layer.bits for layer in plan.layers.values() if layer.bits is not None)]


def _require_trainable(plan: CompressionPlan) -> None:
    if all(bits.is_float or bits == W8A8 for bits in _all_bits(plan)):
        raise InvalidPlan(f"bits {plan.bits}: training is for fewer than 8 bits; `bevel compile --bits 8` needs none")
    said: list[tuple[str, CompressionPlan | LayerPlan]] = [("the plan", plan)]
    said += [(f"layer {name!r}", layer) for name, layer in plan.layers.items()]
    for where, entry in said:
        if entry.levels not in (None, "uniform"):
            raise InvalidPlan(f"{where} asks for levels {entry.levels}, and tables are not trained; use uniform levels")
        if entry.granularity not in (None, "channel"):
            raise InvalidPlan(f"{where} asks for one weight scale in a {entry.granularity}; training learns one for each channel")


def _at_least(plan: CompressionPlan, least: int) -> CompressionPlan:
    """`plan` with no layer below `least` bits."""

    def raised(bits: Bits) -> Bits:
        return bits if bits.is_float else Bits(max(bits.weights, least), max(bits.activations, least))

    layers = {
        name: layer if layer.bits is None else replace(layer, bits=raised(layer.bits)) for name, layer in plan.layers.items()
    }
    return replace(plan, bits=raised(plan.bits), stream=max(plan.stream, least), layers=layers, rounding="gptq")
