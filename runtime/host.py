"""Runs an artifact in this process, through ctypes, without copying: inputs and outputs are numpy views of the model's arena."""

from __future__ import annotations

import ctypes
import functools
import mmap
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import ArtifactError, DeviceError, UsageError
from bevel.runtime.artifact import Artifact
from bevel.runtime.codegen import DTYPES
from bevel.runtime.elf import check_shared_library
from bevel.runtime.toolchain import host_arch

Array = npt.NDArray[Any]

ABI_VERSION = 4
# The library asks for 64 bytes; at the same place within a page the arena is as fast in one process as in the next.
_PAGE = 4096
# bevel_status values that need a class of their own here.
_E_OPEN, _E_HASH, _E_ISA = 2, 7, 10


class _Tensor(ctypes.Structure):
    """bevel_tensor of c/bevel.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("data", ctypes.c_void_p),
        ("nbytes", ctypes.c_size_t),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("zero_point", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("dims", ctypes.POINTER(ctypes.c_int32)),
    ]


class _Dim(ctypes.Structure):
    """bevel_dim of c/bevel.h."""

    _fields_ = [("name", ctypes.c_char_p), ("lo", ctypes.c_int32), ("hi", ctypes.c_int32)]


class _Step(ctypes.Structure):
    """bevel_step of c/bevel.h."""

    _fields_ = [
        ("layer", ctypes.c_char_p),
        ("op", ctypes.c_char_p),
        ("kernel", ctypes.c_char_p),
        ("bits", ctypes.c_char_p),
        ("macs", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class StepTime:
    """One step of a profiled run.

    Attributes:
        layer, op, kernel, bits: as in the schedule; kernel is "generator:symbol".
        macs, bytes: work and traffic.
        ns: nanoseconds.
    """

    layer: str
    op: str
    kernel: str
    bits: str
    macs: int
    bytes: int
    ns: int


@dataclass(frozen=True)
class HostTensor:
    """An input or output bound to the arena.

    Attributes:
        name: ONNX name.
        array: the memory itself, in the stored dtype and logical shape.
        scale, zero_point: real = scale * (code - zero_point); scale 0.0 means not quantized.
        dims: name of the dimension that is the extent of each axis, None where it is fixed.
    """

    name: str
    array: Array
    scale: float
    zero_point: int
    dims: tuple[str | None, ...] = ()


class HostModel:
    """A model opened on this machine.

    Usable as a context manager. One instance must not be used from two threads at once; several instances may. The views stay
    valid memory after `close`, but nothing computes them any more.

    Dimensions of a model with run-time extents (`bounds`) are at their largest until `set_dims`, or the shapes given to
    `set_inputs`, choose others; the tensors are then new views with undefined contents, but for states.

    Inputs that are states (`Artifact.states`) hold zeros at first and what the last run left later; they need not be given.

    Args:
        artifact: an artifact or its directory.
        threads: number of threads, the caller's included, 1..256.
        verify: compare the hash of every file before the library is loaded into this process.

    Raises:
        ArtifactError: damaged, for another architecture, or this CPU lacks an instruction set it needs.
        UsageError: a bad number of threads.
    """

    def __init__(self, artifact: Artifact | str | Path, threads: int = 1, *, verify: bool = True) -> None:
        self._handle: ctypes.c_void_p | None = None
        opened = Artifact.open(artifact.path if isinstance(artifact, Artifact) else artifact, verify=verify)
        self.artifact = opened
        self.threads = threads
        _check_machine(opened)
        self._library = _load(opened.library)
        if self._library.bevel_abi_version() != ABI_VERSION:
            found = self._library.bevel_abi_version()
            raise ArtifactError(
                f"{opened.library}: C API version {found}, this bevel speaks {ABI_VERSION}; compile the model again"
            )
        arena_bytes = self._library.bevel_arena_bytes(threads)
        if arena_bytes == 0:
            raise UsageError(f"threads = {threads}: expected 1..256")
        # The arena and the weights belong to Python, so no view can ever point at freed memory.
        block = np.empty(arena_bytes + _PAGE, np.uint8)
        start = -block.ctypes.data % _PAGE
        self._arena = block[start : start + arena_bytes]
        self._weights = _map(opened.weights)
        handle = ctypes.c_void_p()
        status = self._library.bevel_open_memory(
            self._weights.ctypes.data, self._weights.nbytes, self._arena.ctypes.data, threads, ctypes.byref(handle)
        )
        self._check(status, f"{opened.path}")
        self._handle = handle
        self._call_run = self._library.bevel_run
        found = [self._library.bevel_dim_at(index).contents for index in range(self._library.bevel_num_dims())]
        self.bounds: dict[str, tuple[int, int]] = {dim.name.decode(): (dim.lo, dim.hi) for dim in found}
        self._describe()
        self._input_index = {tensor.name: index for index, tensor in enumerate(self.inputs)}
        self._needed = self._input_index.keys() - opened.states.keys()
        self._output_index = {tensor.name: index for index, tensor in enumerate(self._outputs)}

    def __enter__(self) -> HostModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads. Calling it again does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.bevel_close(handle)

    def _describe(self) -> None:
        """Views of all tensors at the extents in force."""
        self.inputs = self._tensors(self._library.bevel_num_inputs(), self._library.bevel_input)
        self._outputs = self._tensors(self._library.bevel_num_outputs(), self._library.bevel_output)

    @property
    def dims(self) -> dict[str, int]:
        """The extents in force, by name; empty for a model of fixed shapes."""
        return {name: self._library.bevel_get_dim(self._open_handle(), index) for index, name in enumerate(self.bounds)}

    def set_dims(self, dims: Mapping[str, int]) -> None:
        """Choose extents; dimensions that are not named keep theirs. Contents of inputs become undefined.

        Raises:
            UsageError: no such dimension, or an extent outside its bounds.
        """
        names = list(self.bounds)
        for name, extent in dims.items():
            if name not in self.bounds:
                raise UsageError(f"dimension {name!r}: the model's are {names}")
            lo, hi = self.bounds[name]
            if not lo <= extent <= hi:
                raise UsageError(f"dimension {name!r} = {extent}: expected {lo}..{hi}")
        before = self.dims
        for name, extent in dims.items():
            self._check(self._library.bevel_set_dim(self._open_handle(), names.index(name), extent), f"dimension {name!r}")
        if self.dims != before:
            self._describe()

    def follow_shapes(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Take the extents that the shapes of all inputs agree on.

        Raises:
            UsageError: they disagree, or lie outside the bounds.
        """
        chosen: dict[str, int] = {}
        if not self.bounds:
            return
        for tensor in self.inputs:
            if tensor.name not in arrays:
                continue
            shape = np.shape(arrays[tensor.name])
            if len(shape) != len(tensor.dims):
                continue
            for dim, extent in zip(tensor.dims, shape, strict=True):
                if dim is not None and chosen.setdefault(dim, extent) != extent:
                    raise UsageError(f"input {tensor.name!r}: dimension {dim!r} is {extent}, another input has {chosen[dim]}")
        self.set_dims(chosen)

    @property
    def output_tensors(self) -> tuple[HostTensor, ...]:
        """Descriptors and views of the outputs."""
        return self._outputs

    def run(self) -> None:
        """Compute the outputs from what the input views hold. Inputs keep their contents; states take those of their outputs.

        Raises:
            DeviceError: a kernel failed.
        """
        # The shortest way to the call: small models run in tens of microseconds, and every attribute costs a tenth of one.
        status = self._call_run(self._handle)
        if status:
            self._open_handle()
            self._check(status, self.artifact.name)

    def bound_run(self) -> Callable[[], int]:
        """`bevel_run` of this model with nothing around it, for callers to whom tenths of a microsecond count.

        Gives the status, 0 for success, instead of raising, and keeps Python's global lock while it runs. To be called as long as
        the model is open.
        """
        library = ctypes.PyDLL(self._library._name, handle=self._library._handle)
        return functools.partial(library.bevel_run, self._open_handle())

    def reset_state(self) -> None:
        """Set all states to real zeros, as after opening."""
        self._check(self._library.bevel_state_reset(self._open_handle()), self.artifact.name)

    def set_inputs(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Copy arrays in the stored dtypes (codes for quantized inputs) into the arena; their shapes choose the dimensions.

        States that are not given keep what the last run left.

        Raises:
            UsageError: missing or unknown names, another shape or dtype.
        """
        self._check_names(arrays)
        self.follow_shapes(arrays)
        for tensor in self.inputs:
            if tensor.name not in arrays:
                continue
            array = np.asarray(arrays[tensor.name])
            if array.shape != tensor.array.shape or array.dtype != tensor.array.dtype:
                raise UsageError(
                    f"input {tensor.name!r}: {array.dtype}{list(array.shape)}, expected "
                    f"{tensor.array.dtype}{list(tensor.array.shape)}"
                )
            tensor.array[...] = array

    def outputs(self) -> dict[str, Array]:
        """Views of the outputs by name; the next run overwrites them."""
        return {tensor.name: tensor.array for tensor in self._outputs}

    def set_inputs_float(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        """Quantize float32 arrays into the inputs, with the contract's one rounding; float32 inputs are copied.

        States that are not given keep what the last run left.

        Raises:
            UsageError: missing or unknown names, another shape, or an input that is neither quantized nor float32.
        """
        self._check_names(arrays)
        self.follow_shapes(arrays)
        for name, array in arrays.items():
            self.set_input_float(name, array)

    def set_input_float(self, name: str, values: npt.ArrayLike) -> None:
        """Quantize a float32 array into one input; the others keep what they hold.

        Raises:
            UsageError: no such input, another shape, or the input is neither quantized nor float32.
        """
        index = self._input_index.get(name)
        if index is None:
            raise UsageError(f"input {name!r}: the model's are {sorted(self._input_index)}")
        tensor = self.inputs[index]
        array = np.ascontiguousarray(values, np.float32).reshape(np.shape(values))
        if array.shape != tensor.array.shape:
            raise UsageError(f"input {name!r}: shape {list(array.shape)}, expected {list(tensor.array.shape)}")
        status = self._library.bevel_set_input_f32(self._open_handle(), index, array.ctypes.data, array.size)
        self._check(status, f"input {name!r}")

    def outputs_float(self) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs as new float32 arrays.

        Raises:
            UsageError: an output is neither quantized nor float32.
        """
        result = {}
        for tensor in self._outputs:
            values = np.empty(tensor.array.shape, np.float32)
            index = self._output_index[tensor.name]
            status = self._library.bevel_get_output_f32(self._open_handle(), index, values.ctypes.data, values.size)
            self._check(status, f"output {tensor.name!r}")
            result[tensor.name] = values
        return result

    def profile(self) -> list[StepTime]:
        """Run once and return the time of every step, each with the cost of reading the clock once.

        Raises:
            DeviceError: a kernel failed.
        """
        count = self._library.bevel_num_steps()
        times = (ctypes.c_uint64 * (count + 1))()
        self._check(self._library.bevel_profile(self._open_handle(), 0, count, None, times), self.artifact.name)
        result = []
        for index, (before, after) in enumerate(pairwise(times)):
            step = self._library.bevel_step_at(index).contents
            layer, op, kernel, bits = (text.decode() for text in (step.layer, step.op, step.kernel, step.bits))
            result.append(StepTime(layer, op, kernel, bits, step.macs, step.bytes, after - before))
        return result

    def _open_handle(self) -> ctypes.c_void_p:
        if self._handle is None:
            raise UsageError(f"model {self.artifact.name} is closed")
        return self._handle

    def _check_names(self, arrays: Mapping[str, npt.ArrayLike]) -> None:
        # Streams give the same names thousands of times a second: the usual case comes first.
        if arrays.keys() != self._needed:
            self.artifact.check_inputs(arrays)

    def _check(self, status: int, what: str) -> None:
        if status == 0:
            return
        text = f"{what}: {self._library.bevel_strerror(status).decode()}"
        if status == _E_ISA:
            features = ", ".join(self.artifact.manifest["target"].get("required_features", ()))
            raise ArtifactError(f"{text} (it needs {features})")
        if _E_OPEN <= status <= _E_HASH:
            raise ArtifactError(text)
        raise (UsageError if status in (1, 12, 13) else DeviceError)(text)

    def _tensors(self, count: int, descriptor: Any) -> tuple[HostTensor, ...]:
        result = []
        for index in range(count):
            tensor = descriptor(self._handle, index).contents
            shape = tuple(tensor.shape[i] for i in range(tensor.rank))
            # An output that is a constant lies among the weights.
            home = next((m for m in (self._arena, self._weights) if 0 <= tensor.data - m.ctypes.data < max(m.nbytes, 1)), None)
            if home is None:
                raise ArtifactError(
                    f"{self.artifact.library}: tensor {tensor.name!r} lies outside its arena; compile the model again"
                )
            offset = tensor.data - home.ctypes.data
            array = home[offset : offset + tensor.nbytes].view(DTYPES[tensor.dtype]).reshape(shape)
            names = list(self.bounds)
            indices = [tensor.dims[i] for i in range(tensor.rank)] if tensor.dims else [-1] * tensor.rank
            dims = tuple(names[i] if i >= 0 else None for i in indices)
            result.append(HostTensor(tensor.name.decode(), array, tensor.scale, tensor.zero_point, dims))
        return tuple(result)


def _check_machine(artifact: Artifact) -> None:
    """Refuse a library of another architecture before the dynamic loader sees it."""
    here = host_arch()
    if artifact.arch != here:
        raise ArtifactError(
            f"{artifact.path}: built for {artifact.arch} ({artifact.manifest['target'].get('name')}), this machine is {here}; "
            f"run it on its device or compile with --device host"
        )
    check_shared_library(artifact.library, here)


def _load(path: Path) -> ctypes.CDLL:
    # The loader knows libraries by name: under its own path a library compiled again would be the one loaded before. Under a
    # name of its own it is known by its inode, which the old one keeps while it is loaded.
    try:
        with tempfile.TemporaryDirectory(prefix="bevel-load-") as folder:
            link = Path(folder) / path.name
            link.symlink_to(path.resolve())
            library = ctypes.CDLL(str(link))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be loaded ({error}); copy or compile the artifact again") from error
    model, size, status = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    tensor = ctypes.POINTER(_Tensor)
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "bevel_abi_version": (ctypes.c_uint32, []),
        "bevel_arena_bytes": (size, [ctypes.c_int]),
        "bevel_open_memory": (status, [ctypes.c_void_p, size, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(model)]),
        "bevel_close": (None, [model]),
        "bevel_run": (status, [model]),
        "bevel_state_reset": (status, [model]),
        "bevel_profile": (status, [model, size, size, ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint64)]),
        "bevel_num_inputs": (size, []),
        "bevel_num_outputs": (size, []),
        "bevel_num_steps": (size, []),
        "bevel_input": (tensor, [model, size]),
        "bevel_output": (tensor, [model, size]),
        "bevel_step_at": (ctypes.POINTER(_Step), [size]),
        "bevel_num_dims": (size, []),
        "bevel_dim_at": (ctypes.POINTER(_Dim), [size]),
        "bevel_set_dim": (status, [model, size, ctypes.c_int32]),
        "bevel_get_dim": (ctypes.c_int32, [model, size]),
        "bevel_set_input_f32": (status, [model, size, ctypes.c_void_p, size]),
        "bevel_get_output_f32": (status, [model, size, ctypes.c_void_p, size]),
        "bevel_strerror": (ctypes.c_char_p, [status]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name, None)
        if function is None:
            raise ArtifactError(f"{path}: exports no {name}; compile the model again")
        function.restype, function.argtypes = result, arguments
    return library


def _map(path: Path) -> npt.NDArray[np.uint8]:
    """A read-only memory map of a file; page aligned."""
    with path.open("rb") as stream:
        if path.stat().st_size == 0:
            raise ArtifactError(f"{path}: empty; copy or compile the artifact again")
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
