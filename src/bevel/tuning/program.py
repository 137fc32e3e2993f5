"""The program that times a batch of kernels: one static file and one file of constants for any number of problems.

In: candidates of several problems. Out: the C table that runtime/c/kernel_bench.c walks through, the contents of its data file
and the linked program. Kernels of one rank stand together, so that a problem's candidates follow each other at the distance of
a whole pass over the problems, as a layer follows itself from one inference to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bevel.backends.kernel import Problem
from bevel.backends.memory import TAIL, align
from bevel.backends.schedule import Kernel
from bevel.backends.select import Choice, kernel_symbol
from bevel.ir.protocols import Target
from bevel.runtime.codegen import isa_flags
from bevel.runtime.toolchain import Toolchain, link_bench
from bevel.tuning.workload import Operand, constants, extents, operands, output_bytes

_ELEMENTS = {"float32": "BENCH_FLOAT32", "float16": "BENCH_FLOAT16"}


@dataclass(frozen=True)
class Candidate:
    """One kernel of one problem.

    Attributes:
        problem: what it computes.
        choice: generator and tile.
    """

    problem: Problem
    choice: Choice

    def kernel(self, target: Target) -> Kernel:
        """As the object compiler takes it."""
        return Kernel(
            kernel_symbol(self.problem, self.choice, target), self.choice.generator.name, self.problem, self.choice.tile
        )


@dataclass(frozen=True)
class BenchProgram:
    """What is linked and sent.

    Attributes:
        order: the candidates in the order the program names them.
        kernels: their kernels.
        table: C source.
        data: contents of the data file.
        pass_bytes: constants that one kernel of each problem reads.
    """

    order: tuple[Candidate, ...]
    kernels: tuple[Kernel, ...]
    table: str
    data: bytes
    pass_bytes: int

    def link(self, toolchain: Toolchain, objects: Mapping[str, bytes], program: Path) -> None:
        """Write the program; see `bevel.runtime.toolchain.link_bench`."""
        link_bench(toolchain, self.table, {kernel.symbol: objects[kernel.symbol] for kernel in self.kernels}, program)


def make_program(batch: Sequence[Sequence[Candidate]], target: Target) -> BenchProgram:
    """The program that times the candidates of `batch`, one sequence for each problem."""
    ranks = max(len(candidates) for candidates in batch)
    order = [(index, c[rank]) for rank in range(ranks) for index, c in enumerate(batch) if rank < len(c)]
    kernels = [candidate.kernel(target) for _, candidate in order]
    regions = _Regions()
    for candidates in batch:
        regions.add(candidates[0].problem)
    data, calls, arity, scratch, pass_bytes = bytearray(), [], {}, 0, 0
    numbers = [constants(candidates[0].problem) for candidates in batch]
    for (index, candidate), kernel in zip(order, kernels, strict=True):
        problem, generator, tile = candidate.problem, candidate.choice.generator, candidate.choice.tile
        packed = generator.pack(problem, tile, target, numbers[index])
        dims = extents(problem)
        arguments = [f"m->operands + {offset}" for offset in regions.of(problem)]
        # Equal arrays of two candidates are stored twice: neither may find what the other has just read.
        for array in packed if dims is None else [*packed, dims]:
            arguments.append(f"m->constants + {len(data)}")
            data += np.ascontiguousarray(array).tobytes()
            data += bytes(align(len(data)) - len(data))
        pass_bytes = max(pass_bytes, len(data)) if candidate is batch[index][0] else pass_bytes
        arity[kernel.symbol] = len(arguments) + 1
        extent = generator.parallel_extent(problem, tile)
        calls.append(f"return {kernel.symbol}({', '.join([*arguments, 'm->output', '0', str(extent), 'm->scratch'])});")
        scratch = max(scratch, generator.scratch_bytes(problem, tile))
    out = ['#include "kernel_bench.h"', '#include "graph.h"', ""]
    out += [f"int32_t {s}({', '.join(['const void *'] * n)}, int32_t, int32_t, void *);" for s, n in arity.items()]
    out += [f"static int32_t call_{i}(const bench_memory *m) {{ {call} }}" for i, call in enumerate(calls)]
    out.append("static const bench_kernel kernels[] = {")
    out += [f"    {{call_{i}, {index}, {output_bytes(c.problem)}u}}," for i, (index, c) in enumerate(order)]
    out += ["};", "static const bench_operand operands[] = {", *regions.rows(), "};", "const bench_table bench_the_table = {"]
    most = max(output_bytes(candidates[0].problem) for candidates in batch)
    fields = {
        "kernel": "kernels",
        "operand": "operands",
        "kernels": len(order),
        "operands": len(regions.sizes),
        "problems": len(batch),
        "operand_bytes": f"{regions.nbytes}u",
        "constant_bytes": f"{len(data)}u",
        "output_bytes": f"{most}u",
        "scratch_bytes": f"{align(scratch)}u",
        "isa": isa_flags(kernels, target),
    }
    out += [f"    .{name} = {value}," for name, value in fields.items()]
    return BenchProgram(
        tuple(candidate for _, candidate in order), tuple(kernels), "\n".join([*out, "};", ""]), bytes(data), pass_bytes
    )


class _Regions:
    """Memory of operands: one region for each position and kind, as large as the largest operand; all problems share them."""

    def __init__(self) -> None:
        self.sizes: dict[tuple[int, str, int], int] = {}

    def add(self, problem: Problem) -> None:
        for key, operand in self._keys(problem):
            self.sizes[key] = max(self.sizes.get(key, 0), operand.nbytes)

    @staticmethod
    def _keys(problem: Problem) -> list[tuple[tuple[int, str, int], Operand]]:
        """The region of each operand: by its position, its elements and their bits."""
        found = enumerate(operands(problem))
        return [((index, _ELEMENTS.get(o.dtype, "BENCH_BYTES"), o.bits), o) for index, o in found]

    def _offsets(self) -> dict[tuple[int, str, int], int]:
        found, position = {}, 0
        for key, size in self.sizes.items():
            found[key] = position
            position += align(size + TAIL)
        return found

    @property
    def nbytes(self) -> int:
        """Of all regions."""
        return sum(align(size + TAIL) for size in self.sizes.values())

    def of(self, problem: Problem) -> list[int]:
        """Offsets of a problem's operands."""
        offsets = self._offsets()
        return [offsets[key] for key, _ in self._keys(problem)]

    def rows(self) -> list[str]:
        """Rows of the C table."""
        return [f"    {{{offset}u, {self.sizes[key]}u, {key[1]}, {key[2]}}}," for key, offset in self._offsets().items()]
