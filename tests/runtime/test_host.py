"""HostModel: zero-copy views, conversions, several models in one process, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bevel.errors import ArtifactError, UsageError
from bevel.ir.types import U8, Quant
from bevel.runtime.artifact import Artifact
from bevel.runtime.host import HostModel


@pytest.mark.parametrize("threads", [1, 3])
def test_runs_like_the_reference(built: Artifact, tiny: Any, threads: int) -> None:
    """Every output byte, over several inputs, through views that stay bound."""
    with HostModel(built, threads=threads) as model:
        outputs = model.outputs()
        view = model.inputs[0].array
        assert (model.inputs[0].name, model.inputs[0].zero_point) == ("x", 128)
        for seed in range(20):
            inputs = tiny.inputs(seed)
            view[...] = inputs["x"]
            model.run()
            for name, expected in tiny.reference(inputs["x"]).items():
                np.testing.assert_array_equal(outputs[name], expected)


def test_bound_run(built: Artifact, tiny: Any) -> None:
    """The call with no Python around it computes the same, and needs an open model."""
    with HostModel(built) as model:
        call = model.bound_run()
        for seed in range(3):
            inputs = tiny.inputs(seed)
            model.set_inputs(inputs)
            assert call() == 0
            for name, expected in tiny.reference(inputs["x"]).items():
                np.testing.assert_array_equal(model.outputs()[name], expected)
    with pytest.raises(UsageError, match="closed"):
        model.bound_run()


def test_several_instances(built: Artifact, tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """Instances of one model, and another model with the same symbols, do not disturb each other; views outlive close."""
    table = np.roll(tiny.table, 1)
    weights = table.tobytes() + tiny.schedule.weights[256:]
    other = replace(tiny, table=table, schedule=replace(tiny.schedule, weights=weights, name="other", graph_hash="cd" * 32))
    second = write_tiny(other, tmp_path / "other.bevel")
    x = tiny.inputs(1)["x"]
    models = [(HostModel(built), tiny), (HostModel(second), other), (HostModel(built, threads=2), tiny)]
    for model, _ in models:
        model.set_inputs({"x": x})
    for model, _ in models:
        model.run()
    models[0][0].close()
    for model, twin in models:
        np.testing.assert_array_equal(model.outputs()["rows"], twin.reference(x)["rows"])
    with pytest.raises(UsageError, match="closed"):
        models[0][0].run()


def test_a_model_compiled_again_is_loaded_anew(tiny: Any, write_tiny: Callable[..., Artifact], tmp_path: Path) -> None:
    """The library that another instance of this process still uses does not stand in for the new one at its path."""
    table = np.roll(tiny.table, 1)
    weights = table.tobytes() + tiny.schedule.weights[256:]
    other = replace(tiny, table=table, schedule=replace(tiny.schedule, weights=weights, name="other", graph_hash="cd" * 32))
    x = tiny.inputs(1)["x"]
    models = []
    for version in (tiny, other):
        model = HostModel(write_tiny(version, tmp_path / "m.bevel"))
        model.set_inputs({"x": x})
        models.append((model, version))
    for model, version in models:
        model.run()
        np.testing.assert_array_equal(model.outputs()["rows"], version.reference(x)["rows"])


def test_float_conversion_is_the_contract(built: Artifact) -> None:
    """set_inputs_float equals Quant.quantize for ties, denormals, infinities, random values; outputs_float equals dequantize."""
    rng = np.random.default_rng(0)
    special = np.array([0, -0.0, np.inf, -np.inf, 1e-45, -1e-45, 3.4e38, -3.4e38, 12.75, 12.85, -12.85, 0.05, 0.15, 0.25, -0.05])
    ties = (np.arange(-200, 200) + 0.5) * 0.1
    values = np.concatenate([special, ties, rng.normal(0, 8, 1024)])[:1024].astype(np.float32).reshape(1, 64, 16)
    with HostModel(built) as model:
        model.set_inputs_float({"x": values})
        with np.errstate(over="ignore"):
            expected = Quant(U8, (0.1,), (128,)).quantize(values)
        np.testing.assert_array_equal(model.inputs[0].array, expected)
        model.set_inputs_float({"x": np.full((1, 64, 16), np.nan)})
        assert (model.inputs[0].array == 128).all()
        model.run()
        real = model.outputs_float()["rows"]
        np.testing.assert_array_equal(real, Quant(U8, (0.25,), (128,)).dequantize(model.outputs()["rows"]))


def test_profile(built: Artifact) -> None:
    """One entry for each step, with names, work and a time."""
    with HostModel(built, threads=2) as model:
        steps = model.profile()
    assert [(s.layer, s.op, s.bits, s.macs) for s in steps] == [
        ("table", "Table", "w8a8", 0),
        ("gemm", "IntGemm+Requantize", "w8a8", 8192),
        ("max", "ReduceMax", "w8a8", 0),
    ]
    assert steps[1].kernel == "generic:test:bevel_k_gemm"
    assert all(s.ns >= 0 for s in steps)
    assert sum(s.ns for s in steps) > 0


def test_bad_inputs(built: Artifact, tiny: Any) -> None:
    """Names, shapes, dtypes and thread counts are checked, with both sides in the message."""
    x = tiny.inputs()["x"]
    with HostModel(built) as model:
        for arrays, message in (
            ({}, r"inputs \[\] given, 'tiny' takes \['x'\]$"),
            ({"x": x, "y": x}, "'tiny' takes"),
            ({"x": x[0]}, "expected uint8"),
            ({"x": x.astype(np.int8)}, "int8"),
        ):
            with pytest.raises(UsageError, match=message):
                model.set_inputs(arrays)
        with pytest.raises(UsageError, match="shape"):
            model.set_inputs_float({"x": x[0]})
    for threads in (0, -1, 257):
        with pytest.raises(UsageError, match="threads"):
            HostModel(built, threads=threads)


def resign(artifact: Artifact, name: str, data: bytes) -> None:
    """Replace a file and its hash in the manifest: damage that verification cannot see."""
    (artifact.path / name).write_bytes(data)
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (artifact.path / "manifest.json").write_text(json.dumps(manifest))


def last_loaded_byte(elf: bytes) -> int:
    """End of the last PT_LOAD segment of a 64-bit library."""
    (table,) = struct.unpack_from("<Q", elf, 32)
    (count,) = struct.unpack_from("<H", elf, 56)
    segments = [struct.unpack_from("<IIQQQQ", elf, table + 56 * index) for index in range(count)]
    return max(int(offset + nbytes) for kind, _, offset, _, _, nbytes in segments if kind == 1)


def test_refuses_other_machines(copied: Artifact) -> None:
    """An artifact, or a library inside one, for another architecture."""
    elf = bytearray(copied.library.read_bytes())
    elf[18:20] = (8).to_bytes(2, "little")
    resign(copied, "lib/libmodel.so", bytes(elf))
    with pytest.raises(ArtifactError, match="not a whole shared library for"):
        HostModel(copied.path)
    manifest = json.loads((copied.path / "manifest.json").read_text())
    manifest["target"]["arch"] = "sparc64"
    (copied.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="built for sparc64"):
        HostModel(copied.path)


@pytest.mark.parametrize("damage", ["text", "truncated", "one byte short of its code", "header only", "magic only"])
def test_refuses_damaged_libraries(copied: Artifact, damage: str) -> None:
    """A library that the dynamic loader cannot load is an error, with or without a matching hash."""
    data = copied.library.read_bytes()
    bad = {"text": b"hello" * 100, "truncated": data[:3000], "header only": data[:64], "magic only": data[:4]}
    bad["one byte short of its code"] = data[: last_loaded_byte(data) - 1]
    copied.library.write_bytes(bad[damage])
    with pytest.raises(ArtifactError):
        HostModel(copied.path)
    resign(copied, "lib/libmodel.so", bad[damage])
    with pytest.raises(ArtifactError, match=r"libmodel\.so"):
        HostModel(copied.path)


def test_refuses_foreign_library(copied: Artifact) -> None:
    """A healthy library without the C API."""
    import _ctypes

    resign(copied, "lib/libmodel.so", Path(_ctypes.__file__).read_bytes())
    with pytest.raises(ArtifactError, match=r"exports no bevel_abi_version|cannot be loaded"):
        HostModel(copied.path)


def test_refuses_foreign_weights(copied: Artifact) -> None:
    """Weights of another model in a re-signed artifact."""
    data = bytearray(copied.weights.read_bytes())
    data[70] ^= 1
    resign(copied, "weights.bin", bytes(data))
    with pytest.raises(ArtifactError, match="another model"):
        HostModel(copied.path)
    resign(copied, "weights.bin", b"")
    with pytest.raises(ArtifactError, match="empty"):
        HostModel(copied.path)
