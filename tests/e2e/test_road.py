"""The whole road: real models, every shipped device, float parity with onnxruntime and identical integer bytes."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Callable

import numpy as np
import pytest

from bevel.devices.host import detect_host
from bevel.devices.profile import load_profile
from bevel.devices.resolve import QEMU, resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.errors import UsageError
from bevel.ir import interp
from bevel.runtime.artifact import Artifact
from tests.e2e.road import PROFILES, graph_of, real_model

FLOAT_MODELS = ("resnet8_cifar10_float", "resnet20_cifar10", "kws_dscnn_float")
INTEGER_MODELS = (*FLOAT_MODELS, "resnet8_cifar10_int8_qdq", "kws_dscnn_int8_qdq")
# Every profile runs a small model; those above, whose kernels differ most, run all.
SMALL_MODELS = ("kws_dscnn_int8_qdq", "resnet8_cifar10_float")
MORE_PROFILES = ("x86-64-avx-vnni", "x86-64-amx", "raspberry-pi-3", "armv7-a7", "pixel-phone", "jetson-orin")
Compiled = Callable[[str, str, str], Artifact]

# Images per device: all on this machine's ISA, few under emulation, which is 200 times slower.
NATIVE_IMAGES, EMULATED_IMAGES = 200, 4


def require_way_to(profile: str) -> None:
    """Skip when this machine can neither run nor emulate the profile's code."""
    wanted, host = load_profile(profile), detect_host()
    native = wanted.arch == host.arch and wanted.features <= host.features
    if not native and not shutil.which(QEMU[wanted.arch]):
        pytest.skip(f"this machine cannot run {profile} code and qemu-user is not installed")
    if not native and wanted.qemu_cpu is None:
        pytest.skip(f"this machine lacks {sorted(wanted.features - host.features)} and qemu-user cannot emulate them")


def run_on(artifact: Artifact, profile: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of `artifact` for a batch of samples, by bevel-run on the profile's device."""
    shapes = {t["name"]: t["shape"] for t in artifact.manifest["inputs"]}
    batch = {name: array.reshape(len(array), *shapes[name]) for name, array in inputs.items()}
    with resolve_transport(load_profile(profile)) as transport:
        return DeviceRunner(artifact, transport).run(batch, batch=True)


def count_for(profile: str) -> int:
    return NATIVE_IMAGES if load_profile(profile).arch == detect_host().arch else EMULATED_IMAGES


@pytest.mark.parametrize("profile", ["x86-64", "x86-64-avx2", "x86-64-avx512-vnni", "raspberry-pi-4", "armv7-a7"])
@pytest.mark.parametrize("name", FLOAT_MODELS)
def test_float_artifact_matches_onnxruntime(name: str, profile: str, compiled: Compiled) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the reference: pip install 'bevel[peers]'")
    require_way_to(profile)
    model = real_model(name)
    inputs = model.take(min(16, count_for(profile)))
    session = ort.InferenceSession(str(model.path), providers=["CPUExecutionProvider"])
    reference = session.run(None, inputs)[0]
    (ours,) = run_on(compiled(name, "fp32", profile), profile, inputs).values()
    ours = ours.reshape(reference.shape)
    assert np.abs(ours - reference).max() <= 1e-4 * np.abs(reference).max()
    # Different images give different outputs: nothing was constant-folded away.
    assert np.ptp(ours, axis=0).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "profile"), [*itertools.product(INTEGER_MODELS, PROFILES), *itertools.product(SMALL_MODELS, MORE_PROFILES)]
)
def test_integer_artifact_gives_the_interpreters_bytes(name: str, profile: str, compiled: Compiled) -> None:
    require_way_to(profile)
    model = real_model(name)
    inputs = model.take(count_for(profile))
    symbolic, _ = graph_of(name, "8")
    (reference,) = interp.run(symbolic, inputs).values()
    artifact = compiled(name, "8", profile)
    assert artifact.manifest["integer_only"] is True
    (ours,) = run_on(artifact, profile, inputs).values()
    np.testing.assert_array_equal(ours.reshape(reference.shape), reference)
    assert len(np.unique(reference, axis=0)) > 1


@pytest.mark.parametrize(
    "name", ["resnet8_cifar10_float", "kws_dscnn_float", pytest.param("resnet20_cifar10", marks=pytest.mark.slow)]
)
def test_half_precision_artifact_matches_float32(name: str, compiled: Compiled) -> None:
    """Largest error 1 % of the largest output, the same classes, half the weights; the artifact's own vectors agree."""
    profile = "raspberry-pi-5"
    require_way_to(profile)
    inputs = real_model(name).take(EMULATED_IMAGES)
    symbolic, _ = graph_of(name, "fp32")
    (reference,) = interp.run(symbolic, inputs).values()
    artifact = compiled(name, "fp16", profile)
    (ours,) = run_on(artifact, profile, inputs).values()
    assert ours.dtype == np.float32
    ours = ours.reshape(reference.shape)
    assert np.abs(ours - reference).max() <= 1e-2 * np.abs(reference).max()
    assert np.array_equal(ours.argmax(1), reference.argmax(1))
    assert artifact.weights.stat().st_size <= 0.56 * compiled(name, "fp32", profile).weights.stat().st_size
    with resolve_transport(load_profile(profile)) as transport:
        DeviceRunner(artifact, transport).selftest()


def test_half_precision_is_refused_where_there_is_none(compiled: Compiled) -> None:
    with pytest.raises(UsageError, match=r"raspberry-pi-4 .* no instructions; .* jetson-orin, pixel-phone, raspberry-pi-5"):
        compiled("resnet8_cifar10_float", "fp16", "raspberry-pi-4")


@pytest.mark.parametrize("name", ["resnet8_cifar10_int8_qdq", "kws_dscnn_int8_qdq"])
def test_quantized_import_agrees_with_onnxruntime(name: str) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is the reference: pip install 'bevel[peers]'")
    model = real_model(name)
    symbolic, _ = graph_of(name, "8")
    (value,) = symbolic.inputs
    codes = interp.boundary_codes(value, model.inputs[value.name])
    (ours,) = interp.run(symbolic, {value.name: codes}).values()
    reference = ort.InferenceSession(str(model.path), providers=["CPUExecutionProvider"]).run(None, {value.name: codes})[0]
    assert (ours.argmax(1) == reference.argmax(1)).mean() >= 0.995


# Arithmetic and conversions in floating point; moves of vector registers are not arithmetic.
FLOAT_INSTRUCTION = {
    "armv7": r"\sv(?!mov)\w+\.f(16|32|64)|\svcvt\S*\s|__aeabi_[fd]",
    "aarch64": r"\sf(add|sub|mul|div|madd|msub|nmul|mla|mls|sqrt|cvt|rint|cmp|max|min|abs|neg)\w*\s|\s[su]cvtf\s",
    "x86_64": r"\sv?(add|sub|mul|div|sqrt|max|min|rcp|rsqrt|ucomi|comi|round)[sp][sd]\s|\sv?cvt\w*[sp][sd]\w*\s"
    r"|\svfn?m(add|sub)\w+\s|\sf(ld|st|add|mul)\w*\s",
}


@pytest.mark.parametrize(
    "profile", ["x86-64", "x86-64-avx2", "x86-64-avx512-vnni", "raspberry-pi-4", "raspberry-pi-5", "armv7-a7"]
)
@pytest.mark.parametrize("bits", ["8", "fp32"])
def test_integer_code_has_no_float_instruction(profile: str, bits: str, compiled: Compiled) -> None:
    artifact = compiled("resnet8_cifar10_float", bits, profile)
    triple = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf"}[artifact.arch]
    tool = "objdump" if artifact.arch == detect_host().arch else f"{triple}-objdump"
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is missing: apt-get install binutils-{triple}")
    archive = artifact.library.with_suffix(".a")
    listing = subprocess.run([tool, "-d", "--no-show-raw-insn", str(archive)], check=True, capture_output=True, text=True).stdout
    member, offending = "", {}
    for line in listing.splitlines():
        if heading := re.match(r"(\S+\.o):\s+file format", line):
            member = heading[1]
        # Without the addresses that branches go to: some hexadecimal numbers read like mnemonics.
        elif re.search(FLOAT_INSTRUCTION[artifact.arch], re.sub(r"\s[0-9a-f]+ <", " <", line) + " "):
            offending.setdefault(member, []).append(line.strip())
    assert len(listing.splitlines()) > 500
    # The float convenience conversion is the one object allowed to hold float arithmetic, and it does: the pattern matches.
    assert "convert.o" in offending
    # So do the kernels of a float model.
    assert set(offending) - {"convert.o"} == ({"kernels.o"} if bits == "fp32" else set()), offending


def test_sizes_and_dependencies_of_a_board_artifact(compiled: Compiled) -> None:
    small = compiled("resnet8_cifar10_float", "8", "raspberry-pi-4")
    assert small.library.stat().st_size + small.weights.stat().st_size <= 200_000
    assert small.runner.stat().st_size <= 300_000
    larger = compiled("resnet20_cifar10", "8", "raspberry-pi-4")
    assert sum(path.stat().st_size for path in larger.path.rglob("*") if path.is_file()) <= 800_000
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is missing: apt-get install binutils")
    dynamic = subprocess.run([readelf, "-d", str(small.library)], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", dynamic))
    assert needed <= {"libc.so.6", "libm.so.6", "libpthread.so.0", "ld-linux-aarch64.so.1"}
