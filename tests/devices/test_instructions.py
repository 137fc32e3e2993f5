"""Instruction counts under qemu: exact for a program whose count is known, and the same every time for a model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

import bevel
from bevel.cli import cli
from bevel.devices.disassembly import disassemble
from bevel.devices.instructions import InstructionReport, count_instructions
from bevel.devices.profile import load_profile
from bevel.devices.resolve import emulator_command
from bevel.devices.tcg import count_blocks
from bevel.errors import ToolchainError, UsageError
from bevel.runtime.artifact import Artifact

pytestmark = pytest.mark.qemu

PI4 = load_profile("raspberry-pi-4")
RESNET8 = Path(__file__).parents[2] / "models" / "resnet8_cifar10_int8_qdq.onnx"
# Two functions, a loop of two instructions in each; the digit of the argument says how many thousand times the loops run.
LOOPS = r"""
#define LOOP(name) __attribute__((noinline)) static void name(long n) {                                        \
        __asm__ volatile("1: subs %0, %0, #1\n\tb.ne 1b" : "+r"(n) : : "cc"); }
LOOP(first)
LOOP(second)
LOOP(finish)
int main(int argc, char **argv) {
    long n = (argv[1][0] - '0') * 1000L;
    (void)argc;
    for (int i = 0; i < 2; i++) { first(n); second(2 * n); }
    finish(1);
    return 0;
}
"""

if shutil.which("qemu-aarch64") is None:
    pytest.skip("qemu-aarch64 is not installed: apt-get install qemu-user", allow_module_level=True)


@pytest.fixture(scope="module")
def loops(tmp_path_factory: pytest.TempPathFactory, arm_linker: Callable[[Path, Path], None]) -> Path:
    folder = tmp_path_factory.mktemp("loops")
    (folder / "loops.c").write_text(LOOPS)
    arm_linker(folder / "loops.c", folder / "loops")
    return folder / "loops"


@pytest.fixture(scope="module")
def resnet8(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return bevel.compile(RESNET8, device="raspberry-pi-4", output=tmp_path_factory.mktemp("count") / "resnet8.bevel")


def scopes(program: Path, argument: str, functions: tuple[str, ...]) -> list[int]:
    """Instructions executed before the first of `functions` is called, then since each of them was."""
    entry = {instruction.symbol: instruction.address for instruction in reversed(disassemble(program, "aarch64").instructions)}
    blocks = count_blocks(emulator_command(PI4), [str(program), argument], [entry[name] for name in functions])
    counts = [0] * (len(functions) + 1)
    for block in blocks:
        counts[block.scope] += block.instructions * block.executions
    return counts


def test_loop_of_known_length_is_counted_exactly(loops: Path) -> None:
    """2 functions x 2 calls; n and 2 n rounds of 2 instructions: 12 n between the first call and the end of the last."""
    counts = {digit: scopes(loops, str(digit), ("first", "finish"))[1] for digit in (1, 2, 5)}
    assert counts[2] - counts[1] == 12 * 1000
    assert counts[5] - counts[2] == 12 * 3000
    assert scopes(loops, "5", ("first", "finish"))[1] == counts[5]


def test_markers_tell_calls_of_one_function_apart(loops: Path) -> None:
    """Four scopes, though there are two functions: a marker is known by its position in the order of calls."""
    order = ("first", "second", "first", "second", "finish")
    growth = [more - fewer for more, fewer in zip(scopes(loops, "3", order), scopes(loops, "1", order), strict=True)]
    assert growth[1:5] == [2 * 2000, 4 * 2000, 2 * 2000, 4 * 2000]


def test_blocks_are_disassembled(loops: Path) -> None:
    code = disassemble(loops, "aarch64")
    hottest = max(count_blocks(emulator_command(PI4), [str(loops), "9"]), key=lambda block: block.executions)
    assert [instruction.mnemonic for instruction in code.block(hottest.address, hottest.instructions)] == ["subs", "b.ne"]
    assert code.block(1, 3) == ()


def test_program_that_fails_is_an_error(loops: Path) -> None:
    with pytest.raises(ToolchainError, match="failed with"):
        count_blocks(emulator_command(PI4), [str(loops) + "-missing"])


def test_model_counts_are_repeatable_and_add_up(resnet8: Artifact) -> None:
    first = count_instructions(resnet8, PI4)
    again: InstructionReport = count_instructions(resnet8, PI4, runs=3)
    assert first == again
    assert first.inputs == "selftest"
    assert sum(first.opcodes.values()) == sum(first.symbols.values()) == first.total
    assert sum(block.instructions for block in first.blocks) == first.total
    steps = resnet8.manifest["layers"]
    assert [layer.name for layer in first.layers] == [step["name"] for step in steps]
    assert all(sum(layer.opcodes.values()) == layer.instructions > 0 for layer in first.layers)
    # What is no layer's is the runtime's: a few instructions a run.
    assert 0 < first.total - sum(layer.instructions for layer in first.layers) < 1000
    # Layers with one kernel and one shape execute the same, but for the few instructions of the runtime around them.
    by_kernel: dict[str, int] = {}
    for layer in first.layers:
        by_kernel[layer.symbol] = by_kernel.get(layer.symbol, 0) + layer.instructions
    for symbol, instructions in by_kernel.items():
        assert abs(instructions - first.symbols[symbol]) < 100 * len(steps)


def test_multiplies_are_those_of_the_arithmetic(resnet8: Artifact) -> None:
    """The widening multiplies of 8 lanes that NEON needs for a convolution's MACs are there, and no dot products."""
    report = count_instructions(resnet8, PI4)
    convolution = max(report.layers, key=lambda layer: layer.macs)
    multiplies = sum(count for name, count in convolution.opcodes.items() if name.startswith(("smull", "smlal")))
    assert convolution.macs <= 8 * multiplies <= 1.1 * convolution.macs
    assert "sdot" not in report.opcodes


def test_wrong_device_is_refused(resnet8: Artifact) -> None:
    with pytest.raises(UsageError, match="is x86_64"):
        count_instructions(resnet8, load_profile("x86-64-avx2"))
    with pytest.raises(UsageError, match="no qemu_cpu"):
        count_instructions(resnet8, replace(PI4, qemu_cpu=None))


def test_command_prints_counts_and_no_time(resnet8: Artifact) -> None:
    done = CliRunner().invoke(cli, ["profile", str(resnet8.path), "--instructions", "--json"], catch_exceptions=False)
    document = json.loads(done.stdout)
    assert document["provenance"] == "emulated instruction counts"
    assert document["total"] == count_instructions(resnet8, PI4).total
    assert not {"total_ms", "ms"} & {*document, *document["layers"][0]}
    assert document["blocks"][0]["instructions"] == document["blocks"][0]["executions"] * len(document["blocks"][0]["code"])
    text = CliRunner().invoke(cli, ["profile", str(resnet8.path), "--instructions"], catch_exceptions=False).stdout
    assert f"total {document['total']:,} instructions" in text
    threads = CliRunner().invoke(cli, ["profile", str(resnet8.path), "--instructions", "--threads", "2"])
    assert isinstance(threads.exception, UsageError)
