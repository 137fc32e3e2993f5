"""Detection of instruction set, CPU, caches and clock from sample /proc and /sys trees."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from bevel.devices.host import cpu_features, data_caches, detect_host, llvm_cpu, normalize_arch
from bevel.devices.profile import load_profile
from bevel.errors import UsageError
from bevel.ir.protocols import Cache

HASWELL = "fpu sse2 sse4_2 fma movbe popcnt avx f16c abm bmi1 avx2 bmi2"
SKYLAKE_512 = " avx512f avx512dq avx512cd avx512bw avx512vl adx rdseed clflushopt clwb pku aes pclmulqdq"
SAPPHIRE = HASWELL + SKYLAKE_512 + " avx512_vnni amx_tile amx_int8"


def x86(flags: str) -> str:
    return f"processor\t: 0\nmodel name\t: Some CPU\ncpu MHz\t\t: 3000.0\nflags\t\t: {flags}\nbugs\t\t:\n\n"


def arm(features: str, part: str) -> str:
    return f"processor\t: 0\nFeatures\t: {features}\nCPU implementer\t: 0x41\nCPU part\t: {part}\n\n"


X86_CASES = [
    (x86("fpu sse2"), {"sse2"}, "x86-64"),
    (x86(HASWELL), {"sse2", "avx2", "fma"}, "haswell"),
    (x86(HASWELL + " avx_vnni"), {"sse2", "avx2", "fma", "avx_vnni"}, "haswell"),
    (x86(HASWELL + SKYLAKE_512), {"sse2", "avx2", "fma", "avx512"}, "skylake-avx512"),
    (x86(SAPPHIRE), {"sse2", "avx2", "fma", "avx512", "avx512_vnni", "amx_int8"}, "cascadelake"),
    # A virtual machine that hides bmi2: LLVM's haswell would emit instructions that trap.
    (x86(HASWELL.replace(" bmi2", "")), {"sse2", "avx2", "fma"}, "x86-64"),
    # Two kinds of core: code may run on either.
    (x86(HASWELL) + x86("fpu sse2"), {"sse2"}, "x86-64"),
]
ARM_CASES = [
    (arm("fp asimd evtstrm crc32 cpuid", "0xd08"), {"neon"}, "cortex-a72"),
    (arm("fp asimd asimdhp asimddp", "0xd0b"), {"neon", "dotprod"}, "cortex-a76"),
    (arm("fp asimd asimddp i8mm", "0xd4f"), {"neon", "dotprod", "i8mm"}, "neoverse-v2"),
    (arm("fp asimd asimddp", "0xd05") + arm("fp asimd asimddp", "0xd0b"), {"neon", "dotprod"}, "cortex-a55"),
    (arm("fp asimd", "0xfff"), {"neon"}, "generic"),
]


@pytest.mark.parametrize(("cpuinfo", "features", "cpu"), X86_CASES)
def test_x86_features_and_cpu(cpuinfo: str, features: set[str], cpu: str) -> None:
    assert cpu_features(cpuinfo, "x86_64") == features
    assert llvm_cpu(cpuinfo, "x86_64") == cpu


@pytest.mark.parametrize(("cpuinfo", "features", "cpu"), ARM_CASES)
def test_arm_features_and_cpu(cpuinfo: str, features: set[str], cpu: str) -> None:
    assert cpu_features(cpuinfo, "aarch64") == features
    assert llvm_cpu(cpuinfo, "aarch64") == cpu


@pytest.mark.parametrize(
    ("machine", "arch"),
    [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("arm64", "aarch64"), ("armv7l", "armv7"), ("riscv64", "riscv64")],
)
def test_machine_names(machine: str, arch: str) -> None:
    assert normalize_arch(machine) == arch


def tree(root: Path, cpuinfo: str, khz: int | None = None) -> tuple[Path, Path]:
    proc, sysfs = root / "proc", root / "sys"
    proc.mkdir()
    (proc / "cpuinfo").write_text(cpuinfo)
    (proc / "meminfo").write_text("MemTotal:        2048000 kB\nMemFree: 1 kB\n")
    caches = [("Data", 1, "32K"), ("Instruction", 1, "64K"), ("Unified", 2, "1M")]
    for index, (kind, level, size) in enumerate(caches):
        folder = sysfs / f"devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        for name, value in {"type": kind, "level": level, "size": size, "coherency_line_size": 64}.items():
            (folder / name).write_text(f"{value}\n")
    if khz is not None:
        folder = sysfs / "devices/system/cpu/cpu0/cpufreq"
        folder.mkdir()
        (folder / "cpuinfo_max_freq").write_text(f"{khz}\n")
    return proc, sysfs


def test_caches_leave_out_instructions(tmp_path: Path) -> None:
    _, sysfs = tree(tmp_path, "")
    assert data_caches(sysfs) == (Cache(1, 32 * 1024), Cache(2, 1024**2))
    assert data_caches(tmp_path / "nothing") == ()


def test_host_takes_the_figures_of_its_class_at_its_clock(tmp_path: Path) -> None:
    proc, sysfs = tree(tmp_path, x86(SAPPHIRE), khz=5_400_000)
    host = detect_host(proc, sysfs, "x86_64")
    base = load_profile("x86-64-amx")
    assert host.name == "host"
    assert host.memory_mib == 2000
    assert host.peaks.int8_gmacs.value == pytest.approx(2 * base.peaks.int8_gmacs.value)
    assert host.peaks.int8_gmacs.provenance == "static"
    assert host.peaks.launch_us.value == pytest.approx(base.peaks.launch_us.value / 2)
    assert host.peaks.bandwidth_gbs["dram"].value == base.peaks.bandwidth_gbs["dram"].value
    assert {"+avx512vnni", "+amx-int8", "+avx2"} <= set(host.attrs)


def test_arm_host(tmp_path: Path) -> None:
    proc, sysfs = tree(tmp_path, arm("fp asimd fphp asimdhp asimddp", "0xd0b"), khz=2_400_000)
    host = detect_host(proc, sysfs, "aarch64")
    assert (host.cpu, host.triple, set(host.attrs)) == ("cortex-a76", "aarch64-linux-gnu", {"+neon", "+dotprod", "+fullfp16"})
    assert host.peaks.fp32_gmacs.value == load_profile("raspberry-pi-5").peaks.fp32_gmacs.value


def test_cpu_without_kernels_is_a_usage_error(tmp_path: Path) -> None:
    proc, sysfs = tree(tmp_path, "isa : rv64gc\n")
    with pytest.raises(UsageError, match="this machine is riscv64"):
        detect_host(proc, sysfs, "riscv64")
    with pytest.raises(UsageError, match="needs Linux"):
        detect_host(tmp_path / "none", sysfs, "x86_64")


def test_this_machine_is_detected() -> None:
    host = load_profile("host")
    assert host.arch == normalize_arch(platform.machine())
    # Both architectures' 64-bit baselines.
    assert host.features >= {{"x86_64": "sse2", "aarch64": "neon"}[host.arch]}
