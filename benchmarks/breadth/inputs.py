"""Real inputs for the models of the breadth benchmark: photographs, sentences, rendered text, speech.

Each function returns samples: arrays by input name, in the shapes the model takes.
"""

from __future__ import annotations

import io
import subprocess
import tempfile
import wave
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Array = npt.NDArray[Any]
Sample = dict[str, Array]

# Mean and standard deviation of ImageNet's RGB in 0..1.
MEAN = np.asarray([0.485, 0.456, 0.406], np.float32)
STD = np.asarray([0.229, 0.224, 0.225], np.float32)

SENTENCES = (
    "Yes.",
    "A compiler for the edge.",
    "The train to Utrecht leaves from platform seven in four minutes.",
    "Quantization replaces reals by integers of eight bits and a scale.",
    "Nobody has seen the lighthouse keeper since the storm of last November, but the lamp is lit every evening.",
    "Wash the lentils, cover them with cold water, add a bay leaf, and let them simmer until they are tender.",
    "E = mc^2, zażółć gęślą jaźń, 東京, and an emoji or two should not upset a tokenizer.",
    "How do I return a parcel that arrived damaged?",
)
# A paragraph to be cut at the longest sequence.
PARAGRAPH = (
    "The river had been rising for three days when the council met in the school hall. Nobody wanted to be the first to "
    "speak. The engineer unrolled her map over two tables and weighed its corners down with cups, and then she told them, "
    "quietly, what the water would do and in which order: first the meadows by the mill, which flooded every spring and "
    "which nobody would miss; then the road to the station; then, if the wind kept coming from the west, the lower street "
    "with the bakery, the chemist and the eleven houses whose cellars were older than the church. There was time to carry "
    "things upstairs. There was not time to argue about whose fault it was, though that would come, she said, as surely as "
    "the mud. The baker asked whether he should light his ovens that night. She thought about it for a while. Light them, "
    "she said at last, because people who carry sandbags get hungry, and because an oven that is warm dries faster than one "
    "that is cold. So he did, and at four in the morning the whole street smelled of bread, and the water stopped two steps "
    "below his door, where a brass plate marks it to this day. Visitors ask about the plate, and he tells them about the "
    "ovens."
)

TEXTS = (
    "Rotterdam",
    "INVOICE",
    "19.95",
    "bevel2026",
    "Exit42",
    "battery:15%",
    "raspberry",
    "www.example.org",
    "+31-20-5550199",
    "EdgeCompiler",
)

SPEECH = "Good evening. This is the weather report for the coast. Expect strong wind from the west, and rain before midnight."


def photographs(data: Path, count: int, name: str, size: int, prepare: Callable[[Array], Array]) -> Iterator[Sample]:
    """The first photographs of an image file, central part, as [1, 3, size, size].

    `prepare` takes RGB [size, size, 3] in 0..255. Sizes above 224 scale the photograph, smaller ones cut it.
    """
    with np.load(data) as archive:
        jpeg, offset = archive["jpeg"], archive["offset"]
    for index in range(count):
        image = Image.open(io.BytesIO(jpeg[offset[index] : offset[index + 1]].tobytes())).convert("RGB")
        if size > min(image.size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        left, top = (image.width - size) // 2, (image.height - size) // 2
        pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32)
        yield {name: np.ascontiguousarray(prepare(pixels).transpose(2, 0, 1)[None])}


def normalized(pixels: Array) -> Array:
    """ImageNet's normalization."""
    return ((pixels / 255 - MEAN) / STD).astype(np.float32)


def centred(pixels: Array) -> Array:
    """What EfficientNet-Lite takes: -1..1."""
    return ((pixels - 127) / 128).astype(np.float32)


def sentences(tokenizer: Path, longest: int) -> Iterator[Sample]:
    """Tokenized sentences of different lengths, one of `longest` tokens, and one that is padded."""
    from tokenizers import Tokenizer

    encode = Tokenizer.from_file(str(tokenizer))
    encode.no_padding()
    encode.enable_truncation(longest)
    for text in (*SENTENCES, PARAGRAPH):
        yield _token_arrays(encode.encode(text))
    encode.enable_padding(length=32)
    yield _token_arrays(encode.encode(SENTENCES[2]))


def _token_arrays(encoded: Any) -> Sample:
    arrays = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask, "token_type_ids": encoded.type_ids}
    return {name: np.asarray([values], np.int64) for name, values in arrays.items()}


def rendered_texts(height: int, width: int, texts: Sequence[str] = TEXTS) -> Iterator[Sample]:
    """`texts` as dark lines on light ground, [1, 3, height, width] in -1..1, BGR; the rest of a line is zero."""
    font = ImageFont.load_default(size=32)
    for text in texts:
        box = font.getbbox(text)
        line = Image.new("RGB", (int(box[2]) + 8, height), (250, 250, 245))
        ImageDraw.Draw(line).text((4, (height - box[1] - box[3]) / 2), text, (20, 20, 30), font)
        if line.width > width:
            line = line.resize((width, height), Image.Resampling.BILINEAR)
        filled = np.zeros((height, width, 3), np.float32)
        filled[:, : line.width] = (np.asarray(line, np.float32)[..., ::-1] / 255 - 0.5) / 0.5
        yield {"x": np.ascontiguousarray(filled.transpose(2, 0, 1)[None])}


def read_ctc(scores: Array, characters: Sequence[str]) -> str:
    """The text that class scores [1, steps, classes] spell: best classes, repetitions merged, blanks (class 0) left out."""
    best = scores[0].argmax(-1)
    kept = [c for i, c in enumerate(best) if c != 0 and (i == 0 or c != best[i - 1])]
    # The published list lacks the blank at its beginning and the space at its end.
    alphabet = ["", *characters, " "]
    return "".join(alphabet[c] for c in kept)


def speech_frames(rate: int, frame: int, context: int) -> Array:
    """Synthetic speech between silences, [frames, context + frame]: every frame with the end of the one before it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-w", str(path), SPEECH], check=True)
        with wave.open(str(path)) as file:
            source = file.getframerate()
            spoken = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    seconds = len(spoken) / source
    spoken = np.interp(np.arange(0, seconds, 1 / rate), np.arange(len(spoken)) / source, spoken).astype(np.float32)
    silence = np.random.default_rng(0).standard_normal(rate).astype(np.float32) * 1e-3
    sound = np.concatenate((silence, spoken, silence))
    frames = sound[: len(sound) // frame * frame].reshape(-1, frame)
    before = np.concatenate((np.zeros((1, context), np.float32), frames[:-1, -context:]))
    return np.concatenate((before, frames), axis=1)
