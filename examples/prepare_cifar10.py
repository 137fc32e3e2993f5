"""CIFAR-10 images to the data files that `bevel eval` and `--calib` read.

    python examples/prepare_cifar10.py --for resnet8 -o cifar10.npz [--count N] [--images JPEGS.npz]

The image file holds `jpeg` (all files' bytes), `offset` (image i is jpeg[offset[i]:offset[i + 1]]) and `label`. The result holds
one array named like the model's input, preprocessed the way the model was trained, and `label`. Needs pillow.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]

IMAGES = Path(__file__).resolve().parent.parent / "models" / "data" / "cifar10_test_512.npz"
# Channel statistics of ImageNet, which ResNet-20 was trained with.
MEAN = np.asarray([0.485, 0.456, 0.406], np.float32)
STD = np.asarray([0.229, 0.224, 0.225], np.float32)


def raw_pixels(images: Array) -> Array:
    """What the MLPerf Tiny ResNet-8 takes: float32 [N, 32, 32, 3] of 0 to 255."""
    return images.astype(np.float32)


def normalized(images: Array) -> Array:
    """What ResNet-20 takes: float32 [N, 3, 32, 32], ImageNet mean and deviation."""
    return np.ascontiguousarray(((images.astype(np.float32) / np.float32(255) - MEAN) / STD).transpose(0, 3, 1, 2))


# Model -> (input name, preprocessing).
MODELS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "resnet8": ("input_1", raw_pixels),
    "resnet8-int8": ("input_1_int8", raw_pixels),
    "resnet20": ("image", normalized),
}


def decode(path: Path, count: int | None = None) -> tuple[Array, Array]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] of a JPEG file, the first `count` of them."""
    with np.load(path) as file:
        data, offset, label = file["jpeg"].tobytes(), file["offset"], file["label"]
    total = len(label) if count is None else min(count, len(label))
    images = [Image.open(io.BytesIO(data[offset[i] : offset[i + 1]])).convert("RGB") for i in range(total)]
    return np.stack([np.asarray(image) for image in images]), label[:total].astype(np.int64)


def main() -> None:
    """Parse arguments and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for", dest="model", choices=sorted(MODELS), required=True, help="model to prepare for")
    parser.add_argument("-o", "--output", type=Path, required=True, help="file to write")
    parser.add_argument("--images", type=Path, default=IMAGES, help="JPEG images (default: %(default)s)")
    parser.add_argument("--count", type=int, help="take the first COUNT images only")
    args = parser.parse_args()
    images, labels = decode(args.images, args.count)
    name, preprocess = MODELS[args.model]
    np.savez(args.output, **{name: preprocess(images), "label": labels})


if __name__ == "__main__":
    main()
