"""Sends files to a device and fetches them: whole or not at all, nothing twice, and on from where a connection was lost.

In: local files. Out: files in the device's work directory, compared by sha256 on the device itself. Carriers copy bytes
(`_send`, `_fetch`) and run the scripts of `bevel.devices.remote`; `bevel.devices.transport` builds on this.
"""

from __future__ import annotations

import hashlib
import posixpath
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bevel.devices.elf import HEADER_BYTES, elf_arch
from bevel.devices.errors import ConnectionLost, DiskFull, RemoteFailed, UploadCorrupted, WrongArchitecture
from bevel.devices.remote import CLAIM, INSTALL, BoardInfo
from bevel.errors import UsageError

RESUMED_BYTES = 1 << 20  # smaller files are sent again: asking what is left of them takes as long


@dataclass(frozen=True)
class _Shipment:
    """A file to send: where it is, where it goes, its sha256, and what it is called on the way, absolute paths all."""

    local: Path
    remote: str
    digest: str
    part: str


class FileTransfer(ABC):
    """The files of a device's work directory.

    Attributes:
        label: what messages call the device.
    """

    label: str

    # What a carrier and the transport provide ---------------------------------------------------------------------------

    @abstractmethod
    def _send(self, local: Path, remote: str, offset: int) -> None:
        """Copy a file to an absolute path on the device; raises OSError when the device could not store it.

        The first `offset` bytes are there already; a carrier that cannot append sends the whole.
        """

    @abstractmethod
    def _fetch(self, remote: str, local: Path) -> None:
        """Copy a file from an absolute path on the device; raises OSError when it could not be read."""

    @property
    @abstractmethod
    def info(self) -> BoardInfo:
        """What the probe found when the device was opened."""

    @abstractmethod
    def _shell(self, script: str, *args: str, what: str) -> str:
        """Run a short script of ours; its failure is the device's."""

    @abstractmethod
    def _forget(self, *remotes: str) -> None:
        """Remove temporary files on the way out; a lost connection must not hide the error that led here."""

    @abstractmethod
    def _changed(self, remotes: Sequence[str]) -> None:
        """These files are about to be replaced: what is known about them holds no longer."""

    # What callers use --------------------------------------------------------------------------------------------------

    def path(self, remote_rel: str = ".") -> str:
        """Absolute path on the device of a path inside the work directory.

        Raises:
            UsageError: the path leaves the work directory.
        """
        parts = PurePosixPath(remote_rel)
        if parts.is_absolute() or ".." in parts.parts:
            raise UsageError(f"{remote_rel!r} must be relative to the work directory on {self.label} and stay inside it")
        return posixpath.normpath(posixpath.join(self.info.workdir, remote_rel))

    def upload(self, local: Path, remote_rel: str) -> int:
        """Send a file, or a directory with all in it, unless the device already holds the same bytes.

        Files arrive under a temporary name, are hashed on the device and then renamed, so a file is there whole or not at all.
        When the connection is lost, what has arrived stays under that name, and the next upload of the same bytes goes on from
        there (files from 1 MiB on); after three days it is removed. After any other failure nothing stays.

        Returns:
            Number of bytes sent; 0 when everything was there.

        Raises:
            DiskFull, WrongArchitecture, UploadCorrupted, ConnectionLost, RemoteFailed: as named.
            UsageError: `local` does not exist.
        """
        files = self._collect(local, remote_rel)
        if not files:
            return 0
        digests = {remote: _sha256(path) for remote, path in files.items()}
        folders = sorted({posixpath.dirname(remote) for remote in files})
        self._shell('mkdir -p -- "$@"', *folders, what="make directories")
        there = self._contents(list(files))
        stale = [
            _Shipment(files[remote], remote, digest, self._part(remote, digest))
            for remote, digest in digests.items()
            if there.get(remote, (0, ""))[1] != digest
        ]
        self._changed([item.remote for item in stale])
        sent = 0
        try:
            while stale:
                begun = self._claim(stale)
                rest = sum(item.local.stat().st_size - offset for item, offset in zip(stale, begun, strict=True))
                self._require_room(rest)
                for item, offset in zip(stale, begun, strict=True):
                    self._store(item.local, item.part, offset)
                sent += rest
                stale = self._install(stale)
        except ConnectionLost:
            raise  # The parts stay: they cannot be removed, and need not be sent again.
        except BaseException:
            self._forget(*(item.part for item in stale))
            raise
        return sent

    def download(self, remote_rel: str, local: Path) -> None:
        """Fetch a file of the work directory; it appears whole or not at all.

        Raises:
            RemoteFailed, UploadCorrupted, ConnectionLost: as named.
        """
        remote = self.path(remote_rel)
        partial = local.with_name(f".{local.name}.part-{secrets.token_hex(8)}")
        _, expected = self._contents([remote]).get(remote, (0, ""))
        if not expected:
            raise RemoteFailed(
                self.label, f"{remote} is not on the device or cannot be read", "Run the program that writes it first"
            )
        try:
            self._fetch(remote, partial)
            if _sha256(partial) != expected:
                raise UploadCorrupted(self.label, f"{remote} arrived with another hash", "Try again")
            partial.replace(local)
        except OSError as error:
            raise RemoteFailed(self.label, f"{remote} could not be fetched into {local} ({error})", "Check both disks") from error
        finally:
            partial.unlink(missing_ok=True)

    # How ---------------------------------------------------------------------------------------------------------------

    def _collect(self, local: Path, remote_rel: str) -> dict[str, Path]:
        """Absolute remote path of each file to send, ELF files checked for the architecture."""
        if not local.exists():
            raise UsageError(f"{local} does not exist")
        paths = [local] if local.is_file() else sorted(path for path in local.rglob("*") if path.is_file())
        files = {}
        for path in paths:
            inner = "." if path == local else path.relative_to(local).as_posix()
            with path.open("rb") as stream:
                arch = elf_arch(stream.read(HEADER_BYTES))
            if arch not in (None, self.info.arch):
                raise WrongArchitecture(
                    self.label,
                    f"{path} is built for {arch}, the device is {self.info.arch}",
                    f"Compile for a device profile with arch {self.info.arch}",
                )
            files[self.path(posixpath.join(remote_rel, inner))] = path
        return files

    def _contents(self, remotes: list[str]) -> dict[str, tuple[int, str]]:
        """Size in bytes and sha256 on the device of those files that exist."""
        script = 'for f; do [ -f "$f" ] && echo $(wc -c <"$f") $(sha256sum <"$f") || echo -; done'
        lines = [line.split() for line in self._shell(script, *remotes, what="hash files").splitlines()]
        return {remote: (int(line[0]), line[1]) for remote, line in zip(remotes, lines, strict=True) if len(line) > 1}

    def _store(self, local: Path, remote: str, offset: int) -> None:
        """Send one file, from `offset` on; tells a full disk from other refusals, which SFTP reports alike."""
        try:
            self._send(local, remote, offset)
        except OSError as error:
            self._require_room(local.stat().st_size - offset, str(error))
            raise RemoteFailed(
                self.label, f"{local} could not be stored ({error})", "Check the work directory on the device"
            ) from error

    def _part(self, remote: str, digest: str) -> str:
        """What a file is called on the way: in the work directory, or with what goes when the connection does."""
        first = PurePosixPath(remote).relative_to(self.info.workdir).parts[0]
        folder = first if first.startswith(".scratch-") else "."
        return self.path(f"{folder}/.part-{digest}-{secrets.token_hex(8)}")

    def _claim(self, items: Sequence[_Shipment]) -> list[int]:
        """Take over what lost connections left of these files; gives how much of each is there and right."""
        begun = [0] * len(items)
        large = [index for index, item in enumerate(items) if item.local.stat().st_size >= RESUMED_BYTES]
        if large:
            script = [part for index in large for part in (items[index].digest, posixpath.basename(items[index].part))]
            found = self._shell(CLAIM, self.info.workdir, *script, what="look for parts of files").splitlines()
            for index, line in zip(large, found, strict=True):
                if line != "-":
                    size, digest = line.split()[:2]
                    begun[index] = _common_prefix(items[index].local, int(size), digest)
        return begun

    def _install(self, items: Sequence[_Shipment]) -> list[_Shipment]:
        """Hash what arrived on the device and move it into place; gives those whose part another process took over."""
        steps: list[str] = []
        for item in items:
            steps += [item.part, item.remote, item.digest, "755" if item.local.stat().st_mode & 0o100 else "644"]
        failed = dict(
            line.split(" ", 1)[::-1] for line in self._shell(INSTALL, *steps, what="rename uploaded files").splitlines()
        )
        for item in items:
            if failed.get(item.part) == "damaged":
                self._require_room(item.local.stat().st_size, "the file arrived damaged")
                raise UploadCorrupted(
                    self.label,
                    f"{item.local} arrived with another hash",
                    "Try again; if it happens twice, check the device's storage",
                )
        return [item for item in items if item.part in failed]

    def _require_room(self, size: int, symptom: str = "") -> None:
        """Raise DiskFull when `size` bytes do not fit into the work directory."""
        free = 1024 * int(
            self._shell('df -Pk -- "$1" | tail -n 1', self.info.workdir, what="ask for free space").split(None, 5)[3]
        )
        if free < size:
            raise DiskFull(
                self.label,
                f"{size} bytes do not fit into {self.info.workdir}, which has {free} bytes left"
                + (f" ({symptom})" if symptom else ""),
                "Free some space, or set workdir in the device's profile to another file system",
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _common_prefix(local: Path, size: int, digest: str) -> int:
    """`size` when a file of that size and sha256 is a beginning of `local`, else 0."""
    hasher, left = hashlib.sha256(), size
    with local.open("rb") as stream:
        while left and (block := stream.read(min(left, 1 << 20))):
            hasher.update(block)
            left -= len(block)
    return size if left == 0 and hasher.hexdigest() == digest else 0
