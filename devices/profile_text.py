"""Prints a device profile as the TOML that `bevel.devices.profile` reads back equal."""

from __future__ import annotations

import json

from bevel.devices.profile import OPTIONAL_PEAKS, Adb, CoreKind, Figure, Profile, Ssh


def _quote(text: str) -> str:
    # JSON strings are TOML basic strings once DEL, which JSON leaves bare, is escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(items: tuple[str, ...]) -> str:
    return "[" + ", ".join(_quote(item) for item in items) + "]"


def _figure(figure: Figure) -> str:
    return f"{{ value = {figure.value!r}, provenance = {_quote(figure.provenance)}, source = {_quote(figure.source)} }}"


def _core_kind(kind: CoreKind) -> str:
    clock = "" if kind.max_ghz is None else f", max_ghz = {kind.max_ghz!r}"
    return f"{{ name = {_quote(kind.name)}, cpus = {list(kind.cpus)!r}{clock} }}"


def format_profile(profile: Profile) -> str:
    """TOML text of `profile`."""
    lines = [
        f"name = {_quote(profile.name)}",
        f"description = {_quote(profile.description)}",
        f"arch = {_quote(profile.arch)}",
        f"cpu = {_quote(profile.cpu)}",
        f"triple = {_quote(profile.triple)}",
        f"attrs = {_list(profile.attrs)}",
        f"features = {_list(tuple(sorted(profile.features)))}",
        f"cores = {profile.cores}",
        f"clock_ghz = {profile.clock_ghz!r}",
        f"memory_mib = {profile.memory_mib}",
    ]
    if profile.qemu_cpu is not None:
        lines.append(f"qemu_cpu = {_quote(profile.qemu_cpu)}")
    probed = ("kernel", "libc", "probed")
    lines += [f"{key} = {_quote(value)}" for key in probed if (value := getattr(profile, key)) is not None]
    if profile.core_kinds:
        lines += ["core_kinds = [", *(f"  {_core_kind(kind)}," for kind in profile.core_kinds), "]"]
    lines.append("caches = [")
    lines += [f"  {{ level = {c.level}, kib = {c.bytes // 1024}, line = {c.line} }}," for c in profile.caches]
    lines += ["]", "", "[peaks]"]
    lines += [f"{key} = {_figure(getattr(profile.peaks, key))}" for key in ("fp32_gmacs", "int8_gmacs", "launch_us")]
    lines += [f"{key} = {_figure(value)}" for key in OPTIONAL_PEAKS if (value := getattr(profile.peaks, key)) is not None]
    lines += ["", "[peaks.bandwidth_gbs]"]
    lines += [f"{level} = {_figure(figure)}" for level, figure in profile.peaks.bandwidth_gbs.items()]
    if profile.ssh is not None:
        lines += ["", "[ssh]", f"address = {_quote(profile.ssh.address)}"]
        optional = ("known_hosts", "identity", "config")
        lines += [f"{key} = {_quote(value)}" for key in optional if (value := getattr(profile.ssh, key)) is not None]
        if profile.ssh.workdir != Ssh.workdir:
            lines.append(f"workdir = {_quote(profile.ssh.workdir)}")
    if profile.adb is not None:
        lines += ["", "[adb]"]
        lines += [f"serial = {_quote(profile.adb.serial)}"] if profile.adb.serial is not None else []
        lines += [f"workdir = {_quote(profile.adb.workdir)}"] if profile.adb.workdir != Adb.workdir else []
    return "\n".join(lines) + "\n"
