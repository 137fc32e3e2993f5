"""Training data: batches in an order that the seed alone decides, so that a resumed run sees what an uninterrupted one does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bevel.data import DataSet, SampleFolder
from bevel.errors import UsageError

Array = npt.NDArray[Any]

# How far images move, in pixels: customary for 32 x 32, and for larger ones little.
SHIFT = 4


@dataclass(frozen=True)
class Shuffled:
    """Batches of a data set by number.

    Attributes:
        data: what is drawn from; its samples have one shape.
        batch: samples of a batch; fewer where there are fewer in all.
        seed: decides order and augmentation.
        augment: see `Recipe`.
    """

    data: DataSet
    batch: int
    seed: int
    augment: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        """Samples of every batch."""
        return min(self.batch, len(self.data))

    @property
    def per_epoch(self) -> int:
        """Whole batches of an epoch; what is left over waits for another order."""
        return len(self.data) // self.size

    def take(self, stage: int, step: int) -> tuple[dict[str, Array], Array | None]:
        """Arrays and labels of step `step` of stage `stage`."""
        epoch, index = divmod(step, self.per_epoch)
        order = np.random.default_rng([self.seed, stage, epoch]).permutation(len(self.data))
        # Sorted, files are read forwards; the order within a batch means nothing.
        rows = np.sort(order[index * self.size : (index + 1) * self.size])
        arrays = {name: np.asarray(array[rows]) for name, array in self.data.arrays.items()}
        labels = None if self.data.labels is None else np.asarray(self.data.labels[rows]).astype(np.int64)
        if self.augment:
            rng = np.random.default_rng([self.seed, stage, step, 1])
            arrays = {name: augmented(array, self.augment, rng) for name, array in arrays.items()}
        return arrays, labels


def augmented(images: Array, how: frozenset[str], rng: np.random.Generator) -> Array:
    """[N, C, H, W] with each image mirrored by chance ("flip") and moved by up to SHIFT pixels, edges repeated ("crop")."""
    n, _, height, width = images.shape
    mirrored = rng.random((n,)) < (0.5 if "flip" in how else 0.0)
    shift = SHIFT if "crop" in how else 0
    offsets = rng.integers(0, 2 * shift + 1, (n, 2))
    padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)), mode="edge")
    result = np.empty_like(images)
    for i, (y, x) in enumerate(offsets):
        image = padded[i, :, y : y + height, x : x + width]
        result[i] = image[..., ::-1] if mirrored[i] else image
    return result


def require_batches(data: DataSet | SampleFolder, augment: frozenset[str] = frozenset()) -> DataSet:
    """`data`, if samples of it can be taken together.

    Raises:
        UsageError: samples of different shapes, a model of fixed batch, or augmentation of what is no image.
    """
    if isinstance(data, SampleFolder):
        raise UsageError(
            f"{data.path}: samples of different shapes; training takes batches: store them as one array of one shape"
        )
    for spec in data.inputs:
        if spec.shape[:1] != (None,):
            raise UsageError(
                f"{data.path}: input {spec.name!r} has a batch of {spec.shape[0] if spec.shape else 'no axis'}; training needs a "
                "model whose leading dimension is symbolic: export it with a named batch dimension"
            )
        if augment and len(spec.shape) != 4:
            raise UsageError(f"--augment: input {spec.name!r} is {list(spec.shape)}, expected images [N, C, H, W]")
    return data
