"""Training lowers the loss, is deterministic, resumes to the same weights, and what it writes computes what torch computed."""

# ruff: noqa: E402  # what torch is needed for is imported once it is known to be there
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `export`)")

from bevel.errors import InvalidPlan, UnsupportedOp, UsageError
from bevel.ir import interp, serialize
from bevel.ir.graph import Graph, Level
from bevel.ir.plan import CompressionPlan, LayerPlan, parse_bits
from bevel.ir.types import F32, Dim, Quant, TensorType
from bevel.ir.verify import is_integer_only, verify
from bevel.passes.quantize import Calibrate, ToInteger
from bevel.training.compare import compare
from bevel.training.fake_quant import Coded, FakeQuantNet
from bevel.training.qat import Moment, Trained, Watch, as_tensors, start, train
from bevel.training.recipe import Recipe, stages
from tests.training.nets import data, images, network

QUICK = Recipe(epochs=2.0, batch=32, seed=5, calibration=64)


def plan(bits: str, **more: Any) -> CompressionPlan:
    return CompressionPlan(bits=parse_bits(bits), **more)


def trained(folder: Path, recipe: Recipe = QUICK, bits: str = "w2a2", watch: Watch | None = None) -> Trained:
    graph = network()
    return train(graph, plan(bits), data(graph, folder), recipe, watch)


@pytest.mark.parametrize("bits", ["w2a2", "w4a8", "w1.58a3", "w1a4", "w8a2"])
def test_forward_is_that_of_the_interpreter(bits: str, tmp_path: Path) -> None:
    """Before training: the same codes as at ANNOTATED and at INTEGER level, but for sums next to a rounding threshold."""
    graph = network()
    annotated = start(graph, plan(bits, rounding="gptq"), data(graph, tmp_path), 64)
    net = FakeQuantNet(annotated)
    x = images(100, seed=9)
    with torch.no_grad():
        (found,) = net.run(as_tensors({"x": x}))
    assert isinstance(found, Coded)
    elem: Any = annotated.outputs[0].type.elem
    codes = found.codes.numpy() + elem.zero_point[0]
    assert np.array_equal(found.real.numpy(), elem.dequantize(codes))
    fake = elem.quantize(interp.run(annotated, {"x": x})["logits"])
    assert (codes != fake).mean() < 0.02
    integer = ToInteger().run(annotated)
    exact = interp.run(integer, {"x": x})["logits"]
    assert (codes != exact).mean() < 0.01
    assert np.abs(codes - exact).max() <= 2


@pytest.mark.parametrize("bits", ["w2a2", "w1.58a8", "w1a2"])
def test_writing_back_changes_nothing(bits: str, tmp_path: Path) -> None:
    """An untrained net is the graph it was made from; weights between codes round to the same ones."""
    graph = network()
    wanted = plan(bits, rounding="gptq")
    annotated = start(graph, wanted, data(graph, tmp_path), 64)
    written = FakeQuantNet(annotated, graph).annotated()
    verify(written)
    assert serialize.graph_hash(written) == serialize.graph_hash(annotated)


@pytest.mark.parametrize("bits", ["w2a2", "w1a4"])
def test_every_weight_can_move(bits: str, tmp_path: Path) -> None:
    """Weights beyond the outermost codes get no gradient: none begins there."""
    graph = network()
    samples = data(graph, tmp_path)
    net = FakeQuantNet(start(graph, plan(bits, rounding="gptq"), samples, 64), graph)
    for layer in net.layers:
        layer.codes().sum().backward()
        assert (layer.weight.grad != 0).all()


def test_steps_lower_the_loss(tmp_path: Path) -> None:
    seen: list[Moment] = []
    recipe = replace(QUICK, epochs=12.0)
    graph = network()
    train(graph, plan("w2a2"), data(graph, tmp_path), recipe, Watch(moment=seen.append))
    losses = [now.loss for now in seen]
    assert len(losses) == 12 * 5 == seen[-1].total
    assert losses[-1] < 0.9 * losses[0]


def test_trained_graph_computes_what_torch_did(tmp_path: Path) -> None:
    graph = network()
    samples = data(graph, tmp_path)
    done = train(graph, plan("w2a2"), samples, replace(QUICK, epochs=6.0))
    assert done.graph.level is Level.ANNOTATED
    integer = ToInteger().run(done.graph)
    assert is_integer_only(integer)
    path = tmp_path / "net.ir"
    serialize.save_graph(integer, path)
    loaded = serialize.load_graph(path)
    found = compare(done.net, loaded, graph, samples, 100)
    assert found.samples == 100
    assert found.outputs == 400
    assert found.differing <= 4
    assert found.largest <= 2
    assert found.top1_float == 1.0, "labels are what the float graph says"
    assert found.top1 is not None
    bits = {v.type.elem.storage.bits for v in done.graph.constants if isinstance(v.type.elem, Quant)}
    assert bits == {2, 8, 32}


def test_ternary_weights_stay_ternary(tmp_path: Path) -> None:
    done = trained(tmp_path, bits="w1.58a4")
    by_bits: dict[int, set[int]] = {2: set(), 8: set(), 32: set()}
    for value in done.graph.constants:
        if isinstance(value.type.elem, Quant):
            by_bits[value.type.elem.storage.bits].update(value.array.reshape(-1).tolist())
    assert by_bits[2] == {-1, 0, 1}
    assert min(by_bits[8]) < -100, "the first and the last layer are not ternary"


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    first, again = trained(tmp_path), trained(tmp_path)
    assert serialize.graph_hash(first.graph) == serialize.graph_hash(again.graph)
    other = trained(tmp_path, replace(QUICK, seed=6))
    assert serialize.graph_hash(first.graph) != serialize.graph_hash(other.graph)


@pytest.mark.parametrize("progressive", [False, True])
def test_resumed_training_ends_where_uninterrupted_does(tmp_path: Path, progressive: bool) -> None:
    recipe = replace(QUICK, epochs=3.0, progressive=progressive, augment=frozenset({"flip", "crop"}))
    whole = trained(tmp_path, recipe)
    checkpoint = tmp_path / "net.checkpoint"

    def stop(now: Moment) -> None:
        if now.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, recipe, watch=Watch(moment=stop, checkpoint=checkpoint))
    assert checkpoint.is_file()
    seen: list[Moment] = []
    resumed = trained(tmp_path, recipe, watch=Watch(moment=seen.append, checkpoint=checkpoint, resume=True))
    assert seen[0].step == 7
    assert serialize.graph_hash(resumed.graph) == serialize.graph_hash(whole.graph)


def test_progressive_training_passes_more_bits(tmp_path: Path) -> None:
    seen: list[Moment] = []
    trained(tmp_path, replace(QUICK, epochs=4.0, progressive=True), watch=Watch(moment=seen.append))
    assert list(dict.fromkeys(now.bits for now in seen)) == ["w4a4", "w3a3", "w2a2"]
    assert [now.total for now in seen] == [20] * 20


def test_stages_keep_what_the_plan_says_of_layers() -> None:
    layered = plan("w2a2", stream=4, layers={"logits": LayerPlan(bits=parse_bits("w3a8"))})
    found = stages(layered, progressive=True)
    assert [str(stage.plan.bits) for stage in found] == ["w4a4", "w3a3", "w2a2"]
    assert [str(stage.plan.bits_of("logits")) for stage in found] == ["w4a8", "w3a8", "w3a8"]
    assert sum(stage.share for stage in found) == pytest.approx(1)


def test_minutes_become_steps(tmp_path: Path) -> None:
    seen: list[Moment] = []
    recipe = replace(QUICK, epochs=None, minutes=0.05)
    trained(tmp_path, recipe, watch=Watch(moment=seen.append))
    assert seen[0].total == 0, "the speed is being measured"
    assert seen[-1].step == seen[-1].total > 16


def test_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "c"

    def stop(_now: Moment) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, watch=Watch(moment=stop, checkpoint=checkpoint))
    resume = Watch(checkpoint=checkpoint, resume=True)
    with pytest.raises(UsageError, match="another model, data set or options"):
        trained(tmp_path, replace(QUICK, seed=9), watch=resume)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(UsageError, match="cannot be read"):
        trained(tmp_path, watch=resume)


def test_refuses_what_it_cannot_train(tmp_path: Path) -> None:
    graph = network()
    samples = data(graph, tmp_path)
    for wanted, part in [
        (plan("w8a8"), "fewer than 8 bits"),
        (plan("w4a8", levels="nf4"), "tables are not trained"),
        (plan("w4a8", granularity="tensor"), "each channel"),
    ]:
        with pytest.raises(InvalidPlan, match=part):
            train(graph, wanted, samples, QUICK)
    beyond = replace(samples, labels=np.asarray(samples.labels) + 1)
    with pytest.raises(UsageError, match="the model has 4 classes"):
        train(graph, plan("w2a2"), beyond, QUICK)
    with pytest.raises(UsageError, match="either --epochs or --minutes"):
        train(graph, plan("w2a2"), samples, replace(QUICK, minutes=1.0))


def test_an_operator_without_gradient_is_named() -> None:
    graph = Graph("net")
    x = graph.add_input("x", TensorType((Dim("n"), 3), F32))
    graph.set_outputs([graph.add_node("Round", [x], names=["steps"]).output])
    with pytest.raises(UnsupportedOp, match="layer 'steps': Round"):
        FakeQuantNet(Calibrate(data=[{"x": np.ones((2, 3), np.float32)}]).run(graph))
