"""Another start, in other coordinates of the hidden layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bwdln.initializations.base import STARTS, drawn_each, renamed
from bwdln.registry import Choice
from bwdln.targets import Target
from bwdln.types import Array, PRNGKey, Weights, Widths

#: Folded into the key for the rotations: far above the number of any layer, so that the rotations are
#: independent of what the other start draws from the same key.
ROTATIONS = 0x726F7461


@STARTS.register("rotated")
def rotated(key: PRNGKey, widths: Widths, target: Target, *, start: Choice = Choice("small")) -> Weights:
    """The start `start` of the same key, with random orthogonal matrices between its layers.

    W_j becomes Q_j W_j Q_{j-1}ᵀ, where Q_0 = Q_N = I and every other Q_j, of shape (d_j, d_j), is
    uniformly distributed. To rounding the generator stays the same, and every imbalance is turned to
    Q_j G_j Q_jᵀ: only the coordinates of the hidden layers are others. The gradient is turned like the
    weights, so an optimizer that knows no coordinates moves the generator as it does from `start` (§8).
    At depth 1 nothing changes.

    Raises `InvalidOption` for what `start` refuses.
    """
    with renamed("start"):
        layers: Weights = STARTS.build(start, key, widths, target)
    return between(layers, rotations(jax.random.fold_in(key, ROTATIONS), widths))


def rotations(key: PRNGKey, widths: Widths) -> tuple[Array, ...]:
    """The random orthogonal matrices (Q_1, …, Q_{N-1}), Q_j of shape (d_j, d_j)."""

    def draw(key: PRNGKey, rows: int, columns: int) -> Array:
        return jax.random.orthogonal(key, rows)

    return drawn_each(draw, key, [(width, width) for width in widths[1:-1]])


def between(layers: Weights, rotations: tuple[Array, ...]) -> Weights:
    """The layers Q_j W_j Q_{j-1}ᵀ, with Q_0 = Q_N = I.

    Layers of equal shape are turned together: the program does not grow with depth.
    """
    if not rotations:
        return layers
    first = rotations[0] @ layers[0]
    last = layers[-1] @ rotations[-1].T
    inner, turned = layers[1:-1], [first] * len(layers)
    turned[-1] = last
    shapes = np.array([layer.shape for layer in inner]).reshape(-1, 2)
    for shape in np.unique(shapes, axis=0):
        places = np.flatnonzero((shapes == shape).all(axis=1))
        above = jnp.stack([rotations[place + 1] for place in places])
        below = jnp.stack([rotations[place] for place in places])
        together = above @ jnp.stack([inner[place] for place in places]) @ below.mT
        for place, layer in zip(places, together, strict=True):
            turned[place + 1] = layer
    return tuple(turned)
