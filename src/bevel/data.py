"""Data files for calibration, evaluation and runs.

A data set is an .npz, or a directory of .npy files, of *preprocessed* arrays (memory-mapped, so it may be larger than memory)
named like the model's inputs, sample axis first; `label` is optional. An array of its input's rank runs along the input's batch
axis: a sample is as many rows as that axis has (1 when it is symbolic). An array of one more rank holds whole inputs.

Samples of different sizes, such as sentences, are a directory of .npz files, one sample each in the shape of the model's inputs
(`SampleFolder`); their order is that of the file names.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from bevel.errors import UsageError
from bevel.ir.graph import Graph
from bevel.ir.types import Dim

Array = npt.NDArray[Any]
LABEL = "label"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Inputs:
    """What a data set must provide for one model input.

    Attributes:
        name: of the input and the array.
        shape: of the input; None is a symbolic dimension.
    """

    name: str
    shape: tuple[int | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """True for an array whose rows are rows of the input's batch axis, or whole inputs of fixed batch extent."""
        if len(shape) == len(self.shape):
            return len(shape) > 0 and _fits(self.shape[1:], shape[1:])
        return len(shape) == len(self.shape) + 1 and self.shape[:1] != (None,) and _fits(self.shape, shape[1:])

    @property
    def expected(self) -> str:
        """The shape to ask for, in words."""
        wanted = self.shape[1:] if self.shape[:1] in ((None,), (1,)) else self.shape
        return f"[{', '.join(['samples', *('n' if e is None else str(e) for e in wanted)])}]"


def _fits(wanted: tuple[int | None, ...], found: tuple[int, ...]) -> bool:
    return all(e is None or e == f for e, f in zip(wanted, found, strict=True))


def inputs_of(graph: Graph) -> tuple[Inputs, ...]:
    """What a data set must provide for `graph`."""
    return tuple(Inputs(v.name, tuple(None if isinstance(d, Dim) else d for d in v.type.shape)) for v in graph.inputs)


@dataclass(frozen=True)
class DataSet:
    """Arrays with the sample axis first.

    Attributes:
        path: where they came from, for messages.
        arrays: one for each model input.
        inputs: what each must look like.
        labels: int [rows], or None.
        rows: rows that one sample takes of each array; more than 1 for a model compiled for a larger batch.
    """

    path: Path
    arrays: Mapping[str, Array]
    inputs: tuple[Inputs, ...]
    labels: Array | None
    rows: int

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()))) // self.rows

    def take(self, start: int, stop: int) -> dict[str, Array]:
        """Rows of samples `start` to `stop`, in memory."""
        return {name: np.ascontiguousarray(array[start * self.rows : stop * self.rows]) for name, array in self.arrays.items()}

    def sample(self, index: int) -> dict[str, Array]:
        """One sample in the shape the model takes."""
        taken = self.take(index, index + 1)
        return {s.name: taken[s.name] if taken[s.name].ndim == len(s.shape) else taken[s.name][0] for s in self.inputs}

    def batches(self, size: int, limit: int | None = None) -> Batches:
        """Consecutive batches of at most `size` samples, the first `limit` samples; one at a time for a model of fixed batch."""
        symbolic = all(spec.shape[:1] == (None,) for spec in self.inputs)
        return Batches(self, size if symbolic else 1, len(self) if limit is None else min(limit, len(self)), symbolic)

    @property
    def most(self) -> int:
        """Samples that may be taken at once."""
        return len(self)


@dataclass(frozen=True)
class SampleFolder:
    """One file for each sample, because their extents differ.

    Attributes:
        path: the directory, for messages.
        files: one .npz for each sample.
        inputs: what each must hold.
        labels: int [samples], or None.
    """

    path: Path
    files: tuple[Path, ...]
    inputs: tuple[Inputs, ...]
    labels: Array | None
    rows: int = 1
    most: int = 1

    def __len__(self) -> int:
        return len(self.files)

    def sample(self, index: int) -> dict[str, Array]:
        """One sample in the shape the model takes.

        Raises:
            UsageError: the file is damaged, or its arrays do not fit the model.
        """
        file = self.files[index]
        arrays = load_arrays(file)
        arrays.pop(LABEL, None)
        _check_names(file, arrays, self.inputs)
        for spec in self.inputs:
            array = arrays[spec.name]
            if array.ndim != len(spec.shape) or not _fits(spec.shape, array.shape) or array.dtype.kind not in "fiub":
                wanted = ", ".join("n" if e is None else str(e) for e in spec.shape)
                raise UsageError(f"{file}: {spec.name!r} is {array.dtype}{list(array.shape)}, expected numbers [{wanted}]")
        return arrays

    def take(self, start: int, stop: int) -> dict[str, Array]:
        """The one sample between `start` and `stop`.

        Raises:
            ValueError: more are asked for, which have no common shape.
        """
        if stop - start != 1:
            raise ValueError(f"{stop - start} samples of different shapes at once")
        return self.sample(start)

    def batches(self, size: int, limit: int | None = None) -> Batches:
        """The first `limit` samples one by one, whatever `size`."""
        return Batches(self, min(size, 1), len(self) if limit is None else min(limit, len(self)), symbolic=False)


@dataclass(frozen=True)
class Batches:
    """Batches of a data set, to be iterated as often as needed; one is in memory at a time.

    Attributes:
        data: where they come from.
        size: samples in each but the last.
        samples: samples in all.
        symbolic: the model takes any number at once; else a batch is one sample in the model's shape.
    """

    data: DataSet | SampleFolder
    size: int
    samples: int
    symbolic: bool

    def __iter__(self) -> Iterator[dict[str, Array]]:
        for start in range(0, self.samples, self.size):
            yield self.data.take(start, min(start + self.size, self.samples)) if self.symbolic else self.data.sample(start)


def _check_names(where: Path, arrays: Mapping[str, Array], inputs: Sequence[Inputs]) -> None:
    names = {spec.name for spec in inputs}
    if set(arrays) != names:
        missing, extra = sorted(names - set(arrays)), sorted(set(arrays) - names)
        raise UsageError(
            f"{where}: arrays {sorted(arrays)} found, the model's inputs are {sorted(names)}"
            + (f"; missing {missing}" if missing else "")
            + (f"; not an input: {extra}" if extra else "")
        )


def _open_folder(root: Path, files: tuple[Path, ...], inputs: Sequence[Inputs]) -> SampleFolder:
    """The samples in `files`, all of them labelled or none."""
    found = [load_arrays(file).get(LABEL) for file in files]
    labels = [label.reshape(-1) for label in found if label is not None]
    if labels and (len(labels) != len(files) or any(label.size != 1 or label.dtype.kind not in "iu" for label in labels)):
        raise UsageError(
            f"{root}: {len(labels)} of {len(files)} samples have a {LABEL!r}; expected one integer in each, or in none"
        )
    return SampleFolder(root, files, tuple(inputs), np.concatenate(labels) if labels else None)


def open_data(path: str | Path, inputs: Sequence[Inputs]) -> DataSet | SampleFolder:
    """Open a data set for a model with `inputs`.

    Raises:
        UsageError: missing or unreadable file, missing or superfluous names, shapes that do not fit, arrays of different
            lengths, no samples, non-numeric dtypes, labels that are not integers.
    """
    root = Path(path)
    if files := tuple(sorted(root.glob("*.npz"))):
        return _open_folder(root, files, inputs)
    arrays = load_arrays(root)
    labels = arrays.pop(LABEL, None)
    _check_names(root, arrays, inputs)
    lengths, rows = {}, set()
    for spec in inputs:
        array = arrays[spec.name]
        if not spec.fits(array.shape):
            raise UsageError(f"{root}: {spec.name!r} is {list(array.shape)}, expected {spec.expected}")
        if array.dtype.kind not in "fiub":
            raise UsageError(f"{root}: {spec.name!r} has dtype {array.dtype}, expected numbers")
        lengths[spec.name] = len(array)
        rows.add((spec.shape[0] or 1) if array.ndim == len(spec.shape) else 1)
    if labels is not None:
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UsageError(f"{root}: {LABEL!r} is {labels.dtype}{list(labels.shape)}, expected integers [samples]")
        lengths[LABEL] = len(labels)
    if len(set(lengths.values())) != 1 or len(rows) != 1:
        raise UsageError(f"{root}: arrays of different lengths: {lengths}, of which a sample takes {sorted(rows)} rows")
    (each,), length = rows, next(iter(lengths.values()))
    if not length:
        raise UsageError(f"{root}: holds no samples")
    if length % each:
        raise UsageError(f"{root}: {length} rows found, the model takes {each} at a time; cut or fill the data to a multiple")
    return DataSet(root, arrays, tuple(inputs), labels, each)


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> Path:
    """Write arrays by name as an .npz and return its path.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        # numpy takes names as keywords, and a keyword called "file" is its own first parameter: such a name gets no chance.
        with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, np.asanyarray(array), allow_pickle=False)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
    return path


def load_arrays(root: Path) -> dict[str, Array]:
    """The arrays of an .npz or of a directory of .npy files, by name; memory-mapped, so none is in memory as a whole.

    Raises:
        UsageError: missing, damaged, or of another kind.
    """
    try:
        if root.is_dir():
            return {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(root.glob("*.npy"))}
        if root.exists() and not zipfile.is_zipfile(root):
            np.load(root, mmap_mode="r", allow_pickle=False)
            raise UsageError(f"{root}: a single array; expected an .npz or a directory of .npy files named like the inputs")
        with zipfile.ZipFile(root) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            return {member.filename.removesuffix(".npy"): _map_member(root, archive, member) for member in members}
    except FileNotFoundError:
        raise UsageError(f"{root}: no such file; expected an .npz or a directory of .npy files") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UsageError(f"{root}: not a readable .npz or directory of .npy files ({error})") from error


def _map_member(root: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """An array of an .npz where it lies, or, where it is compressed, in a file without a name that goes with it.

    Raises:
        ValueError, OSError, zipfile.BadZipFile: it is damaged, or holds Python objects.
    """
    with contextlib.ExitStack() as files:
        packed = files.enter_context(archive.open(member))
        if member.compress_type == zipfile.ZIP_STORED:
            file: IO[bytes] = files.enter_context(root.open("rb"))
            # Behind the local header: 30 bytes, of which the last four say how long the name and the extra field are.
            file.seek(member.header_offset + 26)
            start = member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
            # Reading a member to its end checks its sum.
            while packed.read(_CHUNK):
                pass
        else:
            file, start = files.enter_context(tempfile.TemporaryFile()), 0
            shutil.copyfileobj(packed, file, _CHUNK)
        file.seek(start)
        version = np.lib.format.read_magic(file)
        headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in headers:
            raise ValueError(f"{member.filename}: .npy version {version}, expected 1.0 or 2.0")
        shape, fortran, dtype = headers[version](file)
        if dtype.hasobject:
            raise ValueError(f"{member.filename}: holds Python objects")
        if 0 in shape:
            return np.empty(shape, dtype)
        file.flush()
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")
