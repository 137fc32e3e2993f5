"""How a finished run is read: trailers, probes, ELF headers, and which status means which named error."""

from __future__ import annotations

import pytest

from bevel.devices import errors
from bevel.devices.diagnosis import diagnose, refuse_program
from bevel.devices.elf import elf_arch
from bevel.devices.remote import ProgramFacts, Trailer, is_noexec, parse_probe, split_trailer

GLIBC = "./run: /lib/aarch64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by ./run)\n"
LIBRARY = "./run: error while loading shared libraries: libfoo.so.1: cannot open shared object file: No such file\n"


@pytest.mark.parametrize(
    ("status", "seconds", "stderr", "error"),
    [
        (0, 1.0, "", None),
        (3, 1.0, "bad input", None),
        (0, 60.0, "", None),
        (124, 60.0, "", errors.RemoteTimeout),
        (137, 61.0, "", errors.RemoteTimeout),
        (143, 60.0, "Terminated", errors.RemoteTimeout),
        (124, 3.0, "", None),
        (132, 0.1, "", errors.IllegalInstruction),
        (137, 3.0, "", errors.OutOfMemory),
        (139, 3.0, "", errors.RemoteFailed),
        (143, 3.0, "", errors.RemoteFailed),
        (1, 0.0, GLIBC, errors.OldLibc),
        (127, 0.0, LIBRARY, errors.MissingLoader),
        (255, 0.0, "qemu-aarch64: Could not open '/lib/ld-linux-aarch64.so.1': No such file or directory", errors.MissingLoader),
        (127, 0.0, "sh: ./run: not found", errors.MissingLoader),
        (126, 0.0, "sh: ./run: Permission denied", errors.NotExecutable),
        (1, 0.0, "write: No space left on device", errors.DiskFull),
        # A message that merely mentions a cause does not turn a success into a failure.
        (0, 0.0, "No space left on device", None),
    ],
)
def test_status_to_named_error(status: int, seconds: float, stderr: str, error: type[Exception] | None) -> None:
    found = diagnose("pi@board", "./run", Trailer(status, seconds), 60, stderr)
    assert type(found) is (error or type(None))
    if found is not None:
        assert str(found).startswith("pi@board: ")
        assert "./run" in str(found)


def test_unknown_command_is_a_missing_tool() -> None:
    assert isinstance(diagnose("b", "perf", Trailer(127, 0.0), 60, ""), errors.MissingTool)
    # A directory of PATH the user may not read.
    assert isinstance(diagnose("b", "perf", Trailer(126, 0.0), 60, "Permission denied"), errors.MissingTool)


def elf(machine: int, big_endian: bool = False) -> bytes:
    order = "big" if big_endian else "little"
    return b"\x7fELF\x02" + (b"\x02" if big_endian else b"\x01") + bytes(12) + machine.to_bytes(2, order)  # type: ignore[arg-type]


def test_elf_architecture() -> None:
    assert elf_arch(elf(183)) == "aarch64"
    assert elf_arch(elf(62)) == "x86_64"
    assert elf_arch(elf(22, big_endian=True)) == "s390x"
    assert elf_arch(elf(9999)) == "ELF machine 9999"
    assert elf_arch(b"#!/bin/sh\n" + bytes(20)) is None
    assert elf_arch(b"\x7fELF") is None


@pytest.mark.parametrize(
    ("facts", "error"),
    [
        (ProgramFacts(False, False, False, b""), errors.RemoteFailed),
        (ProgramFacts(True, True, False, elf(62)), errors.WrongArchitecture),
        (ProgramFacts(True, False, True, elf(183)), errors.NotExecutable),
        (ProgramFacts(True, False, False, elf(183)), errors.NotExecutable),
        (ProgramFacts(True, True, False, elf(183)), None),
        (ProgramFacts(True, True, False, b"#!/bin/sh"), None),
    ],
)
def test_programs_refused_before_they_start(facts: ProgramFacts, error: type[Exception] | None) -> None:
    assert type(refuse_program("b", "p", facts, "aarch64")) is (error or type(None))


def test_trailer_is_found_only_whole_and_with_its_nonce() -> None:
    whole = b"warning\nbevel-abc 3 10.50 12.75\n"
    assert split_trailer(whole, "bevel-abc") == (b"warning", Trailer(3, 2.25))
    assert split_trailer(whole[:-4], "bevel-abc")[1] is None
    assert split_trailer(whole, "bevel-other")[1] is None
    assert split_trailer(b"", "bevel-abc") == (b"", None)


def test_noexec_is_that_of_the_last_mount() -> None:
    mounts = "tmpfs /data tmpfs rw,noexec 0 0\next4 / ext4 rw 0 0\ntmpfs /data tmpfs rw 0 0\n"
    assert not is_noexec(mounts, "/data")
    assert is_noexec(mounts.splitlines()[0], "/data")
    assert not is_noexec(mounts, "/other")


def test_probe_of_a_board_lacking_tools() -> None:
    text = (
        "workdir=/home/pi/.cache/bevel\nmachine=aarch64\nkernel=6.6.31\nboot_id=x\nlibc=glibc 2.36\nemulator=\n"
        "missing=setsid\ndisk=/dev/mmcblk0p2 1000 400 600 40% /\nMemTotal:1000\nMemAvailable:500\n"
        "\n/dev/mmcblk0p2 / ext4 rw,noexec 0 0\n"
        "\nFeatures : fp asimd asimddp\n"
    )
    info, missing = parse_probe(text)
    assert missing == ["setsid"]
    assert info.features == {"neon", "dotprod"}
    assert (info.arch, info.disk_free_kib, info.noexec) == ("aarch64", 600, True)
    assert (info.memory_kib, info.memory_available_kib, info.workdir) == (1000, 500, "/home/pi/.cache/bevel")
