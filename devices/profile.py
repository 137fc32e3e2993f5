"""Device profiles: what a board is, what it can do and how to reach it, as TOML files.

In: `devices/profiles/*.toml` as shipped, and the user's own files in `$BEVEL_HOME/devices` (default ~/.config/bevel/devices),
which shadow shipped ones of the same name. Out: `Profile`, from which code generation takes a `Target`, the cost model its
roofline figures and the transport an address. `host` is not a file: it is detected on the machine at hand.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from bevel.errors import UsageError
from bevel.ir.protocols import Cache, Target

ARCHES = ("x86_64", "aarch64", "armv7")
PROVENANCES = ("measured", "static", "datasheet")
FEATURES = frozenset(
    {"sse2", "avx2", "fma", "avx_vnni", "avx512", "avx512_vnni", "avx512_vpopcntdq", "amx_int8"}
    | {"neon", "vfpv4", "fp16", "dotprod", "i8mm"},
)
OPTIONAL_PEAKS = ("popcount_gbytes", "table_gbytes")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDRESS = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[^\]]+\]|[^@:\s\[\]]+)(?::(?P<port>\d+))?")


@dataclass(frozen=True)
class Figure:
    """One peak figure and where it came from.

    Attributes:
        value: in the unit of the figure's name (gmacs: 1e9 multiply-accumulates per second, gbs: 1e9 bytes per second,
            us: microseconds).
        provenance: "measured", "static" (derived from instruction timings) or "datasheet".
        source: how it was obtained, for reports.
    """

    value: float
    provenance: str
    source: str


@dataclass(frozen=True)
class Peaks:
    """Roofline figures of ONE core.

    Attributes:
        fp32_gmacs: float32 multiply-accumulates.
        int8_gmacs: 8-bit multiply-accumulates into int32.
        launch_us: fixed cost of one kernel call.
        bandwidth_gbs: streaming read by level, nearest first: "l1", "l2", "l3" (where there is one), "dram".
        popcount_gbytes: bytes whose set bits are counted; None where nobody measured.
        table_gbytes: bytes looked up in a table of 16; None where nobody measured.
    """

    fp32_gmacs: Figure
    int8_gmacs: Figure
    launch_us: Figure
    bandwidth_gbs: Mapping[str, Figure]
    popcount_gbytes: Figure | None = None
    table_gbytes: Figure | None = None


@dataclass(frozen=True)
class CoreKind:
    """Cores of one kind; a big.LITTLE machine has several.

    Attributes:
        name: such as "cortex-a76"; LLVM's name where it knows the kind.
        cpus: numbers the operating system gives them.
        max_ghz: highest clock, None where the system does not say.
    """

    name: str
    cpus: tuple[int, ...]
    max_ghz: float | None = None

    @property
    def count(self) -> int:
        """Number of cores."""
        return len(self.cpus)


@dataclass(frozen=True)
class Ssh:
    """How to reach a device. Anything left out comes from ~/.ssh/config and the agent, as for `ssh` itself.

    Attributes:
        host: name, address or alias of ~/.ssh/config.
        user: login name.
        port: TCP port.
        known_hosts: file of accepted host keys; default ~/.ssh/known_hosts. Unknown keys are never accepted.
        identity: private key file.
        config: OpenSSH client configuration read instead of ~/.ssh/config.
        workdir: directory on the device that bevel owns; relative to the login directory unless absolute.
    """

    host: str
    user: str | None = None
    port: int | None = None
    known_hosts: str | None = None
    identity: str | None = None
    config: str | None = None
    workdir: str = ".cache/bevel"

    @property
    def address(self) -> str:
        """The spelling used in profiles and messages: user@host:port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}"[0 if self.user else 5 :] + (f":{self.port}" if self.port else "")

    @property
    def command(self) -> str:
        """The command with which one logs in likewise by hand, for messages."""
        files = {"-F ": self.config, "-i ": self.identity, "-o UserKnownHostsFile=": self.known_hosts}
        parts = ["ssh"]
        for option, path in files.items():
            # The shell expands no home directory in what is quoted.
            parts += (option + str(Path(path).expanduser())).split(" ", 1) if path else []
        parts += ["-p", str(self.port)] if self.port else []
        return shlex.join([*parts, f"{self.user}@{self.host}" if self.user else self.host, "true"])


@dataclass(frozen=True)
class Adb:
    """How to reach an Android device.

    Attributes:
        serial: its number in `adb devices`, host:port for one on the network; None for the only device connected.
        workdir: directory on the device that bevel owns.
    """

    serial: str | None = None
    workdir: str = "/data/local/tmp/bevel"


@dataclass(frozen=True)
class Profile:
    """One device.

    Attributes:
        name: what `--device` takes.
        description: one line for listings.
        arch: "x86_64", "aarch64" or "armv7".
        cpu: LLVM -mcpu name.
        triple: LLVM target triple.
        attrs: LLVM target attributes.
        features: ISA features, a subset of `FEATURES`.
        cores: number of cores of the fastest kind.
        clock_ghz: clock the peak figures hold at.
        caches: data caches as one core sees them, nearest first.
        memory_mib: memory of the smallest variant of the device.
        peaks: roofline figures.
        ssh: address, None when the device has none.
        adb: Android device, None when it is none.
        qemu_cpu: what `qemu-user -cpu` calls this CPU; None when qemu cannot emulate its instruction set.
        core_kinds: its cores, fastest kind first; empty where nobody probed.
        kernel: release of the kernel it was probed with.
        libc: its C library, as the device names it.
        probed: date of the probe (ISO 8601).
    """

    name: str
    description: str
    arch: str
    cpu: str
    triple: str
    attrs: tuple[str, ...]
    features: frozenset[str]
    cores: int
    clock_ghz: float
    caches: tuple[Cache, ...]
    memory_mib: int
    peaks: Peaks
    ssh: Ssh | None = None
    adb: Adb | None = None
    qemu_cpu: str | None = None
    core_kinds: tuple[CoreKind, ...] = ()
    kernel: str | None = None
    libc: str | None = None
    probed: str | None = None

    def target(self) -> Target:
        """What code generation needs of this device."""
        return Target(
            name=self.name,
            arch=self.arch,
            features=self.features,
            cpu=self.cpu,
            triple=self.triple,
            attrs=self.attrs,
            caches=self.caches,
            cores=self.cores,
        )


def parse_address(text: str) -> tuple[str | None, str, int | None]:
    """Split "user@host:port" (user and port optional, IPv6 in brackets) into its parts.

    Raises:
        UsageError: the text has another form.
    """
    match = _ADDRESS.fullmatch(text.strip())
    if match is None or not 0 < int(match["port"] or 22) < 65536:
        raise UsageError(f"SSH address {text!r} is not of the form user@host:port (user and port may be left out)")
    return match["user"], match["host"].strip("[]"), int(match["port"]) if match["port"] else None


def user_directory() -> Path:
    """Where the user's own profiles live: `$BEVEL_HOME/devices`, by default ~/.config/bevel/devices."""
    home = os.environ.get("BEVEL_HOME")
    return (Path(home) if home else Path("~/.config/bevel").expanduser()) / "devices"


def _files() -> dict[str, Path]:
    """Profile files by name, the user's own before shipped ones."""
    shipped = Path(str(resources.files("bevel.devices") / "profiles"))
    return {path.stem: path for folder in (shipped, user_directory()) for path in sorted(folder.glob("*.toml"))}


def list_profiles() -> list[str]:
    """Names `load_profile` accepts: "host" first, then shipped and user profiles by name."""
    return ["host", *sorted(_files().keys() - {"host"})]


def load_profile(name_or_path: str | Path) -> Profile:
    """Load a profile by name, or from a path ending in .toml.

    Raises:
        UsageError: no such profile (the message lists the known ones), or the file is damaged.
    """
    # Imported here: detection reads the shipped class profiles through this function.
    from bevel.devices.host import detect_host

    text = str(name_or_path)
    if text == "host":
        return detect_host()
    if text.endswith(".toml"):
        return _read(Path(text))
    files = _files()
    if text in files:
        return _read(files[text])
    known = list_profiles()
    close = difflib.get_close_matches(text, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise UsageError(
        f"unknown device {text!r}.{hint} Known: {', '.join(known)}. "
        f"Add your own as {user_directory()}/NAME.toml, or pass a path to a .toml file."
    )


def check_name(name: str) -> None:
    """Refuse names that no profile's file can have.

    Raises:
        UsageError: it has other characters, or means this machine.
    """
    if _NAME.fullmatch(name) is None or name == "host":
        raise UsageError(f"device name {name!r} cannot be saved: use letters, digits, '.', '_' and '-', and not 'host'")


def save_profile(profile: Profile, path: Path | None = None) -> Path:
    """Write a profile so that `load_profile` gives it back equal; by default into the user's folder.

    Raises:
        UsageError: the name cannot be a file name, or the file cannot be written.
    """
    check_name(profile.name)
    path = path or user_directory() / f"{profile.name}.toml"
    # Imported here: only writers need the printer.
    from bevel.devices.profile_text import format_profile

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(format_profile(profile), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"cannot write device profile {path}: {error.strerror}") from error
    return path


def remove_profile(name: str) -> Path:
    """Remove the user's own profile `name`; gives the file that was removed.

    Raises:
        UsageError: the user has no such profile, or it cannot be removed.
    """
    path = user_directory() / f"{name}.toml"
    own = sorted(p.stem for p in user_directory().glob("*.toml"))
    if name not in own:
        why = "it ships with bevel" if name in list_profiles() else "there is none"
        raise UsageError(f"no device profile {name!r} of your own to remove ({why}). Yours: {', '.join(own) or 'none'}")
    try:
        path.unlink()
    except OSError as error:
        raise UsageError(f"cannot remove device profile {path}: {error.strerror}") from error
    return path


@dataclass
class _Table:
    """One TOML table being read: typed access that names file and key, and refuses keys nobody asked for."""

    path: Path
    data: Mapping[str, Any]
    prefix: str = ""
    seen: set[str] = field(default_factory=set)

    def fail(self, key: str, problem: str) -> UsageError:
        return UsageError(f"device profile {self.path}: {self.prefix}{key} {problem}")

    def get(self, key: str, kind: type | tuple[type, ...], what: str, default: Any = ...) -> Any:
        self.seen.add(key)
        if key not in self.data:
            if default is ...:
                raise self.fail(key, f"is missing; expected {what}")
            return default
        value = self.data[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.fail(key, f"is {value!r}; expected {what}")
        return value

    def text(self, key: str, default: Any = ...) -> Any:
        return self.get(key, str, "a string", default)

    def positive(self, key: str, kind: type | tuple[type, ...] = (int, float)) -> Any:
        value = self.get(key, kind, "a positive number")
        if not 0 < value < float("inf"):
            raise self.fail(key, f"is {value!r}; expected a positive number")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.get(key, list, "a list of strings", [])
        if not all(isinstance(item, str) for item in value):
            raise self.fail(key, f"is {value!r}; expected a list of strings")
        return tuple(value)

    def table(self, key: str, what: str) -> _Table:
        return _Table(self.path, self.get(key, dict, what), f"{self.prefix}{key}.")

    def done(self) -> None:
        for key in self.data.keys() - self.seen:
            close = difflib.get_close_matches(key, self.seen, n=1)
            raise self.fail(key, "is not a known key" + (f"; did you mean {close[0]}?" if close else ""))


def _read(path: Path) -> Profile:
    """Parse and validate one profile file."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read device profile {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"device profile {path} is not valid TOML: {error}") from error
    top = _Table(path, data)
    name, arch, features = top.text("name"), top.text("arch"), frozenset(top.texts("features"))
    if name != path.stem:
        raise top.fail("name", f"is {name!r} but the file is {path.name}; they must agree")
    if arch not in ARCHES:
        raise top.fail("arch", f"is {arch!r}; expected one of {', '.join(ARCHES)}")
    if features - FEATURES:
        raise top.fail("features", f"has {', '.join(sorted(features - FEATURES))}; known: {', '.join(sorted(FEATURES))}")
    profile = Profile(
        name=name,
        description=top.text("description"),
        arch=arch,
        cpu=top.text("cpu"),
        triple=top.text("triple"),
        attrs=top.texts("attrs"),
        features=features,
        cores=top.positive("cores", int),
        clock_ghz=float(top.positive("clock_ghz")),
        caches=_read_caches(top),
        memory_mib=top.positive("memory_mib", int),
        peaks=_read_peaks(top.table("peaks", "a table of figures")),
        ssh=_read_ssh(top.table("ssh", "a table with an address")) if "ssh" in data else None,
        adb=_read_adb(top.table("adb", "a table with a serial")) if "adb" in data else None,
        qemu_cpu=top.text("qemu_cpu", None),
        core_kinds=_read_core_kinds(top),
        kernel=top.text("kernel", None),
        libc=top.text("libc", None),
        probed=top.text("probed", None),
    )
    top.seen |= {"ssh", "adb"}
    if profile.ssh is not None and profile.adb is not None:
        raise top.fail("adb", "and ssh are both given; keep the one by which the device is reached")
    top.done()
    return profile


def _read_caches(top: _Table) -> tuple[Cache, ...]:
    caches = []
    for index, entry in enumerate(top.get("caches", list, "a list of tables", [])):
        if not isinstance(entry, dict):
            raise top.fail(f"caches[{index}]", f"is {entry!r}; expected a table with level and kib")
        table = _Table(top.path, entry, f"caches[{index}].")
        line = table.positive("line", int) if "line" in entry else 64
        caches.append(Cache(table.positive("level", int), 1024 * table.positive("kib", int), line))
        table.seen.add("line")
        table.done()
    return tuple(sorted(caches, key=lambda cache: cache.level))


def _read_core_kinds(top: _Table) -> tuple[CoreKind, ...]:
    kinds = []
    for index, entry in enumerate(top.get("core_kinds", list, "a list of tables", [])):
        if not isinstance(entry, dict):
            raise top.fail(f"core_kinds[{index}]", f"is {entry!r}; expected a table with name and cpus")
        table = _Table(top.path, entry, f"core_kinds[{index}].")
        cpus = table.get("cpus", list, "a list of numbers")
        if not cpus or not all(isinstance(cpu, int) and cpu >= 0 for cpu in cpus):
            raise table.fail("cpus", f"is {cpus!r}; expected a list of numbers")
        clock = float(table.positive("max_ghz")) if "max_ghz" in entry else None
        kinds.append(CoreKind(table.text("name"), tuple(cpus), clock))
        table.seen.add("max_ghz")
        table.done()
    return tuple(kinds)


def _read_peaks(table: _Table) -> Peaks:
    def figure(parent: _Table, key: str) -> Figure:
        entry = parent.table(key, "a table with value, provenance and source")
        provenance = entry.text("provenance")
        if provenance not in PROVENANCES:
            raise entry.fail("provenance", f"is {provenance!r}; expected one of {', '.join(PROVENANCES)}")
        result = Figure(float(entry.positive("value")), provenance, entry.text("source"))
        entry.done()
        return result

    levels = table.table("bandwidth_gbs", "a table of levels")
    order = [level for level in ("l1", "l2", "l3", "dram") if level in levels.data or level in ("l1", "dram")]
    bandwidth = {level: figure(levels, level) for level in order}
    levels.done()
    popcount, lookup = (figure(table, key) if key in table.data else None for key in OPTIONAL_PEAKS)
    fp32, int8, launch = (figure(table, key) for key in ("fp32_gmacs", "int8_gmacs", "launch_us"))
    peaks = Peaks(fp32, int8, launch, bandwidth, popcount, lookup)
    table.done()
    return peaks


def _read_adb(table: _Table) -> Adb:
    result = Adb(serial=table.text("serial", None), workdir=table.text("workdir", Adb.workdir))
    if result.serial == "" or (result.serial or "").startswith("-"):
        raise table.fail("serial", f"is {result.serial!r}; expected a serial number of `adb devices`")
    table.done()
    return result


def _read_ssh(table: _Table) -> Ssh:
    user, host, port = parse_address(table.text("address"))
    result = Ssh(
        host=host,
        user=user,
        port=port,
        known_hosts=table.text("known_hosts", None),
        identity=table.text("identity", None),
        config=table.text("config", None),
        workdir=table.text("workdir", Ssh.workdir),
    )
    table.done()
    return result
