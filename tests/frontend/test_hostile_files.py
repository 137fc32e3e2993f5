"""Damaged and hostile files end in UnsupportedModel with one line that names the file: never a traceback, never a hang."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bevel.errors import BevelError, UnsupportedModel, UnsupportedOp, UsageError
from bevel.frontend import import_onnx
from tests.frontend.onnx_files import model_of, save

MODELS = Path(__file__).resolve().parents[2] / "models"
node = helper.make_node
Edit = Callable[[onnx.ModelProto], object]


def sound() -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], ["c"], name="conv"), node("Relu", ["c"], ["y"], name="relu")]
    return model_of(nodes, {"x": [1, 2, 6, 6]}, ["y"], {"w": np.ones((3, 2, 3, 3), np.float32)})


def weights(data: np.ndarray) -> Edit:
    return lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(data, "w"))


def external(location: str, **entries: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)

    return edit


def functions(depth: int, *, recursive: bool) -> Edit:
    """Functions of which each calls the next twice; the last calls itself if `recursive`."""

    def edit(model: onnx.ModelProto) -> None:
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
        for i in range(depth):
            callee = f"f{i + 1}" if i + 1 < depth else ("f0" if recursive else "")
            body = [node(callee, ["a"], ["t"], domain="f"), node(callee, ["t"], ["b"], domain="f")]
            body = body if callee else [node("Relu", ["a"], ["b"])]
            model.functions.append(helper.make_function("f", f"f{i}", ["a"], ["b"], body, opsets))
        model.opset_import.append(helper.make_opsetid("f", 1))
        model.graph.node[1].op_type, model.graph.node[1].domain = "f0", "f"

    return edit


def cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "y"


HOSTILE: dict[str, tuple[Edit, str]] = {
    "no graph": (lambda m: m.ClearField("graph"), "holds no graph"),
    "no opset": (lambda m: m.ClearField("opset_import"), r"operator set version 0 .*supported are"),
    "old opset": (lambda m: setattr(m.opset_import[0], "version", 6), r"operator set version 6 .*supported are"),
    "future opset": (lambda m: setattr(m.opset_import[0], "version", 10**6), "operator set version 1000000"),
    "cycle": (cycle, "cycle"),
    "result twice": (
        lambda m: m.graph.node[1].output.__setitem__(0, "c"),
        "'c' is defined twice",
    ),
    "weight twice": (lambda m: m.graph.initializer.append(m.graph.initializer[0]), "'w' is defined twice"),
    "dangling input": (lambda m: m.graph.node[1].input.__setitem__(0, "ghost"), "reads 'ghost', which nothing computes"),
    "dangling output": (lambda m: setattr(m.graph.output[0], "name", "ghost"), "'ghost' is never computed"),
    "unknown operator": (
        lambda m: setattr(m.graph.node[1], "op_type", "Frobnicate"),
        r"node 'relu': operator Frobnicate \(opset 17\)",
    ),
    "unknown domain": (lambda m: setattr(m.graph.node[1], "domain", "evil"), "domain 'evil'"),
    "unknown attribute": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("zap", 1)), "unknown attributes"),
    "wrong attribute type": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", "x")), "."),
    "not enough operands": (lambda m: m.graph.node[0].input.pop(), "operand 1 is missing"),
    "zero groups": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("group", 0)), "group"),
    "zero strides": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("strides", [0, 0])), "strides"),
    "huge kernel": (lambda m: m.graph.node[0].attribute.append(helper.make_attribute("dilations", [2**40, 1])), "does not fit"),
    "huge pads": (
        lambda m: m.graph.node[0].attribute.append(helper.make_attribute("pads", [2**40] * 4)),
        "elements, expected at most",
    ),
    "NaN weights": (weights(np.full((3, 2, 3, 3), np.nan, np.float32)), "'w' holds NaN"),
    "infinite weights": (weights(np.full((3, 2, 3, 3), np.inf, np.float32)), "'w' holds NaN or infinity"),
    "float64 beyond float32": (weights(np.full((3, 2, 3, 3), 1e300)), "'w' holds values beyond float32"),
    "string weights": (weights(np.full((3, 2, 3, 3), "a", object)), "element type"),
    "less data than declared": (lambda m: setattr(m.graph.initializer[0], "raw_data", b"\0" * 8), "does not match its type"),
    "absurd weights": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**50), "does not match its type"),
    "negative weights": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -1), "expected none below 0"),
    "absurd input": (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 2**60), "expected at most"),
    "negative input": (lambda m: setattr(m.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", -5), "extent -5"),
    "input without type": (lambda m: m.graph.input[0].ClearField("type"), "no tensor type"),
    "external data above": (external("../secret.bin"), "outside the model's folder"),
    "external data elsewhere": (external("/etc/passwd"), "outside the model's folder"),
    "external data missing": (external("weights.bin"), "is missing"),
    "external data too short": (external("short.bin", length="216"), "which is shorter"),
    "external offset": (external("short.bin", offset="x"), "no numeric offset"),
    "negative external offset": (external("short.bin", offset="-8", length="8"), "."),
    "functions that explode": (functions(40, recursive=False), "functions inlined, expected at most"),
    "functions that recurse": (functions(3, recursive=True), "calls itself"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_models_are_refused(name: str, tmp_path: Path) -> None:
    edit, message = HOSTILE[name]
    model = sound()
    edit(model)
    (tmp_path / "short.bin").write_bytes(b"\0" * 16)
    path = save(tmp_path / "m.onnx", model)
    with pytest.raises(UnsupportedModel, match=message) as caught:
        import_onnx(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_the_sound_model_is_accepted(tmp_path: Path) -> None:
    assert len(import_onnx(save(tmp_path / "m.onnx", sound())).nodes) == 2


def test_constants_that_would_explode_are_refused(tmp_path: Path) -> None:
    nodes = [node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])]
    model = model_of(nodes, {"x": [1]}, ["y"], {"s": np.asarray([2**20, 2**20])})
    with pytest.raises(UnsupportedOp, match="up to 67108864 elements"):
        import_onnx(save(tmp_path / "m.onnx", model))


@pytest.mark.parametrize("data", [b"", b"\0", b"not a model at all" * 100, b"\x08" * 1000, b"\xff" * 1000])
def test_files_that_are_no_models(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(UnsupportedModel, match=r"m\.onnx: "):
        import_onnx(path)


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such model file"):
        import_onnx(tmp_path / "none.onnx")


def test_local_functions_are_inlined(tmp_path: Path) -> None:
    model = sound()
    functions(3, recursive=False)(model)
    graph = import_onnx(save(tmp_path / "m.onnx", model))
    assert [n.op for n in graph.nodes] == ["Conv"] + ["Relu"] * 4


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    model, data = sound(), np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(np.float32)
    external("weights.bin", offset="16", length=str(data.nbytes))(model)
    (tmp_path / "weights.bin").write_bytes(b"\0" * 16 + data.tobytes())
    graph = import_onnx(save(tmp_path / "m.onnx", model))
    np.testing.assert_array_equal(graph.constants[0].array, data)


def mutated(data: bytes, rng: random.Random) -> bytes:
    """`data` truncated, with bytes changed, cut out or repeated."""
    copy = bytearray(data)
    kind = rng.randrange(5)
    at = rng.randrange(len(copy))
    if kind == 0:
        return bytes(copy[:at])
    if kind == 1:
        del copy[at : at + rng.randrange(1, 200)]
    elif kind == 2:
        copy[at:at] = copy[at : at + rng.randrange(1, 400)]
    else:
        for _ in range(rng.randrange(1, 30)):
            at = rng.randrange(len(copy))
            copy[at] = rng.randrange(256) if kind == 3 else (copy[at] + rng.choice([1, 127, 128, 255])) % 256
    return bytes(copy)


def fuzz(path: Path, rounds: int, seed: int) -> int:
    """Import mutated models; returns how many were refused. Anything but a BevelError escapes and fails the test."""
    sources = [sound().SerializeToString()]
    sources += [(MODELS / f"{name}.onnx").read_bytes() for name in ("kws_dscnn_float", "resnet8_cifar10_int8_qdq")]
    rng = random.Random(seed)
    refused = 0
    for _ in range(rounds):
        path.write_bytes(mutated(rng.choice(sources), rng))
        try:
            import_onnx(path)
        except BevelError as error:
            assert error.exit_code == 3, error  # noqa: PT017
            refused += 1
    return refused


def test_mutated_files_are_imported_or_refused(tmp_path: Path) -> None:
    assert fuzz(tmp_path / "m.onnx", 400, seed=1) > 100


@pytest.mark.slow
def test_many_mutated_files_are_imported_or_refused(tmp_path: Path) -> None:
    assert fuzz(tmp_path / "m.onnx", 20_000, seed=2) > 5_000
