"""The compile cache: hits give the same bytes without compiling, every input counts, damage is noticed, two may share it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bevel import artifact_cache, compiler
from bevel.compiler import Options, compile_model
from bevel.devices.profile import load_profile, save_profile
from bevel.frontend.external_files import external_files
from bevel.ir.plan import loads_plan
from tests.cli.conftest import ROOT, images, save, save_model


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An empty cache of its own; the list grows by one whenever something is really compiled."""
    monkeypatch.setenv("BEVEL_CACHE_DIR", str(tmp_path / "cache"))
    calls: list[str] = []
    build = compiler.build

    def counting(*args: object, **options: object) -> object:
        calls.append("build")
        return build(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(compiler, "build", counting)
    return calls


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


FP32 = Options("host", "fp32")


def test_second_compilation_compiles_nothing_and_gives_the_same_bytes(builds: list[str], small: Path, tmp_path: Path) -> None:
    first, _ = compile_model(small, tmp_path / "a.bevel", FP32)
    second, _ = compile_model(small, tmp_path / "b.bevel", FP32)
    assert len(builds) == 1
    assert contents(first.path) == contents(second.path)
    assert first.manifest == second.manifest


def test_hits_do_not_depend_on_the_process(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of strings come in another order in every process; the key must not."""
    monkeypatch.setattr(artifact_cache, "source_digest", lambda: "")
    target = load_profile("host").target()
    code = (
        "import sys; from pathlib import Path; from bevel import artifact_cache; "
        "from bevel.devices.profile import load_profile; artifact_cache.source_digest = lambda: ''; "
        "print(artifact_cache.cache_key(Path(sys.argv[1]), load_profile('host').target(), 'cc', {}, None))"
    )
    expected = artifact_cache.cache_key(small, target, "cc", {}, None)
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        out = subprocess.run([sys.executable, "-c", code, small], env=environment, capture_output=True, text=True, check=True)
        assert out.stdout.strip() == expected


def changed_model(small: Path, folder: Path) -> tuple[Path, Options]:
    model = onnx.load(small)
    model.graph.initializer[2].raw_data = np.full(4, 1.0, np.float32).tobytes()
    (folder / "other").mkdir()
    onnx.save(model, folder / "other" / small.name)
    return folder / "other" / small.name, quantized(folder)


def quantized(folder: Path) -> Options:
    return Options("host", "8", save(folder / "d.npz", images()))


def changed_device(small: Path, folder: Path) -> tuple[Path, Options]:
    profile = save_profile(replace(load_profile("x86-64"), name="mine", cores=7), folder / "mine.toml")
    return small, replace(quantized(folder), device=str(profile))


CHANGES: dict[str, Callable[[Path, Path], tuple[Path, Options]]] = {
    "model": changed_model,
    "name": lambda small, folder: (save_model(folder / "renamed.onnx"), quantized(folder)),
    "calibration": lambda small, folder: (small, Options("host", "8", save(folder / "e.npz", images(x=images()["x"] * 2)))),
    "bits": lambda small, folder: (small, replace(quantized(folder), bits="fp32")),
    "samples": lambda small, folder: (small, replace(quantized(folder), samples=3)),
    "dims": lambda small, folder: (small, replace(quantized(folder), dims={"batch": 2})),
    "plan": lambda small, folder: (
        small,
        replace(quantized(folder), plan=loads_plan('{"bevel_plan": 1, "layers": {"y": {"bits": "fp32"}}}')),
    ),
    "device": changed_device,
}


def test_every_input_counts(builds: list[str], small: Path, tmp_path: Path) -> None:
    compile_model(small, tmp_path / "out.bevel", quantized(tmp_path))
    for expected, (kind, change) in enumerate(CHANGES.items(), start=2):
        model, options = change(small, tmp_path)
        compile_model(model, tmp_path / "out.bevel", options)
        assert len(builds) == expected, f"a change of the {kind} was not noticed"
    compile_model(small, tmp_path / "out.bevel", quantized(tmp_path))
    assert len(builds) == 1 + len(CHANGES), "the first entry is still there"


def test_source_and_toolchain_count(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_profile("host").target()
    keys = {artifact_cache.cache_key(small, target, compiler, {}, None) for compiler in ("cc 12", "cc 13")}
    monkeypatch.setattr(artifact_cache, "source_digest", lambda: "changed")
    keys.add(artifact_cache.cache_key(small, target, "cc 12", {}, None))
    assert len(keys) == 3


def test_external_weights_count(tmp_path: Path) -> None:
    """The model file stays the same; the file its weights are in changes, whatever its name."""
    model = onnx.load(save_model(tmp_path / "m.onnx"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="odd.name", size_threshold=0)
    target = load_profile("host").target()
    before = artifact_cache.cache_key(tmp_path / "m.onnx", target, "cc", {}, None)
    data = bytearray((tmp_path / "odd.name").read_bytes())
    data[0] ^= 1
    (tmp_path / "odd.name").write_bytes(data)
    assert artifact_cache.cache_key(tmp_path / "m.onnx", target, "cc", {}, None) != before


def test_a_hostile_model_does_not_choose_what_is_read(tmp_path: Path) -> None:
    model = onnx.load(save_model(tmp_path / "m.onnx"))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for location in ("../../../../../proc/kcore", "/proc/kcore"):
        del tensor.external_data[:]
        tensor.external_data.add(key="location", value=location)
        onnx.save(model, tmp_path / "m.onnx")
        assert external_files(tmp_path / "m.onnx") == []


@pytest.mark.parametrize("damage", ["flip", "missing", "manifest"])
def test_damaged_entry_is_rebuilt(damage: str, builds: list[str], small: Path, tmp_path: Path) -> None:
    good, _ = compile_model(small, tmp_path / "a.bevel", FP32)
    (entry,) = (tmp_path / "cache" / "artifacts").iterdir()
    weights = entry / "weights.bin"
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "missing":
        weights.unlink()
    else:
        (entry / "manifest.json").write_text("{}")
    again, _ = compile_model(small, tmp_path / "b.bevel", FP32)
    assert len(builds) == 2
    assert contents(again.path) == contents(good.path)


def test_two_compilations_at_once(small: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "BEVEL_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "bevel", "compile", str(small), "--device", "host", "--bits", "fp32", "-o", "same.bevel"]
    both = [subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    compiler.Artifact.open(tmp_path / "same.bevel")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "same.bevel", "small.onnx"]
    assert len(list((tmp_path / "cache" / "artifacts").iterdir())) == 1


def test_the_cache_stays_within_its_limit(builds: list[str], tmp_path: Path) -> None:
    """Least recently used entries go first; entries that a running compilation may use stay."""
    folder = tmp_path / "cache" / "artifacts"
    for index, age in enumerate((3.0, 1.0, 2.0)):
        entry = folder / f"entry{index}"
        entry.mkdir(parents=True)
        (entry / "file").write_bytes(bytes(1000))
        os.utime(entry, (1e9 - age, 1e9 - age))
    artifact_cache.prune(limit=2500, keep_seconds=1e12)
    assert len(list(folder.iterdir())) == 3
    artifact_cache.prune(limit=2500, keep_seconds=60)
    assert sorted(p.name for p in folder.iterdir()) == ["entry1", "entry2"]


def test_the_documentation_names_the_variable() -> None:
    assert "BEVEL_CACHE_DIR" in (ROOT / "docs" / "data.md").read_text()
