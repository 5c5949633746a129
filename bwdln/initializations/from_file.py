"""A user's own weights."""

from __future__ import annotations

import os
import zipfile

import jax.numpy as jnp
import numpy as np

from bwdln.arrays import blamed_on, finite, read_array
from bwdln.errors import InvalidOption, check
from bwdln.initializations.base import STARTS, balanced, layer_shapes
from bwdln.targets import Target
from bwdln.types import PRNGKey, Weights, Widths

#: Largest entry of a user's weights: the square of a product of a few is far from overflow.
LARGEST_ENTRY = 1e75


@STARTS.register("file")
def file(key: PRNGKey, widths: Widths, target: Target, *, path: str) -> Weights:
    """The user's own weights, in data coordinates: the same for every key.

    An `.npz` holds the layers, named W_1, …, W_N or in order under other names; they are taken as
    they are. A single matrix (`.npy`, `.csv`, or alone in an `.npz`) is the end-to-end matrix
    (n, m), which is balanced over the layers.

    Raises `InvalidOption` for what `arrays.read_array` refuses (nothing is ever unpickled), and
    for arrays that are not finite, have not the shapes the widths ask for, or have a rank larger
    than the bottleneck.
    """
    names, depth = _array_names(path), len(widths) - 1
    if len(names) == 1 and names != ["W_1"]:
        matrix = _matrix(path, names[0], (widths[-1], widths[0]), widths)
        try:
            return balanced(matrix, widths)
        except InvalidOption as error:
            raise InvalidOption("path", f"{path}: {error.got}", error.takes) from error
    names = _layer_names(path, names, depth)
    layers = zip(names, layer_shapes(widths), strict=True)
    return tuple(jnp.asarray(_matrix(path, name, shape, widths), float) for name, shape in layers)


def _array_names(path: str) -> list[str | None]:
    """The names of the arrays in an `.npz`; [None] for what `read_array` reads or refuses whole."""
    try:
        with zipfile.ZipFile(os.path.expanduser(path)) as archive:
            found = [each for each in archive.namelist() if each.endswith(".npy")]
    except (OSError, ValueError, zipfile.BadZipFile):
        return [None]
    return [each.removesuffix(".npy") for each in found] or [None]


def _layer_names(path: str, found: list[str | None], depth: int) -> list[str | None]:
    """The names of the layers in a file, first layer first."""
    expected = [f"W_{index}" for index in range(1, depth + 1)]
    if set(found) == set(expected):
        return [*expected]
    listed = ", ".join(map(str, found[:8])) + (", …" if len(found) > 8 else "")
    takes = f"W_1 to W_{depth}, or {depth} layers in order, or one end-to-end matrix"
    in_order = len(found) == depth and not set(found) & set(expected)
    check(in_order, "path", f"{path}: {len(found)} arrays ({listed})", takes)
    return found


def _matrix(path: str, name: str | None, shape: tuple[int, int], widths: Widths) -> np.ndarray:
    """An array of a file as a finite matrix of the given shape."""
    loaded = read_array(path, name)
    with blamed_on(path if name is None else f"{path}, {name}"):
        takes = f"shape {shape}, by the widths {list(widths)}"
        check(loaded.shape == shape, "path", f"shape {loaded.shape}", takes)
        return finite("path", loaded, LARGEST_ENTRY)
