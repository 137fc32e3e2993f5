"""Every packing that only moves weights is seen through: each is found in the packed buffers, so artifacts store it once."""

from __future__ import annotations

import numpy as np
import pytest

from bevel.backends.kernel import Array, ConvConstants, ConvProblem, Rewriting
from bevel.backends.packing import find_weights
from bevel.backends.select import generators
from bevel.ir.protocols import Target
from tests.backends.harness import A72, A76, X86_AVX2, X86_AVX512, X86_BASE, X86_VNNI

SAME = {"pad_top": 1, "pad_left": 1, "pad_bottom": 1, "pad_right": 1}
PROBLEMS = (
    ConvProblem(1, 9, 9, 21, 37, 3, 3, **SAME),
    ConvProblem(1, 1, 7, 130, 33),
    ConvProblem(1, 8, 8, 35, 35, 3, 3, groups=35, **SAME),
    ConvProblem(1, 8, 8, 12, 24, 3, 3, groups=3, **SAME),
)


def constants(problem: ConvProblem, *, codes: bool) -> ConvConstants:
    rng = np.random.default_rng(problem.c)
    shape = (problem.oc, problem.c // problem.groups, problem.kh, problem.kw)
    if not codes:
        return ConvConstants(rng.standard_normal(shape).astype(np.float32), rng.standard_normal(problem.oc).astype(np.float32))
    weights = rng.integers(-127, 128, shape).astype(np.int8)
    factors = rng.integers(1 << 30, 1 << 31, problem.oc), rng.integers(33, 40, problem.oc)
    return ConvConstants(weights, rng.integers(-99, 99, problem.oc).astype(np.int32), *factors, 3, 5, 0, 255)


@pytest.mark.parametrize("target", [X86_BASE, X86_AVX2, X86_AVX512, X86_VNNI, A72, A76], ids=lambda t: t.name)
@pytest.mark.parametrize("codes", [False, True], ids=["float32", "int8"])
def test_packed_weights_are_found(target: Target, codes: bool) -> None:
    seen = set()
    for geometry in PROBLEMS:
        dtype = target.activation_dtype if codes else "float32"
        problem = ConvProblem(**{**vars(geometry), "dtype": dtype, "out_dtype": dtype})
        numbers = constants(problem, codes=codes)
        for generator in generators(target.arch):
            if generator.legal(problem, target) is not None:
                continue
            if isinstance(generator, Rewriting) and generator.rewrites(problem):
                continue
            for tile in generator.tiles(problem, target)[:3]:
                packed = generator.pack(problem, tile, target, numbers)

                def pack(c: ConvConstants) -> list[Array]:
                    return generator.pack(problem, tile, target, c)  # noqa: B023

                found = find_weights(pack, numbers, packed)
                assert found is not None, (generator.name, problem)
                index, order = found
                assert np.array_equal(packed[index].reshape(-1)[order], numbers.weights.reshape(-1))
                seen.add(generator.name)
    assert len(seen) >= 2


def test_weights_that_were_computed_on_are_not_claimed() -> None:
    numbers = constants(PROBLEMS[0], codes=False)
    assert find_weights(lambda c: [c.weights * 2], numbers, [numbers.weights * 2]) is None
    assert find_weights(lambda c: [c.weights[:-1]], numbers, [numbers.weights[:-1]]) is None
