"""What goes wrong on a device or on the way to it, one class per cause.

Every message says what happened, where, and what to do. `BoardError` and its message parts keep that shape in one place.
"""

from __future__ import annotations

from bevel.errors import DeviceError


class BoardError(DeviceError):
    """A named failure of one device.

    Attributes:
        where: the transport's label, such as "pi@192.168.1.7:22".
    """

    def __init__(self, where: str, what: str, remedy: str) -> None:
        super().__init__(f"{where}: {what}. {remedy}")
        self.where = where


class HostKeyRejected(BoardError):
    """The host key is unknown or differs from the accepted one, or host key checking is switched off."""


class AuthenticationFailed(BoardError):
    """The device accepts none of the keys on offer."""


class ConnectionRefused(BoardError):
    """The host answers, but nothing listens on the port."""


class HostUnreachable(BoardError):
    """The name does not resolve, or there is no route."""


class DeviceNotFound(BoardError):
    """adb sees no such device, or several and none is named."""


class DeviceOffline(BoardError):
    """adb sees the device, which does not take commands: offline, or in its boot loader or recovery."""


class ConnectTimeout(HostUnreachable):
    """Nothing answered in time."""


class ConnectionLost(BoardError):
    """The connection ended before the command's result came back: link drop, reboot, or a killed SSH server."""


class DeviceBusy(BoardError):
    """Another bevel process holds the device's lock, and did so for as long as the caller would wait."""


class DiskFull(BoardError):
    """The file system of the work directory has no room."""


class NotExecutable(BoardError):
    """A program may not be executed: the file system is mounted noexec, or the file has no execute permission."""


class WrongArchitecture(BoardError):
    """A file was built for another architecture than the device's."""


class MissingLoader(BoardError):
    """The program's dynamic loader, or a shared library it needs, is not on the device."""


class OldLibc(BoardError):
    """The program needs a newer C library than the device has."""


class IllegalInstruction(BoardError):
    """The CPU lacks an instruction the program was compiled for."""


class OutOfMemory(BoardError):
    """The program was killed from outside, which on Linux boards is nearly always the out-of-memory killer."""


class RemoteTimeout(BoardError):
    """The program ran past its time limit and was ended on the device."""


class RemoteFailed(BoardError):
    """A program died of another signal, or a service bevel relies on failed on the device."""


class MissingTool(BoardError):
    """A program every Linux system has, and the transport needs, is not on the device."""


class UploadCorrupted(BoardError):
    """A file's hash on the device differs from the one sent."""
