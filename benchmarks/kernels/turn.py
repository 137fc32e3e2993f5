"""One turn of a contestant in a process of its own: seconds per call of every shape, as JSON on stdout.

    python turn.py kernels FOLDER     kernels that `avx2.py` compiled, called through ctypes
    python turn.py onednn SHAPES      int8 convolutions and GEMMs of torch with oneDNN, held to AVX2 by its environment
    python turn.py qnnpack SHAPES     the same with QNNPACK
    python turn.py nbits SHAPES       onnxruntime's MatMulNBits of 4 and 2 bits

It also runs in the environment of torch, which has no bevel, and therefore imports nothing of it.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

BURSTS, BLOCKS = 10, 10
BLOCK_S = 0.0004
# Calls that take long make bursts of fewer blocks, two at least.
BURST_S = 0.02
# Scale of every tensor; the time does not depend on it.
SCALE = 0.02
# Weights that share a scale in MatMulNBits.
NBITS_BLOCK = 32
# arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) of Linux on x86-64.
ASK_FOR_AMX = (158, 0x1023, 18)


# Does its work so many times.
Call = Callable[[int], object]


def seconds(calls: Mapping[str, Sequence[Call]]) -> dict[str, float]:
    """Of one call of every shape, the faster where there are several.

    Bursts of blocks of all shapes take turns, and the fastest block counts: other processes only ever slow one down, and for a
    while. A burst brings weights back into the caches, as far as these hold them.
    """
    repetitions = {name: [_repetitions(call) for call in some] for name, some in calls.items()}
    best = dict.fromkeys(calls, math.inf)
    for _ in range(BURSTS):
        for name, some in calls.items():
            for call, count in zip(some, repetitions[name], strict=True):
                spent, blocks = 0.0, 0
                while blocks < BLOCKS and (blocks < 2 or spent < BURST_S):
                    took = _block(call, count)
                    best[name] = min(best[name], took / count)
                    spent, blocks = spent + took, blocks + 1
    return best


def _repetitions(call: Call) -> int:
    """How many calls take BLOCK_S."""
    call(1)
    count, found = 1, 0.0
    while found < BLOCK_S:
        count *= 2
        found = _block(call, count)
    return count


def _block(call: Call, repetitions: int) -> float:
    start = time.perf_counter()
    call(repetitions)
    return time.perf_counter() - start


def kernels(folder: Path) -> dict[str, float]:
    """Seconds of every kernel in the plan of `folder`."""
    # Kernels with AMX tiles need it; where there is none this fails, and nothing depends on it.
    ctypes.CDLL(None).syscall(*ASK_FOR_AMX)
    library = ctypes.CDLL(str(folder / "kernels.so"))
    calls: dict[str, list[Call]] = {}
    memory = []  # pointers alone keep nothing alive
    for name, plan in json.loads((folder / "plan.json").read_text()).items():
        buffers = [_aligned(np.fromfile(folder / file, np.uint8)) for file in plan["inputs"]]
        buffers.append(_aligned(np.zeros(plan["output_bytes"], np.uint8)))
        buffers.append(_aligned(np.zeros(plan["scratch_bytes"], np.uint8)))
        memory += buffers
        pointers = (ctypes.c_void_p * len(buffers))(*(buffer.ctypes.data for buffer in buffers))
        memory.append(pointers)
        calls[name] = [partial(getattr(library, f"repeat_{plan['symbol']}"), pointers, ctypes.c_int32(plan["extent"]))]
    return seconds(calls)


def _aligned(data: Any) -> Any:
    """A copy at a page boundary, readable for 64 bytes past its end."""
    raw = np.zeros(data.size + 64 + 4096, np.uint8)
    start = -raw.ctypes.data % 4096
    raw[start : start + data.size] = data
    return raw[start:]


def torch_int8(shapes: dict[str, dict[str, int]], engine: str) -> dict[str, float]:
    """Seconds of every shape: as a convolution and as a GEMM of the same size, the faster of both."""
    import torch

    torch.set_num_threads(1)
    torch.backends.quantized.engine = engine
    ops = torch.ops.quantized

    def codes(*shape: int) -> Any:
        return torch.quantize_per_tensor(torch.randn(*shape), SCALE, 128, torch.quint8)

    def weights(*shape: int) -> Any:
        scales, zeros = torch.full((shape[0],), SCALE, dtype=torch.double), torch.zeros(shape[0], dtype=torch.long)
        return torch.quantize_per_channel(torch.randn(*shape), scales, zeros, 0, torch.qint8)

    def repeated(op: Callable[[], object]) -> Call:
        def call(count: int) -> None:
            for _ in range(count):
                op()

        return call

    def convolution(s: dict[str, int]) -> Call:
        x = codes(1, s["c"], s["h"], s["w"]).contiguous(memory_format=torch.channels_last)
        pad, kernel = s["k"] // 2, weights(s["oc"], s["c"], s["k"], s["k"])
        packed = ops.conv2d_prepack(kernel, torch.randn(s["oc"]), [1, 1], [pad, pad], [1, 1], 1)
        return repeated(lambda: ops.conv2d(x, packed, 0.5, 128))

    def gemm(s: dict[str, int]) -> Call:
        inputs = s["c"] * s["k"] * s["k"]
        x, packed = codes(s["h"] * s["w"], inputs), ops.linear_prepack(weights(s["oc"], inputs), torch.randn(s["oc"]))
        return repeated(lambda: ops.linear(x, packed, 0.5, 128))

    return seconds({name: [convolution(s), gemm(s)] for name, s in shapes.items()})


def matmul_nbits(shapes: dict[str, dict[str, int]]) -> dict[str, float]:
    """Seconds of every GEMV with weights of 4 and 2 bits in blocks of 32 and activations quantized to 8 bits, by "SHAPE BITS"."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    def call(rows: int, inputs: int, outputs: int, bits: int) -> Call:
        rng = np.random.default_rng(44)
        weights = rng.integers(0, 256, (outputs, inputs // NBITS_BLOCK, NBITS_BLOCK * bits // 8)).astype(np.uint8)
        scales = np.full(outputs * inputs // NBITS_BLOCK, SCALE, np.float32)
        node = helper.make_node(
            "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
            K=inputs, N=outputs, bits=bits, block_size=NBITS_BLOCK, accuracy_level=4,
        )  # fmt: skip
        values = [
            helper.make_tensor_value_info(*v) for v in (("x", TensorProto.FLOAT, [rows, inputs]), ("y", TensorProto.FLOAT, None))
        ]
        constants = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(scales, "s")]
        graph = helper.make_graph([node], "gemv", values[:1], values[1:], constants)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = {"x": rng.standard_normal((rows, inputs)).astype(np.float32)}

        def run(count: int) -> None:
            for _ in range(count):
                session.run(None, feed)

        return run

    return seconds(
        {f"{name} {bits}": [call(s["h"] * s["w"], s["c"], s["oc"], bits)] for name, s in shapes.items() for bits in (4, 2)}
    )


def main() -> int:
    """Print what a turn found."""
    kind, argument = sys.argv[1:]
    if kind == "kernels":
        found = kernels(Path(argument))
    elif kind == "nbits":
        found = matmul_nbits(json.loads(argument))
    else:
        found = torch_int8(json.loads(argument), kind)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
