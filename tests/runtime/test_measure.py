"""What bevel-run measures: blocks and their witnesses, sensors, signals, cold caches, starts, profiles. Never how long."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bevel.runtime.artifact import Artifact
from bevel.runtime.codegen import C_DIR
from bevel.runtime.toolchain import find_toolchain, host_arch

BRIEF = ("--blocks", "4", "--block-ms", "1", "--warmup-ms", "1")
BLOCK = ["block", "calls", "wall_ns", "cpu_ns", "min_ns", "canary_ns", "switches", "khz", "mc", "uj"]


def lines(*command: object) -> list[dict[str, Any]]:
    """The JSON objects a command prints, one a line."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


def put(root: Path, **files: object) -> Path:
    """Write small files; "__" in a name stands for "/"."""
    for name, value in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return root


@pytest.mark.parametrize("threads", [1, 2])
def test_blocks(built: Artifact, threads: int) -> None:
    """One line for what is measured, one for each block with the calls that were announced, one for the end."""
    head, *blocks, end = lines(built.runner, "--bench", "--threads", threads, *BRIEF)
    assert (head["bench"], head["threads"], head["input"], head["pinned"], head["cold"]) == (1, threads, "selftest", [], False)
    assert min(head["open_ns"], head["first_run_ns"], head["calls"]) > 0
    assert len(head["canary_ns"]) == 5
    assert all(ns > 0 for ns in head["canary_ns"])
    assert [block["block"] for block in blocks] == list(range(4))
    for block in blocks:
        assert list(block) == BLOCK
        assert block["calls"] == head["calls"]
        assert 0 < block["min_ns"] <= block["wall_ns"]
        assert block["canary_ns"] > 0
        assert block["switches"] >= 0
    assert (end["end"], end["blocks"]) == (1, 4)
    assert 0 < end["rss_kib"] < 16 * 1024, "the peak of this program, not of the Python that started it"


def test_pinned(built: Artifact) -> None:
    """The CPUs are those that were asked for, or the run is refused."""
    cpu = min(os.sched_getaffinity(0))
    (head, *_) = lines(built.runner, "--bench", "--pin", cpu, *BRIEF)
    assert head["pinned"] == [cpu]
    done = subprocess.run([built.runner, "--bench", "--pin", f"{cpu},1023"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--pin" in done.stderr


def test_sensors(built: Artifact, tmp_path: Path) -> None:
    """Clock, heat, energy and caches come from the directory that is named, and nothing from the real one."""
    silent = tmp_path / "silent"
    silent.mkdir()
    head, block, *_ = lines(built.runner, "--bench", "--sysfs", silent, *BRIEF)
    assert (head["energy"], head["cache_kib"]) == (None, None)
    assert (block["khz"], block["mc"], block["uj"]) == (None, None, None)
    sysfs = put(
        tmp_path / "sys",
        class__thermal__thermal_zone0__temp=41500,
        class__thermal__thermal_zone2__temp=61234,
        class__hwmon__hwmon3__power1_input=5_000_000,
    )
    cpu = min(os.sched_getaffinity(0))
    for name, size in (("index0", "32K"), ("index2", "1M"), ("index3", "512K")):
        put(sysfs / f"devices/system/cpu/cpu{cpu}/cache/{name}", size=size)
    put(sysfs / f"devices/system/cpu/cpu{cpu}/cpufreq", scaling_cur_freq=1_500_000)
    head, *blocks, _end = lines(built.runner, "--bench", "--sysfs", sysfs, "--pin", cpu, *BRIEF)
    assert (head["energy"], head["cache_kib"]) == ("class/hwmon/hwmon3/power1_input", 1024)
    for block in blocks:
        assert (block["khz"], block["mc"]) == (1_500_000, 61234)
        assert block["uj"] >= block["wall_ns"] * 5e-3 - 0.01, "5 W for the time of a call, and for reading the sensor"


def test_throttling_is_counted(built: Artifact, tmp_path: Path) -> None:
    """Heat events of all cores during the run; on a Raspberry Pi the blocks after which its firmware held it back."""
    put(tmp_path / "pi" / "devices/platform/soc/soc:firmware", get_throttled="50005")
    *_, end = lines(built.runner, "--bench", "--sysfs", tmp_path / "pi", *BRIEF)
    assert end["throttled"] == 4
    put(tmp_path / "pi" / "devices/platform/soc/soc:firmware", get_throttled="50000")
    *_, end = lines(built.runner, "--bench", "--sysfs", tmp_path / "pi", *BRIEF)
    assert end["throttled"] == 0, "only in the past"
    put(tmp_path / "pc", devices__system__cpu__cpu0__thermal_throttle__core_throttle_count=7)
    *_, end = lines(built.runner, "--bench", "--sysfs", tmp_path / "pc", *BRIEF)
    assert end["throttled"] == 0, "none since the start"


class _Energy(ctypes.Structure):
    """sensor_energy of c/sensors.h."""

    _fields_ = [("value", ctypes.c_int64 * 8), ("at_ns", ctypes.c_uint64)]


@pytest.fixture(scope="module")
def sensors(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """sensors.c, callable: between two calls the test can change what it reads."""
    path = tmp_path_factory.mktemp("sensors") / "sensors.so"
    sources = [str(C_DIR / name) for name in ("sensors.c", "measure.c")]
    subprocess.run([*find_toolchain(host_arch()).shared, "-shared", "-fPIC", *sources, "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.sensor_energy_now.restype = _Energy
    library.sensor_energy_source.restype = ctypes.c_char_p
    library.sensor_energy_between.argtypes = [ctypes.POINTER(_Energy)] * 2
    for name in ("sensor_energy_between", "sensor_throttle_count"):
        getattr(library, name).restype = ctypes.c_int64
    return library


def energy(sensors: ctypes.CDLL, before: Any, after: Any) -> tuple[bytes | None, int]:
    """Source and nanojoules between two states of sysfs, each made by calling a function that returns its root."""
    root = str(before()).encode()
    sensors.sensors_open(root)
    first = sensors.sensor_energy_now()
    after()
    second = sensors.sensor_energy_now()
    return sensors.sensor_energy_source(), sensors.sensor_energy_between(first, second)


def rapl(root: Path, *packages: int, largest: int = 1_000_000) -> Path:
    """Packages that have used so many microjoules. Package 0 has a part, which is counted within it already."""
    for index, uj in enumerate(packages):
        put(root / f"class/powercap/intel-rapl:{index}", max_energy_range_uj=largest, energy_uj=uj)
    put(root / "class/powercap/intel-rapl:0:0", max_energy_range_uj=largest, energy_uj=packages[0] // 2)
    return root


@pytest.mark.parametrize(
    ("before", "after", "microjoules"), [((100,), (150,), 50), ((999_990,), (40,), 50), ((999_990, 7), (40, 10), 53)]
)
def test_rapl(sensors: ctypes.CDLL, tmp_path: Path, before: Any, after: Any, microjoules: int) -> None:
    """Packages are added, parts of them are not, and a counter that wrapped around has gone on."""
    source, nanojoules = energy(sensors, lambda: rapl(tmp_path, *before), lambda: rapl(tmp_path, *after))
    assert (source, nanojoules) == (b"class/powercap/intel-rapl", microjoules * 1000)


def test_other_energy(sensors: ctypes.CDLL, tmp_path: Path) -> None:
    """A counter of hwmon is preferred to power, which needs time to become energy; a counter that fell back says nothing."""

    def power(microwatts: int) -> Path:
        return put(tmp_path / "power", class__hwmon__hwmon0__power2_input=microwatts)

    def counter(uj: int) -> Path:
        return put(tmp_path / "counter", class__hwmon__hwmon1__energy1_input=uj, class__hwmon__hwmon0__power1_input=1)

    root = str(power(2_000_000)).encode()
    sensors.sensors_open(root)
    first = _Energy((ctypes.c_int64 * 8)(2_000_000), 10**9)
    second = _Energy((ctypes.c_int64 * 8)(4_000_001), 10**9 + 3_000_000)
    assert sensors.sensor_energy_source() == b"class/hwmon/hwmon0/power2_input"
    assert sensors.sensor_energy_between(first, second) == 9_000_000, "3 W for 3 ms"
    assert energy(sensors, lambda: counter(5), lambda: counter(25)) == (b"class/hwmon/hwmon1/energy1_input", 20_000)
    unknown = -(2**63)
    assert energy(sensors, lambda: counter(25), lambda: counter(5))[1] == unknown
    jetson = put(tmp_path / "jetson", class__hwmon__hwmon4__curr1_input=600, class__hwmon__hwmon4__in1_input=5000)
    root = str(jetson).encode()
    sensors.sensors_open(root)
    assert sensors.sensor_energy_now().value[0] == 3_000_000, "0.6 A at 5 V are 3 W"
    (tmp_path / "none").mkdir()
    assert energy(sensors, lambda: tmp_path / "none", lambda: None) == (None, unknown)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_a_bench_in_order(built: Artifact, number: signal.Signals) -> None:
    """What is finished is printed, and the last line counts it."""
    command = [str(built.runner), "--bench", "--blocks", "1000000", *BRIEF[2:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        early = [process.stdout.readline() for _ in range(4)]
        process.send_signal(number)
        late = process.stdout.read().splitlines()
        assert process.wait() == 0
    _head, *blocks, end = [json.loads(line) for line in [*early, *late]]
    assert [block["block"] for block in blocks] == list(range(end["blocks"]))
    assert (end["end"], end["blocks"] >= 3) == (1, True)


def test_a_killed_bench_has_told_what_it_knew(built: Artifact) -> None:
    """Lines leave at once: those read before the end are whole."""
    command = [str(built.runner), "--bench", "--blocks", "1000000", *BRIEF[2:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        early = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.kill()
    assert [line.get("block") for line in early] == [None, 0, 1, 2]


def test_cold(built: Artifact, tmp_path: Path) -> None:
    """One call a block, with as much memory walked through as asked for, or four times the largest cache; not counted as peak."""
    put(tmp_path, devices__system__cpu__cpu0__cache__index1__size="2M")
    for arguments, kib in ((("--evict-kib", "20000"), 20_000), ((), 8192)):
        head, *blocks, end = lines(built.runner, "--bench", "--cold", "--sysfs", tmp_path, "--threads", 2, *arguments, *BRIEF)
        assert (head["cold"], head["evict_kib"], head["calls"]) == (True, kib, 1)
        assert [block["calls"] for block in blocks] == [1] * 4
        assert end["rss_kib"] < kib


def test_starts(built: Artifact) -> None:
    """Each start is a process of its own that got a result; one that fails ends the measurement with its own exit code."""
    (answer,) = lines(built.runner, "--start", 3)
    assert len(answer["start_ns"]) == 3
    assert min(answer["start_ns"]) > 0
    command = [built.runner, "--start", "3", "--weights", "none.bin"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert "none.bin" in done.stderr


@pytest.mark.parametrize("clock", ["tsc", "hpet"])
@pytest.mark.parametrize("threads", [1, 2])
def test_profile(built: Artifact, tmp_path: Path, clock: str, threads: int) -> None:
    """All layers in order, their sum, the whole, and timers within 1 % by the tool's own count: whatever one reading costs, and
    although this model is so short that not even one layer can be timed in every run."""
    put(tmp_path, devices__system__clocksource__clocksource0__current_clocksource=clock)
    options = ("--runs", 40, "--threads", threads, "--sysfs", tmp_path, "--warmup-ms", 1)
    (answer,) = lines(built.runner, "--profile", *options)
    assert [layer["name"] for layer in answer["layers"]] == ["table", "gemm", "max"]
    assert answer["layers"][1]["macs"] == 8192
    for layer in answer["layers"]:
        assert 0 <= layer["ns"]["min"] <= min(layer["ns"]["median"], layer["ns"]["mean"])
    assert answer["layers"][1]["ns"]["min"] > 0
    assert answer["total_ns"] == sum(layer["ns"]["mean"] for layer in answer["layers"])
    assert (answer["runs"], answer["input"], answer["threads"]) == (40, "selftest", threads)
    assert answer["whole_ns"] > 0
    assert answer["clock_ns"] > 0
    assert 1 <= answer["steps_per_run"] <= 3
    assert 0 < answer["overhead"] <= 0.01


@pytest.mark.qemu
def test_arm(built_arm: Artifact, run_arm: list[str], tmp_path: Path) -> None:
    """The cross-compiled runner has the same modes."""
    put(tmp_path, class__thermal__thermal_zone0__temp=50000)
    head, *blocks, end = lines(*run_arm, built_arm.runner, "--bench", "--sysfs", tmp_path, "--threads", 2, *BRIEF)
    assert (len(blocks), end["blocks"], {block["mc"] for block in blocks}) == (4, 4, {50000})
    cold, *_ = lines(*run_arm, built_arm.runner, "--bench", "--cold", "--evict-kib", 100, *BRIEF)
    assert (head["cold"], cold["evict_kib"]) == (False, 100)
    (answer,) = lines(*run_arm, built_arm.runner, "--profile", "--runs", 5)
    assert len(answer["layers"]) == 3
    assert answer["overhead"] <= 0.01
