"""`bevel compile --tune`: the artifact computes the same, says how kernels were chosen, and is made anew when they change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bevel.cli import main
from bevel.compiler import Options, compile_model
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.devices.store import Store
from bevel.runtime.artifact import Artifact
from bevel.tuning import tuner
from bevel.tuning.options import Tuning

MODEL = Path(__file__).resolve().parents[2] / "models" / "kws_dscnn_int8_qdq.onnx"


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))


def sources(artifact: Artifact) -> set[str]:
    return {kernel["chosen"] for kernel in artifact.manifest["tuning"]["kernels"].values()}


def compiled(folder: Path, name: str, tuning: Tuning, device: str = "host") -> Artifact:
    return compile_model(MODEL, folder / f"{name}.bevel", Options(device, tuning=tuning))[0]


def test_tuning_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real run: measured, then cached, then served whole; the network computes the same throughout."""
    static = compiled(tmp_path, "off", Tuning("off"))
    assert sources(static) == {"static"}
    tuned = compiled(tmp_path, "fast", Tuning("fast"))
    tuning = tuned.manifest["tuning"]
    assert tuning["source"] == "measured"
    assert sources(tuned) == {"measured", "static"}
    measured = [kernel for kernel in tuning["kernels"].values() if kernel["chosen"] == "measured"]
    assert all(kernel["us"] > 0 and kernel["gain"] >= 1 - 0.2 and kernel["candidates"] > 1 for kernel in measured)
    with resolve_transport(load_profile("host")) as transport:
        DeviceRunner(tuned, transport).selftest()
    with Store.open(read_only=True) as store:
        rows = [row for device in store.devices("host") for row in store.kernels(device)]
    assert len(rows) == sum(kernel["candidates"] for kernel in measured)

    # What is measured is not measured again, in this mode or in the default one.
    monkeypatch.setattr(tuner, "DeviceTimer", None)
    again = compiled(tmp_path, "again", Tuning("fast"))
    assert again.manifest == tuned.manifest
    cached = compiled(tmp_path, "cached", Tuning())
    assert kernels(cached) == kernels(tuned)
    assert kernels(compiled(tmp_path, "off2", Tuning("off"))) == kernels(static)


def kernels(artifact: Artifact) -> list[str]:
    return [layer["symbol"] for layer in artifact.manifest["layers"]]


def test_other_measurements_make_another_artifact(tmp_path: Path) -> None:
    """The key of the cache holds what chose the kernels."""
    before = compiled(tmp_path, "before", Tuning())
    fastest_last(tmp_path, before)
    after = compiled(tmp_path, "after", Tuning())
    assert kernels(after) != kernels(before)
    assert sources(after) >= {"cached"}
    assert after.manifest["provenance"]["key"] != before.manifest["provenance"]["key"]


def fastest_last(folder: Path, artifact: Artifact) -> None:
    """Store made-up times by which the third candidate of every convolution is the fastest."""
    from bevel.backends.lower import lower
    from bevel.backends.select import candidates
    from bevel.compiler import bind, load_graph, prepare
    from bevel.devices.measurements import DeviceFingerprint
    from bevel.tuning.winners import Heat, kernel_of, measuring_version, store_heat
    from bevel.tuning.workload import measurable

    target = load_profile("host").target()
    schedule = lower(bind(prepare(load_graph(MODEL), Options("host")), {}), target)
    with Store.open() as store:
        device = store.device(DeviceFingerprint("host", target.arch, "", (), "", ""))
        for kernel in schedule.kernels:
            if measurable(kernel.problem):
                times = {kernel_of(c): (float(9 - i), 0.0) for i, c in enumerate(candidates(kernel.problem, target)[:3])}
                store_heat(store, device, target, kernel.problem, Heat("2026-01-01", "host", measuring_version(), times), 0.0)


@pytest.mark.qemu
def test_under_emulation_the_choice_is_static_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "DeviceTimer", None)
    artifact = compiled(tmp_path, "arm", Tuning("fast"), "raspberry-pi-4")
    tuning = artifact.manifest["tuning"]
    assert tuning["source"] == "static"
    assert "emul" in tuning["why_static"]
    assert sources(artifact) == {"static"}


def test_the_command_line_says_how_kernels_were_chosen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "m.bevel")

    def bevel(*args: str) -> tuple[int, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as leave:
            main(["compile", str(MODEL), "--device", "host", "-o", output, *args])
        assert isinstance(leave.value.code, int)
        return leave.value.code, capfd.readouterr().out

    code, text = bevel("--tune=fast", "--tune-budget=300", "--json")
    assert code == 0
    document = json.loads(text)
    assert document["tuning"]["source"] == "measured"
    assert {layer["chosen"] for layer in document["layers"]} == {"measured", "static"}
    assert "kernels chosen: " in bevel()[1]
    assert bevel("--tune=slow")[0] == 2
    assert bevel("--tune-budget=0")[0] == 2


def test_shipped_heats_fit_todays_kernels() -> None:
    """Problems and tiles are spelled in the shipped file as they are today; when not: python -m benchmarks.tuning.ship."""
    from bevel.compiler import bind, load_graph, lowered, prepare
    from bevel.tuning.winners import _shipped, isa_class

    model = MODEL.with_name("resnet8_cifar10_int8_qdq.onnx")
    classes = {
        isa_class(load_profile(name).target()): name for name in ("host", "x86-64-amx", "x86-64-avx512-vnni", "x86-64-avx2")
    }
    assert _shipped()
    for name in _shipped().keys() & classes.keys():
        profile = load_profile(classes[name])
        chooser = tuner.Tuner.load(profile, Tuning())
        schedule = lowered(bind(prepare(load_graph(model), Options(profile.name)), {}), profile, tuner=chooser)
        document = chooser.document(schedule)
        assert document["source"] == "shipped", f"{name}: {document['macs']}"
