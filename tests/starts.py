"""What the tests of the starts share: targets, layers, products, and what balanced means."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bwdln import initializations
from bwdln.initializations import STARTS
from bwdln.targets import Target

OURS = [name for name in STARTS if STARTS[name].__module__.startswith(f"{initializations.__name__}.")]
KEY = jax.random.key(0)


def target_of(eigenvalues: Any, seed: int = 0) -> Target:
    values = jnp.asarray(eigenvalues, float)
    return Target(values, jax.random.orthogonal(jax.random.key(seed), len(values)))


def target_for(widths: tuple[int, ...]) -> Target:
    return target_of(np.linspace(3.0, 1.0, widths[-1]))


def start(name: str, widths: tuple[int, ...], key: Any = KEY, **options: Any) -> list[np.ndarray]:
    return [np.asarray(layer) for layer in STARTS[name](key, widths, target_for(widths), **options)]


def product(layers: list[np.ndarray]) -> np.ndarray:
    result = layers[0]
    for layer in layers[1:]:
        result = layer @ result
    return result


def imbalances(layers: list[np.ndarray]) -> list[float]:
    return [float(np.linalg.norm(above.T @ above - below @ below.T)) for below, above in pairwise(layers)]


def shapes(widths: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(rows, columns) for columns, rows in pairwise(widths)]


def assert_balanced(layers: list[np.ndarray], largest: float) -> None:
    scale = largest ** (2 / len(layers)) * layers[0].shape[0] ** 0.5
    assert max(imbalances(layers), default=0.0) <= 1e-13 * scale
