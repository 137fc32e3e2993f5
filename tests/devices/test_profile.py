"""Profiles: shipped ones are whole, text round-trips, user files shadow shipped ones, bad files are named errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bevel.devices.profile import (
    OPTIONAL_PEAKS,
    PROVENANCES,
    CoreKind,
    Figure,
    Ssh,
    list_profiles,
    load_profile,
    parse_address,
    remove_profile,
    save_profile,
    user_directory,
)
from bevel.devices.profile_text import format_profile
from bevel.errors import UsageError

SHIPPED = (
    "armv7-a7",
    "jetson-orin",
    "pixel-phone",
    "raspberry-pi-3",
    "raspberry-pi-4",
    "raspberry-pi-5",
    "x86-64",
    "x86-64-amx",
    "x86-64-avx-vnni",
    "x86-64-avx2",
    "x86-64-avx512-vnni",
    "x86-64-avx512-vpopcntdq",
)


@pytest.fixture(autouse=True)
def bevel_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEVEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_list_names_host_first_then_all_shipped() -> None:
    assert list_profiles() == ["host", *SHIPPED]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_are_whole(name: str) -> None:
    profile = load_profile(name)
    peaks = profile.peaks
    figures = [peaks.fp32_gmacs, peaks.int8_gmacs, peaks.launch_us, *peaks.bandwidth_gbs.values()]
    assert all(figure.provenance in PROVENANCES and figure.source for figure in figures)
    # A level nearer the core is never slower: the cost model takes the first level that holds the data.
    speeds = [figure.value for figure in peaks.bandwidth_gbs.values()]
    assert speeds == sorted(speeds, reverse=True)
    target = profile.target()
    assert (target.name, target.arch, target.features) == (name, profile.arch, profile.features)
    assert target.caches[0].level == 1


def test_features_select_kernels_by_class() -> None:
    features = {name: load_profile(name).features for name in SHIPPED}
    assert features == {
        "x86-64": {"sse2"},
        "x86-64-avx2": {"sse2", "avx2", "fma"},
        "x86-64-avx-vnni": {"sse2", "avx2", "fma", "avx_vnni"},
        "x86-64-avx512-vnni": {"sse2", "avx2", "fma", "avx512", "avx512_vnni"},
        "x86-64-avx512-vpopcntdq": {"sse2", "avx2", "fma", "avx512", "avx512_vnni", "avx512_vpopcntdq"},
        "x86-64-amx": {"sse2", "avx2", "fma", "avx512", "avx512_vnni", "amx_int8"},
        "armv7-a7": {"neon", "vfpv4"},
        "raspberry-pi-3": {"neon"},
        "raspberry-pi-4": {"neon"},
        "raspberry-pi-5": {"neon", "dotprod", "fp16"},
        "jetson-orin": {"neon", "dotprod", "fp16"},
        "pixel-phone": {"neon", "dotprod", "fp16", "i8mm"},
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_text_reads_back_equal(name: str, tmp_path: Path) -> None:
    profile = replace(
        load_profile(name),
        name="copy",
        description='quotes " backslash \\ tab\t ü \x7f',
        ssh=Ssh("fe80::1", "pi", 2222, known_hosts="/k h", identity="/i", config="/c", workdir="/data/w"),
        core_kinds=(CoreKind("cortex-a76", (4, 5), 2.4), CoreKind("cortex-a55", (0, 1, 2, 3))),
        kernel="6.6.20",
        libc="glibc 2.36",
        probed="2026-01-31",
    )
    figures = {key: Figure(1.5, "measured", key) for key in OPTIONAL_PEAKS}
    profile = replace(profile, peaks=replace(profile.peaks, **figures))
    path = save_profile(profile, tmp_path / "copy.toml")
    assert load_profile(path) == profile


def test_user_profile_shadows_a_shipped_one() -> None:
    mine = replace(load_profile("raspberry-pi-4"), ssh=Ssh("board.local", "pi"))
    assert save_profile(mine) == user_directory() / "raspberry-pi-4.toml"
    assert load_profile("raspberry-pi-4") == mine
    assert list_profiles() == ["host", *SHIPPED]


def test_removing_ones_own_profile_shows_the_shipped_one_again() -> None:
    shipped = load_profile("raspberry-pi-4")
    path = save_profile(replace(shipped, ssh=Ssh("board.local", "pi")))
    assert remove_profile("raspberry-pi-4") == path
    assert load_profile("raspberry-pi-4") == shipped
    with pytest.raises(UsageError, match=r"'raspberry-pi-4' of your own to remove \(it ships with bevel\). Yours: none"):
        remove_profile("raspberry-pi-4")
    with pytest.raises(UsageError, match="there is none"):
        remove_profile("../raspberry-pi-4")


def test_unknown_name_lists_the_known_and_suggests() -> None:
    with pytest.raises(UsageError, match=r"'rasberry-pi-4'\. Did you mean raspberry-pi-4\? Known: host, armv7-a7, jetson-orin,"):
        load_profile("rasberry-pi-4")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('arch = "aarch64"', 'arch = "sparc"', r"arch is 'sparc'; expected one of x86_64, aarch64"),
        ('arch = "aarch64"', "", "arch is missing; expected a string"),
        ("cores = 4", 'cores = "4"', "cores is '4'; expected a positive number"),
        ("cores = 4", "cores = 0", "cores is 0"),
        ("cores = 4", "cores = true", "cores is True"),
        ("clock_ghz = 1.5", "clock_ghz = nan", "clock_ghz is nan"),
        ("cores = 4", "cores = 4\ncoers = 4", r"coers is not a known key; did you mean cores\?"),
        ('features = ["neon"]', 'features = ["neno"]', "features has neno; known: .*neon"),
        ('provenance = "static"', 'provenance = "guess"', r"peaks\.\S+ is 'guess'; expected one of measured"),
        ("[peaks]", "[peaks", "is not valid TOML"),
        ("[peaks]", 'core_kinds = [{ name = "x", cpus = ["0"] }]\n[peaks]', r"core_kinds\[0\]\.cpus is \['0'\]; expected a list"),
        ('name = "raspberry-pi-4"', 'name = "other"', "they must agree"),
        ('address = "pi@board"', 'address = "pi@board:99999"', "not of the form user@host:port"),
        ('address = "pi@board"', 'adress = "pi@board"', r"ssh\.address is missing"),
    ],
)
def test_damaged_profiles_name_file_key_and_expectation(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = format_profile(replace(load_profile("raspberry-pi-4"), ssh=Ssh("board", "pi")))
    assert old in text
    path = tmp_path / "raspberry-pi-4.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UsageError, match=message):
        load_profile(path)


def test_missing_and_binary_files_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read device profile"):
        load_profile(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not valid TOML"):
        load_profile(tmp_path / "binary.toml")


@pytest.mark.parametrize("name", ["host", "../evil", "", ".hidden"])
def test_names_that_cannot_be_files_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be saved"):
        save_profile(replace(load_profile("x86-64"), name=name))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pi@192.168.1.7:2222", ("pi", "192.168.1.7", 2222)),
        ("board", (None, "board", None)),
        ("u@[fe80::1]:22", ("u", "fe80::1", 22)),
    ],
)
def test_addresses(text: str, parts: tuple[str | None, str, int | None]) -> None:
    assert parse_address(text) == parts
    user, host, port = parts
    assert Ssh(host, user, port).address == text


@pytest.mark.parametrize("text", ["", "a b", "host:0", "host:x", "@host", "fe80::1"])
def test_malformed_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="user@host:port"):
        parse_address(text)
