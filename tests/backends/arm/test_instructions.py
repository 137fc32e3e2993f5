"""Instructions of whole convolutions for few bits on a Cortex-A72, emulated, beside those of the int8 kernels they replace.

Counts are exact: what is outside of the inner loops counts too, which llvm-mca does not see.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bevel.backends.kernel import ConvProblem
from bevel.backends.select import choose
from bevel.errors import ToolchainError
from tests.backends.harness import A72, Call, Compiled, skip_unless_runs
from tests.backends.low_bit_cases import SAME, constants_of, conv, inputs_of

pytestmark = pytest.mark.qemu

# Layers 2 to 4 of ResNet-18.
SIZES = {128: 28, 256: 14, 512: 7}
# Weights, inputs and the most instructions relative to int8.
LIMITS = {(2, 2): 0.5, (1, 2): 0.28}


@pytest.mark.parametrize("channels", SIZES)
def test_instructions_relative_to_int8(channels: int, tmp_path: Path) -> None:
    """With the kernels and tiles that lowering chooses."""
    skip_unless_runs(A72)
    if platform.machine() == A72.arch:
        pytest.skip("instructions are counted by an emulator, and kernels run here")
    size = SIZES[channels]
    fields = {"dtype": "int8", "out_dtype": "int8", "short_factors": True, **SAME}
    base: ConvProblem = conv(size, size, channels, channels, 3, **fields)
    rng = np.random.default_rng(73)
    functions, calls = {}, {}
    for bits in ((8, 8), *LIMITS):
        problem = replace(base, weight_bits=bits[0], x_bits=bits[1])
        choice = choose(problem, A72, "layer")
        generator, tile = choice.generator, choice.tile
        symbol = f"w{bits[0]}a{bits[1]}"
        functions[symbol] = generator.emit(problem, tile, A72, symbol)
        constants = constants_of(replace(problem, weight_bits=min(4, bits[0])), rng)
        inputs = [inputs_of(problem, rng), *generator.pack(problem, tile, A72, constants)]
        ranges = [(0, generator.parallel_extent(problem, tile))]
        result = (1, problem.oh, problem.ow, problem.oc), "int8"
        calls[bits] = Call(symbol, inputs, [result], ranges, generator.scratch_bytes(problem, tile))
    compiled = Compiled(functions, A72, tmp_path)
    try:
        counts = {bits: compiled.instructions(call) for bits, call in calls.items()}
    except ToolchainError as error:
        pytest.skip(str(error))
    shares = {bits: counts[bits] / counts[8, 8] for bits in LIMITS}
    assert all(shares[bits] <= LIMITS[bits] for bits in LIMITS), shares
