"""A bench that is interrupted at any moment goes on without losing a finished block.

A machine of its own network, processes and boot (`tests.devices.machine`) is measured over SSH while the client is killed, the
SSH server is killed, the cable is pulled or the machine is rebooted, at random moments.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from bevel.benchmarking.protocol import Effort, Measurement, Protocol
from bevel.compiler import Options, compile_model
from bevel.devices import ssh as ssh_module
from bevel.devices.errors import BoardError, ConnectionLost
from bevel.devices.measurements import Block, Session
from bevel.devices.runner import BenchOptions, DeviceRunner
from bevel.devices.ssh import SshTransport
from bevel.devices.store import Store, session_of
from bevel.errors import ToolchainError
from bevel.runtime.artifact import Artifact
from tests.cli.conftest import KWS
from tests.devices.machine import Machine, wait

OPTIONS = BenchOptions(blocks=40, block_ms=5, warmup_ms=20)
ENDLESS, LAST = Effort(processes=10_000, time_limit_s=None), Effort(processes=1, most=1)
# Delays up to this begin with the bench, longer ones with its first program on the device, however slow this machine is.
EARLY_S = 0.4
# A silent link is noticed after this; real ones wait longer.
PATIENCE_S = 2
CLIENT = """
import sys
from pathlib import Path
from bevel.benchmarking.protocol import Effort, Protocol
from bevel.devices.profile import Ssh
from bevel.devices.runner import BenchOptions, DeviceRunner
from bevel.devices.ssh import SshTransport
from bevel.devices.store import Store
from bevel.runtime.artifact import Artifact
with SshTransport({ssh!r}) as transport, Store.open(Path({store!r})) as store:
    runner = DeviceRunner(Artifact.open(Path({artifact!r})), transport)
    Protocol(runner, store, "board", {options!r}).run(Effort(10_000, None))
"""


@dataclass
class Scene:
    machine: Machine
    artifact: Path
    store: Path

    def measure(self, effort: Effort) -> Measurement:
        with self.connect() as transport, Store.open(self.store) as store:
            return Protocol(DeviceRunner(Artifact.open(self.artifact), transport), store, "board", OPTIONS).run(effort)

    def connect(self) -> SshTransport:
        transport = SshTransport(self.machine.ssh, connect_timeout_s=2)
        transport._patience_s = PATIENCE_S
        return transport

    def pass_time(self, delay: float) -> None:
        if delay > EARLY_S:
            wait(lambda: bool(self.machine.find("bevel-run")), "a measuring process")
        time.sleep(delay if delay <= EARLY_S else delay - EARLY_S)

    def kept(self) -> tuple[list[Session], dict[tuple[int, int], Block]]:
        """Open sessions, and the blocks of the newest without their verdicts."""
        with Store.open(self.store, read_only=True) as store:
            sessions = [session_of(row) for row in store._query("SELECT * FROM sessions WHERE state = 'open'")]
            blocks = store.blocks(sessions[-1]) if sessions else []
        return sessions, {(block.process, block.index): replace(block, rejected=None) for block in blocks}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("resume")
    artifact = compile_model(KWS, folder / "kws.bevel", Options("host"))[0].path
    if shutil.which("ssh-keygen") is None and shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") is None:
        pytest.skip("no SSH server: apt-get install openssh-server")
    (folder / "machine").mkdir()
    try:
        with Machine(folder / "machine") as machine:
            yield Scene(machine, artifact, folder / "store.sqlite")
    except ToolchainError as error:
        pytest.skip(str(error))


# The ways to be interrupted; each begins a bench, ends it after `delay` seconds, and puts the machine right again.


def client_killed(scene: Scene, delay: float) -> None:
    values = {"ssh": scene.machine.ssh, "store": str(scene.store), "artifact": str(scene.artifact), "options": OPTIONS}
    script = CLIENT.format(**values)
    client = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE)
    scene.pass_time(delay)
    client.send_signal(signal.SIGKILL)
    _, message = client.communicate(timeout=30)
    assert client.returncode == -signal.SIGKILL, message.decode()


def interrupted(scene: Scene, delay: float, break_it: Callable[[threading.Event], object], mend: Callable[[], object]) -> None:
    over = threading.Event()

    def interfere() -> None:
        try:
            scene.pass_time(delay)
        finally:
            break_it(over)

    thread = threading.Thread(target=interfere)
    thread.start()
    try:
        with pytest.raises(BoardError) as caught:
            scene.measure(ENDLESS)
    finally:
        over.set()
        thread.join()
        mend()
    assert isinstance(caught.value, ConnectionLost) or delay < EARLY_S, "an early moment may fall into connecting"


def server_killed(scene: Scene, delay: float) -> None:
    def kill(over: threading.Event) -> None:
        # An early moment finds no session, or one of the bench before: until it hits.
        while not over.wait(0.1):
            for pid in scene.machine.servers():
                subprocess.run(["kill", "-KILL", str(pid)], check=False, capture_output=True)

    interrupted(scene, delay, kill, lambda: None)


def cable_pulled(scene: Scene, delay: float) -> None:
    interrupted(scene, delay, lambda _: scene.machine.link("down"), lambda: scene.machine.link("up"))


def rebooted(scene: Scene, delay: float) -> None:
    interrupted(scene, delay, lambda _: scene.machine.power_off(), scene.machine.boot)


WAYS = (client_killed, server_killed, rebooted, cable_pulled)


@pytest.mark.ssh
@pytest.mark.parametrize("moments", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_no_finished_block_is_lost(scene: Scene, moments: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if scene.machine.lacks:
        pytest.skip(scene.machine.lacks)
    # A dead link is noticed after some missed heartbeats.
    monkeypatch.setattr(ssh_module, "HEARTBEAT_S", 0.25)
    # Nobody needs to know whether the machine comes back by itself.
    monkeypatch.setattr(ssh_module, "RETURN_S", 0.5)
    rng = random.Random(2 * moments)
    scene.store.unlink(missing_ok=True)
    scene.store = scene.store.with_name(f"store-{moments}.sqlite")
    before: dict[tuple[int, int], Block] = {}
    grew = 0
    for moment in range(moments):
        way = WAYS[moment % len(WAYS)]
        delay = rng.uniform(0.05, EARLY_S) if rng.random() < 0.2 else EARLY_S + rng.uniform(0.02, 1.1)
        way(scene, delay)
        sessions, after = scene.kept()
        told = f"moment {moment}: {way.__name__} after {delay:.2f} s"
        assert len(sessions) <= 1, told
        assert before.items() <= after.items(), f"{told}: lost {before.keys() - after.keys()}"
        wait(lambda: not scene.machine.find("bevel-run"), f"{told}: the end of the measuring process")
        grew += len(after) > len(before)
        before = after
    assert grew >= moments / 3, "most moments fall into measuring"
    found = scene.measure(LAST)
    assert found.resumed == len(before)
    assert before.keys() <= {(block.process, block.index) for block in found.blocks}
    with Store.open(scene.store) as store:
        [row] = store.history()
        assert row.summary is not None
        assert row.summary.blocks + sum(row.summary.rejected.values()) == len(found.blocks)
        assert len(store.blocks(row.session)) == len(found.blocks)
    assert not scene.kept()[0], "the session is finished"
    left = [path for path in scene.machine.files(f"{scene.machine.root}/work") if not path.startswith("artifacts/")]
    assert left == [], "nothing but the artifact is left on the machine"
