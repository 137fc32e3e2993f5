"""Compression plans: exact round trip, strict reading, and no request that goes unheard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bevel.errors import InvalidPlan
from bevel.ir.graph import Graph
from bevel.ir.plan import (
    DEFAULT_ALLOWED,
    FP32,
    TERNARY,
    W8A8,
    Bits,
    CompressionPlan,
    LayerPlan,
    load_plan,
    loads_plan,
    parse_allowed,
    parse_bits,
)
from bevel.ir.types import F32, TensorType

BITS = st.builds(Bits, st.integers(1, 8) | st.just(TERNARY), st.sampled_from([*range(1, 9), 32])) | st.sampled_from(
    [FP32, Bits(16, 16)]
)
LAYERS = st.builds(
    LayerPlan,
    bits=st.none() | BITS,
    granularity=st.none() | st.text(),
    scales=st.none() | st.text(),
    levels=st.none() | st.text(),
    rounding=st.none() | st.text(),
    dropped=st.booleans(),
    kept_channels=st.none() | st.sets(st.integers(0, 999), min_size=1).map(lambda s: tuple(sorted(s))),
    sparsity=st.none() | st.sampled_from(["2:4", "1:8", "0.5", "0.875"]),
)
PLANS = st.builds(
    CompressionPlan,
    model=st.text(),
    bits=BITS,
    stream=st.integers(1, 8),
    calibration=st.text(),
    granularity=st.text(),
    scales=st.text(),
    levels=st.text(),
    rounding=st.text(),
    layers=st.dictionaries(st.text(), LAYERS, max_size=4),
)


def model() -> Graph:
    graph = Graph("net", source_hash="ab" * 32)
    x = graph.add_input("x", TensorType((2, 4), F32))
    w = graph.add_constant("w", np.ones((3, 4), np.float32))
    y = graph.add_node("Gemm", [x, w], names=["dense1"]).output
    graph.set_outputs([graph.add_node("Relu", [y], names=["dense1_relu"]).output])
    return graph


@given(PLANS)
def test_round_trip(plan: CompressionPlan) -> None:
    assert loads_plan(plan.dumps()) == plan


def test_files(tmp_path: Path) -> None:
    plan = CompressionPlan(layers={"dense1": LayerPlan(FP32)})
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan
    with pytest.raises(InvalidPlan, match=r"none\.json"):
        load_plan(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidPlan, match=r"bytes\.json"):
        load_plan(tmp_path / "bytes.json")


@pytest.mark.parametrize(
    ("spec", "bits", "spelled"),
    [
        ("fp32", FP32, "fp32"),
        ("fp16", Bits(16, 16), "fp16"),
        ("8", W8A8, "w8a8"),
        ("w8a8", W8A8, "w8a8"),
        ("4", Bits(4, 8), "w4a8"),
        ("w2a2", Bits(2, 2), "w2a2"),
        ("w4a32", Bits(4, 32), "w4a32"),
        ("w1.58a2", Bits(TERNARY, 2), "w1.58a2"),
    ],
)
def test_bits_spellings(spec: str, bits: Bits, spelled: str) -> None:
    assert parse_bits(spec) == bits
    assert str(bits) == spelled
    assert parse_bits(str(bits)) == bits


@pytest.mark.parametrize("spec", ["", "w8", "a8", "w9a8", "w0a8", "w8a9", "w8a16", "int8", "W8A8", "w8a8 ", "fp8", "w32a32"])
def test_bad_bits(spec: str) -> None:
    with pytest.raises(InvalidPlan, match="expected fp32"):
        parse_bits(spec)


def test_bits_left_to_the_device() -> None:
    """One spelling for the command line and one for plans; 8 bits are always among those allowed, which come most bits first."""
    assert parse_allowed("w4a8") == ()
    assert parse_allowed("auto-lowbit") == DEFAULT_ALLOWED == (W8A8, Bits(4, 8))
    allowed = (W8A8, Bits(4, 8), Bits(4, 4), Bits(TERNARY, 4))
    assert parse_allowed("auto-lowbit:w1.58a4,w4a4,w4a8") == allowed
    text = '{"bevel_plan": 1, "bits": "auto-lowbit", "allow": ["w4a4", "4", "w1.58a4"], "layers": {"dense1": {"allow": ["4"]}}}'
    plan = loads_plan(text)
    assert (plan.bits, plan.allow, plan.layers["dense1"].allow) == (W8A8, allowed, DEFAULT_ALLOWED)
    assert loads_plan(plan.dumps()) == plan
    plan.validate(model())
    assert loads_plan('{"bevel_plan": 1, "bits": "auto-lowbit"}').allow == DEFAULT_ALLOWED
    with pytest.raises(InvalidPlan, match="bits of codes"):
        parse_allowed("auto-lowbit:fp32")
    with pytest.raises(InvalidPlan, match="bits 'w3'"):
        parse_allowed("auto-lowbit:w3")
    with pytest.raises(InvalidPlan, match="says its bits too"):
        replace(plan, layers={"dense1": LayerPlan(W8A8, allow=allowed)}).validate(model())
    with pytest.raises(InvalidPlan, match="the plan's bits are w8a8, not 'auto-lowbit'"):
        CompressionPlan(layers={"dense1": LayerPlan(allow=allowed)}).validate(model())


GOOD: dict[str, Any] = {"bevel_plan": 1, "layers": {"dense1": {"bits": "fp32"}}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "'bevel_plan': 1"),
        ('{"bevel_plan": 2}', "'bevel_plan': 1"),
        ('{"bevel_plan": 1, "bevel_plan": 1}', "'bevel_plan' is given twice"),
        ('{"bevel_plan": 1, "bit": "8"}', "unknown field 'bit'; did you mean 'bits'"),
        ('{"bevel_plan": 1, "bits": 8}', "field 'bits' is 8, expected a text"),
        ('{"bevel_plan": 1, "bits": "w3"}', "bits 'w3'"),
        ('{"bevel_plan": 1, "stream": 0}', "field 'stream' is 0, expected a number of bits"),
        ('{"bevel_plan": 1, "stream": true}', "field 'stream' is True"),
        ('{"bevel_plan": 1, "allow": ["w4a8"]}', "field 'allow' is for bits 'auto-lowbit', these are 'w8a8'"),
        ('{"bevel_plan": 1, "bits": "auto-lowbit", "allow": []}', "at least one"),
        ('{"bevel_plan": 1, "bits": "auto-lowbit", "allow": "w4a8"}', "expected a list of precisions"),
        ('{"bevel_plan": 1, "layers": {"a": {"bits": "auto-lowbit"}}}', "bits 'auto-lowbit'"),
        ('{"bevel_plan": 1, "layers": []}', "'layers' is"),
        ('{"bevel_plan": 1, "layers": {"a": 8}}', "layer 'a' is 8, expected a JSON object"),
        ('{"bevel_plan": 1, "layers": {"a": {}, "a": {}}}', "'a' is given twice"),
        ('{"bevel_plan": 1, "layers": {"a": {"sparse": "2:4"}}}', "layer 'a': unknown field 'sparse'"),
        ('{"bevel_plan": 1, "layers": {"a": {"dropped": 1}}}', "field 'dropped' is 1"),
        ('{"bevel_plan": 1, "layers": {"a": {"kept_channels": []}}}', "kept_channels"),
        ('{"bevel_plan": 1, "layers": {"a": {"kept_channels": [2, 1]}}}', "kept_channels"),
        ('{"bevel_plan": 1, "layers": {"a": {"kept_channels": [1, 1]}}}', "kept_channels"),
        ('{"bevel_plan": 1, "layers": {"a": {"kept_channels": [true]}}}', "kept_channels"),
        ('{"bevel_plan": 1, "layers": {"a": {"kept_channels": [-1]}}}', "kept_channels"),
        ('{"bevel_plan": 1, "layers": {"a": {"sparsity": "4:4"}}}', "sparsity"),
        ('{"bevel_plan": 1, "layers": {"a": {"sparsity": "1.5"}}}', "sparsity"),
        ('{"bevel_plan": 1, "layers": {"a": {"sparsity": 0.5}}}', "sparsity"),
    ],
)
def test_strict_reading(text: str, message: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        loads_plan(text, "plan x.json")
    assert message in str(caught.value)
    assert "plan x.json" in str(caught.value)


def test_valid_plans_and_what_they_say() -> None:
    graph = model()
    plan = loads_plan(json.dumps(GOOD))
    plan.validate(graph)
    CompressionPlan(model=graph.source_hash).validate(graph)
    assert plan.bits_of("dense1") == FP32
    assert plan.bits_of("dense1_relu") == W8A8
    assert plan.layers_at(FP32, graph) == {"dense1"}
    assert plan.layers_at(W8A8, graph) == {"dense1_relu"}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (CompressionPlan(layers={"dense_1": LayerPlan()}), "layer 'dense_1' does not exist in 'net'; did you mean 'dense1'"),
        (CompressionPlan(layers={"w": LayerPlan()}), "layer 'w' does not exist"),
        (CompressionPlan(model="cd" * 32), "was made for the model"),
        (CompressionPlan(bits=Bits(4, 32)), "the plan asks for bits w4a32"),
        (CompressionPlan(calibration="guess"), "the plan asks for calibration 'guess'"),
        (CompressionPlan(granularity="group33"), "granularity 'group33'"),
        (CompressionPlan(scales="guess"), "scales 'guess'"),
        (CompressionPlan(levels="nf3"), "levels 'nf3'"),
        (CompressionPlan(rounding="adaround"), "rounding 'adaround'"),
        (CompressionPlan(layers={"dense1": LayerPlan(Bits(2, 32))}), "layer 'dense1' asks for bits w2a32"),
        (CompressionPlan(layers={"dense1": LayerPlan(granularity="rows")}), "layer 'dense1' asks for granularity"),
        (CompressionPlan(layers={"dense1": LayerPlan(rounding="adaround")}), "layer 'dense1' asks for rounding"),
        (CompressionPlan(layers={"dense1": LayerPlan(dropped=True)}), "layer 'dense1' asks for dropping"),
        (CompressionPlan(layers={"dense1": LayerPlan(kept_channels=(0, 2))}), "layer 'dense1' asks for pruning"),
        (CompressionPlan(layers={"dense1": LayerPlan(sparsity="2:4")}), "layer 'dense1' asks for sparsity 2:4"),
    ],
)
def test_what_no_pass_implements_is_refused(plan: CompressionPlan, message: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        plan.validate(model())
    assert message in str(caught.value)
