"""Functions with parameters for each channel become tables: exact on every code of every channel."""

from __future__ import annotations

import numpy as np
import pytest

from bevel.ir.interp import run
from bevel.ir.ops.normalize import BatchNormAttrs
from bevel.ir.types import Int, Quant, TensorType
from bevel.ir.verify import is_integer_only
from bevel.passes.quantize import Calibrate, ToInteger
from tests.passes.quantize.annotated import Annotated, lower, ops, q8


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (256, 3), (1, 3, 256)])
@pytest.mark.parametrize("storage", [Int(8), Int(8, signed=False)])
def test_batch_normalization_rounds_once_on_every_code(shape: tuple[int, ...], storage: Int) -> None:
    a = Annotated()
    x = a.graph.add_input("x", TensorType(shape, Quant(storage, (0.5,), (7,))))
    parameters = [np.array(v, np.float32) for v in ([1.5, -0.25, 2.0], [0.3, 4.0, -1.0], [3.0, -5.0, 0.0], [0.5, 2.0, 1.0])]
    constants = [a.graph.add_constant(n, p) for n, p in zip("sbmv", parameters, strict=True)]
    out = q8(0.6, -11)
    graph = a.done(a.node("BatchNormalization", [x, *constants], out, BatchNormAttrs(), "y"))
    integer = lower(graph)
    assert ops(integer) == ["ChannelLut"]
    assert is_integer_only(integer)
    codes = np.arange(storage.min, storage.max + 1).astype(storage.dtype)
    index = [1 if n == 3 else n for n in shape]
    image = np.broadcast_to(codes.reshape(index), shape).copy()
    found = run(integer, {"x": image})["y"].astype(int)
    axes = [-1 if n == 3 else 1 for n in shape]
    scale, bias, mean, var = (p.astype(np.float64).reshape(axes) for p in parameters)
    real = (0.5 * (image.astype(np.float64) - 7) - mean) * scale / np.sqrt(var + 1e-5) + bias
    expected = np.clip(np.rint(real / float(np.float32(0.6))) - 11, -128, 127)
    assert np.array_equal(found, expected)
    assert found.std() > 1


def test_calibration_keeps_the_parameters_real() -> None:
    from bevel.ir.graph import Graph
    from bevel.ir.types import F32

    graph = Graph("bn")
    x = graph.add_input("x", TensorType((1, 2, 4, 4), F32))
    constants = [
        graph.add_constant(n, np.array(v, np.float32)) for n, v in zip("sbmv", ([9, 1], [0, 1], [1, 2], [1, 4]), strict=True)
    ]
    node = graph.add_node("BatchNormalization", [x, *constants], BatchNormAttrs(), names=["y"])
    graph.set_outputs([node.output])
    data = [{"x": np.random.default_rng(0).normal(0, 2, (1, 2, 4, 4)).astype(np.float32)}]
    integer = ToInteger().run(Calibrate(method="minmax", data=data).run(graph))
    assert is_integer_only(integer)
    quant = integer.outputs[0].type.elem
    assert isinstance(quant, Quant)
    got = quant.dequantize(run(integer, data[0])["y"])
    assert np.abs(got - run(graph, data[0])["y"]).max() <= 9 * 2 / 100
