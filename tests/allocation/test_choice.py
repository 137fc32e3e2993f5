"""Bits chosen for a device: few where its kernels make them faster, 8 elsewhere, and the reason said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bevel.allocation.allocate import Allocation, allocate
from bevel.allocation.choice import LayerChoice
from bevel.allocation.costs import Cost
from bevel.allocation.layers import Layer, Work
from bevel.backends.kernel import ConvProblem
from bevel.backends.select import candidates
from bevel.compiler import Options, load_graph, prepare
from bevel.devices.profile import load_profile
from bevel.errors import UsageError
from bevel.ir.plan import W4A8, W8A8, Bits, CompressionPlan, LayerPlan, parse_allowed
from bevel.tuning.options import Tuning
from bevel.tuning.tuner import Tuner
from bevel.tuning.winners import Heat, kernel_of, measuring_version
from tests.allocation.networks import write

W2A2 = Bits(2, 2)
ALL = "auto-lowbit:w4a8,w2a2"
WIDE = ("wide1", "wide2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write(tmp_path_factory.mktemp("network"))


def allocated(files: tuple[Path, Path], device: str, tuner: Tuner | None = None, **options: Any) -> Allocation:
    model, data = files
    profile = load_profile(device)
    chosen = Options(device, calibration=data, tuning=Tuning("off"), **options)
    return allocate(load_graph(model), chosen, profile, {}, tuner or Tuner.load(profile, chosen.tuning), lambda *_: None)


def rows(found: Allocation) -> dict[str, dict[str, Any]]:
    return {layer["value"]: layer for layer in found.manifest_field()["allocation"]["layers"]}


def refused(layer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["bits"]: one for one in layer["refused"]}


@pytest.mark.parametrize("device", ["x86-64-avx2", "raspberry-pi-4"])
def test_two_bits_win_on_cores_without_dot_products(device: str, files: tuple[Path, Path]) -> None:
    found = allocated(files, device, bits=ALL)
    layers = rows(found)
    assert list(layers) == ["stem", "wide1", "wide2", "deep", "narrow", "head"]
    for name in WIDE:
        assert layers[name]["chosen"]["bits"] == "w2a2"
        assert layers[name]["gain"] > 1.4
        assert layers[name]["by"] == "static"
        assert layers[name]["chosen"]["predicted_us"] < layers[name]["int8"]["predicted_us"]
    # The stream that the block reads has 8 bits, and bringing it to 2 takes time.
    assert layers["wide1"]["chosen"]["conversion_us"] > 0 == layers["wide2"]["chosen"]["conversion_us"]
    for name in ("stem", "head"):
        assert layers[name]["chosen"]["bits"] == "w8a8"
        assert "unless the plan names them" in refused(layers[name])["w2a2"]["reason"]
    assert layers["deep"]["chosen"]["bits"] == "w8a8"
    assert "no kernel for w2a2 computes it" in refused(layers["deep"])["w2a2"]["reason"]
    assert "64 groups of 1" in refused(layers["deep"])["w2a2"]["reason"]
    assert {name: layer.bits for name, layer in found.plan.layers.items() if layer.bits == W2A2}.keys() >= set(WIDE)
    assert not found.plan.allow
    assert found.manifest_field()["allocation"]["chosen_us"] < found.manifest_field()["allocation"]["int8_us"]


@pytest.mark.parametrize("device", ["x86-64-avx512-vnni", "x86-64-amx", "raspberry-pi-5"])
def test_few_bits_are_refused_where_multiplying_bytes_is_cheap(device: str, files: tuple[Path, Path]) -> None:
    """With times of both, and what int8 makes of its instruction."""
    found = allocated(files, device, bits=ALL)
    assert found.plan == CompressionPlan()
    for name in WIDE:
        layer = rows(found)[name]
        assert refused(layer).keys() == {"w4a8", "w2a2"}
        assert all(one["reason"] for one in layer["refused"])
        two = refused(layer)["w2a2"]
        assert two["gain"] < 1.1
        assert two["predicted_us"] is not None
        assert layer["int8"]["predicted_us"] is not None
    # Four bits by eight take as many multiplications as eight by eight.
    reason = refused(rows(found)["wide2"])["w4a8"]["reason"]
    if device == "x86-64-avx512-vnni":
        assert "compute-bound: int8 runs at" in reason
        assert "of 336 GMAC/s of its instruction" in reason
    elif device == "x86-64-amx":
        assert "of 2764 GMAC/s of its instruction with x86_conv_int8_amx" in reason
    else:
        assert "of 65 GMAC/s of its instruction, and few bits take no fewer operations: arm_conv_unpack_sdot" in reason


def test_too_few_output_channels_are_told(files: tuple[Path, Path]) -> None:
    reasons = [one["reason"] for one in rows(allocated(files, "x86-64-amx", bits=ALL))["narrow"]["refused"]]
    assert any("8 output channels are too few" in reason for reason in reasons)


def test_bits_that_are_not_allowed_are_weighed_but_not_taken(files: tuple[Path, Path]) -> None:
    """The default keeps accuracy: 8 and 4 bits of weights, 8 of activations."""
    found = allocated(files, "x86-64-avx2", bits="auto-lowbit")
    assert found.allowed == (W8A8, W4A8) == parse_allowed("auto-lowbit")
    for name in WIDE:
        assert rows(found)[name]["chosen"]["bits"] == "w4a8"
        two = refused(rows(found)[name])["w2a2"]
        assert two["reason"] == "not among the bits that the plan allows"
        assert two["gain"] > rows(found)[name]["gain"]


def test_the_plan_decides_for_layers_it_names(files: tuple[Path, Path]) -> None:
    own = {
        "head": LayerPlan(allow=(W8A8, W4A8)),
        "wide1": LayerPlan(W8A8),
        "wide2": LayerPlan(allow=(W8A8,), granularity="tensor"),
    }
    plan = CompressionPlan(allow=parse_allowed(ALL), layers=own)
    found = allocated(files, "x86-64-avx2", plan=plan)
    layers = rows(found)
    assert "wide1" not in layers
    assert layers["wide2"]["chosen"]["bits"] == "w8a8"
    assert "w4a8" not in refused(layers["head"]) or "keep 8 bits" not in refused(layers["head"])["w4a8"]["reason"]
    assert refused(layers["head"])["w2a2"]["reason"] == "the first and the last layer keep 8 bits unless the plan names them"
    assert found.plan.layers["wide1"] == LayerPlan(W8A8)
    assert found.plan.layers["wide2"] == LayerPlan(W8A8, granularity="tensor")


def measured(tuner: Tuner, problem: ConvProblem, best_us: float) -> None:
    """Let the statically best kernel of a problem have taken that long, and all others longer."""
    found = candidates(problem, tuner.target)
    times = {kernel_of(choice): (1e3 * best_us * (1 if choice is found[0] else 2), 0.0) for choice in found}
    tuner.heats[repr(problem)] = Heat("2026-01-01T00:00:00Z", tuner.device, measuring_version(), times)


@pytest.mark.parametrize(("us", "bits"), [(9.0, "w4a8"), (9.7, "w8a8"), (20.0, "w8a8")])
def test_measurements_decide_and_ties_go_to_more_bits(us: float, bits: str, files: tuple[Path, Path]) -> None:
    """Whatever the estimates say; 10 us at 8 bits."""
    profile = load_profile("x86-64-avx2")
    first = allocated(files, "x86-64-avx2", bits="auto-lowbit")
    tuner = Tuner(profile.target(), profile.name, Tuning("cached"))
    eight = next(choice.work.problem for choice in first.choices if choice.layer.name == "wide2")
    for text in first.problems:
        problem = eval(text, {"ConvProblem": ConvProblem})
        if (problem.c, problem.oc, problem.kh) == (eight.c, eight.oc, eight.kh):
            measured(tuner, problem, 10.0 if problem.weight_bits == 8 else us)
    layer = rows(allocated(files, "x86-64-avx2", tuner, bits="auto-lowbit"))["wide2"]
    assert layer["chosen"]["bits"] == bits
    assert layer["int8"]["measured_us"] == 10.0
    assert layer["by"] == "cached"
    if bits == "w8a8":
        four = refused(layer)["w4a8"]
        assert four["measured_us"] == us
        words = "less than the 1.05x for which bits are given up" if us < 10 else "takes 2.00 times as long"
        assert words in four["reason"]


def test_what_others_chose_can_take_a_gain_back() -> None:
    """Alone the layer gains; with an input that is converted for it after all it goes back to 8 bits, and says why."""
    layer = Layer("a", "a", 0, (W8A8, W2A2), is_end=False)
    work = Work(ConvProblem(1, 8, 8, 64, 64, dtype="uint8", out_dtype="uint8"), 0)
    eight, two = Cost(W8A8, "int8", 10.0), Cost(W2A2, "table", 8.0)
    choice = LayerChoice(layer, work, eight, [two], {})
    assert choice.chosen() is two
    assert not choice.reconsider(0.5)
    assert choice.chosen() is two
    assert choice.reconsider(3.0)
    assert choice.chosen() is eight
    (row,) = choice.document(load_profile("x86-64-avx2"))["refused"]
    assert row["reason"] == "gains 1.25x, but as others read its input at other bits, converting it takes 3.0 us"


def test_times_of_another_machine_are_not_compared_with_own_ones() -> None:
    shipped, own = Cost(W8A8, "int8", 10.0, 5.0, "shipped"), Cost(W4A8, "few", 9.0, 8.0, "cached")
    assert own.gain(shipped) == (10.0 / 9.0, "static")
    assert own.gain(replace(shipped, source="cached")) == (5.0 / 8.0, "cached")


def test_only_float_models_leave_their_bits_open(files: tuple[Path, Path]) -> None:
    model, data = files
    graph = load_graph(model)
    with pytest.raises(UsageError, match="`bevel compile` chooses them"):
        prepare(graph, Options("host", "auto-lowbit", calibration=data))
    profile = load_profile("host")
    integer = prepare(graph, Options("host", calibration=data))
    with pytest.raises(UsageError, match="already quantized"):
        allocate(integer, Options("host", "auto-lowbit"), profile, {}, Tuner.load(profile, Tuning("off")), lambda *_: None)
