"""The only file that imports TVM: a builder for kernels and the road from a PrimFunc to an object file.

In: kernels written with `Builder` (loops, vector loads and stores, LLVM intrinsics). Out: relocatable objects with a plain C
signature, `int32_t symbol(pointers..., int32_t lo, int32_t hi, void *scratch)`, and no undefined symbol. TVM's packed calling
convention, runtime and Relax VM are not used. `import tvm` is slow, so it happens in the first call that needs it.

Traps, each found the hard way:
* Signed additions and multiplications of 32 bits or more are emitted `nsw`, unsigned ones `nuw`, so a sum that wraps is undefined
  behaviour in either type (LLVM derives known bits from it and miscompiles): `wrapping_add` is the way to add modulo 2^32.
* LLVM contracts float a * b + c to an FMA; kernels say `fma` where they mean it.
* An alloc in scope "global" with constant indices stays in registers; scope "local" would call a workspace allocator.
* Overloaded LLVM intrinsics take no type suffix ("llvm.fma").
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from bevel.errors import ToolchainError
from bevel.ir.protocols import Target

# A TIR expression, buffer or PrimFunc. TVM ships no type information.
Expr = Any
Buffer = Any
PrimFunc = Any


@functools.cache
def _tvm() -> Any:
    """The namespaces of TVM that this file uses.

    Raises:
        ToolchainError: TVM is not installed or does not load.
    """
    try:
        import tvm
        from tvm import ir, s_tir, tirx
        from tvm.script import tirx as script
        from tvm.script.ir_builder import IRBuilder
        from tvm.tirx.buffer import is_buffer_var
        from tvm.tirx.script.builder import ir as build
    except (ImportError, OSError) as error:
        raise ToolchainError(f"Apache TVM does not load ({error}): pip install 'apache-tvm==0.27.0.post1'") from error

    class Namespaces:
        """What the rest of this file refers to."""

    ns = Namespaces()
    vars(ns).update(
        tvm=tvm,
        ir=ir,
        s_tir=s_tir,
        tirx=tirx,
        T=script,
        B=build,
        IRBuilder=IRBuilder,
        is_buffer_var=is_buffer_var,
    )
    return ns


class Builder:
    """Writes one kernel: plain Python loops unroll, `serial` loops stay loops.

    Use as a context manager; `function` holds the PrimFunc afterwards::

        with Builder("bevel_k_scale") as k:
            x, y = k.param("x", "float32"), k.param("y", "float32")
            lo, hi, _ = k.range_params()
            with k.serial(lo, hi) as i:
                k.store(y, i * 16, k.load(x, i * 16, 16) * k.splat(k.f32(2.0), 16), 16)

    Parameters are created in ABI order: every buffer, then `range_params`. Offsets and lanes are in elements.

    Args:
        symbol: the function's name.
        nan_wins: `min` and `max` of floats are NaN where an operand is, which is one instruction on ARM; otherwise they are the
            second operand there, which is one instruction on x86.
    """

    # Flat buffers need some extent in TIR; nothing depends on it because no bound check is generated.
    _EXTENT = 1 << 30

    def __init__(self, symbol: str, *, nan_wins: bool = False) -> None:
        self._ns = _tvm()
        self._nan_wins = nan_wins
        self._builder = self._ns.IRBuilder()
        self._symbol = symbol
        self._widened: list[Buffer] = []
        self.function: PrimFunc = None

    def __enter__(self) -> Builder:
        self._builder.__enter__()
        self._frame = self._ns.B.prim_func(s_tir=True)
        self._frame.__enter__()
        self._ns.B.func_name(self._symbol)
        # Buffers never alias: outputs and inputs are distinct arena tensors unless a kernel works in place element by element.
        self._ns.B.func_attr({"tirx.noalias": True, "global_symbol": self._symbol})
        return self

    def __exit__(self, *exc: Any) -> None:
        self._frame.__exit__(*exc)
        self._builder.__exit__(*exc)
        if exc[0] is None:
            self.function = self._builder.get()

    # Parameters ------------------------------------------------------------------------------------------------------

    def param(self, name: str, dtype: str, *, widened: bool = False) -> Buffer:
        """A pointer parameter, as a flat buffer of `dtype`; with `widened`, float16 elements are loaded and stored as float32."""
        buffer = self._ns.B.arg(name, self._ns.B.buffer((self._EXTENT,), dtype))
        if widened and dtype == "float16":
            self._widened.append(buffer)
        return buffer

    def range_params(self, scratch_dtype: str = "uint8") -> tuple[Expr, Expr, Buffer]:
        """The trailing ABI parameters: int32 `lo`, int32 `hi`, and the scratch buffer."""
        lo = self._ns.B.arg("lo", self._ns.T.int32())
        hi = self._ns.B.arg("hi", self._ns.T.int32())
        return lo, hi, self.param("scratch", scratch_dtype)

    # Control ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def serial(self, start: Expr, stop: Expr | None = None) -> Iterator[Expr]:
        """A loop over [0, start) or [start, stop); yields the int32 loop variable (with the start added)."""
        if stop is None:
            with self._ns.B.serial(start) as i:
                yield i
        else:
            with self._ns.B.serial(stop - start) as i:
                yield start + i

    @contextmanager
    def when(self, condition: Expr) -> Iterator[None]:
        """Statements executed only if `condition` holds."""
        with self._ns.B.If(condition), self._ns.B.Then():
            yield

    @contextmanager
    def when_else(self, condition: Expr) -> Iterator[tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]:
        """A two-armed conditional: yields the context managers of the then and the else arm."""
        with self._ns.B.If(condition):
            yield self._ns.B.Then(), self._ns.B.Else()

    # Memory ----------------------------------------------------------------------------------------------------------

    def alloc(self, size: int, dtype: str) -> Buffer:
        """A local array; with constant indices it lives in registers."""
        return self._ns.B.alloc_buffer((size,), dtype, scope="global")

    def load(self, buffer: Buffer, offset: Expr, lanes: int = 1, stride: int = 1) -> Expr:
        """`lanes` elements starting at `offset`; a scalar when lanes is 1, or the elements at a vector of offsets."""
        value = buffer[offset] if lanes == 1 else buffer[self._ns.T.ramp(offset, stride, lanes)]
        if any(buffer is widened for widened in self._widened):
            return self._ns.T.Cast(str(value.ty).replace("float16", "float32"), value)
        return value

    def store(self, buffer: Buffer, offset: Expr, value: Expr, lanes: int = 1) -> None:
        """Write `lanes` elements starting at `offset`."""
        index = offset if lanes == 1 else self._ns.T.ramp(offset, 1, lanes)
        if any(buffer is widened for widened in self._widened):
            value = self.cast(value, "float16", lanes)
        self._ns.B.buffer_store(buffer, value, [index])

    # Values ----------------------------------------------------------------------------------------------------------

    def const(self, value: float, dtype: str, lanes: int = 1) -> Expr:
        """A constant of scalar `dtype`, broadcast to `lanes`."""
        imm = (
            self._ns.tirx.FloatImm(dtype, float(value)) if dtype.startswith("float") else self._ns.tirx.IntImm(dtype, int(value))
        )
        return self.splat(imm, lanes)

    def i32(self, value: int) -> Expr:
        """An int32 constant."""
        return self.const(value, "int32")

    def f32(self, value: float) -> Expr:
        """A float32 constant."""
        return self.const(value, "float32")

    def splat(self, scalar: Expr, lanes: int) -> Expr:
        """`scalar` in every lane."""
        return scalar if lanes == 1 else self._ns.T.broadcast(scalar, lanes)

    def numbers(self, lanes: int) -> Expr:
        """An int32 vector of the numbers of its lanes: of it LLVM makes constants that differ from lane to lane."""
        return self._ns.T.ramp(self.i32(0), 1, lanes)

    def cast(self, value: Expr, dtype: str, lanes: int = 1) -> Expr:
        """Numeric conversion to scalar type `dtype` (integers wrap, floats round toward zero)."""
        return self._ns.T.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)

    def bitcast(self, value: Expr, dtype: str, lanes: int = 1) -> Expr:
        """The same bits as another type."""
        return self._ns.T.reinterpret(dtype if lanes == 1 else f"{dtype}x{lanes}", value)

    def shuffle(self, vectors: Sequence[Expr], lanes: Sequence[int]) -> Expr:
        """Lanes picked from the concatenation of equally typed vectors."""
        return self._ns.T.Shuffle(list(vectors), [self._ns.T.int32(i) for i in lanes])

    def select(self, condition: Expr, then: Expr, otherwise: Expr) -> Expr:
        """Both arms are evaluated; lanewise for vectors."""
        return self._ns.T.Select(condition, then, otherwise)

    def min(self, a: Expr, b: Expr) -> Expr:
        """Lanewise minimum."""
        return self._extreme("minimum", a, b) if self._nan_wins else self._ns.T.min(a, b)

    def max(self, a: Expr, b: Expr) -> Expr:
        """Lanewise maximum."""
        return self._extreme("maximum", a, b) if self._nan_wins else self._ns.T.max(a, b)

    def _extreme(self, name: str, a: Expr, b: Expr) -> Expr:
        kind = str(a.ty)
        return self.call(kind, f"llvm.{name}", a, b) if kind.startswith("float") else getattr(self._ns.T, name[:3])(a, b)

    def all(self, *conditions: Expr) -> Expr:
        """Conjunction."""
        return self._ns.tirx.all(*conditions)

    def any(self, *conditions: Expr) -> Expr:
        """Disjunction."""
        return self._ns.tirx.any(*conditions)

    def floordiv(self, a: Expr, b: Expr) -> Expr:
        """Integer division rounding down."""
        return self._ns.T.floordiv(a, b)

    def floormod(self, a: Expr, b: Expr) -> Expr:
        """Remainder of `floordiv`."""
        return self._ns.T.floormod(a, b)

    def shift_right(self, value: Expr, amount: Expr) -> Expr:
        """Arithmetic for signed, logical for unsigned types."""
        return self._ns.T.shift_right(value, amount)

    def shift_left(self, value: Expr, amount: Expr) -> Expr:
        """Left shift."""
        return self._ns.T.shift_left(value, amount)

    def bitwise_and(self, a: Expr, b: Expr) -> Expr:
        """Lanewise and of integers."""
        return self._ns.T.bitwise_and(a, b)

    def bitwise_or(self, a: Expr, b: Expr) -> Expr:
        """Lanewise or of integers."""
        return self._ns.T.bitwise_or(a, b)

    def wrapping_add(self, a: Expr, b: Expr, lanes: int = 1) -> Expr:
        """uint32 a + b modulo 2^32: a 64-bit sum truncated, which LLVM narrows to one plain addition without flags."""
        return self.cast(self.cast(a, "uint64", lanes) + self.cast(b, "uint64", lanes), "uint32", lanes)

    def call(self, result: str, intrinsic: str, *operands: Expr) -> Expr:
        """A pure LLVM intrinsic, for example `call("int32x16", "llvm.x86.avx512.vpdpbusd.512", acc, u8, s8)`."""
        return self._ns.T.call_llvm_pure_intrin(result, intrinsic, *operands)

    def effect(self, intrinsic: str, *operands: Expr) -> None:
        """A statement: an LLVM intrinsic that returns nothing and may read and write memory."""
        self._ns.B.evaluate(self._ns.T.call_llvm_intrin("void", intrinsic, *operands))

    def address(self, buffer: Buffer, offset: Expr) -> Expr:
        """The address of an element, for `effect`."""
        return self._ns.T.address_of(buffer[offset])

    def fma(self, a: Expr, b: Expr, c: Expr, lanes: int = 1) -> Expr:
        """float32 a * b + c with one rounding."""
        return self.call("float32" if lanes == 1 else f"float32x{lanes}", "llvm.fma", a, b, c)

    def opaque(self, value: Expr, dtype: str, lanes: int = 1) -> Expr:
        """`value` as it is, at no cost, but LLVM does not know what it is.

        A loop that stores a loaded or constant value unchanged becomes a call of memcpy or memset, an undefined symbol.

        Args:
            value: of any type whose bytes are a multiple of 4.
            dtype: its scalar type.
            lanes: its lanes.
        """
        words = lanes * int(dtype.lstrip("uintfloa")) // 32
        if lanes == 1:
            # A count may turn out to be zero, and TVM cannot reinterpret a literal zero; one in memory (a register, after LLVM)
            # it can.
            held = self.alloc(1, dtype)
            self.store(held, 0, value, 1)
            value = self.load(held, 0, 1)
        name = "float32" if words == 1 else f"float32x{words}"
        fenced = self.call(name, "llvm.arithmetic.fence", self.bitcast(value, "float32", words))
        return self.bitcast(fenced, dtype, lanes)

    def math(self, name: str, *operands: Expr) -> Expr:
        """A TIR math function by name ("exp", "sqrt", "popcount"): only those LLVM lowers without a library call are legal."""
        return getattr(self._ns.T, name)(*operands)


def _llvm_target(target: Target) -> Any:
    """The TVM target of a device. armv7 is compiled for the hard-float ABI that every Linux board uses."""
    fields: dict[str, Any] = {"kind": "llvm", "mtriple": target.triple, "mcpu": target.cpu}
    if target.attrs:
        fields["mattr"] = list(target.attrs)
    if target.arch == "armv7":
        fields["mfloat-abi"] = "hard"
    ns = _tvm()
    llvm = ns.tvm.target.Target(fields)
    return llvm.with_host(llvm)


def _plain_signature(function: PrimFunc) -> PrimFunc:
    """Rebind every buffer parameter to a raw pointer and return 0, so that the C signature has no TVM type."""
    ns = _tvm()
    tirx, ir = ns.tirx, ns.ir
    params, declarations = [], []
    for param in function.params:
        if ns.is_buffer_var(param):
            element = ir.PrimType(param.dtype) if isinstance(param.dtype, str) else param.dtype
            pointer = tirx.Var(f"{param.name}_ptr", ir.PointerType(element))
            params.append(pointer)
            declarations.append(tirx.DeclBuffer(param, data=pointer))
        else:
            params.append(param)
    zero = tirx.IntImm("int32", 0)
    body = tirx.SeqStmt([*declarations, function.body, tirx.stmt.Return(zero)])
    body = tirx.AttrStmt(zero, "device_type", tirx.IntImm("int32", 1), body)
    body = tirx.AttrStmt(zero, "device_id", zero, body)
    return tirx.PrimFunc(params, body, ir.PrimType("int32"), function.attrs)


def _lower(functions: Mapping[str, PrimFunc], llvm: Any) -> Any:
    """Run the lowering passes of TVM that kernels written with `Builder` need, leaving out the packed calling convention."""
    ns = _tvm()
    tirx, s_tir = ns.tirx.transform, ns.s_tir.transform
    module = ns.tvm.IRModule(dict(functions))
    module = ns.tvm.ir.transform.Sequential(
        [
            tirx.BindTarget(llvm),
            s_tir.CanonicalizeLoop(),
            s_tir.PlanAndUpdateBufferAllocationLocation(),
            s_tir.ConvertBlocksToOpaque(),
            s_tir.LowerOpaqueBlock(),
            tirx.FlattenBuffer(),
            tirx.NarrowDataType(32),
            tirx.VectorizeLoop(True),
            tirx.StorageRewrite(),
            tirx.UnrollLoop(),
            tirx.StmtSimplify(),
            tirx.RemoveNoOp(),
        ]
    )(module)
    module = ns.tvm.IRModule({gv: _plain_signature(f) for gv, f in module.functions.items()})
    return tirx.LowerIntrin()(module)


def compile_object(functions: Mapping[str, PrimFunc], target: Target) -> bytes:
    """Compile kernels into one relocatable ELF object.

    Args:
        functions: PrimFuncs of `Builder`, by C symbol.
        target: what to compile for.

    Returns:
        The object file's bytes.

    Raises:
        ToolchainError: TVM or LLVM rejected a kernel.
    """
    ns = _tvm()
    llvm = _llvm_target(target)
    try:
        built = ns.tvm.get_global_func("target.build.llvm")(_lower(functions, llvm), llvm)
    except Exception as error:  # TVM raises its own classes, InternalError and plain RuntimeError alike
        raise ToolchainError(f"TVM could not compile {', '.join(functions)} for {target.name}: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "k.o"
        built.write_to_file(os.fspath(path))
        return path.read_bytes()
