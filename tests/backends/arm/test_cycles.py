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


@pytest.mark.parametrize(("target", "name"), REACHED, ids=lambda value: getattr(value, "cpu", value))
def test_inner_loops_reach_the_rate_of_the_core(target: Target, name: str, tmp_path: Path) -> None:
    """The tile that lowering chooses for a large product; the loop with most multiplications counts."""
    if shutil.which(f"{GNU_TRIPLES['aarch64']}-objdump") is None:
        pytest.skip(f"no aarch64 objdump (Debian: binutils-{GNU_TRIPLES['aarch64']})")
    try:
        llvm_tool("llvm-mca")
    except ToolchainError as error:
        pytest.skip(str(error))
    generator = next(g for g in arm.GENERATORS["aarch64"] if g.name == name)
    dtype = "float32" if "f32" in name else "int8"
    problem = replace(POINTWISE, c=256, dtype=dtype, out_dtype=dtype)
    path = tmp_path / "kernel.o"
    path.write_bytes(compile_object({"k": generator.emit(problem, generator.tiles(problem, target)[0], target, "k")}, target))
    rates = []
    for loop in inner_loops(path, target):
        code = [assembler_text(line.replace("\t", " ")) for line in loop.body]
        if macs := sum(multiplication(line)[1] for line in code):
            (cycles,) = block_cycles([code], target.cpu)
            rates.append((macs, macs / cycles))
    _, rate = max(rates)
    assert rate >= 0.9 * REACHED[target, name], rates
