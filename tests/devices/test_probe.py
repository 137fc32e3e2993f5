"""The probe: facts from files of a system, caches from times, the measuring program, profiles of boards that match their CPU."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bevel.cli import main
from bevel.devices.board import EmulatedBoard
from bevel.devices.facts import SCRIPT, Facts, Governor, cpu_list, governor_advice, parse_facts
from bevel.devices.host import common_cpu, core_name, detect_host, figures_file
from bevel.devices.microbenchmark import (
    CpuFacts,
    Measured,
    Program,
    Rate,
    build_program,
    caches_from_latencies,
    read_sizes,
    theory,
)
from bevel.devices.probe import Probe, probe_device, profile_from_probe
from bevel.devices.profile import CoreKind, load_profile, save_profile
from bevel.devices.remote import BoardInfo
from bevel.devices.resolve import resolve_transport
from bevel.errors import ToolchainError
from bevel.ir.protocols import Cache

KIB = 1024
KWS = Path(__file__).resolve().parents[2] / "models" / "kws_dscnn_int8_qdq.onnx"


@pytest.fixture(autouse=True)
def bevel_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))


def arm_block(cpu: int, part: int, features: str = "fp asimd") -> str:
    return f"processor\t: {cpu}\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part:#x}\n\n"


def facts(root: Path, cpuinfo: str = "", **files: str) -> Facts:
    """What the script, run by a real shell, and the parser make of a file system with these files."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    done = subprocess.run(["sh", "-c", SCRIPT, "facts", str(root)], capture_output=True, text=True, check=True)
    return parse_facts(done.stdout, cpuinfo)


CPU = "sys/devices/system/cpu/"


def test_big_little_by_capacity_and_clock(tmp_path: Path) -> None:
    """Four A53 and two A72, as on boards with an RK3399: the fast kind leads, with its own caches and clock."""
    files = {"proc/device-tree/model": "Some board\0\n", f"{CPU}online": "0-5\n"}
    for cpu in range(6):
        big = cpu >= 4
        files[f"{CPU}cpu{cpu}/cpu_capacity"] = "1024\n" if big else "485\n"
        files[f"{CPU}cpu{cpu}/cpufreq/cpuinfo_max_freq"] = "1800000\n" if big else "1416000\n"
        files[f"{CPU}cpu{cpu}/regs/identification/midr_el1"] = "0x00000000410fd082\n" if big else "0x00000000410fd034\n"
        caches = [("Data", 1, "32K"), ("Instruction", 1, "48K"), ("Unified", 2, "1M" if big else "512K")]
        for index, (kind, level, size) in enumerate(caches):
            for name, value in {"type": kind, "level": level, "size": size}.items():
                files[f"{CPU}cpu{cpu}/cache/index{index}/{name}"] = f"{value}\n"
    policy = f"{CPU}cpufreq/policy4/"
    files |= {policy + "scaling_governor": "ondemand\n", policy + "scaling_available_governors": "ondemand performance\n"}
    files |= {"sys/class/thermal/thermal_zone0/type": "cpu\n", "sys/class/thermal/thermal_zone0/temp": "48312\n"}
    files |= {"sys/class/hwmon/hwmon1/name": "ina3221\n", "sys/class/hwmon/hwmon1/curr1_input": "312\n"}
    found = facts(tmp_path, **files)
    assert found.model == "Some board"
    assert found.core_kinds == (CoreKind("cortex-a72", (4, 5), 1.8), CoreKind("cortex-a53", (0, 1, 2, 3), 1.416))
    assert found.caches == (Cache(1, 32 * KIB), Cache(2, 1024 * KIB))
    assert found.temperatures_c == {"cpu": pytest.approx(48.312)}
    assert found.energy == ("ina3221: /sys/class/hwmon/hwmon1/curr1_input",)
    assert "performance" in str(governor_advice(found.governors))


def test_kinds_from_cpuinfo_where_sysfs_is_silent(tmp_path: Path) -> None:
    found = facts(tmp_path, "".join(arm_block(cpu, 0xD05 if cpu < 4 else 0xD0B) for cpu in range(8)))
    assert [(kind.name, kind.cpus) for kind in found.core_kinds] == [("cortex-a76", (4, 5, 6, 7)), ("cortex-a55", (0, 1, 2, 3))]
    assert found.caches == ()


def test_hybrid_x86(tmp_path: Path) -> None:
    cpuinfo = "".join(f"processor\t: {cpu}\nmodel name\t: Some CPU\n\n" for cpu in range(6))
    found = facts(tmp_path, cpuinfo, **{"sys/devices/cpu_core/cpus": "0-3\n", "sys/devices/cpu_atom/cpus": "4-5\n"})
    assert [(kind.name, kind.count) for kind in found.core_kinds] == [
        ("Some CPU, performance core", 4),
        ("Some CPU, efficient core", 2),
    ]


def test_a_system_that_says_nothing_is_no_error(tmp_path: Path) -> None:
    found = facts(tmp_path)
    assert (found.core_kinds, found.caches, found.governors, found.perf_event_paranoid) == ((), (), (), None)


def test_an_android_or_board_that_runs_performance_already_gets_no_advice() -> None:
    assert governor_advice([Governor("performance", ("performance", "powersave"), "0-3", None)]) is None
    assert governor_advice([Governor("schedutil", (), "0-3", None)]) is None


@pytest.mark.parametrize(("text", "cpus"), [("0-3,6", (0, 1, 2, 3, 6)), ("0 1", (0, 1)), ("", ()), ("x", ()), ("1-", (1,))])
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert cpu_list(text) == cpus


@pytest.mark.parametrize(
    ("kinds", "sve", "cpu"),
    [
        (["cortex-a72", "cortex-a53"], False, "cortex-a72"),
        (["cortex-a76", "cortex-a55"], False, "cortex-a76"),
        (["cortex-a76", "cortex-a53"], False, "cortex-a53"),
        (["cortex-x2", "cortex-a710", "cortex-a510"], True, "cortex-x2"),
        (["cortex-x2", "cortex-a510"], False, "cortex-a78"),
        (["cortex-a15", "cortex-a7"], False, "cortex-a15"),
        (["arm-0x61-0x22"], False, "generic"),
        ([], False, "generic"),
    ],
)
def test_llvm_cpu_is_the_smallest_instruction_set_of_the_cores(kinds: list[str], sve: bool, cpu: str) -> None:
    assert common_cpu(kinds, sve) == cpu


def test_id_registers() -> None:
    assert core_name(0x410FD083) == "cortex-a72"
    assert core_name(0x51AF8040) == "cortex-a76"
    assert core_name(0x611F0220) == "arm-0x61-0x22"


# Latencies of working sets, two an octave from 4 KiB: measured on a core with 48 KiB and 2 MiB at 3.9 GHz, the rest cut off;
# and made up for a board with 32 KiB and 1 MiB whose larger working sets already share the second level with other data.
_SERVER = [1.29] * 6 + [1.31] + [4.09, 4.09, 4.1, 4.12, 4.12, 4.13, 4.14, 4.15, 4.15, 4.17, 6.03, 24.2, 21.1, 24.6, 26.4]
_BOARD = [2.7] * 6 + [8.0, 9.1, 9.2, 9.4, 9.5, 9.8, 10.1, 10.6, 11.9, 75.0, 108.0, 118.0, 121.0, 123.0]


def octaves(values: list[float]) -> dict[int, float]:
    sizes = [4, 8, *(size for octave in range(4, 20) for size in (3 << octave - 2, 1 << octave))]
    return dict(zip(sorted(set(sizes)), values, strict=False))


@pytest.mark.parametrize(("curve", "kib"), [(_SERVER, [48, 2048]), (_BOARD, [32, 768]), ([5.0] * 12, [])])
def test_caches_from_latencies(curve: list[float], kib: list[int]) -> None:
    assert [cache.bytes // KIB for cache in caches_from_latencies(octaves(curve))] == kib


def test_working_sets_fit_their_level_and_leave_the_one_before() -> None:
    caches = (Cache(1, 48 * KIB), Cache(2, 2048 * KIB), Cache(3, 480 * 1024 * KIB))
    sizes = read_sizes(caches, 24 * 1024 * 1024)
    assert sizes == {"l1": 24 * KIB, "l2": 1024 * KIB, "l3": 32 * 1024 * KIB, "dram": 1024**3}
    assert read_sizes((Cache(1, 32 * KIB), Cache(2, 512 * KIB)), 400 * 1024) == {
        "l1": 16 * KIB,
        "l2": 256 * KIB,
        "dram": 64 * 1024**2,
    }
    assert read_sizes((), 16 * 1024) == {"dram": 8 * 1024**2}


def board_info(arch: str, cpuinfo: str, features: frozenset[str], emulator: str = "") -> BoardInfo:
    return BoardInfo(arch, "6.1.0", "glibc 2.36", features, "boot", 4096 * KIB, 2048 * KIB, 10**6, False, "/w", emulator, cpuinfo)


def probe_of(shown: frozenset[str], told: frozenset[str], rates: tuple[Rate, ...] = ()) -> Probe:
    cpuinfo = "".join(arm_block(cpu, 0xD0B) for cpu in range(4))
    reads = {level: Rate("read", f"{level}: ldp q", value, 0.01, 2.4, 7) for level, value in {"l1": 70.0, "dram": 9.0}.items()}
    measured = Measured(3, 2.4, rates, reads, 20.0, {}) if rates else None
    return Probe(
        label="pi@board",
        info=board_info("aarch64", cpuinfo, shown),
        facts=parse_facts("", cpuinfo),
        cpu=CpuFacts(told, (0, 1, 2, 3), {}, {"gettime_ns": 50.0, "resolution_ns": 1.0}, "allowed"),
        features=shown & told,
        disagreements=(),
        caches=(Cache(1, 64 * KIB), Cache(2, 512 * KIB)),
        caches_from="sysfs",
        measured=measured,
        date="2026-01-31",
    )


FULL = frozenset({"neon", "fp16", "dotprod"})


def test_measured_figures_become_a_profile(tmp_path: Path) -> None:
    rates = (
        Rate("fp32", "fmla 4s", 19.1, 0.004, 2.4, 9),
        Rate("int8", "smull, smlal2, sadalp", 25.0, 0.004, 2.4, 9),
        Rate("int8", "sdot", 76.4, 0.004, 2.4, 9),
        Rate("int8", "smmla", 150.0, 0.004, 2.4, 9),
        Rate("popcount", "cnt 16b", 76.0, 0.004, 2.4, 9),
    )
    probe = probe_of(FULL, FULL, rates)
    profile = profile_from_probe(probe, "kitchen", None)
    assert (profile.cpu, profile.cores, profile.clock_ghz, profile.memory_mib) == ("cortex-a76", 4, 2.4, 4096)
    peaks = profile.peaks
    # Of the 8-bit loops the fastest that bevel's kernels are made of.
    assert (peaks.int8_gmacs.value, peaks.int8_gmacs.provenance) == (76.4, "measured")
    assert "31.8 a cycle at 2.4 GHz" in peaks.int8_gmacs.source
    assert list(peaks.bandwidth_gbs) == ["l1", "dram"]
    assert peaks.popcount_gbytes is not None
    assert peaks.table_gbytes is None
    assert load_profile(save_profile(profile, tmp_path / "kitchen.toml")) == profile
    assert theory(rates[2], probe.fastest, probe.features) == 32


def test_the_smaller_set_of_features_counts() -> None:
    """A kernel that hides the dot product from programs, or an emulated CPU without it: no profile may claim it."""
    probe = probe_of(
        FULL, FULL - {"dotprod"}, (Rate("int8", "sdot", 76.4, 0.0, 2.4, 9), Rate("int8", "smull", 25.0, 0.0, 2.4, 9))
    )
    profile = profile_from_probe(probe, "kitchen", None)
    assert profile.features == {"neon", "fp16"}
    assert "+dotprod" not in profile.attrs
    assert profile.peaks.int8_gmacs.value == 25.0


def test_without_measurements_figures_are_static() -> None:
    profile = profile_from_probe(probe_of(FULL, FULL), "kitchen", None)
    base = load_profile("raspberry-pi-5")
    assert profile.peaks.int8_gmacs.provenance == "static"
    assert profile.peaks.int8_gmacs.value == pytest.approx(base.peaks.int8_gmacs.value * profile.clock_ghz / base.clock_ghz)


# The program ------------------------------------------------------------------------------------------------------------


def test_the_program_measures_this_machine_within_theory() -> None:
    """A loop that the compiler had thinned out would beat what the core can do."""
    with resolve_transport(detect_host()) as transport:
        program = Program.install(transport)
        cpu = program.facts()
        measured = program.measure(0, (Cache(1, 32 * KIB),), 64 * 1024)
        latencies = program.latencies(0, 64)
    host = detect_host()
    assert host.features <= cpu.features
    assert all(rate.value > 0 for rate in measured.rates if rate.accepted)
    assert {rate.kind for rate in measured.rates} >= {"fp32", "int8", "popcount", "table"}
    assert measured.best("int8", host.features) is not None
    assert set(measured.reads) == {"l1", "dram"}
    assert sorted(latencies) == [4, 8, 12, 16, 24, 32, 48, 64]
    core = "" if host.arch == "x86_64" else host.cpu
    for rate in measured.rates:
        peak = theory(rate, core, host.features)
        assert peak is None or rate.per_cycle is None or rate.per_cycle < 1.3 * peak, rate


def test_loops_hold_their_instructions(tmp_path: Path) -> None:
    """What is counted per iteration is what the machine code holds: 24 of each between two branches."""
    source = Path(str(build_program.__globals__["_SOURCES"])) / "x86_64.c"
    if detect_host().arch != "x86_64" or not shutil.which("objdump") or not shutil.which("cc"):
        pytest.skip("needs cc and objdump of x86-64")
    subprocess.run(["cc", "-O2", "-c", source, "-o", tmp_path / "x.o"], check=True)
    code = subprocess.run(["objdump", "-d", tmp_path / "x.o"], capture_output=True, text=True, check=True).stdout
    for name, instruction in {"dpbusd": "vpdpbusd", "fma_ymm": "vfmadd231ps", "madd_ymm": "vpmaddwd", "pshufb": "pshufb"}.items():
        body = code.partition(f"<{name}>:")[2].partition("ret")[0]
        assert body.count(f"\t{instruction} ") == 24, name


@pytest.mark.qemu
@pytest.mark.parametrize(
    ("cpu", "kind", "features"),
    [
        ("cortex-a53", "cortex-a53", {"neon"}),
        ("cortex-a72", "cortex-a72", {"neon"}),
        ("cortex-a76", "cortex-a76", {"neon", "fp16", "dotprod"}),
        ("neoverse-n1", "neoverse-n1", {"neon", "fp16", "dotprod"}),
        ("max", "arm-0x0-0x51", {"neon", "fp16", "dotprod", "i8mm"}),
    ],
)
def test_the_program_tells_what_qemu_was_told(cpu: str, kind: str, features: set[str]) -> None:
    if not shutil.which("qemu-aarch64"):
        pytest.skip("qemu-user is not installed")
    command = ["qemu-aarch64", "-cpu", cpu, str(_program("aarch64")), "facts"]
    answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert {core_name(int(value, 16)) for value in answer["midr"].values()} == {kind}
    assert set(answer["features"]) & {"neon", "fp16", "dotprod", "i8mm"} == features


def _program(arch: str) -> Path:
    try:
        return build_program(arch)
    except ToolchainError as error:
        pytest.skip(str(error))


# Boards -----------------------------------------------------------------------------------------------------------------


@pytest.mark.ssh
@pytest.mark.qemu
@pytest.mark.parametrize(
    ("device", "cpu", "kind", "features"),
    [
        ("raspberry-pi-4", None, "cortex-a72", {"neon"}),
        ("raspberry-pi-3", None, "cortex-a53", {"neon"}),
        ("raspberry-pi-5", None, "cortex-a76", {"neon", "fp16", "dotprod"}),
        ("armv7-a7", None, "cortex-a7", {"neon", "vfpv4"}),
        # Its /proc/cpuinfo still shows the dot product, its CPU has none.
        ("raspberry-pi-5", "cortex-a72", "cortex-a72", {"neon"}),
    ],
)
def test_profiles_of_emulated_boards(device: str, cpu: str | None, kind: str, features: set[str]) -> None:
    _program(load_profile(device).arch)
    try:
        with EmulatedBoard(device, cpu) as board, resolve_transport(board.profile) as transport:
            probe = probe_device(transport)
            profile = profile_from_probe(probe, "board", board.profile.ssh)
    except ToolchainError as error:
        pytest.skip(str(error))
    assert (profile.cpu, profile.features) == (kind, features)
    assert [(k.name, k.count) for k in profile.core_kinds] == [(kind, load_profile(device).cores)]
    assert probe.measured is None, "an emulator's times are never taken"
    assert profile.peaks.int8_gmacs.provenance == "static"
    assert bool(probe.disagreements) == (cpu is not None)


@pytest.mark.slow
@pytest.mark.ssh
@pytest.mark.qemu
@pytest.mark.parametrize(
    ("name", "kind", "features"),
    [
        ("system-a53", "cortex-a53", {"neon"}),
        ("system-a72", "cortex-a72", {"neon"}),
        ("system-a76", "cortex-a76", {"neon", "fp16", "dotprod"}),
    ],
)
def test_profiles_of_whole_emulated_machines(name: str, kind: str, features: set[str]) -> None:
    from bevel.devices.boards.catalog import emulated_board

    _program("aarch64")
    try:
        with emulated_board(name) as board, resolve_transport(board.profile) as transport:
            profile = profile_from_probe(probe_device(transport), "board", board.profile.ssh)
    except ToolchainError as error:
        pytest.skip(str(error))
    assert (profile.cpu, profile.features) == (kind, features)
    assert profile.core_kinds[0].count == 2
    assert profile.kernel is not None
    assert profile.peaks.int8_gmacs.provenance == "static"


@pytest.mark.ssh
@pytest.mark.qemu
def test_a_dot_product_artifact_is_refused_before_it_runs(
    board: EmulatedBoard, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By comparing features: nothing is sent, and no instruction traps."""
    assert board.profile.ssh is not None
    work = board.root / "work-of-a72"
    profile = save_profile(replace(board.profile, name="a72", ssh=replace(board.profile.ssh, workdir=str(work))))
    assert run(capfd, "compile", KWS, "--device", "raspberry-pi-5", "-o", tmp_path / "kws.bevel")[0] == 0
    code, answer = run(capfd, "run", tmp_path / "kws.bevel", "--selftest", "--device", profile)
    assert (code, answer["error"]["kind"]) == (4, "IllegalInstruction")
    assert "lacks dotprod, fp16" in answer["error"]["message"]
    assert not (work / "artifacts").exists()


def run(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as leave:
        main([*map(str, args), "--json"])
    assert isinstance(leave.value.code, int)
    return leave.value.code, json.loads(capfd.readouterr().out)


# This machine -----------------------------------------------------------------------------------------------------------


def test_figures_of_this_machine_are_used_once_measured() -> None:
    before = detect_host()
    with resolve_transport(before) as transport:
        probe = probe_device(transport, quick=True)
    assert probe.features == before.features
    rates = (Rate("fp32", "fmla", 123.0, 0.0, 5.0, 9), Rate("int8", "madd", 456.0, 0.0, 5.0, 9))
    reads = {level: Rate("read", level, 10.0, 0.0, 5.0, 7) for level in ("l1", "dram")}
    path = figures_file(probe.info.cpuinfo, probe.info.arch)
    save_profile(profile_from_probe(replace(probe, measured=Measured(0, 5.0, rates, reads, 9.0, {})), path.stem, None), path)
    after = detect_host()
    assert (after.peaks.int8_gmacs.value, after.peaks.int8_gmacs.provenance, after.clock_ghz) == (456.0, "measured", 5.0)
    assert (after.name, after.target()) == (before.name, before.target())
    assert after.probed == probe.date
