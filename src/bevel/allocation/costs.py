"""What a layer takes at some precision: its kernel, and the time of it by estimate and by measurement.

In: problems, a device profile and its tuner. Out: a `Cost`. Estimates are the generators' own cycles at the clock of the profile;
measurements are those the tuner has. Two precisions are compared by measurements where both have one, else by estimates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from bevel.allocation.layers import Work
from bevel.backends.kernel import ConvProblem, Estimated, Generator
from bevel.backends.select import Choice, candidates, choose, generators, why_illegal
from bevel.devices.cost import Roofline
from bevel.devices.profile import Profile
from bevel.ir.plan import Bits
from bevel.tuning.tuner import Tuner
from bevel.tuning.winners import kernel_of

STATIC, SHIPPED = "static", "shipped"
# Bits of codes that fill their byte.
WHOLE = 8


@dataclass(frozen=True)
class Cost:
    """What a layer takes at some precision.

    Attributes:
        bits: the precision.
        kernel: generator of the kernel it would run; of several kernels of few bits the fastest, even where one for 8 bits beats
            it. "" where none of few bits computes the layer.
        predicted_us: by estimated cycles; None where the generator estimates none.
        measured_us: None where it was not measured.
        source: of the measurement: "measured", "cached" or "shipped".
        conversion_us: estimated, of bringing the layer's input to its bits.
        channelless: share of the estimated time that does not depend on the number of output channels.
        why_none: why no kernel of few bits computes the layer.
    """

    bits: Bits
    kernel: str = ""
    predicted_us: float | None = None
    measured_us: float | None = None
    source: str = STATIC
    conversion_us: float = 0.0
    channelless: float = 0.0
    why_none: str = ""

    def gain(self, eight: Cost) -> tuple[float, str] | None:
        """Time of the layer at 8 bits over its time at these, conversion included, and where both come from; None if unknown.

        Times that came with the package are another machine's, and are compared with each other only.
        """
        if self.measured_us and eight.measured_us and (self.source == SHIPPED) == (eight.source == SHIPPED):
            return eight.measured_us / (self.measured_us + self.conversion_us), self.source
        if self.predicted_us and eight.predicted_us:
            return eight.predicted_us / (self.predicted_us + self.conversion_us), STATIC
        return None


@dataclass(frozen=True)
class Costs:
    """Costs of layers on a device.

    Attributes:
        profile: the device.
        tuner: knows what was measured on it.
    """

    profile: Profile
    tuner: Tuner

    def eight(self, work: Work, bits: Bits) -> Cost:
        """Of a layer at 8 bits."""
        choice = choose(work.problem, self.tuner.target, "", self.tuner)
        return self._cost(bits, work.problem, choice, 0.0)

    def few(self, work: Work, bits: Bits, eight: Work) -> Cost:
        """Of a layer at fewer bits than `eight`."""
        target = self.tuner.target
        choice = choose(work.problem, target, "", self.tuner)
        if choice.generator.name == choose(eight.problem, target, "", self.tuner).generator.name:
            # The kernel for 8 bits computes it too, in the same time: what is of interest is the best one of few bits.
            best = min(self.of_few_bits(work.problem), key=lambda one: self._time(work.problem, one), default=None)
            if best is None:
                return Cost(bits, why_none=self._why_none(work.problem, bits))
            choice = best
        elements = max(0, work.converted - eight.converted)
        conversion = Roofline(self.profile).pass_ms(elements) * 1e3 if elements else 0.0
        return self._cost(bits, work.problem, choice, conversion)

    def of_few_bits(self, problem: ConvProblem) -> Iterator[Choice]:
        """Kernels that compute `problem`, but would not if its codes had 8 bits."""
        eight = _whole(problem)
        for choice in candidates(problem, self.tuner.target):
            if why_illegal(choice.generator, eight, self.tuner.target) is not None:
                yield choice

    def _cost(self, bits: Bits, problem: ConvProblem, choice: Choice, conversion_us: float) -> Cost:
        us, source = self._measured(problem, choice) or (None, STATIC)
        shared = self._channelless(problem, choice)
        return Cost(bits, choice.generator.name, self._predicted(problem, choice), us, source, conversion_us, shared)

    def _time(self, problem: ConvProblem, choice: Choice) -> tuple[bool, float]:
        """To compare kernels of one problem: those that were measured come first."""
        measured = self._measured(problem, choice)
        return (False, measured[0]) if measured is not None else (True, self._predicted(problem, choice) or 0.0)

    def _measured(self, problem: ConvProblem, choice: Choice) -> tuple[float, str] | None:
        """Microseconds, and where they come from."""
        heat = self.tuner.heat_of(repr(problem))
        if heat is None or kernel_of(choice) not in heat.times:
            return None
        return heat.times[kernel_of(choice)][0] / 1e3, heat.source

    def _predicted(self, problem: ConvProblem, choice: Choice) -> float | None:
        """Microseconds."""
        generator = choice.generator
        if not isinstance(generator, Estimated):
            return None
        return generator.cycles(problem, self.tuner.target, choice.tile) / self.profile.clock_ghz / 1e3

    def _channelless(self, problem: ConvProblem, choice: Choice) -> float:
        """What twice as many channels would share of the time."""
        generator, target = choice.generator, self.tuner.target
        if not isinstance(generator, Estimated):
            return 0.0
        once, twice = (generator.cycles(replace(problem, oc=n * problem.oc), target, choice.tile) for n in (1, 2))
        return min(1.0, max(0.0, 2 - twice / once))

    def _why_none(self, problem: ConvProblem, bits: Bits) -> str:
        """Why no kernel of few bits computes `problem`: reasons of those that a plain product of as few bits has."""
        target = self.tuner.target
        if problem == _whole(problem):
            return f"at {bits} its weights are integers of 8 bits, which are multiplied like any others"
        # Nothing about it keeps a kernel away but its bits.
        plain = ConvProblem(1, 8, 8, 64, 64, dtype=problem.dtype, out_dtype=problem.dtype)
        kinds = ("weight_bits", "x_bits", "index_bits", "weight_group", "group_bits", "light_weights")
        plain = replace(plain, **{kind: getattr(problem, kind) for kind in kinds})
        whole = _whole(plain)

        def is_for_few(generator: Generator) -> bool:
            return generator.legal(plain, target) is None and generator.legal(whole, target) is not None

        reasons: dict[str, list[str]] = {}
        for generator in generators(target.arch):
            if is_for_few(generator):
                reasons.setdefault(str(why_illegal(generator, problem, target)), []).append(generator.name)
        if not reasons:
            return f"no kernel for {bits} on {self.profile.name}: that for 8 bits computes it, in the same time"
        said = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
        return f"no kernel for {bits} computes it: {said}"


def _whole(problem: ConvProblem) -> ConvProblem:
    """`problem` with codes and weights that say nothing of themselves but that they are bytes."""
    return replace(problem, weight_bits=WHOLE, x_bits=WHOLE, index_bits=0, weight_group=0, group_bits=0)
