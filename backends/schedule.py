"""What lowering produces and the runtime consumes: a flat list of kernel calls over one arena.

`Schedule` holds everything the artifact writer needs; nothing in it refers back to the graph. The runtime turns `steps` into
generated C, writes `weights` to weights.bin and links the objects compiled from `kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bevel.backends.kernel import Extent, Problem, Tile
from bevel.ir.protocols import Target
from bevel.ir.types import Dim

if TYPE_CHECKING:
    from bevel.backends.packing import Stored


@dataclass(frozen=True)
class Place:
    """A byte offset in "arena" or "weights", both bases 64-byte aligned; or "dims", the run-time extents of the step.

    Members of a cascade also name "buffer": the rolling buffer with index `offset`.
    """

    space: str
    offset: int


@dataclass(frozen=True)
class Kernel:
    """One piece of machine code, shared by every step with an equal problem and tile.

    Attributes:
        symbol: C name, `bevel_k_<digest>`.
        generator: name of the generator, "generic..." for derived loop kernels.
    """

    symbol: str
    generator: str
    problem: Problem
    tile: Tile


@dataclass(frozen=True)
class Step:
    """One kernel call.

    Attributes:
        layer: original (ONNX) name of the node this step computes, for profiles and errors.
        op: IR operator, fused parts joined by "+" ("IntConv+Requantize").
        symbol: kernel to call.
        args: buffers in ABI order: inputs, constants, run-time extents, outputs.
        extent: parallel extent; the runtime splits [0, extent) over threads.
        dims: names of the run-time extents the kernel takes, in its order.
        scratch_bytes: per thread.
        macs, bytes: work and traffic, for reports.
        bits: precision spelling ("fp32", "w8a8").
    """

    layer: str
    op: str
    symbol: str
    args: tuple[Place, ...]
    extent: int | Extent = 1
    scratch_bytes: int = 0
    macs: int = 0
    bytes: int = 0
    bits: str = "fp32"
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stripe:
    """What one member of a cascade computes of one stripe.

    Attributes:
        fresh: first unit of its parallel axis, where the stripe before was not computed by the same thread.
        first: first unit otherwise.
        end: the unit it ends before.
        origin: byte of its result that its rolling buffer begins with, a multiple of 64.
        done: byte of its result up to which the buffer holds it after the stripe.
    """

    fresh: int
    first: int
    end: int
    origin: int = 0
    done: int = 0


@dataclass(frozen=True)
class Cascade:
    """Steps that follow each other, computed together stripe by stripe.

    A tensor between two members never exists as a whole: a rolling buffer in each thread's scratch holds the rows that the next
    stripe still needs and those it adds.

    Attributes:
        members: their arguments name rolling buffers where the arena has no place.
        stripes: for every stripe what each member computes.
        buffers: bytes of the rolling buffers, multiples of 64: results of all members but the last.
    """

    members: tuple[Step, ...]
    stripes: tuple[tuple[Stripe, ...], ...]
    buffers: tuple[int, ...]

    @property
    def layer(self) -> str:
        """Names of the members."""
        return " + ".join(member.layer for member in self.members)

    @property
    def op(self) -> str:
        """Operators of the members."""
        return " + ".join(member.op for member in self.members)

    @property
    def bits(self) -> str:
        """Precision of the members."""
        return "+".join(dict.fromkeys(member.bits for member in self.members))

    @property
    def extent(self) -> int:
        """Parallel extent: the stripes."""
        return len(self.stripes)

    @property
    def dims(self) -> tuple[str, ...]:
        """Run-time extents: none."""
        return ()

    @property
    def scratch_bytes(self) -> int:
        """Per thread: the buffers, and behind them what the members share."""
        return sum(self.buffers) + max(member.scratch_bytes for member in self.members)

    @property
    def macs(self) -> int:
        """Work of the members."""
        return sum(member.macs for member in self.members)

    @property
    def bytes(self) -> int:
        """Traffic of the members, most of which stays in the caches."""
        return sum(member.bytes for member in self.members)


@dataclass(frozen=True)
class IoTensor:
    """An input or output of the artifact.

    Attributes:
        name: ONNX name.
        shape: logical shape, run-time extents at their bounds; memory is row-major in this order and contiguous at the actual
            extents.
        dims: name of each axis whose extent is known at run time, None for the others; empty where all are fixed.
        dtype: numpy name of the stored element.
        scale, zero_point: of quantized tensors (zero_point in units of dtype); scale 0.0 means not quantized.
        place: where it lives in the arena while the model is open.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    place: Place
    scale: float = 0.0
    zero_point: int = 0
    dims: tuple[str | None, ...] = ()


@dataclass(frozen=True)
class Lifetime:
    """An arena tensor's offset, size and the steps it lives over, for the report's memory timeline."""

    name: str
    offset: int
    nbytes: int
    first: int
    last: int


@dataclass(frozen=True)
class Schedule:
    """A compiled graph before linking.

    Attributes:
        arena_bytes: static activations, without per-thread scratch.
        scratch_bytes: the largest per-thread scratch of any step (64-byte rounded); the arena is extended by threads x this.
        weights: contents of weights.bin after its header, every constant 64-byte aligned, 64 bytes of tail padding.
        graph_hash: hash of the graph compiled.
        level: "float" or "integer".
        dims: the symbolic dimensions, bounded; the user chooses their extents before a run.
        stored: constants of the graph that `weights` holds.
        states: (index of an input, index of the output) whose bytes the runtime copies into it after each run.
    """

    name: str
    target: Target
    steps: tuple[Step | Cascade, ...]
    kernels: tuple[Kernel, ...]
    inputs: tuple[IoTensor, ...]
    outputs: tuple[IoTensor, ...]
    arena_bytes: int
    scratch_bytes: int
    weights: bytes
    graph_hash: str
    level: str
    lifetimes: tuple[Lifetime, ...] = field(default=())
    dims: tuple[Dim, ...] = ()
    stored: tuple[Stored, ...] = field(default=(), repr=False)
    states: tuple[tuple[int, int], ...] = ()

    @property
    def calls(self) -> tuple[Step, ...]:
        """The kernel calls of all steps."""
        return tuple(call for step in self.steps for call in (step.members if isinstance(step, Cascade) else (step,)))
