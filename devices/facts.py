"""What a device's operating system says of it without being measured: kinds of cores, caches, governors, sensors, clocks.

One shell script of built-ins prints files of procfs and sysfs as PATH=CONTENT; nothing has to be installed and no process is
started per file. In: that text and /proc/cpuinfo. Out: `Facts`. What a device does not tell is empty or None.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bevel.devices.host import core_name
from bevel.devices.profile import CoreKind
from bevel.devices.transport import Transport
from bevel.ir.protocols import Cache

# $1: root of the file system. `read` drops NUL bytes, which end strings of the device tree.
SCRIPT = r"""
cd -- "$1" || exit 73
say() { for file; do [ -r "$file" ] && IFS= read -r line <"$file"; [ -n "$line" ] && echo "$file=$line"; line=; done; }
{
say proc/device-tree/model sys/class/dmi/id/product_name proc/sys/kernel/perf_event_paranoid
say sys/devices/system/clocksource/clocksource0/*_clocksource
say sys/devices/cpu_core/cpus sys/devices/cpu_atom/cpus sys/devices/system/cpu/online
for cpu in sys/devices/system/cpu/cpu[0-9]*; do
    say "$cpu"/regs/identification/midr_el1 "$cpu"/cpu_capacity "$cpu"/cpufreq/cpuinfo_max_freq
    for index in "$cpu"/cache/index*; do say "$index"/level "$index"/type "$index"/size "$index"/coherency_line_size; done
done
for policy in sys/devices/system/cpu/cpufreq/policy*; do
    say "$policy"/scaling_governor "$policy"/scaling_available_governors "$policy"/scaling_max_freq "$policy"/related_cpus
done
say sys/class/thermal/thermal_zone*/type sys/class/thermal/thermal_zone*/temp
say sys/class/powercap/*/name sys/class/powercap/*/energy_uj
for sensor in sys/class/hwmon/hwmon*; do
    say "$sensor"/name
    for file in "$sensor"/power*_input "$sensor"/energy*_input "$sensor"/curr*_input; do say "$file"; done
done
for loader in lib/ld-linux* lib64/ld-linux* lib/ld-musl-* system/bin/linker*; do [ -e "$loader" ] && echo "loader=/$loader"; done
} 2>/dev/null
:
"""
# Kinds of core built for economy: the others of a machine are faster where the system ranks none.
_LITTLE = {"cortex-a7", "cortex-a35", "cortex-a53", "cortex-a55", "cortex-a510", "cortex-a520"}


@dataclass(frozen=True)
class Governor:
    """Frequency control of some CPUs: the governor in force, those on offer, and the cap in GHz where there is one."""

    name: str
    available: tuple[str, ...]
    cpus: str
    cap_ghz: float | None


@dataclass(frozen=True)
class Facts:
    """What the system says.

    Attributes:
        model: the board or machine; empty where unknown.
        core_kinds: cores by kind, fastest kind first.
        caches: data caches of a core of the fastest kind, nearest first.
        governors: one for each group of CPUs that share a clock.
        temperatures_c: thermal zones by name.
        clock_sources: the one in force first, then the others on offer.
        perf_event_paranoid: the kernel's restriction of performance counters.
        energy: sources of energy or power readings this user may read.
        loaders: dynamic loaders of C libraries.
    """

    model: str
    core_kinds: tuple[CoreKind, ...]
    caches: tuple[Cache, ...]
    governors: tuple[Governor, ...]
    temperatures_c: Mapping[str, float]
    clock_sources: tuple[str, ...]
    perf_event_paranoid: int | None
    energy: tuple[str, ...]
    loaders: tuple[str, ...]


def own_kernel(emulator: str) -> bool:
    """False when programs run under qemu-user, whose kernel is that of another machine; `emulator` as in `BoardInfo`."""
    program = emulator.split()[0].rpartition("/")[2] if emulator else ""
    return not program.startswith("qemu-") or program.startswith("qemu-system-")


def read_facts(transport: Transport, midr: Mapping[int, int] | None = None) -> Facts:
    """Facts of an open device; without those of the kernel when that is another machine's."""
    info = transport.info
    text = ""
    if own_kernel(info.emulator):
        text = transport.run(["sh", "-c", SCRIPT, "facts", "/"]).stdout.decode(errors="replace")
    return parse_facts(text, info.cpuinfo, midr)


def parse_facts(text: str, cpuinfo: str, midr: Mapping[int, int] | None = None) -> Facts:
    """Read `SCRIPT`'s output.

    Args:
        text: what the script printed.
        cpuinfo: text of /proc/cpuinfo.
        midr: main ID register by CPU, where a program could read it; what sysfs says comes first.
    """
    pairs = [line.partition("=") for line in text.splitlines()]
    files = {path: value.replace("\0", "").strip() for path, _, value in pairs if path != "loader"}
    kinds = _core_kinds(files, cpuinfo, midr or {})
    current = files.get(f"{_CLOCKS}/current_clocksource", "")
    offered = files.get(f"{_CLOCKS}/available_clocksource", "").split()
    return Facts(
        model=files.get("proc/device-tree/model") or files.get("sys/class/dmi/id/product_name", ""),
        core_kinds=kinds,
        caches=_caches(files, kinds[0].cpus[0] if kinds else 0),
        governors=_governors(files),
        temperatures_c=_temperatures(files),
        clock_sources=tuple(dict.fromkeys(name for name in (current, *offered) if name)),
        perf_event_paranoid=_integer(files.get("proc/sys/kernel/perf_event_paranoid")),
        energy=_energy(files),
        loaders=tuple(value for path, _, value in pairs if path == "loader"),
    )


_CLOCKS = "sys/devices/system/clocksource/clocksource0"
_CPU = "sys/devices/system/cpu/cpu"


def _integer(text: str | None) -> int | None:
    return int(text, 0) if text is not None and re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", text) else None


def cpu_list(text: str) -> tuple[int, ...]:
    """CPU numbers of a list as Linux writes it, such as "0-3,6"; empty for anything else."""
    found: list[int] = []
    for part in filter(None, text.replace(" ", ",").split(",")):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            return ()
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _cpuinfo_kinds(cpuinfo: str) -> dict[int, str]:
    """Kind of each CPU from /proc/cpuinfo: by ID register parts on ARM, by model name elsewhere."""
    kinds: dict[int, str] = {}
    for block in cpuinfo.split("\n\n"):
        fields = dict(re.findall(r"^(.*?)[ \t]*:[ \t]*(.*)$", block, re.MULTILINE))
        implementer, part = _integer(fields.get("CPU implementer")), _integer(fields.get("CPU part"))
        if not fields.get("processor", "").isdecimal():
            continue
        if implementer is not None and part is not None:
            kinds[int(fields["processor"])] = core_name(implementer << 24 | part << 4)
        else:
            kinds[int(fields["processor"])] = fields.get("model name", "")
    return kinds


def _core_kinds(files: Mapping[str, str], cpuinfo: str, midr: Mapping[int, int]) -> tuple[CoreKind, ...]:
    names = _cpuinfo_kinds(cpuinfo)
    online = cpu_list(files.get("sys/devices/system/cpu/online", "")) or tuple(names) or tuple(midr)
    hybrid = {cpu: kind for kind in ("core", "atom") for cpu in cpu_list(files.get(f"sys/devices/cpu_{kind}/cpus", ""))}
    groups: dict[str, list[int]] = {}
    for cpu in online:
        register = _integer(files.get(f"{_CPU}{cpu}/regs/identification/midr_el1")) or midr.get(cpu)
        # A kernel for one kind of core names it once.
        name = core_name(register) if register else names.get(cpu) or next(filter(None, names.values()), "")
        if not name and midr:
            name = core_name(next(iter(midr.values())))
        suffix = {"core": ", performance core", "atom": ", efficient core"}.get(hybrid.get(cpu, ""), "")
        groups.setdefault(name + suffix, []).append(cpu)
    kinds = []
    for name, cpus in groups.items():
        clocks = [khz for cpu in cpus if (khz := _integer(files.get(f"{_CPU}{cpu}/cpufreq/cpuinfo_max_freq")))]
        kinds.append(CoreKind(name, tuple(cpus), max(clocks) / 1e6 if clocks else None))
    return tuple(sorted(kinds, key=lambda kind: _rank(kind, files), reverse=True))


def _rank(kind: CoreKind, files: Mapping[str, str]) -> tuple[int, bool, float]:
    """Fastest last: by the capacity the scheduler goes by, then what the kind is built for, then the clock."""
    capacity = max(_integer(files.get(f"{_CPU}{cpu}/cpu_capacity")) or 0 for cpu in kind.cpus)
    economical = kind.name in _LITTLE or kind.name.endswith("efficient core")
    return capacity, not economical, kind.max_ghz or 0.0


def _caches(files: Mapping[str, str], cpu: int) -> tuple[Cache, ...]:
    caches = []
    for index in range(8):
        path = f"{_CPU}{cpu}/cache/index{index}"
        level, kind, size = (files.get(f"{path}/{name}", "") for name in ("level", "type", "size"))
        match = re.fullmatch(r"(\d+)([KM]?)", size)
        if match is None or not level.isdecimal() or kind == "Instruction":
            continue
        line = _integer(files.get(f"{path}/coherency_line_size")) or 64
        caches.append(Cache(int(level), int(match[1]) * {"": 1, "K": 1024, "M": 1024**2}[match[2]], line))
    return tuple(sorted(caches, key=lambda cache: cache.level))


def _governors(files: Mapping[str, str]) -> tuple[Governor, ...]:
    found = []
    for path, name in files.items():
        if not path.endswith("/scaling_governor"):
            continue
        folder = path.rpartition("/")[0]
        cap = _integer(files.get(f"{folder}/scaling_max_freq"))
        available = tuple(files.get(f"{folder}/scaling_available_governors", "").split())
        found.append(Governor(name, available, files.get(f"{folder}/related_cpus", ""), cap / 1e6 if cap else None))
    return tuple(found)


def _temperatures(files: Mapping[str, str]) -> dict[str, float]:
    zones = {}
    for path, value in files.items():
        match = re.fullmatch(r"sys/class/thermal/(thermal_zone\d+)/temp", path)
        milli = _integer(value)
        if match and milli is not None:
            kind = files.get(f"sys/class/thermal/{match[1]}/type", match[1])
            zones[kind if kind not in zones else f"{kind} ({match[1]})"] = milli / 1e3
    return zones


def _energy(files: Mapping[str, str]) -> tuple[str, ...]:
    """Readable energy counters and power sensors, by name and file."""
    found = []
    for path in files:
        folder, _, file = path.rpartition("/")
        if file == "energy_uj" or re.fullmatch(r"(power|energy|curr)\d+_input", file):
            found.append(f"{files.get(f'{folder}/name', 'sensor')}: /{path}")
    return tuple(found)


def governor_advice(governors: Iterable[Governor]) -> str | None:
    """The command that makes clocks steady for measuring, None where they are."""
    weak = [governor for governor in governors if governor.name != "performance" and "performance" in governor.available]
    if not weak:
        return None
    return "echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
