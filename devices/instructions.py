"""How many instructions an artifact executes for one inference: in all, by layer, by function, by operation, by block.

In: an artifact and the device whose CPU is emulated. Out: `InstructionReport`. The counts come from qemu-user: exact,
repeatable, and blind to what an instruction costs, so they compare versions of a kernel and are never shown as time.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.devices.disassembly import Disassembly, Instruction, disassemble
from bevel.devices.profile import Profile
from bevel.devices.resolve import emulator_command
from bevel.devices.tcg import BlockRuns, count_blocks
from bevel.errors import ArtifactError, ToolchainError, UsageError
from bevel.runtime.artifact import Artifact
from bevel.runtime.toolchain import find_toolchain, link_program, runtime_digest

Array = npt.NDArray[Any]
_MAIN = Path(__file__).with_name("insn_main.c")
_OUTSIDE = "(outside the program)"


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other, entered at the top.

    Attributes:
        address: of the first, in the program the artifact was linked into.
        symbol: function it belongs to; kernels are the manifest's `symbol`.
        executions: how often it runs in one inference.
        code: its instructions.
    """

    address: int
    symbol: str
    executions: int
    code: tuple[str, ...]

    @property
    def instructions(self) -> int:
        """Instructions executed in it in one inference."""
        return self.executions * len(self.code)


@dataclass(frozen=True)
class LayerInstructions:
    """One layer's share, with the few instructions by which the runtime calls it.

    Attributes:
        name, op, kernel, bits, macs: as in the artifact's manifest.
        symbol: the kernel's function.
        instructions: executed in one inference.
        opcodes: the same by mnemonic, most frequent first.
    """

    name: str
    op: str
    kernel: str
    bits: str
    macs: int
    symbol: str
    instructions: int
    opcodes: Mapping[str, int]


@dataclass(frozen=True)
class InstructionReport:
    """Emulated instruction counts of one inference on one thread. Not time.

    Attributes:
        device: profile name.
        cpu: the emulated CPU, as qemu names it.
        inputs: "selftest" (the first golden case of these extents) or "zeros".
        dims: extents of symbolic dimensions.
        total: instructions in all.
        layers: in order of execution.
        symbols: instructions by function, most first.
        opcodes: instructions by mnemonic, most first.
        blocks: those with most instructions first.
    """

    device: str
    cpu: str
    inputs: str
    dims: Mapping[str, int]
    total: int
    layers: tuple[LayerInstructions, ...]
    symbols: Mapping[str, int]
    opcodes: Mapping[str, int]
    blocks: tuple[Block, ...]


def count_instructions(
    artifact: Artifact, profile: Profile, *, runs: int = 1, dims: Mapping[str, int] | None = None
) -> InstructionReport:
    """Count what one inference executes on `profile`'s CPU.

    Args:
        artifact: compiled for a CPU whose instructions `profile` has.
        profile: the device; its qemu_cpu is emulated, and its address is not used.
        runs: inferences counted; the counts are their mean, which is exact when each executes the same.
        dims: extents of symbolic dimensions; without it, those of the first golden case.

    Raises:
        UsageError: the artifact was compiled for another architecture or for instructions the device lacks, qemu cannot emulate
            the device's CPU, or an extent is wrong.
        ArtifactError: the artifact was compiled by another version of bevel.
        ToolchainError: qemu-user with plugins, a C compiler for the architecture or a disassembler is missing, or the counts of
            `runs` inferences are no multiple of one's.
    """
    needed = frozenset(artifact.manifest["target"]["required_features"])
    if artifact.arch != profile.arch or needed - profile.features:
        wants, has = (", ".join(sorted(features)) or "no features" for features in (needed, profile.features))
        raise UsageError(
            f"{artifact.name} is compiled for {artifact.arch} with {wants}, device {profile.name} is {profile.arch} with {has}; "
            "compile it for that device"
        )
    if profile.qemu_cpu is None:
        raise UsageError(
            f"device {profile.name} has no qemu_cpu: qemu cannot emulate its CPU, so its instructions cannot be counted"
        )
    if artifact.manifest["runtime"] != runtime_digest():
        raise ArtifactError(
            f"{artifact.path}: was compiled with another version of bevel's runtime than this one's; compile it again"
        )
    emulator = emulator_command(profile)
    chosen, inputs, origin = _inputs(artifact, dims)
    with tempfile.TemporaryDirectory(prefix="bevel-instructions-") as folder:
        program, data = Path(folder) / "program", Path(folder) / "inputs"
        link_program(find_toolchain(profile.arch), artifact.path / "lib" / "libmodel.a", _MAIN, program)
        data.write_bytes(b"".join(np.ascontiguousarray(array).tobytes() for array in inputs))
        markers = _markers(emulator, program, profile.arch)
        extents = [str(extent) for extent in chosen.values()]

        def counted(times: int) -> list[BlockRuns]:
            argv = [str(program), "run", str(artifact.weights), str(times), str(data), *extents]
            # Before the first run and after the last, memory management depends on where the system puts the memory.
            outside = (0, len(markers))
            return [block for block in count_blocks(emulator, argv, markers) if block.scope not in outside]

        differences = _difference(counted(1 + runs), counted(1), runs, artifact.name)
        return _report(artifact, profile, chosen, origin, differences, disassemble(program, profile.arch))


def _inputs(artifact: Artifact, dims: Mapping[str, int] | None) -> tuple[dict[str, int], list[Array], str]:
    """Extents, arrays in the order of the inputs, and where the arrays come from."""
    golden = [case for case, _ in artifact.golden()]
    names = [str(tensor["name"]) for tensor in artifact.manifest["inputs"]]
    chosen = artifact.extents(dims if dims is not None else _extents_of(artifact, golden[0]))
    shapes = artifact.input_shapes(chosen)
    for case in golden:
        if all(case[name].shape == shapes[name] for name in names):
            return chosen, [case[name] for name in names], "selftest"
    return chosen, [np.zeros(shapes[name], golden[0][name].dtype) for name in names], "zeros"


def _extents_of(artifact: Artifact, case: Mapping[str, Array]) -> dict[str, int]:
    """The extents of symbolic dimensions that a golden case's inputs have."""
    return {
        str(name): extent
        for tensor in artifact.manifest["inputs"]
        for name, extent in zip(tensor["dims"], case[str(tensor["name"])].shape, strict=True)
        if name
    }


def _markers(emulator: Sequence[str], program: Path, arch: str) -> list[int]:
    """Addresses of the layers' functions in order, then of what runs them and of what is called after the last run."""
    done = subprocess.run([*emulator, str(program), "steps"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ToolchainError(f"{emulator[0]} cannot run {program}: {done.stderr.strip() or done.returncode}")
    # The lowest bit of an ARM function pointer says Thumb; the code is at the even address.
    mask = ~1 if arch == "armv7" else ~0
    return [int(line, 16) & mask for line in done.stdout.split()]


def _difference(more: Iterable[BlockRuns], fewer: Iterable[BlockRuns], runs: int, name: str) -> list[BlockRuns]:
    """Executions of one inference: what `runs` more of them add."""
    added: Counter[tuple[int, int, int]] = Counter({(b.scope, b.address, b.instructions): b.executions for b in more})
    added.subtract({(b.scope, b.address, b.instructions): b.executions for b in fewer})
    odd = [key for key, executions in added.items() if executions % runs or executions < 0]
    if odd:
        raise ToolchainError(
            f"{name}: {len(odd)} blocks of instructions did not run equally often in {runs} runs; count a single run"
        )
    return [BlockRuns(*key, executions // runs) for key, executions in added.items() if executions]


def _report(
    artifact: Artifact, profile: Profile, dims: Mapping[str, int], inputs: str, counts: Sequence[BlockRuns], code: Disassembly
) -> InstructionReport:
    steps = artifact.manifest["layers"]
    by_layer: list[Counter[str]] = [Counter() for _ in range(len(steps) + 2)]  # by scope: none, the layers, the run
    symbols: Counter[str] = Counter()
    merged: Counter[tuple[int, int]] = Counter()
    texts: dict[tuple[int, int], Sequence[Instruction]] = {}
    for block in counts:
        key = (block.address, block.instructions)
        found = texts.setdefault(key, code.block(*key))
        merged[key] += block.executions
        symbols[found[0].symbol if found else _OUTSIDE] += block.executions * block.instructions
        for instruction in found:
            by_layer[block.scope][instruction.mnemonic] += block.executions
        if not found:
            by_layer[block.scope][_OUTSIDE] += block.executions * block.instructions
    layers = tuple(
        LayerInstructions(
            name=str(step["name"]),
            op=str(step["op"]),
            kernel=str(step["kernel"]),
            bits=str(step["bits"]),
            macs=int(step["macs"]),
            symbol=str(step["symbol"]),
            instructions=opcodes.total(),
            opcodes=dict(opcodes.most_common()),
        )
        for step, opcodes in zip(steps, by_layer[1:-1], strict=True)
    )
    blocks = [
        Block(address, texts[address, length][0].symbol, executions, tuple(i.text for i in texts[address, length]))
        for (address, length), executions in merged.items()
        if texts[address, length]
    ]
    overall = sum(by_layer, Counter[str]())
    return InstructionReport(
        device=profile.name,
        cpu=str(profile.qemu_cpu),
        inputs=inputs,
        dims=dict(dims),
        total=overall.total(),
        layers=layers,
        symbols=dict(symbols.most_common()),
        opcodes=dict(overall.most_common()),
        blocks=tuple(sorted(blocks, key=lambda block: (-block.instructions, block.address))),
    )
