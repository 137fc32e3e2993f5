"""Whole emulated machines: they are what qemu was told, say that they are emulated, and lose connections as real boards do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bevel
from bevel.devices import errors
from bevel.devices import ssh as ssh_module
from bevel.devices.boards import packages
from bevel.devices.boards.catalog import EMULATIONS, emulated_board
from bevel.devices.boards.image import cpio
from bevel.devices.boards.packages import File
from bevel.devices.boards.system import SystemBoard
from bevel.devices.probe import probe_device, profile_from_probe
from bevel.devices.profile import load_profile
from bevel.devices.resolve import resolve_transport
from bevel.devices.runner import DeviceRunner
from bevel.devices.ssh import SshTransport
from bevel.devices.transport import Transport
from bevel.errors import ToolchainError, UsageError
from bevel.runtime.artifact import Artifact

# Part numbers by which Linux names the cores, and the features bevel uses that they have.
CORES = {
    "system-a53": ("0xd03", {"neon"}),
    "system-a72": ("0xd08", {"neon"}),
    "system-a76": ("0xd0b", {"neon", "dotprod", "fp16"}),
}


def started(name: str) -> SystemBoard:
    """A running board; skips where its tools or packages cannot be had."""
    board = emulated_board(name)
    assert isinstance(board, SystemBoard)
    try:
        board.start()
    except ToolchainError as error:
        pytest.skip(str(error))
    return board


@pytest.fixture(scope="module")
def a53() -> Iterator[SystemBoard]:
    board = started("system-a53")
    yield board
    board.stop()


@pytest.fixture(scope="module")
def a72() -> Iterator[SystemBoard]:
    board = started("system-a72")
    yield board
    board.stop()


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """Compiles a small integer-only convolution for a device."""
    folder = tmp_path_factory.mktemp("artifacts")
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 8, 16, 16)).astype(np.float32)
    weights = numpy_helper.from_array(rng.standard_normal((16, 8, 3, 3)).astype(np.float32), "w")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 16, 16])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 16, 16])
    graph = helper.make_graph(nodes, "conv", [x], [y], [weights])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "conv.onnx")

    def compile_for(device: str) -> Artifact:
        output = folder / f"{device}.bevel"
        return bevel.compile(folder / "conv.onnx", device=device, calibration={"x": images}, output=output)

    return compile_for


def check_core(board: SystemBoard, name: str) -> None:
    """The system says which core it has, what it can do and that it is emulated; the probe makes the same of it."""
    part, features = CORES[name]
    with resolve_transport(board.profile) as transport:
        info = transport.info
        assert f"CPU part\t: {part}" in info.cpuinfo
        assert info.features == features
        assert info.arch == "aarch64"
        assert info.libc.startswith("glibc")
        assert transport.emulated
        assert info.emulator == f"qemu-system-aarch64 -M virt -cpu {board.profile.qemu_cpu} -smp 2 -m 512"
        transport.preflight(load_profile(EMULATIONS[name].profile).target())
        probed = profile_from_probe(probe_device(transport, quick=True), "probed", board.profile.ssh)
    assert probed.cpu == board.profile.qemu_cpu
    assert [(kind.name, len(kind.cpus)) for kind in probed.core_kinds] == [(board.profile.qemu_cpu, 2)]
    assert probed.features == features


def works(transport: Transport) -> None:
    assert transport.run(["echo", "well"]).stdout == b"well\n"


class Job:
    """A program running on the board meanwhile; `error` is how it ended."""

    def __init__(self, transport: Transport) -> None:
        self.error: BaseException | None = None
        self._transport = transport
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._transport.run(["sleep", "120"], timeout_s=120)
        except errors.BoardError as error:
            self.error = error

    def wait_until_running(self, board: SystemBoard) -> None:
        with resolve_transport(board.profile) as beside:
            while beside.run(["pgrep", "-x", "sleep"]).exit_status != 0:
                pass

    def end(self) -> str:
        """What the lost connection was said to be."""
        self._thread.join(100)
        assert isinstance(self.error, errors.ConnectionLost), self.error
        return str(self.error)


@pytest.mark.ssh
@pytest.mark.qemu
class TestMachine:
    def test_it_is_what_qemu_was_told(self, a53: SystemBoard) -> None:
        check_core(a53, "system-a53")

    def test_device_tree_alone_marks_it_emulated(self, a53: SystemBoard) -> None:
        """A machine of somebody else's under qemu has no file of ours."""
        with resolve_transport(a53.profile) as transport, SshTransport(a53.administrator) as administrator:
            administrator.run(["mv", "/etc/bevel-emulated", "/etc/hidden"])
            try:
                info = transport.probe()
            finally:
                administrator.run(["mv", "/etc/hidden", "/etc/bevel-emulated"])
            assert info.emulator == "qemu's virt machine"
            assert transport.emulated

    def test_integer_artifact_passes_its_selftest(self, a53: SystemBoard, compiled: Callable[[str], Artifact]) -> None:
        artifact = compiled("raspberry-pi-3")
        assert artifact.manifest["integer_only"]
        with resolve_transport(a53.profile) as transport:
            answer = DeviceRunner(artifact, transport).selftest()
        assert answer["selftest"] == "passed"

    def test_nothing_else_is_reachable_from_it(self, a53: SystemBoard) -> None:
        """Its network is qemu's own and ends there: neither this machine nor the world answers."""
        with socket.create_server(("0.0.0.0", 0)) as here, resolve_transport(a53.profile) as transport:
            port = here.getsockname()[1]
            script = f"exec 3<>/dev/tcp/10.0.2.2/{port}"
            assert transport.run(["timeout", "5", "bash", "-c", script]).exit_status != 0

    @pytest.mark.slow
    def test_reset_is_a_reboot(self, a53: SystemBoard, monkeypatch: pytest.MonkeyPatch) -> None:
        # However long this machine takes to boot another.
        monkeypatch.setattr(ssh_module, "RETURN_S", 240)
        monkeypatch.setattr(ssh_module, "HEARTBEAT_S", 2)
        with resolve_transport(a53.profile) as transport:
            boot = transport.info.boot_id
            transport.run(["sh", "-c", "echo kept >kept && sync"])
            job = Job(transport)
            job.wait_until_running(a53)
            a53.monitor("system_reset")
            assert "rebooted" in job.end()
            transport.open()
            assert transport.info.boot_id != boot
            works(transport)
            # The disk is not part of what a reset takes away.
            assert transport.run(["cat", "kept"]).stdout == b"kept\n"
            assert transport.run(["pgrep", "-x", "sleep"]).exit_status == 1

    def test_dotprod_artifact_is_refused_before_it_runs(self, a72: SystemBoard, compiled: Callable[[str], Artifact]) -> None:
        check_core(a72, "system-a72")
        with resolve_transport(a72.profile) as transport:
            with pytest.raises(errors.IllegalInstruction, match="the CPU lacks dotprod"):
                DeviceRunner(compiled("raspberry-pi-5"), transport).selftest()
            # Nothing was even sent.
            assert transport.run(["test", "-e", "artifacts"]).exit_status == 1

    @pytest.mark.slow
    def test_a76_has_dot_products(self, compiled: Callable[[str], Artifact]) -> None:
        board = started("system-a76")
        try:
            check_core(board, "system-a76")
            with resolve_transport(board.profile) as transport:
                assert DeviceRunner(compiled("raspberry-pi-5"), transport).selftest()["selftest"] == "passed"
        finally:
            board.stop()

    @pytest.mark.slow
    @pytest.mark.parametrize("fault", ["halted", "unplugged"])
    def test_silence_is_a_lost_connection(self, a53: SystemBoard, fault: str) -> None:
        """A halted machine and a pulled cable: no packet comes back, and none says that none will."""
        down, up = {
            "halted": (lambda: a53.monitor("stop"), lambda: a53.monitor("cont")),
            "unplugged": (
                lambda: a53.monitor("set_link", name="net0", up=False),
                lambda: a53.monitor("set_link", name="net0", up=True),
            ),
        }[fault]
        with resolve_transport(a53.profile) as transport:
            job = Job(transport)
            job.wait_until_running(a53)
            down()
            try:
                assert "does not answer" in job.end()
            finally:
                up()
            a53.wait()
            transport.open()
            works(transport)
            # What was running is ended by the board itself, once it hears nothing.
            deadline = time.monotonic() + 60
            while transport.run(["pgrep", "-x", "sleep"]).exit_status == 0:
                assert time.monotonic() < deadline, "the job still runs"

    def test_machine_ends_with_a_killed_owner(self, a53: SystemBoard) -> None:
        """The image is there when `a53` runs, so that the other process finds it."""
        script = textwrap.dedent("""
            import os
            from bevel.devices.boards.system import SystemBoard
            board = SystemBoard()
            board.wait = lambda: None
            board.start()
            print(board.root, board.process, flush=True)
            os._exit(9)
        """)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        root, pid = done.stdout.split()
        end = time.monotonic() + 10
        while (Path(root).exists() or Path(f"/proc/{pid}").exists()) and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(root).exists()
        assert not Path(f"/proc/{pid}").exists()


def test_archive_holds_what_a_kernel_reads() -> None:
    """The newc format, field by field: paths, types, owners, contents, and /dev/console, which nobody may make without root."""
    archive = cpio({"etc/one": File(0o100644, b"abc"), "bin": File(0o120777, b"usr/bin")})
    found, offset = {}, 0
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * i : offset + 14 + 8 * i], 16) for i in range(13)]
        mode, owner, size, name_size = fields[1], fields[2], fields[6], fields[11]
        name = archive[offset + 110 : offset + 110 + name_size - 1].decode()
        start = -(-(offset + 110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            break
        found[name] = (mode, owner, tuple(fields[9:11]), archive[start : start + size])
        offset = -(-(start + size) // 4) * 4
    assert found == {
        "bin": (0o120777, 0, (0, 0), b"usr/bin"),
        "dev": (0o040755, 0, (0, 0), b""),
        "dev/console": (0o020600, 0, (5, 1), b""),
        "etc": (0o040755, 0, (0, 0), b""),
        "etc/one": (0o100644, 0, (0, 0), b"abc"),
    }
    assert len(archive) % 512 == 0


def test_missing_tools_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError, match="apt-get install qemu-system-arm"):
        SystemBoard().start()
    with pytest.raises(ToolchainError, match="needs apt-get"):
        packages.download("arm64", ["dash"], [], tmp_path)


def test_apt_without_the_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, or package sources without this architecture: apt's own words, and what to do."""
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho 'E: Unable to locate package dash' >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ToolchainError, match="cannot fetch packages for arm64: E: Unable to locate package dash"):
        packages.download("arm64", ["dash"], [], tmp_path / "folder")


def test_names_of_boards() -> None:
    with pytest.raises(UsageError, match=r"Did you mean system-a53\? Known: fast, armv7, system-a53"):
        emulated_board("sytem-a53")
    with pytest.raises(UsageError, match="is armv7"):
        emulated_board("system-a72", "armv7-a7")
    assert {emulated_board(name).profile.qemu_cpu for name in EMULATIONS} == {
        "cortex-a7",
        "cortex-a53",
        "cortex-a72",
        "cortex-a76",
    }
