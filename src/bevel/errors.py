"""The errors bevel raises on purpose, each with the exit code the command line gives it.

Every message names the layer or file, what was found, what was expected and what to do. An exception of any other class that
reaches the command line is a defect of bevel.
"""

from __future__ import annotations


class BevelError(Exception):
    """Base of all intended errors.

    Attributes:
        exit_code: what the command line exits with (1 failed check, 2 usage, 3 unsupported model, 4 device or toolchain).
    """

    exit_code = 1


class UsageError(BevelError):
    """The caller passed something that cannot be meant: wrong names, shapes, dtypes, files or options."""

    exit_code = 2


class CalibrationError(UsageError):
    """Calibration data is missing, does not match the model's inputs, or holds NaN or infinity."""


class InvalidPlan(UsageError):
    """A compression plan names a layer that does not exist or asks for what the layer cannot do."""


class UnsupportedModel(BevelError):
    """The model file is damaged, hostile, or asks for something bevel does not implement."""

    exit_code = 3


class UnsupportedOp(UnsupportedModel):
    """An operator, or one of its attributes or types, has no implementation; names the node."""


class ExportError(UnsupportedModel):
    """A torch or transformers model cannot be loaded, run or turned into ONNX."""


class CheckFailed(BevelError):
    """A comparison the user asked for (self-test, parity, accuracy bound) did not hold."""


class ParityError(CheckFailed):
    """An exported file does not compute what its source computes.

    Attributes:
        error: max|d| / max|reference|; infinite where the two cannot be compared.
    """

    def __init__(self, message: str, error: float) -> None:
        super().__init__(message)
        self.error = error


class VerifyError(BevelError):
    """A graph breaks a rule of its level. Raised by the verifier: a defect of a pass or of a hand-edited graph."""


class ArtifactError(BevelError):
    """An artifact is damaged, truncated, of another format version, or built for another device."""

    exit_code = 3


class ToolchainError(BevelError):
    """A compiler, linker or emulator is missing or failed; says what to install."""

    exit_code = 4


class StoreError(BevelError):
    """The measurement store is damaged, locked, of a newer bevel, or its folder cannot be written."""

    exit_code = 4


class DeviceError(BevelError):
    """Something went wrong on or on the way to a device. Subclasses name what (see `bevel.devices.errors`)."""

    exit_code = 4
