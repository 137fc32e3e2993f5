"""Data files for calibration, evaluation and runs.

A data set is an .npz, or a directory of .npy files (memory-mapped, so it may be larger than memory), of *preprocessed* arrays
named like the model's inputs, sample axis first; `label` is optional. An input with a batch axis takes `a[i:i+1]`, any other
`a[i]`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.errors import UsageError
from bevel.ir.graph import Graph
from bevel.ir.types import Dim

Array = npt.NDArray[Any]
LABEL = "label"


@dataclass(frozen=True)
class Inputs:
    """What a data set must provide for one model input."""

    name: str
    shape: tuple[int | None, ...]

    @property
    def batched(self) -> bool:
        """True when the leading axis is the batch: symbolic, or of extent 1."""
        return bool(self.shape) and self.shape[0] in (None, 1)

    @property
    def sample(self) -> tuple[int | None, ...]:
        """Shape of one sample inside the data set's array."""
        return self.shape[1:] if self.batched else self.shape


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
        labels: int [n], or None.
    """

    path: Path
    arrays: Mapping[str, Array]
    inputs: tuple[Inputs, ...]
    labels: Array | None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, indices: slice | Sequence[int] | Array) -> dict[str, Array]:
        """Those samples as one batch, in memory; for models whose inputs all have a batch axis."""
        return {name: np.ascontiguousarray(array[indices]) for name, array in self.arrays.items()}

    def sample(self, index: int) -> dict[str, Array]:
        """One sample in the shape the model takes."""
        result = {}
        for spec in self.inputs:
            array = self.arrays[spec.name]
            result[spec.name] = np.ascontiguousarray(array[index : index + 1] if spec.batched else array[index])
        return result

    def batches(self, size: int, limit: int | None = None) -> Iterator[dict[str, Array]]:
        """Consecutive batches of at most `size` samples, the first `limit` samples; one at a time without batch axes."""
        count = len(self) if limit is None else min(limit, len(self))
        if not all(spec.batched and spec.shape[0] is None for spec in self.inputs):
            yield from (self.sample(i) for i in range(count))
            return
        for start in range(0, count, size):
            yield self.take(slice(start, min(start + size, count)))


def open_data(path: str | Path, inputs: Sequence[Inputs]) -> DataSet:
    """Open a data set for a model with `inputs`.

    Raises:
        UsageError: missing or unreadable file, missing or superfluous names, shapes that do not fit, arrays of different
            lengths, no samples, non-numeric dtypes.
    """
    root = Path(path)
    arrays = _load(root)
    labels = arrays.pop(LABEL, None)
    names = {spec.name for spec in inputs}
    if set(arrays) != names:
        missing, extra = sorted(names - set(arrays)), sorted(set(arrays) - names)
        raise UsageError(
            f"{root}: arrays {sorted(arrays)} found, the model's inputs are {sorted(names)}"
            + (f"; missing {missing}" if missing else "")
            + (f"; not an input: {extra}" if extra else "")
        )
    lengths = {}
    for spec in inputs:
        array = arrays[spec.name]
        found = array.shape[1:]
        fits = len(found) == len(spec.sample) and all(e is None or e == f for e, f in zip(spec.sample, found, strict=True))
        if array.ndim == 0 or not fits:
            wanted = ", ".join("n" if e is None else str(e) for e in spec.sample)
            raise UsageError(f"{root}: {spec.name!r} is {list(array.shape)}, expected [samples, {wanted}]")
        if array.dtype.kind not in "fiub":
            raise UsageError(f"{root}: {spec.name!r} has dtype {array.dtype}, expected numbers")
        lengths[spec.name] = len(array)
    if labels is not None:
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UsageError(f"{root}: {LABEL!r} is {labels.dtype}{list(labels.shape)}, expected integers [samples]")
        lengths[LABEL] = len(labels)
    if len(set(lengths.values())) != 1:
        raise UsageError(f"{root}: arrays of different lengths: {lengths}")
    if not next(iter(lengths.values())):
        raise UsageError(f"{root}: holds no samples")
    return DataSet(root, arrays, tuple(inputs), labels)


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


def _load(root: Path) -> dict[str, Array]:
    try:
        if root.is_dir():
            return {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(root.glob("*.npy"))}
        with np.load(root, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UsageError(f"{root}: a single array; expected an .npz or a directory of .npy files named like the inputs")
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise UsageError(f"{root}: no such file; expected an .npz or a directory of .npy files") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise UsageError(f"{root}: not a readable .npz or directory of .npy files ({error})") from error
