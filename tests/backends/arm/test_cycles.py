"""Useful multiply-accumulates per cycle of the ARM inner loops, by llvm-mca's models of the cores (docs/kernels.md).

No hardware: a model of decode, ports and latencies, every access a hit in the first cache. It shows a loop that waits for its own
results or carries instructions that it need not, on cores that are not here.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.instructions.blocks import assembler_text, block_cycles, llvm_tool, multiplication
from bevel.backends import arm
from bevel.backends.kernel import ConvProblem
from bevel.backends.tvm import compile_object
from bevel.errors import ToolchainError
from bevel.ir.protocols import Target
from tests.backends.arm.test_inner_loops import POINTWISE, inner_loops
from tests.backends.harness import A72, A76, GNU_TRIPLES

# MACs per cycle that hand-written loops reach in the same models; within a tenth is as good.
REACHED = {
    (A72, "arm_conv_int8_neon"): 8.0,
    (A76, "arm_conv_int8_sdot"): 26.9,
    (A72, "arm_conv_f32"): 4.0,
    (A76, "arm_conv_f32"): 6.9,
}
# One row of weights of few bits: of tables, where the bits are said to be of indices. int8 has 15.0 on the A76, 8.0 on the A72.
ONE_ROW = {
    (A76, "arm_conv_unpack_sdot", "weight_bits", 4): 20.0,
    (A76, "arm_conv_unpack_sdot", "weight_bits", 2): 18.3,
    (A76, "arm_conv_lookup_sdot", "index_bits", 4): 10.6,
    (A72, "arm_conv_unpack_neon", "weight_bits", 4): 8.0,
    (A72, "arm_conv_unpack_neon", "weight_bits", 2): 8.0,
    (A72, "arm_conv_lookup_neon", "index_bits", 4): 4.6,
}


@pytest.mark.parametrize(("target", "name"), REACHED, ids=lambda value: getattr(value, "cpu", value))
def test_inner_loops_reach_the_rate_of_the_core(target: Target, name: str, tmp_path: Path) -> None:
    """The tile that lowering chooses for a large product."""
    dtype = "float32" if "f32" in name else "int8"
    rates = rates_of_loops(replace(POINTWISE, c=256, dtype=dtype, out_dtype=dtype), target, name, tmp_path)
    assert max(rates)[1] >= 0.9 * REACHED[target, name], rates


@pytest.mark.parametrize(("target", "name", "kind", "bits"), ONE_ROW, ids=lambda value: getattr(value, "cpu", value))
def test_rows_of_few_bits(target: Target, name: str, kind: str, bits: int, tmp_path: Path) -> None:
    """Unpacking leaves the core about as fast as it is with a byte a weight; looking up, fast enough for weights from memory."""
    problem = replace(ConvProblem(1, 1, 1, 2048, 2048, dtype="int8", out_dtype="int8"), **{kind: bits})
    rates = rates_of_loops(problem, target, name, tmp_path)
    assert max(rates)[1] >= 0.9 * ONE_ROW[target, name, kind, bits], rates


def rates_of_loops(problem: ConvProblem, target: Target, name: str, folder: Path) -> list[tuple[int, float]]:
    """Multiplications of each inner loop, and how many it does a cycle; the one with most of them counts."""
    if shutil.which(f"{GNU_TRIPLES['aarch64']}-objdump") is None:
        pytest.skip(f"no aarch64 objdump (Debian: binutils-{GNU_TRIPLES['aarch64']})")
    try:
        llvm_tool("llvm-mca")
    except ToolchainError as error:
        pytest.skip(str(error))
    generator = next(g for g in arm.GENERATORS["aarch64"] if g.name == name)
    path = folder / "kernel.o"
    path.write_bytes(compile_object({"k": generator.emit(problem, generator.tiles(problem, target)[0], target, "k")}, target))
    rates = []
    for loop in inner_loops(path, target):
        code = [assembler_text(line.replace("\t", " ")) for line in loop.body]
        if macs := sum(multiplication(line)[1] for line in code):
            (cycles,) = block_cycles([code], target.cpu)
            rates.append((macs, macs / cycles))
    return rates
