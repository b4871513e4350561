"""The smoke run's images: drawn by the program, written as JPEG files in ImageNet's layout, the same ones every time.

A picture is one textured, coloured shape over clutter, turned, lit, and photographed with some noise. A class is a
combination of the three, such as `red_striped_disc`, chosen so that with ten classes every shape, every texture and
every colour belongs to two of them: each alone leaves two candidates, any two together leave one. Sizes and aspect
ratios vary, and some files are grey-scale, so that a folder of them exercises what a folder of photographs does.

Must not know: what the images are used for.
"""

from __future__ import annotations

import fcntl
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from vit24h.data.randomness import Stream, generator
from vit24h.errors import UserError

VERSION = 1
"""Of the drawing: raise it when pictures change, and sets drawn before are drawn again."""

MARKER = "drawn.json"


def draw_images(
    folder: str | Path,
    *,
    seed: int = 0,
    classes: int = 10,
    train_per_class: int = 200,
    val_per_class: int = 40,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the set into `folder`, as `train/<class>/<image>.jpg` and `val/…`, unless it is there already.

    It appears whole or not at all: drawing goes on beside it, and the finished folder is renamed into place. Of two
    processes that want it at the same time one draws and the other waits. A set of other parameters or of an older
    version is replaced.

    Args:
        folder: where; its parent is made if needed.
        seed: another one gives other pictures of the same classes.
        classes: 2 to 25.
        train_per_class, val_per_class: pictures.
        progress: called with (pictures drawn, pictures in all) now and then.

    Returns:
        `folder`, for `open_dataset`.

    Raises:
        UserError: `folder` holds something else, or cannot be written.
    """
    if not 2 <= classes <= len(_COLOURS) ** 2:
        raise ValueError(f"classes: 2 to {len(_COLOURS) ** 2}, found {classes}")
    folder = Path(folder)
    counts = {"train": train_per_class, "val": val_per_class}
    marker = json.dumps({"version": VERSION, "seed": seed, "classes": classes, **counts}) + "\n"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(folder.name + ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_drawn(folder, marker):
                unfinished = folder.with_name(folder.name + ".unfinished")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a drawing that was killed
                _draw_into(unfinished, seed, classes, counts, progress)
                (unfinished / MARKER).write_text(marker)
                if folder.exists():
                    shutil.rmtree(folder)
                unfinished.rename(folder)
    except OSError as error:
        raise UserError(
            f"{error.filename or folder}: cannot be written: {error.strerror}: choose a folder that can, for the images"
        ) from error
    return folder


def class_name(label: int) -> str:
    """Colour, texture and shape of a class."""
    colour, texture, shape = _attributes(label)
    return f"{tuple(_COLOURS)[colour]}_{tuple(_TEXTURES)[texture]}_{tuple(_SHAPES)[shape]}"


def draw_image(label: int, rng: np.random.Generator) -> Image.Image:
    """One picture of a class, RGB, 80 to 200 px on a side."""
    width, height = _draw_size(rng)
    colour, texture, shape = _attributes(label)
    background = _clutter(width, height, rng)

    # Coordinates of every pixel relative to the object: turned, and its radius is 1.
    radius = min(width, height) * rng.uniform(0.34, 0.48)
    centre_x = rng.uniform(0.8 * radius, width - 0.8 * radius)
    centre_y = rng.uniform(0.8 * radius, height - 0.8 * radius)
    x, y = _turned(width, height, centre_x, centre_y, radius, rng.uniform(0, 2 * math.pi))
    distance = tuple(_SHAPES.values())[shape](x, y)
    inside = np.clip(0.5 - distance * radius, 0, 1)[..., None]  # an edge one pixel soft

    tone, other_tone = _tones(tuple(_COLOURS.values())[colour], rng)
    turn = rng.uniform(0, 2 * math.pi)
    u, v = x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)
    pattern = tuple(_TEXTURES.values())[texture](u, v, rng.uniform(1.3, 1.9))[..., None]
    shading = 1 - rng.uniform(0.05, 0.3) * (u[..., None] + 1) / 2
    surface = (tone + (other_tone - tone) * pattern) * shading

    shadow = (
        rng.uniform(0.1, 0.45) * np.clip(0.5 - (distance * radius - radius * 0.12) / (radius * 0.2), 0, 1)[..., None]
    )
    pixels = background * ((1 - shadow) * (1 - inside)) + surface * inside
    pixels += rng.uniform(1, 8) * rng.standard_normal((height, width, 1), np.float32)
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


# -- files ------------------------------------------------------------------------------------------------------------


def _is_drawn(folder: Path, marker: str) -> bool:
    """Whether the very set that `marker` describes is there. False: nothing, or another drawn set."""
    if not folder.exists():
        return False
    if not (folder / MARKER).is_file():
        raise UserError(f"{folder}: exists, but holds no drawn images ({MARKER} is missing): move it away or remove it")
    return (folder / MARKER).read_text() == marker


def _draw_into(
    folder: Path, seed: int, classes: int, counts: dict[str, int], progress: Callable[[int, int], None] | None
) -> None:
    drawn, total = 0, classes * sum(counts.values())
    for split, (split_name, count) in enumerate(counts.items()):
        for label in range(classes):
            name = class_name(label)
            (folder / split_name / name).mkdir(parents=True)
            for number in range(count):
                rng = generator(Stream.DRAWING, seed, split, label << 32 | number)
                picture = draw_image(label, rng)
                if rng.random() < 0.08:
                    picture = picture.convert("L")
                path = folder / split_name / name / f"{name}_{number:05d}.jpg"
                picture.save(path, quality=int(rng.integers(70, 96)), subsampling=int(rng.choice([0, 2])))
                drawn += 1
                if progress and (drawn % 100 == 0 or drawn == total):
                    progress(drawn, total)


# -- what is in a picture ---------------------------------------------------------------------------------------------


def _attributes(label: int) -> tuple[int, int, int]:
    """(colour, texture, shape) of a class: two orthogonal Latin squares, so that any two of them tell the third."""
    shape, shift = label % 5, label // 5
    return (shape + 2 * shift) % 5, (shape + shift) % 5, shape


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    long_side = int(rng.integers(112, 201))
    short_side = max(80, round(long_side * rng.uniform(0.6, 1)))
    return (long_side, short_side) if rng.random() < 0.6 else (short_side, long_side)


def _tones(hue: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two tones of a hue (in degrees), one dark and one light, in either order; each (3,) float32, 0 to 255."""
    hue = (hue + rng.normal(0, 9)) % 360
    light = _rgb(hue, rng.uniform(0.55, 0.95), rng.uniform(0.75, 1))
    dark = _rgb(hue, rng.uniform(0.6, 1), rng.uniform(0.2, 0.4))
    return (dark, light) if rng.random() < 0.5 else (light, dark)


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """(3,) float32, 0 to 255; the hue in degrees."""
    ramp = np.abs((hue / 60 + np.array([0, 4, 2], np.float32)) % 6 - 3) - 1
    return 255 * value * (1 - saturation + saturation * np.clip(ramp, 0, 1))


def _clutter(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A background that tells nothing of the class: (height, width, 3) float32, 0 to 255."""

    mood = rng.uniform(
        0, 360
    )  # a hue that prevails, so that a picture's mean colour says more of it than of the object

    def colour(spread: float) -> tuple[int, ...]:
        hue = (mood + rng.uniform(-spread, spread)) % 360
        return tuple(int(channel) for channel in _rgb(hue, rng.uniform(0.05, 0.75), rng.uniform(0.15, 1)))

    corners = np.array([[colour(30), colour(30)], [colour(30), colour(30)]], np.uint8)
    # At half the size, out of focus: it costs a quarter.
    canvas = Image.fromarray(corners).resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(canvas)
    reach = min(canvas.size)
    for _ in range(int(rng.integers(8, 20))):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
        dx, dy = rng.uniform(0.05, 0.3, 2) * reach
        kind = rng.integers(3)
        if kind == 0:
            draw.ellipse((x - dx, y - dy, x + dx, y + dy), fill=colour(100))
        elif kind == 1:
            turn = rng.uniform(0, 2 * math.pi)
            draw.regular_polygon((x, y, float(dx)), int(rng.integers(3, 7)), math.degrees(turn), fill=colour(100))
        else:
            ends = (x, y, x + rng.normal(0, 0.5) * reach, y + rng.normal(0, 0.5) * reach)
            draw.line(ends, fill=colour(100), width=int(rng.integers(1, 4)))
    canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1)))
    return np.asarray(canvas.resize((width, height), Image.Resampling.BILINEAR), np.float32)


def _turned(
    width: int, height: int, centre_x: float, centre_y: float, radius: float, turn: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (height, width), float32, of every pixel in the frame of an object."""
    x = (np.arange(width, dtype=np.float32)[None, :] + 0.5 - centre_x) / radius
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5 - centre_y) / radius
    return x * math.cos(turn) - y * math.sin(turn), x * math.sin(turn) + y * math.cos(turn)


# Shapes: signed distance from the edge, in units of the radius; negative inside.


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.hypot(x, y) - 0.9


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.78


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    slanted = math.sin(math.pi / 3) * np.abs(x) - 0.5 * y
    return np.maximum(slanted, y) - 0.52


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    return np.maximum(long - 0.95, short - 0.34)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Folded onto one of the ten half-points: an edge from the tip (1, 0) to the notch at 36 degrees.
    sector = 2 * math.pi / 5
    angle = np.abs((np.arctan2(y, x) + sector / 2) % sector - sector / 2)
    r = np.hypot(x, y)
    notch_x, notch_y = 0.5 * math.cos(sector / 2), 0.5 * math.sin(sector / 2)
    length = math.hypot(notch_y, 1 - notch_x)
    return ((r * np.cos(angle) - 1) * notch_y + r * np.sin(angle) * (1 - notch_x)) / length


# Textures: 0 to 1 at (u, v), in units of the object's radius; `frequency` periods in one radius.


def _striped(u: np.ndarray, _v: np.ndarray, frequency: float) -> np.ndarray:
    return _two_tone(np.sin(2 * math.pi * frequency * u))


def _checked(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    return _two_tone(2 * np.sin(2 * math.pi * 0.8 * frequency * u) * np.sin(2 * math.pi * 0.8 * frequency * v))


def _dotted(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    return _two_tone(np.cos(2 * math.pi * frequency * u) + np.cos(2 * math.pi * frequency * v) - 0.6)


def _ringed(u: np.ndarray, v: np.ndarray, frequency: float) -> np.ndarray:
    return _two_tone(np.cos(2 * math.pi * frequency * np.hypot(u, v)))


def _plain(u: np.ndarray, _v: np.ndarray, _frequency: float) -> np.ndarray:
    return np.full_like(u, 0.8)


def _two_tone(wave: np.ndarray) -> np.ndarray:
    """A wave around 0 as two tones with a soft border."""
    return np.clip(0.5 + 2 * wave, 0, 1)


_COLOURS = {"red": 0.0, "yellow": 50.0, "green": 125.0, "blue": 215.0, "purple": 290.0}
_TEXTURES = {"striped": _striped, "checked": _checked, "dotted": _dotted, "ringed": _ringed, "plain": _plain}
_SHAPES = {"disc": _disc, "square": _square, "triangle": _triangle, "cross": _cross, "star": _star}
