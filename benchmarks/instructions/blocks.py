"""What executed blocks of instructions are and cost: disassembly, classes of multiplications, cycles by llvm-mca.

In: blocks of AArch64 code with how often one inference executes them. Out: `Tally`. Cycles are an estimate: each block is taken
as the body of a loop that runs alone, with every load in the first-level cache, by LLVM's model of the core.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bevel.devices.tcg import BlockRuns
from bevel.errors import ToolchainError

# The first release that has a model of the Neoverse N1 and the options used here, and the last one looked for.
_FIRST_LLVM, _NEWEST_LLVM = 19, 30
# Blocks are weighed by llvm-mca, those with most instructions first, until so many of the instructions are.
WEIGHED = 0.97
_ITERATIONS = 100
# Models know no atomic operations, which are rare and then cost nothing; a call is a jump, not 100 cycles.
_MCA_OPTIONS = ("--json", f"--iterations={_ITERATIONS}", "--call-latency=1", "--skip-unsupported-instructions=lack-sched")
# LLVM has no model of the A76 itself; the Neoverse N1 is the same core for servers. Its A72 is scheduled as an A57.
MCA_CPUS: Mapping[str, str] = {"cortex-a72": "cortex-a72", "cortex-a76": "neoverse-n1"}
_BRANCH = re.compile(r"(b|bl|b\.\w+|bc\.\w+|cbn?z|tbn?z|adrp?)\b")
_TARGET = re.compile(r"\b[0-9a-f]+ <[^>]*>")
_VECTOR = re.compile(r"\bv\d+\.(\d+)([bhsd])")
_BITS = {"b": 8, "h": 16, "s": 32, "d": 64}


@dataclass(frozen=True)
class Executed:
    """A block of instructions.

    Attributes:
        code: its instructions as an assembler reads them.
        executions: in one inference.
        place: where it is, for whoever looks for it.
    """

    code: tuple[str, ...]
    executions: float
    place: str = ""

    @property
    def instructions(self) -> float:
        """Executed in it in one inference."""
        return self.executions * len(self.code)


@dataclass(frozen=True)
class Tally:
    """One inference.

    Attributes:
        instructions: in all.
        cycles: by llvm-mca, as if what was not weighed cost the same for each instruction.
        weighed: share of the instructions that llvm-mca weighed.
        classes: share of the instructions by class of multiplication, largest first.
        products: multiplications by class; of a fused, widening or dot-product instruction, one for each pair of elements.
        blocks: those with most instructions first.
        block_cycles: of one execution of each of the blocks weighed.
    """

    instructions: float
    cycles: float
    weighed: float
    classes: Mapping[str, float]
    products: Mapping[str, float]
    blocks: tuple[Executed, ...]
    block_cycles: tuple[float, ...]


def added(more: Iterable[BlockRuns], fewer: Iterable[BlockRuns], inferences: int) -> list[tuple[bytes, float]]:
    """Code and executions of one inference: what `inferences` more of them add.

    Blocks of the same instructions count as one, wherever the loader put them. What surrounds an inference, such as the memory
    management of Python, need not run equally often: such blocks have fractions, and fewer executions where they ran less.
    """
    runs: Counter[bytes] = Counter()
    for block in more:
        runs[block.code] += block.executions
    for block in fewer:
        runs[block.code] -= block.executions
    return [(code, executions / inferences) for code, executions in runs.items() if executions]


def disassembled(blocks: Sequence[tuple[bytes, float]]) -> list[Executed]:
    """AArch64 code as text.

    Raises:
        ToolchainError: llvm-mc is missing or does not know an instruction.
    """
    listing = "".join(" ".join(f"{byte:#04x}" for byte in code) + "\n" for code, _ in blocks)
    command = [llvm_tool("llvm-mc"), "--disassemble", "--triple=aarch64", "--mattr=+all"]
    done = subprocess.run(command, input=listing, capture_output=True, text=True, check=False)
    lines = [" ".join(line.split()) for line in done.stdout.splitlines() if line.startswith("\t") and not line.startswith("\t.")]
    expected = sum(len(code) // 4 for code, _ in blocks)
    if done.returncode != 0 or len(lines) != expected:
        raise ToolchainError(f"{command[0]} read {len(lines)} of {expected} instructions: {done.stderr.strip()[:400]}")
    found, start = [], 0
    for code, executions in blocks:
        stop = start + len(code) // 4
        found.append(Executed(tuple(lines[start:stop]), executions))
        start = stop
    return found


def assembler_text(line: str) -> str:
    """An instruction as objdump prints it, without its comment and with a target that an assembler takes."""
    text = line.partition("//")[0].strip()
    return _TARGET.sub("0", text) if _BRANCH.match(text) else text


def multiplication(instruction: str) -> tuple[str, int]:
    """Class of a multiplying vector instruction and the products it computes; ("", 0) for others.

    Classes: "fmla" for floats of 32 bits, "fmla.h" for half precision, "mlal" for widening multiplications of integers, "mla" for
    those that do not widen, "dot" for dot products of bytes, "mmla" for matrix products of bytes.
    """
    mnemonic, _, operands = instruction.partition(" ")
    shape = _VECTOR.search(operands)
    if mnemonic in ("smmla", "ummla", "usmmla"):
        return "mmla", 32
    if mnemonic in ("sdot", "udot", "usdot", "sudot"):
        return "dot", 4 * int(shape[1]) if shape else 0
    if re.fullmatch(r"(sq|s|u)(d?mull|d?mlal|d?mlsl)2?", mnemonic) and shape:
        return "mlal", int(shape[1])
    if mnemonic in ("mla", "mls", "mul") and shape:
        return "mla", int(shape[1])
    if mnemonic in ("fmla", "fmls", "fmul", "fmadd", "fmsub", "fnmsub", "fnmadd"):
        lanes, bits = (int(shape[1]), _BITS[shape[2]]) if shape else (1, 16 if operands.startswith("h") else 32)
        return ("fmla" if bits > 16 else "fmla.h"), lanes
    return "", 0


def tally(blocks: Iterable[Executed], cpu: str) -> Tally:
    """Weigh the blocks of one inference for a core of MCA_CPUS.

    Raises:
        ToolchainError: llvm-mca is missing, or refuses a block.
    """
    ordered = sorted(blocks, key=lambda block: -block.instructions)
    total = sum(block.instructions for block in ordered)
    kinds: defaultdict[str, float] = defaultdict(float)
    products: defaultdict[str, float] = defaultdict(float)
    for block in ordered:
        for instruction in block.code:
            kind, count = multiplication(instruction)
            if kind:
                kinds[kind] += block.executions
                products[kind] += block.executions * count
    chosen, covered = [], 0.0
    for block in ordered:
        if covered >= WEIGHED * total or block.executions <= 0:
            break
        chosen.append(block)
        covered += block.instructions
    each = block_cycles([block.code for block in chosen], cpu)
    cycles = sum(block.executions * one for block, one in zip(chosen, each, strict=True))
    shares = {kind: count / total for kind, count in sorted(kinds.items(), key=lambda item: -item[1])}
    return Tally(total, cycles * total / covered, covered / total, shares, dict(products), tuple(ordered), tuple(each))


def block_cycles(codes: Sequence[Sequence[str]], cpu: str) -> list[float]:
    """Cycles of one execution of each block, as the body of a loop.

    Raises:
        ToolchainError: llvm-mca is missing, or refuses an instruction.
    """
    if not codes:
        return []
    regions = ("\n".join([f"# LLVM-MCA-BEGIN {index}", *code, "# LLVM-MCA-END\n"]) for index, code in enumerate(codes))
    command = [llvm_tool("llvm-mca"), "--mtriple=aarch64", f"--mcpu={MCA_CPUS[cpu]}", "--mattr=+all", *_MCA_OPTIONS]
    done = subprocess.run(command, input="".join(regions), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        raise ToolchainError(f"{command[0]} refuses a block: {errors[0] if errors else done.stderr.strip()[-400:]}")
    found = {region["Name"]: region["SummaryView"] for region in json.loads(done.stdout)["CodeRegions"]}
    return [found[str(index)]["TotalCycles"] / _ITERATIONS for index in range(len(codes))]


def llvm_tool(name: str) -> str:
    """The newest installed program of LLVM by this name.

    Raises:
        ToolchainError: none is new enough.
    """
    for release in range(_NEWEST_LLVM, _FIRST_LLVM - 1, -1):
        # Debian's packages keep their programs here and link them from /usr/bin.
        if found := shutil.which(f"{name}-{release}") or shutil.which(f"/usr/lib/llvm-{release}/bin/{name}"):
            return found
    raise ToolchainError(
        f"weighing instructions needs {name} of LLVM {_FIRST_LLVM} or newer; install one: apt-get install llvm-19"
    )
