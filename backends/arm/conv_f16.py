"""Dense convolution in half precision with FMLA by element: cores with the half-precision extension (Cortex-A76, A78 and later).

`fmla v.8h, w.8h, x.h[i]` multiplies eight channels by one element of a pixel: twice the lanes of float32, half the bytes. Sums of
halves lose digits as they grow, so at most BLOCK products are added up in half precision; the sums of blocks, the bias and the
activation are float32, and the result is rounded once. Weights `[block][tap][K][channel]`.
"""

from __future__ import annotations

from dataclasses import replace

from bevel.backends.kernels.generator import ConvGenerator, Pipeline
from bevel.backends.kernels.micro import MicroKernel, RegisterTile
from bevel.backends.tvm import Buffer, Builder, Expr

# Products per half-precision sum: longer ones lose digits, shorter ones spend more time on widening. Largest error of ResNet-8's
# probabilities, the worst of 512 images: 1.3e-2 with 32, 1.1e-2 with 16, of which storage alone makes 0.8e-2. With the widening,
# llvm-mca's Neoverse N1 computes 13.0 products per cycle with 32, 11.0 with 16, and 8.0 in float32.
BLOCK = 16


class HalfKernel(MicroKernel):
    """Outer products of one element of a pixel by eight channels, in half precision for BLOCK elements at a time."""

    lanes = 8
    x_dtype = "float16"
    weight_dtype = "float16"
    copy_lanes = 8
    nan_wins = True

    def operands(self, k: Builder, x: Buffer, offset: Expr, groups: int) -> list[Expr]:
        """Broadcasts out of vectors of eight, then four, two, one."""
        columns: list[Expr] = []
        while len(columns) < groups:
            done = len(columns)
            width = next(n for n in (8, 4, 2, 1) if n <= groups - done)
            vector = k.load(x, offset + done, width)
            # Copies side by side, because TVM cannot shuffle a vector into a longer one.
            copies = [vector] * (8 // width)
            columns += [k.splat(vector, 8) if width == 1 else k.shuffle(copies, [u] * 8) for u in range(width)]
        return columns

    def mac(self, k: Builder, acc: Expr, x: Expr, w: Expr) -> Expr:
        """`fmla` by element: LLVM folds the broadcast."""
        return k.call("float16x8", "llvm.fma", x, w, acc)

    def accumulate(self, k: Builder, tile: RegisterTile, run: int) -> None:
        """See `MicroKernel.accumulate`; `acc` is float32, the sums of each block half."""
        sums = range(0, tile.slots * self.lanes, self.lanes)

        def block(first: Expr, size: int) -> None:
            half = k.alloc(len(sums) * self.lanes, "float16")
            for at in sums:
                k.store(half, at, k.const(0.0, "float16", self.lanes), self.lanes)
            part = replace(tile.at(first, first * (tile.nv * self.lanes)), acc=half)
            super(HalfKernel, self).accumulate(k, part, size)
            for slot in sums:
                wide = k.cast(k.load(half, slot, self.lanes), "float32", self.lanes)
                k.store(tile.acc, slot, k.load(tile.acc, slot, self.lanes) + wide, self.lanes)

        whole, rest = divmod(run, BLOCK)
        if whole:
            with k.serial(whole) as index:
                block(index * BLOCK, BLOCK)
        if rest:
            block(k.i32(whole * BLOCK), rest)


# A Cortex-A76: two fmla per cycle with a latency of four. A sum takes a register of halves and two of float32, so eight sums, the
# weights and the pixels fill 30 registers. Only v0 to v15 can be read by element, which LLVM arranges.
CONV_F16 = ConvGenerator(
    name="arm_conv_f16",
    arch="aarch64",
    features=("neon", "fp16"),
    dtype="float16",
    out_dtypes=("float16", "float32"),
    micro=HalfKernel(),
    shapes=((4, 2), (2, 4), (1, 8), (3, 2)),
    pipeline=Pipeline(macs=2, loads=2, in_flight=8, unroll=BLOCK),
)
