"""Frames in: the folded chain computes what PIL-style float preprocessing computes, in float and in integers, on two CPUs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bevel.compiler import Options, bind, prepare
from bevel.errors import CalibrationError, UsageError
from bevel.ir.graph import Graph
from bevel.ir.interp import run
from bevel.ir.ops.convolution import ConvAttrs
from bevel.ir.types import F32, U8, Dim, Quant, TensorType
from bevel.ir.verify import is_integer_only, verify
from bevel.passes.boundary import ChannelsLast, FloatOutputs
from bevel.passes.preprocess import PIXELS, Preprocess
from bevel.preprocessing import PRESETS, load_preprocess

Array = npt.NDArray[Any]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def model(shape: tuple[int, ...] = (1, 3, 12, 10), *, last: bool = False) -> Graph:
    """A convolution over images; its batch is symbolic."""
    rng = np.random.default_rng(1)
    graph = Graph("model")
    batch: tuple[Any, ...] = (Dim("batch"), *shape[1:])
    x = graph.add_input("x", TensorType((batch[0], batch[2], batch[3], batch[1]) if last else batch, F32))
    value = x
    if last:
        from bevel.ir.ops.movement import TransposeAttrs

        value = graph.add_node("Transpose", [x], TransposeAttrs((0, 3, 1, 2)), names=["t"]).output
    w = graph.add_constant("w", (rng.standard_normal((5, 3, 3, 3)) / 5).astype(np.float32))
    y = graph.add_node("Conv", [value, w], ConvAttrs((3, 3), pads=(1, 1, 1, 1)), names=["y"], loc="conv").output
    graph.set_outputs([y])
    return graph


def frames(count: int, height: int, width: int) -> Array:
    """Smooth colour gradients with noise, uint8 [n, H, W, 3]."""
    rng = np.random.default_rng(2)
    y, x = np.mgrid[:height, :width] / max(height, width)
    base = np.stack([y, x, 1 - y], -1)[None] * 200 + rng.uniform(0, 55, (count, height, width, 3))
    return base.astype(np.uint8)


def by_hand(images: Array, spec: Preprocess, size: tuple[int, int], crop: tuple[int, int] | None) -> Array:
    """The same in float64, resizing by dense matrices of triangle filters."""
    x = images.astype(np.float64)
    if spec.layout == "nchw":
        x = x.transpose(0, 2, 3, 1)
    for axis, out in ((1, size[0]), (2, size[1])):
        n = x.shape[axis]
        stretch = max(1.0, n / out)
        centre = (np.arange(out) + 0.5) * n / out - 0.5
        weights = np.maximum(1 - np.abs(np.arange(n)[None] - centre[:, None]) / stretch, 0)
        if stretch == 1:  # the edge repeats
            weights = np.zeros((out, n))
            for i, c in enumerate(centre):
                low = int(np.floor(c))
                for tap, weight in ((low, 1 - (c - low)), (low + 1, c - low)):
                    weights[i, min(max(tap, 0), n - 1)] += weight
        weights /= weights.sum(1, keepdims=True)
        x = np.moveaxis(np.tensordot(weights, x, (1, axis)), 0, axis)
    if crop:
        top, left = round((x.shape[1] - crop[0]) / 2), round((x.shape[2] - crop[1]) / 2)
        x = x[:, top : top + crop[0], left : left + crop[1]]
    if spec.reverse:
        x = x[..., ::-1]
    return ((x * spec.scale - np.array(spec.mean)) / np.array(spec.std)).transpose(0, 3, 1, 2)


SPECS = {
    "normalized": (Preprocess(scale=1 / 255, mean=MEAN, std=STD), (12, 10), (12, 10), None),
    "shrunk": (Preprocess(frame=(31, 40), scale=1 / 255, mean=MEAN, std=STD), (31, 40), (12, 10), None),
    "enlarged": (Preprocess(frame=(5, 7), mean=(127.0,), std=(128.0,)), (5, 7), (12, 10), None),
    "cropped": (Preprocess(frame=(30, 40), resize=(15,), crop=(12, 10), scale=1 / 255), (30, 40), (15, 20), (12, 10)),
    "bgr planes": (Preprocess(frame=(12, 10), layout="nchw", reverse=True, scale=0.01, std=STD), (12, 10), (12, 10), None),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("last", [False, True])
def test_float_chain_equals_preprocessing_by_hand(name: str, last: bool) -> None:
    spec, frame, size, crop = SPECS[name]
    plain = model(last=last)
    graph = spec.run(plain)
    verify(graph)
    assert graph.inputs[0].name == "x"
    assert graph.inputs[0].type.elem == U8
    images = frames(3, *frame)
    images = images.transpose(0, 3, 1, 2) if spec.layout == "nchw" else images
    ready = by_hand(images, spec, size, crop).astype(np.float32)
    expected = run(plain, {"x": ready.transpose(0, 2, 3, 1) if last else ready})["y"]
    found = run(graph, {"x": images})["y"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert found.std() > 0.01


@pytest.mark.parametrize("name", SPECS)
def test_quantized_chain_has_no_float_and_stays_close(name: str, tmp_path: Path) -> None:
    spec, frame, size, crop = SPECS[name]
    images = frames(8, *frame)
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if spec.layout == "nchw" else images
    np.savez(tmp_path / "frames.npz", x=images)
    integer = prepare(model(), Options("host", "8", tmp_path / "frames.npz", preprocess=spec))
    verify(integer)
    assert is_integer_only(integer)
    assert integer.inputs[0].type.elem == PIXELS
    expected = run(model(), {"x": by_hand(images, spec, size, crop).astype(np.float32)})["y"]
    out = integer.outputs[0].type.elem
    assert isinstance(out, Quant)
    error = np.abs(out.dequantize(run(integer, {"x": images})["y"]) - expected)
    assert error.mean() <= 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("device", ["host", pytest.param("raspberry-pi-4", marks=pytest.mark.qemu)])
@pytest.mark.parametrize("bits", ["8", "fp32"])
def test_artifact_takes_raw_frames(device: str, bits: str, tmp_path: Path) -> None:
    import shutil

    from bevel.compiler import build
    from bevel.devices.profile import load_profile
    from bevel.devices.resolve import resolve_transport
    from bevel.devices.runner import DeviceRunner

    if device != "host" and not shutil.which("qemu-aarch64"):
        pytest.skip("qemu-aarch64 is not installed (Debian: qemu-user)")
    spec, frame, _, _ = SPECS["cropped"]
    np.savez(tmp_path / "frames.npz", x=frames(4, *frame))
    options = Options(device, bits, tmp_path / "frames.npz", preprocess=spec, channels_last=("outputs",))
    graph = bind(prepare(model(), options), {})
    artifact = build(graph, load_profile(device), tmp_path / "m.bevel", options)
    (described,) = artifact.manifest["inputs"]
    assert (described["dtype"], described["shape"], described["zero_point"]) == ("uint8", [1, 30, 40, 3], 0)
    assert artifact.manifest["outputs"][0]["shape"] == [1, 12, 10, 5]
    image = frames(2, *frame)[1:]
    with resolve_transport(load_profile(device)) as transport:
        runner = DeviceRunner(artifact, transport)
        runner.selftest()
        found = runner.run({"x": image})["y"]
    expected = run(graph, {"x": image})["y"]
    if bits == "8":
        assert np.array_equal(found, expected)
        assert artifact.manifest["integer_only"]
    else:
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert found.std() > 0


def test_a_quantized_model_takes_frames_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=by_hand(frames(8, 12, 10), PRESETS["imagenet"], (12, 10), None).astype(np.float32))
    from bevel.passes.quantize import Calibrate, ToInteger

    data = [{"x": np.load(tmp_path / "data.npz")["x"]}]
    annotated = Calibrate(method="minmax", data=data).run(model())
    integer = ToInteger().run(PRESETS["imagenet"].run(annotated))
    assert is_integer_only(integer)
    images = frames(8, 12, 10)
    expected = run(ToInteger().run(annotated), data[0])["y"].astype(int)
    found = run(integer, {"x": images})["y"].astype(int)
    assert np.abs(found - expected).max() <= 1


def test_float_calibration_data_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "frames.npz", x=frames(4, 12, 10).astype(np.float32))
    with pytest.raises((CalibrationError, UsageError), match="uint8"):
        prepare(model(), Options("host", "8", tmp_path / "frames.npz", preprocess=PRESETS["unit"]))


def test_channels_last_keeps_names_and_values() -> None:
    plain = model()
    graph = ChannelsLast().run(plain)
    verify(graph)
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 10)).astype(np.float32)
    found = run(graph, {"x": x.transpose(0, 2, 3, 1)})["y"]
    np.testing.assert_array_equal(found.transpose(0, 3, 1, 2), run(plain, {"x": x})["y"])


def test_float_outputs_are_the_reals_of_the_codes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((8, 3, 12, 10)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=data)
    codes = prepare(model(), Options("host", "8", tmp_path / "data.npz"))
    reals = prepare(model(), Options("host", "8", tmp_path / "data.npz", float_outputs=True))
    verify(reals)
    out = codes.outputs[0].type.elem
    assert isinstance(out, Quant)
    np.testing.assert_array_equal(run(reals, {"x": data})["y"], out.dequantize(run(codes, {"x": data})["y"]))
    assert FloatOutputs().run(model()).outputs[0].type == model().outputs[0].type


def test_keep_float_takes_patterns_and_refuses_those_that_match_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((8, 3, 12, 10)).astype(np.float32))
    kept = prepare(model(), Options("host", "8", tmp_path / "data.npz", keep_float=("con*",)))
    assert [n.op for n in kept.nodes] == ["Conv"]
    with pytest.raises(UsageError, match=r"'head\*' matches no layer.*conv"):
        prepare(model(), Options("host", "8", tmp_path / "data.npz", keep_float=("head*",)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Preprocess(input="z"), "one of 'x'"),
        (Preprocess(layout="chw"), "layout 'chw'"),
        (Preprocess(method="cubic"), "method 'cubic'"),
        (Preprocess(mean=(1.0, 2.0)), "expected 1 or 3 numbers"),
        (Preprocess(std=(0.0,)), "must not be zero"),
        (Preprocess(frame=(20, 20), crop=(40, 40)), "crop"),
        (Preprocess(frame=(20, 20), resize=(9, 9)), "correct frame, resize or crop"),
        (Preprocess(frame=(20,)), "frame"),
    ],
)
def test_contradictions_are_named(spec: Preprocess, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        spec.run(model())


def test_files_say_what_is_wrong_with_them(tmp_path: Path) -> None:
    path = tmp_path / "camera.toml"
    path.write_text('frame = [480, 640]\nchannels = "bgr"\ncrop = 224\nresize = 256\nmean = [0.5, 0.5, 0.5]\n')
    spec = load_preprocess(str(path))
    assert (spec.frame, spec.reverse, spec.crop, spec.resize, spec.mean) == ((480, 640), True, (224,), (256,), (0.5, 0.5, 0.5))
    assert spec.scale == pytest.approx(1 / 255)
    for text, message in (
        ("sharpen = 3", "'sharpen' is unknown"),
        ("frame = [1, 2, 3]", "frame"),
        ('mean = "a"', "mean"),
        ('channels = "hsv"', "'rgb' or 'bgr'"),
        ("a = = 1", "not TOML"),
        ("crop = true", "crop"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_preprocess(str(path))
    with pytest.raises(UsageError, match="choose one of imagenet"):
        load_preprocess("imagnet")
    with pytest.raises(UsageError, match="cannot be read"):
        load_preprocess(str(tmp_path / "none.toml"))
