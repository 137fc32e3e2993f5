"""Side-by-side instruction counts: what is counted, what an engine multiplied with, and what llvm-mca makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from benchmarks.instructions.arm64 import CORES
from benchmarks.instructions.blocks import (
    MCA_CPUS,
    Executed,
    Tally,
    added,
    assembler_text,
    disassembled,
    llvm_tool,
    multiplication,
    tally,
)
from benchmarks.instructions.peers import BEST, Row, kernels_note, line, standing
from bevel.devices.tcg import BlockRuns, count_blocks
from bevel.errors import ToolchainError

# subs x0, x0, #1; b.ne -4
LOOP = bytes.fromhex("000400f1e1ffff54")
# fmla v0.4s, v1.4s, v2.s[0]; sdot v3.4s, v4.16b, v5.4b[1]
MULTIPLIES = bytes.fromhex("2010824f83e0a54f")
# Three instructions, as often as its input says.
COUNTED_LOOP = r"""
#include <stdio.h>
#include <stdlib.h>
int main(void) {
    char line[16];
    if (!fgets(line, sizeof line, stdin)) return 1;
    long n = atol(line);
    __asm__ volatile(".arch armv8.2-a+dotprod\n1: subs %0, %0, #1\n\tsdot v0.4s, v1.16b, v2.16b\n\tb.ne 1b"
                     : "+r"(n) : : "cc", "v0");
    return 0;
}
"""


@pytest.fixture(scope="module")
def llvm() -> None:
    try:
        llvm_tool("llvm-mca")
    except ToolchainError as error:
        pytest.skip(str(error))


def made(products: dict[str, float], instructions: float = 100.0, cycles: float = 50.0) -> Tally:
    return Tally(instructions, cycles, 1.0, dict.fromkeys(products, 0.5), products, (), ())


def test_one_inference_is_the_difference_of_two_counts() -> None:
    """Blocks count by what they are, wherever they are; what ran as often in both is not part of an inference."""
    fewer = [BlockRuns(0, 0x1000, 2, 10, b"a"), BlockRuns(0, 0x2000, 1, 7, b"start"), BlockRuns(0, 0x3000, 1, 5, b"b")]
    more = [
        BlockRuns(0, 0x9000, 2, 16, b"a"),
        BlockRuns(0, 0x9900, 2, 4, b"a"),
        BlockRuns(0, 0x2000, 1, 7, b"start"),
        BlockRuns(0, 0x3000, 1, 4, b"b"),
        BlockRuns(0, 0x4000, 1, 1, b"c"),
    ]
    assert sorted(added(more, fewer, 2)) == [(b"a", 5.0), (b"b", -0.5), (b"c", 0.5)]


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("fmla v8.4s, v0.4s, v1.s[0]", ("fmla", 4)),
        ("fmla v8.2s, v0.2s, v1.2s", ("fmla", 2)),
        ("fmul v8.8h, v0.8h, v1.8h", ("fmla.h", 8)),
        ("fmadd s0, s1, s2, s3", ("fmla", 1)),
        ("sdot v0.4s, v1.16b, v2.4b[0]", ("dot", 16)),
        ("udot v0.2s, v1.8b, v2.8b", ("dot", 8)),
        ("smmla v0.4s, v1.16b, v2.16b", ("mmla", 32)),
        ("smull v0.8h, v1.8b, v2.8b", ("mlal", 8)),
        ("smlal2 v0.8h, v1.16b, v2.16b", ("mlal", 8)),
        ("umlal v0.4s, v1.4h, v2.4h", ("mlal", 4)),
        ("sqdmull2 v0.2d, v1.4s, v2.4s", ("mlal", 2)),
        ("mla v0.4s, v1.4s, v2.4s", ("mla", 4)),
        ("sadalp v0.4s, v1.8h", ("", 0)),
        ("add v0.4s, v1.4s, v2.4s", ("", 0)),
        ("mul x0, x1, x2", ("", 0)),
        ("fmov s0, s1", ("", 0)),
        ("smull x0, w1, w2", ("", 0)),
    ],
)
def test_multiplying_instructions_have_their_class_and_products(instruction: str, expected: tuple[str, int]) -> None:
    assert multiplication(instruction) == expected


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("b.ne 401234 <bevel_k_12+0x34>  // b.any", "b.ne 0"),
        ("cbz w3, 4100 <f>", "cbz w3, 0"),
        ("fmla v0.4s, v1.4s, v2.s[0]", "fmla v0.4s, v1.4s, v2.s[0]"),
        ("add x0, x0, #0x10 // comment", "add x0, x0, #0x10"),
    ],
)
def test_what_objdump_prints_becomes_what_an_assembler_reads(printed: str, expected: str) -> None:
    assert assembler_text(printed) == expected


def test_bytes_become_instructions(llvm: None) -> None:
    blocks = disassembled([(LOOP, 3.0), (MULTIPLIES, 0.5)])
    assert blocks[0] == Executed(("subs x0, x0, #1", "b.ne #-4"), 3.0)
    assert [multiplication(text) for text in blocks[1].code] == [("fmla", 4), ("dot", 16)]
    with pytest.raises(ToolchainError, match="1 of 2 instructions"):
        disassembled([(LOOP[:4] + b"\xff\xff\xff\xff", 1.0)])


def test_cycles_are_those_of_the_blocks(llvm: None) -> None:
    """Two cores: one multiplies in one pipe, the other in two; half as many executions cost half."""
    code = tuple(f"fmla v{i}.4s, v30.4s, v31.4s" for i in range(16))
    both = {cpu: tally([Executed(code, 1000.0)], cpu) for cpu in MCA_CPUS}
    assert both["cortex-a72"].cycles == pytest.approx(16000, rel=0.05)
    assert both["cortex-a76"].cycles == pytest.approx(8000, rel=0.05)
    half = tally([Executed(code, 500.0)], "cortex-a72")
    assert half.cycles == pytest.approx(both["cortex-a72"].cycles / 2)
    assert half.instructions == 8000
    assert half.products == {"fmla": 32000}
    assert half.weighed == 1.0


def test_what_is_not_weighed_costs_what_the_rest_costs(llvm: None) -> None:
    hot, rare = tuple(f"fmla v{i}.4s, v30.4s, v31.4s" for i in range(10)), ("add x0, x0, #1",)
    whole = tally([Executed(hot, 1000.0), Executed(rare, 1.0)], "cortex-a72")
    assert len(whole.block_cycles) == 1
    assert whole.weighed == pytest.approx(10000 / 10001)
    assert whole.cycles == pytest.approx(1000 * whole.block_cycles[0] / whole.weighed)


def test_an_engine_with_lesser_instructions_does_not_count() -> None:
    """Widening multiplications on a core with dot products are not what the engine does on a board."""
    assert kernels_note(made({"dot": 90.0, "mlal": 10.0}), "8", "cortex-a76") is None
    assert "10 % of its products by sdot/udot" in (kernels_note(made({"dot": 10.0, "mlal": 90.0}), "8", "cortex-a76") or "")
    assert kernels_note(made({"mlal": 90.0, "mla": 10.0}), "8", "cortex-a72") is None
    assert kernels_note(made({"fmla.h": 90.0, "fmla": 10.0}), "fp32", "cortex-a76") is not None
    assert kernels_note(made({}), "fp32", "cortex-a72") is not None
    assert {cpu for _, cpu in BEST} == set(MCA_CPUS) == set(CORES)


def test_only_engines_that_count_are_compared_with() -> None:
    ours = Row("bevel 1", made({"dot": 1.0}, 100, 50), 0.0, ())
    lesser = Row("lesser 1", made({"mlal": 1.0}, 10, 5), 0.0, ("does not count: 0 % of its products by sdot/udot",))
    few = Row("few 1", made({"dot": 1.0}, 80, 70), 0.0, ())
    fast = Row("fast 1", made({"dot": 1.0}, 200, 40), 0.0, ())
    absent = Row("absent 1", None, float("nan"), ("refused",))
    assert standing("m", [ours, lesser, few, fast, absent]) == "| m | 1.25 (few) | 1.25 (fast) |"
    assert standing("m", [ours, lesser, absent]) == "| m | - | - |"
    assert ours.tally is not None
    assert line("m", fast, ours.tally, 2).startswith("| m | fast 1 | 0.00 | 2.00 | 0.00 | 0.80 | sdot/udot 50 % | 0.50 |")
    assert line("m", absent, ours.tally, 2).endswith("| refused |")


@pytest.mark.qemu
def test_counted_code_is_the_program_s(tmp_path: Path, arm_linker: Callable[[Path, Path], None], llvm: None) -> None:
    """The plugin hands out the instructions it counts, and the program reads its input."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("qemu-aarch64 is not installed: apt-get install qemu-user")
    (tmp_path / "main.c").write_text(COUNTED_LOOP)
    arm_linker(tmp_path / "main.c", tmp_path / "main")

    def counted(times: int) -> Sequence[BlockRuns]:
        emulator = ["qemu-aarch64", "-cpu", "cortex-a76"]
        return count_blocks(emulator, [str(tmp_path / "main")], stdin=f"{times}\n".encode(), code=True)

    found = disassembled(added(counted(5000), counted(3000), 2))
    (loop,) = [block for block in found if block.executions == 1000]
    assert [text.split()[0] for text in loop.code] == ["subs", "sdot", "b.ne"]


def test_cores_describe_themselves() -> None:
    text = CORES["cortex-a76"].cpuinfo
    assert text.count("processor\t:") == 4
    assert "asimddp" in text
    assert "asimddp" not in CORES["cortex-a72"].cpuinfo
