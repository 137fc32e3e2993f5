"""Preprocessing settings: a name or a TOML file becomes the pass that folds them into the model.

frame = [480, 640]        # height and width of the frames that arrive; default: what the model takes
layout = "nhwc"           # of the frames: "nhwc" (default) or "nchw"
channels = "bgr"          # of the frames: "rgb" (default, what the model takes) or "bgr"
resize = 256              # shorter side, or [height, width]
method = "linear"         # or "nearest"
crop = 224                # centre crop: side, or [height, width]
scale = 0.00392156862745  # x = (pixel * scale - mean) / std; scale defaults to 1/255
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
input = "pixels"          # only where the model has several inputs
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from bevel.errors import UsageError
from bevel.passes.preprocess import Preprocess

_BYTE = 1.0 / 255.0

# What common training pipelines do to pixels: torchvision and timm; TensorFlow; EfficientNet-Lite; plain division; nothing.
PRESETS: dict[str, Preprocess] = {
    "imagenet": Preprocess(scale=_BYTE, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "tensorflow": Preprocess(mean=(127.5,), std=(127.5,)),
    "efficientnet-lite": Preprocess(mean=(127.0,), std=(128.0,)),
    "unit": Preprocess(scale=_BYTE),
    "raw": Preprocess(),
}
_KEYS = {"input", "frame", "layout", "channels", "resize", "method", "crop", "scale", "mean", "std"}


def load_preprocess(setting: str) -> Preprocess:
    """The pass for a preset's name or a TOML file.

    Raises:
        UsageError: neither, or the file is malformed; names the key.
    """
    if setting in PRESETS:
        return PRESETS[setting]
    path = Path(setting)
    if path.suffix != ".toml":
        raise UsageError(f"--preprocess {setting}: choose one of {', '.join(PRESETS)}, or give a .toml file (docs/preprocess.md)")
    try:
        entries = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from error
    return _parse(entries, path)


def _parse(entries: dict[str, Any], path: Path) -> Preprocess:
    if unknown := sorted(entries.keys() - _KEYS):
        raise UsageError(f"{path}: key {unknown[0]!r} is unknown; expected {', '.join(sorted(_KEYS))}")
    channels = _text(entries, "channels", "rgb", path)
    if channels not in ("rgb", "bgr"):
        raise UsageError(f"{path}: channels = {channels!r}, expected 'rgb' or 'bgr'")
    return Preprocess(
        input=_text(entries, "input", "", path),
        frame=_sizes(entries, "frame", path),
        layout=_text(entries, "layout", "nhwc", path),
        reverse=channels == "bgr",
        resize=_sizes(entries, "resize", path),
        method=_text(entries, "method", "linear", path),
        crop=_sizes(entries, "crop", path),
        scale=_numbers(entries, "scale", (_BYTE,), path)[0],
        mean=_numbers(entries, "mean", (0.0,), path),
        std=_numbers(entries, "std", (1.0,), path),
    )


def _text(entries: dict[str, Any], key: str, default: str, path: Path) -> str:
    value = entries.get(key, default)
    if not isinstance(value, str):
        raise UsageError(f"{path}: {key} = {value!r}, expected a string")
    return value


def _sizes(entries: dict[str, Any], key: str, path: Path) -> tuple[int, ...]:
    value = entries.get(key, [])
    values = value if isinstance(value, list) else [value]
    if len(values) > 2 or any(not isinstance(v, int) or isinstance(v, bool) or v < 1 for v in values):
        raise UsageError(f"{path}: {key} = {value!r}, expected one or two positive integers")
    return tuple(values)


def _numbers(entries: dict[str, Any], key: str, default: tuple[float, ...], path: Path) -> tuple[float, ...]:
    value = entries.get(key, list(default))
    values = value if isinstance(value, list) else [value]
    if not values or any(not isinstance(v, int | float) or isinstance(v, bool) for v in values):
        raise UsageError(f"{path}: {key} = {value!r}, expected a number or a list of numbers")
    return tuple(float(v) for v in values)
