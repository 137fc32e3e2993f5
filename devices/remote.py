"""The shell scripts a device runs for bevel, and the parsers of what they print.

Scripts are POSIX sh plus `timeout`, `setsid`, `dd`, `od`, `df` and `sha256sum`, which coreutils and busybox both have. Every
command goes through `LAUNCH`, whose last line on standard error is a trailer with a nonce: without the trailer the result is
lost, whatever exit status the connection reports. The trailer travels in the stream because a file would need room on a disk
that may just have filled up.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from bevel.devices.host import cpu_features, normalize_arch

# The job and its guard each lead a session of their own, so that one kill reaches all their children. The guard reads the
# client's heartbeat from the connection; end of file (connection closed, SSH server killed, client interrupted) or silence
# (link down) ends the job. It reads it as standard input: shells such as Android's mksh keep other descriptors from children.
# toybox's timeout puts the program into a group of its own, out of that kill's reach, unless it is told not to; busybox's does
# not, and knows no such option. The wait's status is 128 + signal for a job that a signal ended.
LAUNCH = r"""
nonce=$1 limit=$2 patience=$3 input=$4; shift 4
export LC_ALL=C
exec 3<&0
read -r begin idle </proc/uptime
timeout --foreground 9 true 2>/dev/null && group=--foreground || group=
setsid timeout $group -k 1 "$limit" "$@" <"$input" 3<&- &
job=$!
setsid sh -c '
while [ -n "$(timeout "$2" dd bs=1 count=1 2>/dev/null)" ]; do :; done
kill -s TERM -- "-$1" "$1"; sleep 1; kill -s KILL -- "-$1" "$1"
' guard "$job" "$patience" <&3 >/dev/null 2>&1 &
guard=$!
exec 3<&-
wait "$job"
status=$?
kill -s KILL -- "-$guard" "$guard" "-$job" 2>/dev/null
read -r end idle </proc/uptime
printf '\n%s %s %s %s\n' "$nonce" "$status" "$begin" "$end" >&2
"""

TOOLS = ("timeout", "setsid", "dd", "od", "df", "sha256sum", "env", "mv", "chmod", "rm")

# Names a process such that no other ever has the name: number, start time since boot, boot; nothing when it is gone.
BORN = r"""
born() {
    read -r stat 2>/dev/null </proc/"$1"/stat || return
    read -r boot </proc/sys/kernel/random/boot_id
    echo "$1-$(set -- ${stat##*) }; shift 19; echo "$1")-$boot"
}
"""

# $1: work directory. First removes what nobody holds or wants any more: scratch directories that a reboot left, parts of files
# that were cut off three days ago, and parts under 1 MiB (2048 blocks), which are sent again.
PROBE = (
    BORN
    + r"""
mkdir -p -- "$1" && cd -- "$1" || exit 73
for folder in .scratch-*; do
    owner=${folder#.scratch-}
    [ ! -d "$folder" ] || [ "$(born "${owner%%-*}")" = "$owner" ] || rm -rf -- "$folder"
done
find .part-* -prune '(' -mtime +2 -o -mmin +1 -size -2048 ')' -exec rm -f -- {} \; 2>/dev/null
echo "workdir=$(pwd -P)"
echo "machine=$(uname -m)"
echo "kernel=$(uname -r)"
echo "boot_id=$(cat /proc/sys/kernel/random/boot_id)"
echo "libc=$(getconf GNU_LIBC_VERSION 2>/dev/null || { command -v ldd >/dev/null && ldd --version 2>&1 | head -n 1; })"
emulator=${BEVEL_BOARD_EMULATOR-$(cat /etc/bevel-emulated 2>/dev/null)}
[ -n "$emulator" ] || ! grep -q linux,dummy-virt /proc/device-tree/compatible 2>/dev/null || emulator="qemu's virt machine"
echo "emulator=$emulator"
"""
    + f'for tool in {" ".join(TOOLS)}; do command -v "$tool" >/dev/null || echo "missing=$tool"; done\n'
    + r"""
echo "disk=$(df -Pk . | tail -n 1)"
while read -r key value unit; do echo "$key$value"; done </proc/meminfo | grep -E '^Mem(Total|Available):'
echo; cat /proc/mounts; echo; cat /proc/cpuinfo
"""
)

# $1: program. Prints what it is, whether it may be executed, and its first bytes.
INSPECT = r"""
[ -e "$1" ] || { echo absent; exit; }
[ -x "$1" ] && echo executable || echo refused
df -Pk -- "$1" | tail -n 1
od -An -v -tx1 -N 20 -- "$1"
echo; cat /proc/mounts
"""


# $1: work directory; then two arguments for each file to send: its sha256, and the name it shall have on the way, which begins
# with .part-SHA256-. What a lost connection left of it gets that name, unless it grows: then another process is sending it.
# Prints size and sha256 of each, or -.
CLAIM = r"""
cd -- "$1" || exit; shift
while [ $# -gt 0 ]; do
    for part in .part-"$1"-*; do
        [ -f "$part" ] && size=$(wc -c <"$part") || continue
        sleep 0.3 2>/dev/null || sleep 1
        [ "$size" = "$(wc -c <"$part" || :)" ] && mv -- "$part" "$2" && break
    done 2>/dev/null
    [ -f "$2" ] && echo $(wc -c <"$2") $(sha256sum <"$2") || echo -
    shift 2
done
"""

# Four arguments for each uploaded file: its part, its place, its sha256, its mode. Prints the parts that arrived damaged and
# those that are gone, because another process that sends the same file thought them abandoned.
INSTALL = r"""
has() { [ -f "$1" ] && sum=$(sha256sum <"$1") && [ "${sum%% *}" = "$2" ]; }
while [ $# -gt 0 ]; do
    if has "$1" "$3"; then chmod "$4" "$1" && mv -f -- "$1" "$2" || exit
    elif [ -f "$1" ]; then echo "damaged $1"
    else has "$2" "$3" || echo "gone $1"; fi
    shift 4
done
"""


@dataclass(frozen=True)
class BoardInfo:
    """What a probe found on a device.

    Attributes:
        arch: as in profiles; the `uname -m` text itself when bevel does not know it.
        kernel: kernel release.
        libc: C library and version as the device names it; empty when it does not say.
        features: ISA features, named as in profiles.
        boot_id: changes with every boot.
        memory_kib: total memory.
        memory_available_kib: memory a new program can have.
        disk_free_kib: room on the work directory's file system.
        noexec: True when that file system is mounted noexec.
        workdir: absolute path of the work directory.
        emulator: command line of the emulator when programs run emulated, else empty.
        cpuinfo: text of /proc/cpuinfo.
    """

    arch: str
    kernel: str
    libc: str
    features: frozenset[str]
    boot_id: str
    memory_kib: int
    memory_available_kib: int
    disk_free_kib: int
    noexec: bool
    workdir: str
    emulator: str
    cpuinfo: str


@dataclass(frozen=True)
class ProgramFacts:
    """What `INSPECT` found of a program before its first run."""

    exists: bool
    executable: bool
    noexec: bool
    head: bytes


@dataclass(frozen=True)
class Trailer:
    """The last line of a finished command: exit status (128 + n: ended by signal n) and seconds on the device's clock."""

    status: int
    seconds: float


def launch_command(argv: list[str], *, nonce: str, limit_s: int, patience_s: int, stdin: str = "/dev/null") -> str:
    """Shell command that runs `argv` under the device-side limit and reports through the trailer.

    Args:
        argv: program and arguments.
        nonce: word that marks the trailer.
        limit_s: seconds after which the device ends the program.
        patience_s: seconds without a heartbeat after which the device ends it.
        stdin: file on the device the program reads.
    """
    return shlex.join(["sh", "-c", LAUNCH, "bevel", nonce, str(limit_s), str(patience_s), stdin, *argv])


def split_trailer(stderr: bytes, nonce: str) -> tuple[bytes, Trailer | None]:
    """Separate a command's standard error from its trailer; None when the trailer did not arrive whole."""
    match = re.search(rb"\n%s (\d+) (\d+\.\d+) (\d+\.\d+)\n" % nonce.encode(), stderr)
    if match is None:
        return stderr, None
    status, begin, end = int(match[1]), float(match[2]), float(match[3])
    return stderr[: match.start()], Trailer(status, round(end - begin, 2))


def is_noexec(mounts: str, mount_point: str) -> bool:
    """Whether /proc/mounts shows `mount_point` as noexec; the last line of a point is the one in effect."""
    options = [line.split()[3].split(",") for line in mounts.splitlines() if line.split()[1:2] == [mount_point]]
    return bool(options) and "noexec" in options[-1]


def parse_probe(text: str) -> tuple[BoardInfo, list[str]]:
    """Read `PROBE`'s output: the board, and the tools it lacks.

    Raises:
        ValueError: the output is not a probe's.
    """
    head, mounts, cpuinfo = text.split("\n\n", 2)
    pairs = [line.partition("=") for line in head.splitlines() if "=" in line]
    values = {key: value for key, _, value in pairs}
    memory = dict(re.findall(r"^(Mem\w+):(\d+)", head, re.MULTILINE))
    arch = normalize_arch(values["machine"])
    missing = [value for key, _, value in pairs if key == "missing"]
    disk = values["disk"].split(None, 5) if "df" not in missing else ["", "0", "0", "0", "0%", "/"]
    return (
        BoardInfo(
            arch=arch,
            kernel=values["kernel"],
            libc=values["libc"],
            features=cpu_features(cpuinfo, arch),
            boot_id=values["boot_id"],
            memory_kib=int(memory["MemTotal"]),
            memory_available_kib=int(memory.get("MemAvailable", 0)),
            disk_free_kib=int(disk[3]),
            noexec=is_noexec(mounts, disk[5]),
            workdir=values["workdir"],
            emulator=values["emulator"],
            cpuinfo=cpuinfo,
        ),
        missing,
    )


def parse_inspection(text: str) -> ProgramFacts:
    """Read `INSPECT`'s output."""
    head, _, mounts = text.partition("\n\n")
    lines = head.splitlines()
    if lines[0] == "absent":
        return ProgramFacts(False, False, False, b"")
    mount_point = lines[1].split(None, 5)[5]
    return ProgramFacts(True, lines[0] == "executable", is_noexec(mounts, mount_point), bytes.fromhex("".join(lines[2:])))
