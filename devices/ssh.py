"""The transport over SSH (asyncssh): OpenSSH's configuration, agent and jump hosts, and no host key accepted unseen.

In: commands and files. Out: what they print. asyncssh lives on an event loop in a thread of its own, so that heartbeats and
keep-alives go on whatever the caller does.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import asyncssh

from bevel.devices.errors import (
    AuthenticationFailed,
    BoardError,
    ConnectionLost,
    ConnectionRefused,
    ConnectTimeout,
    HostKeyRejected,
    HostUnreachable,
    RemoteFailed,
)
from bevel.devices.profile import Ssh
from bevel.devices.transport import OnStdout, Transport

T = TypeVar("T")

HEARTBEAT_S = 5
PATIENCE_S = 20  # four missed heartbeats: a link that is silent this long is down
CONNECT_TIMEOUT_S = 20
BLOCK = 4 << 20  # bytes on the way at once: a round trip is lost between blocks
PACKET = 32 << 10  # bytes of one SFTP request, which every server takes
FAREWELL_S = 4  # the guard gives a job 1 s between TERM and KILL
RETURN_S = 12  # a device that is booting ends its old connections some seconds before it takes new ones


class _LoopThread:
    """An asyncio loop in a daemon thread, called synchronously."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="bevel-ssh", daemon=True)
        self.thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Result of `work`; an interrupt of the caller cancels it and waits until it has wound up."""
        done = threading.Event()

        async def start() -> asyncio.Task[T]:
            task = asyncio.ensure_future(work)
            task.add_done_callback(lambda _: done.set())
            return task

        task = asyncio.run_coroutine_threadsafe(start(), self.loop).result()
        try:
            done.wait()
        except BaseException:  # KeyboardInterrupt, or what a signal handler of the program raises
            self.loop.call_soon_threadsafe(task.cancel)
            done.wait(2 * FAREWELL_S)
            raise
        return task.result()

    def stop(self) -> None:
        """End what still runs, such as a command of another thread's, and the thread."""

        async def wind_up() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(wind_up(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class SshTransport(Transport):
    """Runs programs on a device reached by SSH."""

    def __init__(self, ssh: Ssh, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> None:
        super().__init__(ssh.address, ssh.workdir, patience_s=PATIENCE_S)
        self._ssh = ssh
        self._timeout = connect_timeout_s
        self._thread: _LoopThread | None = None
        self._connection: asyncssh.SSHClientConnection | None = None
        self._sftp: asyncssh.SFTPClient | None = None

    # The carrier's side of Transport -----------------------------------------------------------------------------------

    def _connect(self) -> None:
        self._thread = _LoopThread()
        self._connection = self._thread.call(self._dial(self._timeout))

    def _disconnect(self) -> None:
        """Close the connection; what still runs on the device is ended by its guard."""
        thread, self._thread = self._thread, None  # first, since another thread may close it too
        if thread is not None:
            thread.call(self._hang_up())
            thread.stop()

    def _execute(self, command: str, limit_s: float, on_stdout: OnStdout | None = None) -> tuple[bytes, bytes]:
        thread, connection = self._live()
        return thread.call(self._communicate(connection, command, limit_s, on_stdout))

    def _send(self, local: Path, remote: str, offset: int) -> None:
        async def put(sftp: asyncssh.SFTPClient) -> None:
            async with sftp.open(remote, "r+b" if offset else "wb", block_size=0) as target:
                with local.open("rb") as source:
                    source.seek(offset)
                    at = offset
                    while block := source.read(BLOCK):
                        # In order, so that what arrives before a cut is a beginning of the file.
                        cuts = range(0, len(block), PACKET)
                        await asyncio.gather(*(target.write(block[cut : cut + PACKET], at + cut) for cut in cuts))
                        at += len(block)

        self._copy(put)

    def _fetch(self, remote: str, local: Path) -> None:
        self._copy(lambda sftp: sftp.get(remote, str(local)))

    def _why_lost(self) -> str:
        """Look for a while whether the device is back, and whether it is the same boot."""
        before = self._info.boot_id if self._info else None
        if self._thread is None or before is None:
            return super()._why_lost()
        try:
            now = self._thread.call(self._boot_id())
        except BoardError:
            return "the connection was lost and the device does not answer"
        if now != before:
            return "the device rebooted while the program ran"
        return "the connection was lost, the device is up"

    # Coroutines --------------------------------------------------------------------------------------------------------

    async def _dial(self, timeout: float) -> asyncssh.SSHClientConnection:
        """Connect, each failure under its own name."""
        where, ssh = self.label, self._ssh
        given: dict[str, Any] = {
            "port": ssh.port,
            "username": ssh.user,
            "known_hosts": _expand(ssh.known_hosts),
            "client_keys": [_expand(ssh.identity)] if ssh.identity else None,
            "config": [_expand(ssh.config)] if ssh.config else None,
        }
        options = {key: value for key, value in given.items() if value is not None}
        options |= {"connect_timeout": timeout, "login_timeout": timeout, "keepalive_interval": HEARTBEAT_S}
        verify = f"log in once with ssh by hand (`{ssh.command}`) and compare the key's fingerprint with the device's own"
        try:
            settled = asyncssh.SSHClientConnectionOptions(host=ssh.host, **options)
            if settled.known_hosts is None:
                raise HostKeyRejected(
                    where, "the SSH configuration switches host key checking off", "Give a UserKnownHostsFile for this host"
                )
            return await asyncio.wait_for(asyncssh.connect(ssh.host, **options), 2 * timeout)
        except asyncssh.HostKeyNotVerifiable as error:
            if _knows_host(settled):
                raise HostKeyRejected(
                    where,
                    "its host key is not the one accepted before: the device was set up again, or another answers in its place",
                    f"Find out which; for a new key, `ssh-keygen -R` the old one and {verify}",
                ) from error
            raise HostKeyRejected(
                where, f"its host key is unknown ({error.reason})", f"If the device is new, {verify}"
            ) from error
        except asyncssh.PermissionDenied as error:
            key = f" with {ssh.identity}" if ssh.identity else ""
            raise AuthenticationFailed(
                where, f"log-in was denied{key} ({error.reason})", "Add your public key to ~/.ssh/authorized_keys on the device"
            ) from error
        except (asyncssh.KeyImportError, asyncssh.ConfigParseError, asyncssh.KeyEncryptionError) as error:
            raise AuthenticationFailed(
                where, f"the SSH key or configuration cannot be used ({error})", "Check identity and config in the [ssh] table"
            ) from error
        except socket.gaierror as error:
            raise HostUnreachable(
                where, f"the name does not resolve ({error.strerror})", "Check the address in the profile"
            ) from error
        except TimeoutError as error:
            raise ConnectTimeout(
                where, f"no answer within {timeout:g} s", "Check that the device is on, on this network and not behind a firewall"
            ) from error
        except FileNotFoundError as error:
            kind = HostKeyRejected if error.filename == _expand(ssh.known_hosts) else AuthenticationFailed
            raise kind(where, f"{error.filename} does not exist", "Check the paths in the profile's [ssh] table") from error
        except (asyncssh.Error, OSError) as error:
            # asyncio joins the errors of a name's several addresses in one text, without their kind.
            numbers = {int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))}
            if numbers == {errno.ECONNREFUSED}:
                raise ConnectionRefused(
                    where, "nothing listens on that port", "Start sshd on the device, or correct the port in the profile"
                ) from error
            reason = ", ".join(os.strerror(number) for number in sorted(numbers)) or str(error)
            raise HostUnreachable(
                where, f"cannot connect ({reason})", "Check power, network and the address in the profile"
            ) from error

    async def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            try:
                await asyncio.wait_for(self._connection.wait_closed(), FAREWELL_S)
            except TimeoutError:
                self._connection.abort()
        self._connection = self._sftp = None

    async def _communicate(
        self, connection: asyncssh.SSHClientConnection, command: str, limit_s: float, on_stdout: OnStdout | None
    ) -> tuple[bytes, bytes]:
        """Run `command`, beating on its standard input until it ends, is cancelled or the limit passes."""
        try:
            process = await connection.create_process(command, encoding=None)
        except (asyncssh.Error, OSError):
            return b"", b""
        stdout, stderr = bytearray(), bytearray()
        collecting = [
            asyncio.ensure_future(self._collect_stream(process.stdout, stdout, on_stdout)),
            asyncio.ensure_future(self._collect_stream(process.stderr, stderr, None)),
        ]
        beating = asyncio.ensure_future(self._beat(process))
        try:
            await asyncio.wait(collecting, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            beating.cancel()
            if not all(task.done() for task in collecting):
                process.stdin.write_eof()
                await asyncio.wait(collecting, timeout=FAREWELL_S)
            process.close()
            for task in collecting:
                task.cancel()
        for task in collecting:
            if task.done():
                task.result()  # raises what the caller's function raised
        return bytes(stdout), bytes(stderr)

    async def _collect_stream(self, stream: asyncssh.SSHReader[bytes], into: bytearray, on_chunk: OnStdout | None) -> None:
        while True:
            try:
                chunk = await stream.read(1 << 16)
            except (asyncssh.Error, OSError):
                return  # A connection that ends early: what arrived is kept, and the trailer is missing.
            if not chunk:
                return
            into += chunk
            if on_chunk is not None:
                on_chunk(chunk)

    async def _beat(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        while True:
            try:
                process.stdin.write(b".")
            except OSError:
                return  # The channel is closing.
            await asyncio.sleep(HEARTBEAT_S)

    async def _boot_id(self) -> str:
        deadline, patience = time.monotonic() + RETURN_S, FAREWELL_S
        while True:
            try:
                connection = await self._dial(patience)
                break
            except (ConnectionRefused, HostUnreachable):
                if time.monotonic() > deadline:
                    raise
                patience *= 2  # a slow device answers late, and a call into a device that is still down is never answered
                await asyncio.sleep(0.5)
        async with connection:
            result = await connection.run("cat /proc/sys/kernel/random/boot_id")
        return str(result.stdout).strip()

    def _live(self) -> tuple[_LoopThread, asyncssh.SSHClientConnection]:
        if self._thread is None or self._connection is None:
            raise ConnectionLost(self.label, "there is no open connection", "Call open() first")
        return self._thread, self._connection

    def _copy(self, copy: Callable[[asyncssh.SFTPClient], Awaitable[None]]) -> None:
        """One file through SFTP; a refusal by the device is an OSError, a dead link is ConnectionLost."""
        thread, connection = self._live()

        async def work() -> None:
            if self._sftp is None:
                self._sftp = await connection.start_sftp_client()
            await copy(self._sftp)

        try:
            thread.call(work())
        except (asyncssh.SFTPNoConnection, asyncssh.SFTPConnectionLost, asyncssh.ConnectionLost) as error:
            raise ConnectionLost(self.label, self._why_lost(), "Check power and network, then try again") from error
        except asyncssh.ChannelOpenError as error:
            raise RemoteFailed(
                self.label,
                f"SFTP is not available ({error.reason})",
                "Enable `Subsystem sftp internal-sftp` in the device's sshd_config",
            ) from error
        except asyncssh.Error as error:
            raise OSError(str(error)) from error


def _knows_host(options: asyncssh.SSHClientConnectionOptions) -> bool:
    """Whether a key of the host was accepted before."""
    files = options.known_hosts or str(Path("~/.ssh/known_hosts").expanduser())
    try:
        return any(asyncssh.match_known_hosts(files, options.host_key_alias or options.host, "", options.port)[:2])
    except OSError:
        return False


def _expand(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser())
