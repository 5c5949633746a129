"""Real data: the samples that targets are estimated from, one loader for each source.

A loader has the options of the target of the same name. Heavy packages are imported when a loader
needs them, and nothing is ever downloaded or unpickled.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Float

from bwdln.arrays import read_array
from bwdln.errors import InvalidOption, check, check_one_of
from bwdln.registry import Choice, Registry
from bwdln.types import Array, PRNGKey

#: Name -> function (*, options) -> Samples, or None where a target is no samples.
SAMPLES = Registry("target")

Photograph: TypeAlias = Literal["brick", "camera", "coins", "grass", "gravel", "moon", "page", "text"]
FileKind: TypeAlias = Literal["samples", "covariance"]


class Samples(NamedTuple):
    """The data a target is estimated from.

    Attributes:
        values: shape (count, n), one sample a row, as the data give them (not centered).
        image_shape: the (height, width) of a sample that is an image, with height · width = n;
            None for anything else.
        center: whether the target is their covariance about the mean, or about 0.
    """

    values: Float[Array, "count n"]
    image_shape: tuple[int, int] | None = None
    center: bool = True


def samples(choice: Choice) -> Samples | None:
    """The data behind a target; None for a target that is not estimated from samples."""
    return SAMPLES.build(choice) if choice.name in SAMPLES else None


def key(seed: int) -> PRNGKey:
    """The key of a seed; raises `InvalidOption` for a seed that is none."""
    check(0 <= seed < 2**32, "seed", seed, "an integer from 0 to 2^32 - 1")
    return jax.random.key(seed)


@SAMPLES.register("digits")
def digits() -> Samples:
    """scikit-learn's 1,797 handwritten digits, 8 × 8, gray levels 0 to 16. Raises `InvalidOption`."""
    values = _extra("sklearn.datasets", "scikit-learn", "digits").load_digits().data
    return Samples(np.asarray(values, np.float64), (8, 8))


@SAMPLES.register("faces")
def faces() -> Samples:
    """The 100 faces of scikit-image's `lfw_subset`, 25 × 25, gray levels 0 to 1.

    The subset's other half are images without a face. Raises `InvalidOption`.
    """
    images = np.load(_shipped("lfw_subset.npy", "faces"), allow_pickle=False)[:100]
    return Samples(images.reshape(100, 625).astype(np.float64), (25, 25))


@SAMPLES.register("image_patches")
def image_patches(
    *, image: Photograph = "camera", side: int = 8, count: int = 5000, seed: int = 0
) -> Samples:
    """Square patches of a photograph inside scikit-image, gray levels 0 to 1, each less its mean.

    `count` different patches of `side` × `side` pixels, at places drawn from `seed`. Nothing is
    ever downloaded. Raises `InvalidOption`.
    """
    check_one_of("image", image, Photograph)
    photograph = _extra("skimage.io", "scikit-image", "image_patches").imread(
        _shipped(f"{image}.png", "image_patches")
    )
    height, width = photograph.shape
    largest = min(height, width) - (height == width)
    takes = f"an integer from 2 to {largest}: {image} has {height} x {width} pixels, room for two"
    check(2 <= side <= largest, "side", side, takes)
    windows = np.lib.stride_tricks.sliding_window_view(photograph, (side, side))
    places = windows.shape[0] * windows.shape[1]
    takes = f"an integer from 2 to {places}, the patches of side {side} in {image}"
    check(2 <= count <= places, "count", count, takes)
    chosen = jax.random.choice(key(seed), places, (count,), replace=False)
    rows, columns = np.divmod(np.asarray(chosen), windows.shape[1])
    patches = windows[rows, columns].reshape(count, side * side) / 255.0
    return Samples(patches - patches.mean(axis=1, keepdims=True), (side, side))


@SAMPLES.register("file")
def file(
    *, path: str, kind: FileKind = "samples", array: str | None = None, center: bool = True
) -> Samples | None:
    """The samples in a user's file, as `file` reads them; None for a file with a covariance.

    The samples are returned as the file has them, whatever `center` says.
    """
    check_one_of("kind", kind, FileKind)
    if kind == "covariance":
        return None
    values = read_array(path, array).astype(np.float64)
    if values.ndim != 3:
        return Samples(values, None, center)
    count, height, width = values.shape
    return Samples(values.reshape(count, height * width), (height, width), center)


def _extra(module: str, package: str, name: str) -> Any:
    """A module of an optional package, imported now."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        takes = "an installation with the extra `data`: pip install 'bwdln[data]'"
        raise InvalidOption("name", f"{name} without {package}", takes) from error


def _shipped(file_name: str, name: str) -> Path:
    """A file inside scikit-image itself: its own loaders may download what they do not find."""
    path = Path(_extra("skimage", "scikit-image", name).__file__).parent / "data" / file_name
    got = f"{name}, with a scikit-image that does not contain {file_name}"
    check(path.is_file(), "name", got, "another version of scikit-image")
    return path
