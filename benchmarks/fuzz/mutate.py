"""Mutations of ONNX files: of their structure, which keeps them parseable, and of their bytes.

Every mutation is a function of a random generator, so a seed and an index name a file for good.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

# Numbers at and beyond the edges of what fields mean.
NUMBERS = (0, 1, -1, 2, 3, 7, 8, 127, 128, 255, 256, 2**15, 2**16, 2**20, 2**31 - 1, 2**31, 2**32, 2**62, -(2**63), 2**63 - 1)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 1e38, -1e38, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "NOTSET", "SAME_UPPER", "VALID", "linear", "none", "\x00", "%s%n", "../../etc/passwd", "é" * 20, "a" * 5000)
TYPES = tuple(range(30))

Structural = Callable[[ModelProto, random.Random], None]


def _node(model: ModelProto, rng: random.Random) -> NodeProto:
    return rng.choice(model.graph.node)


def _names(model: ModelProto) -> list[str]:
    graph = model.graph
    names = [i.name for i in graph.input] + [t.name for t in graph.initializer]
    return names + [o for n in graph.node for o in n.output] + ["", "nowhere"]


def _operator(model: ModelProto, rng: random.Random) -> None:
    others = [s.name for s in onnx.defs.get_all_schemas()]
    _node(model, rng).op_type = rng.choice([*others, "Nonesuch", ""])


def _domain(model: ModelProto, rng: random.Random) -> None:
    _node(model, rng).domain = rng.choice(["", "ai.onnx", "ai.onnx.ml", "com.microsoft", "evil"])


def _operand(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(_names(model))


def _more_operands(model: ModelProto, rng: random.Random) -> None:
    _node(model, rng).input.extend(rng.choice(_names(model)) for _ in range(rng.choice([1, 2, 50])))


def _fewer_operands(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    del node.input[rng.randint(0, len(node.input)) :]


def _result(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if node.output:
        node.output[rng.randrange(len(node.output))] = rng.choice(_names(model))
    node.output.extend(rng.choice(["", "extra", *_names(model)]) for _ in range(rng.randint(0, 2)))


def _drop(model: ModelProto, rng: random.Random) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _repeat(model: ModelProto, rng: random.Random) -> None:
    twin = NodeProto.FromString(_node(model, rng).SerializeToString())
    if rng.random() < 0.7:
        for i, name in enumerate(twin.output):
            twin.output[i] = f"{name}.{rng.randrange(10)}"
    model.graph.node.insert(rng.randint(0, len(model.graph.node)), twin)


def _reorder(model: ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _attribute(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    if not node.attribute or rng.random() < 0.2:
        value = rng.choice(
            [rng.choice(NUMBERS), rng.choice(FLOATS), rng.choice(TEXTS), [rng.choice(NUMBERS)] * rng.randint(1, 9)]
        )
        node.attribute.append(helper.make_attribute(rng.choice(["axis", "axes", "perm", "pads", "mode", "to", "zap"]), value))
        return
    attribute: AttributeProto = rng.choice(node.attribute)
    kind = rng.randrange(6)
    if kind == 0:
        attribute.i = rng.choice(NUMBERS)
    elif kind == 1:
        attribute.f = rng.choice(FLOATS)
    elif kind == 2:
        attribute.s = rng.choice(TEXTS).encode()
    elif kind == 3 and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(NUMBERS)
    elif kind == 4:
        attribute.ints.extend(rng.choice(NUMBERS) for _ in range(rng.randint(1, 4)))
    else:
        attribute.type = rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 8, 10])
        if rng.random() < 0.5:
            del attribute.ints[: rng.randint(0, len(attribute.ints))]


def _tensor(model: ModelProto, rng: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor: TensorProto = rng.choice(model.graph.initializer)
    kind = rng.randrange(5)
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    elif kind == 1:
        tensor.dims.append(rng.choice(NUMBERS))
    elif kind == 2:
        tensor.data_type = rng.choice(TYPES)
    elif kind == 3:
        raw = bytearray(tensor.raw_data)
        for _ in range(rng.randint(1, 8)):
            if raw:
                raw[rng.randrange(len(raw))] = rng.choice([0, 0x7F, 0x80, 0xFF, rng.randrange(256)])
        tensor.raw_data = bytes(raw[: rng.choice([len(raw), len(raw) // 2, 1, 0])])
    else:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=rng.choice(["../x", "/etc/passwd", "w.bin", "", "a" * 300]))
        tensor.external_data.add(key="offset", value=str(rng.choice(NUMBERS)))


def _input(model: ModelProto, rng: random.Random) -> None:
    if not model.graph.input:
        return
    value = rng.choice(model.graph.input)
    tensor = value.type.tensor_type
    kind = rng.randrange(6)
    if kind == 0 and tensor.shape.dim:
        rng.choice(tensor.shape.dim).dim_value = rng.choice(NUMBERS)
    elif kind == 1 and tensor.shape.dim:
        rng.choice(tensor.shape.dim).dim_param = rng.choice(TEXTS)
    elif kind == 2:
        tensor.elem_type = rng.choice(TYPES)
    elif kind == 3:
        tensor.shape.dim.add().dim_value = rng.choice(NUMBERS)
    elif kind == 4:
        tensor.ClearField("shape")
    else:
        value.name = rng.choice(_names(model))


def _output(model: ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.5 and model.graph.output:
        rng.choice(model.graph.output).name = rng.choice(_names(model))
    else:
        model.graph.output.add().name = rng.choice(_names(model))


def _frozen(model: ModelProto, rng: random.Random) -> None:
    """An input becomes an initializer of its shape."""
    if not model.graph.input:
        return
    value = model.graph.input[rng.randrange(len(model.graph.input))]
    dims = [d.dim_value if 0 < d.dim_value < 50 else 2 for d in value.type.tensor_type.shape.dim]
    count = 1
    for extent in dims:
        count *= extent
    if count <= 4096 and value.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32):
        numbers = [rng.choice([0, 1, -1, 2, 5]) for _ in range(count)]
        model.graph.initializer.append(helper.make_tensor(value.name, value.type.tensor_type.elem_type, dims, numbers))


def _opset(model: ModelProto, rng: random.Random) -> None:
    if model.opset_import:
        rng.choice(model.opset_import).version = rng.choice([*range(1, 30), *NUMBERS])


def _function(model: ModelProto, rng: random.Random) -> None:
    """A local function that computes what a node does, possibly by calling itself."""
    node = NodeProto.FromString(_node(model, rng).SerializeToString())
    name = rng.choice([node.op_type, "Fn"])
    body = [node] if rng.random() < 0.6 else [helper.make_node(name, list(node.input), list(node.output), domain="local")]
    inputs, outputs = [n for n in dict.fromkeys(node.input) if n], [n for n in dict.fromkeys(node.output) if n]
    if inputs and outputs:
        model.functions.append(helper.make_function("local", name, inputs, outputs, body, [helper.make_opsetid("", 18)]))
        model.opset_import.append(helper.make_opsetid("local", 1))
        user = _node(model, rng)
        user.op_type, user.domain = name, "local"


def _subgraph(model: ModelProto, rng: random.Random) -> None:
    node = _node(model, rng)
    node.op_type = rng.choice(["If", "Loop", "Scan", node.op_type])
    for name in rng.choice([("then_branch", "else_branch"), ("body",), ("then_branch",)]):
        graph = onnx.GraphProto.FromString(model.graph.SerializeToString()) if rng.random() < 0.3 else onnx.GraphProto(name=name)
        graph.node.append(helper.make_node("Identity", [rng.choice(_names(model))], ["branch"]))
        graph.output.add().name = "branch"
        node.attribute.append(helper.make_attribute(name, graph))


STRUCTURAL: tuple[Structural, ...] = (
    _operator, _domain, _operand, _more_operands, _fewer_operands, _result, _drop, _repeat, _reorder, _attribute, _attribute,
    _attribute, _tensor, _tensor, _input, _input, _output, _frozen, _opset, _function, _subgraph,
)  # fmt: skip


def mutate_structure(data: bytes, rng: random.Random) -> bytes:
    """A model with one to four changes of structure; unparseable data comes back with changed bytes instead."""
    try:
        model = ModelProto.FromString(data)
    except DecodeError:
        return mutate_bytes(data, rng)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not model.graph.node:
            break
        rng.choice(STRUCTURAL)(model, rng)
    return bytes(model.SerializeToString())


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """The bytes flipped, cut, doubled, shifted or joined with themselves."""
    raw = bytearray(data)
    for _ in range(rng.choice([1, 1, 3, 20])):
        if not raw:
            break
        at = rng.randrange(len(raw))
        kind = rng.randrange(6)
        if kind == 0:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at] = rng.choice([0, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            del raw[at : at + rng.choice([1, 4, 100])]
        elif kind == 3:
            raw[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 4, 30])))
        elif kind == 4:
            raw[at : at + 10] = b"\xff" * 9 + b"\x01"
        else:
            del raw[at:]
    return bytes(raw)


def mutated(seeds: Sequence[bytes], seed: int, index: int) -> bytes:
    """File number `index` of the run with `seed`: three in four of structure, one of bytes."""
    rng = random.Random(seed * 1_000_003 + index)
    data = rng.choice(seeds)
    return mutate_bytes(data, rng) if index % 4 == 3 else mutate_structure(data, rng)
