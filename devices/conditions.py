"""Under which conditions a device measures: who it is, how hot, how fast it may run, and who else is using it.

One small script asks the device before a session and after each of its processes. In: an open `Transport`. Out: `Sample`, the
fingerprint its times are stored under, and the CPUs to measure on. What a device does not tell is None.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from bevel.devices.errors import RemoteFailed
from bevel.devices.host import llvm_cpu
from bevel.devices.measurements import DeviceFingerprint
from bevel.devices.transport import Transport

# $1: root of procfs, $2: root of sysfs. Shell built-ins alone, but for the identity: looking must not disturb.
SCRIPT = r"""
say() { [ -r "$2" ] && read -r line <"$2" && echo "$1=$line"; }
say boot_id "$1/sys/kernel/random/boot_id"
say machine /etc/machine-id || { command -v getprop >/dev/null && echo "machine=$(getprop ro.serialno)"; }
while read -r key value rest; do
    [ "$key" = Serial ] && echo "serial=$rest"
    [ "$key" = Cpus_allowed_list: ] && echo "allowed=$value"
done <<END
$(cat "$1/cpuinfo" "$1/self/status" 2>/dev/null)
END
say stat "$1/stat"
say load "$1/loadavg"
say online "$2/devices/system/cpu/online"
for cpu in "$2"/devices/system/cpu/cpu[0-9]*; do
    number=${cpu##*/cpu}
    say "max.$number" "$cpu/cpufreq/cpuinfo_max_freq"
    say "khz.$number" "$cpu/cpufreq/scaling_cur_freq"
    say "governor.$number" "$cpu/cpufreq/scaling_governor"
    say "siblings.$number" "$cpu/topology/thread_siblings_list"
done
for zone in "$2"/class/thermal/thermal_zone*/temp; do say mc "$zone" 2>/dev/null; done
:
"""
# Columns of /proc/stat's first line: user nice system idle iowait irq softirq steal; guest time is within user.
_IDLE, _IOWAIT, _STEAL, _COLUMNS = 3, 4, 7, 8


@dataclass(frozen=True)
class Cpu:
    """One CPU of a device.

    Attributes:
        number: as the system counts.
        max_khz: highest clock; 0 where unknown.
        core: lowest number of the CPUs that share its core.
    """

    number: int
    max_khz: int
    core: int


@dataclass(frozen=True)
class Sample:
    """What the device said at one moment.

    Attributes:
        boot_id: changes with every boot.
        machine: hash of the machine's identity; empty where it has none.
        governor: of the CPUs, "mixed" where they differ.
        khz: current clock of the fastest CPU.
        temperature_c: of the hottest zone, degrees Celsius.
        load: the system's one-minute load average.
        ticks: time of all CPUs together, busy time and time the hypervisor took, since boot, in the same unit.
        count: CPUs that are on.
        cpus: those of them this user may run on.
    """

    boot_id: str
    machine: str
    governor: str | None
    khz: int | None
    temperature_c: float | None
    load: float | None
    ticks: tuple[int, int, int] | None
    count: int
    cpus: tuple[Cpu, ...]

    def busy_since(self, earlier: Sample) -> tuple[float, float] | None:
        """Mean number of CPUs that were busy since an earlier sample, and that the hypervisor took; None where it is not told."""
        if self.ticks is None or earlier.ticks is None or self.boot_id != earlier.boot_id:
            return None
        total, busy, stolen = (now - then for now, then in zip(self.ticks, earlier.ticks, strict=True))
        return (busy / total * self.count, stolen / total * self.count) if total > 0 else None


def sample(transport: Transport, proc: str = "/proc", sysfs: str = "/sys") -> Sample:
    """Ask the device.

    Raises:
        DeviceError: the device cannot be asked.
    """
    result = transport.run(["sh", "-c", SCRIPT, "conditions", proc, sysfs])
    if result.exit_status != 0:
        message = result.stderr.decode(errors="replace").strip()
        raise RemoteFailed(transport.label, f"its conditions cannot be read ({message})", "The device must run Linux")
    return parse_sample(result.stdout.decode(errors="replace"))


def parse_sample(text: str) -> Sample:
    """Read the script's output."""
    pairs = [line.partition("=")[::2] for line in text.splitlines()]
    values = dict(reversed(pairs))
    clocks = [int(value) for key, value in pairs if key.startswith("khz.") and value.isdigit()]
    governors = {value for key, value in pairs if key.startswith("governor.")}
    heat = [int(value) for key, value in pairs if key == "mc" and re.fullmatch(r"-?\d+", value)]
    identity = f"{values.get('serial', '')} {values.get('machine', '')}".strip()
    fields = values.get("stat", "").split()[1 : 1 + _COLUMNS]
    ticks = None
    if len(fields) == _COLUMNS and all(field.isdigit() for field in fields):
        counts = [int(field) for field in fields]
        ticks = (sum(counts), sum(counts) - counts[_IDLE] - counts[_IOWAIT] - counts[_STEAL], counts[_STEAL])
    load = re.match(r"\d+\.\d+", values.get("load", ""))
    allowed = cpu_list(values.get("allowed", ""))
    return Sample(
        boot_id=values.get("boot_id", ""),
        # Hashed: a machine's id is meant to stay on it.
        machine=hashlib.sha256(f"bevel {identity}".encode()).hexdigest()[:16] if identity else "",
        governor=governors.pop() if len(governors) == 1 else ("mixed" if governors else None),
        khz=max(clocks, default=None),
        temperature_c=max(heat) / 1000 if heat else None,
        load=float(load[0]) if load else None,
        ticks=ticks,
        count=len(cpu_list(values.get("online", ""))) or len(allowed) or 1,
        cpus=tuple(_cpu(number, values) for number in allowed),
    )


def cpu_list(text: str) -> tuple[int, ...]:
    """Numbers of a list as Linux writes it, such as "0-3,6"."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if match is not None:
            numbers += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(numbers)


def _cpu(number: int, values: dict[str, str]) -> Cpu:
    most, siblings = values.get(f"max.{number}", ""), cpu_list(values.get(f"siblings.{number}", ""))
    return Cpu(number, int(most) if most.isdigit() else 0, min(siblings, default=number))


def choose_cpus(cpus: Sequence[Cpu], threads: int) -> tuple[int, ...]:
    """CPUs to measure `threads` threads on; empty when there are fewer.

    The fastest, one a core as long as there are cores, and away from CPU 0, where most systems handle interrupts.
    """
    if len(cpus) < threads:
        return ()
    order = sorted(cpus, key=lambda cpu: (-cpu.max_khz, -cpu.number))
    first: dict[int, Cpu] = {}
    for cpu in order:
        first.setdefault(cpu.core, cpu)
    ranked = [*first.values(), *(cpu for cpu in order if first[cpu.core] is not cpu)]
    return tuple(sorted(cpu.number for cpu in ranked[:threads]))


def fingerprint(transport: Transport, name: str, found: Sample) -> DeviceFingerprint:
    """What times measured through `transport` are true for.

    Args:
        transport: open.
        name: of the device's profile.
        found: its conditions.
    """
    info = transport.info
    model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", info.cpuinfo, re.MULTILINE)
    cpu = llvm_cpu(info.cpuinfo, info.arch) + (f" ({model[1].strip()})" if model else "")
    return DeviceFingerprint(
        name, info.arch, cpu, tuple(sorted(info.features)), info.kernel, found.machine, emulated=transport.emulated
    )
