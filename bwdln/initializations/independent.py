"""Starts with independent entries."""

from __future__ import annotations

from collections.abc import Callable

import jax

from bwdln.initializations.base import STARTS, Draw, check_positive, layers_from
from bwdln.targets import Target
from bwdln.types import Array, PRNGKey, Scalar, Weights, Widths


def _normal(std: Callable[[int, int], Scalar]) -> Draw:
    """Normal entries of mean 0; the standard deviation is a function of fan-out and fan-in."""
    return lambda key, rows, columns: std(rows, columns) * jax.random.normal(key, (rows, columns))


def _uniform(bound: Callable[[int, int], Scalar]) -> Draw:
    """Entries uniform in ±bound; the bound is a function of fan-out and fan-in."""

    def draw(key: PRNGKey, rows: int, columns: int) -> Array:
        return bound(rows, columns) * jax.random.uniform(key, (rows, columns), minval=-1)

    return draw


@STARTS.register("normal")
def normal(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 0.1, balanced: bool = False
) -> Weights:
    """Independent normal entries of mean 0 and standard deviation `scale`.

    Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    return layers_from(_normal(lambda rows, columns: scale), key, widths, balanced)


@STARTS.register("uniform")
def uniform(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 0.1, balanced: bool = False
) -> Weights:
    """Independent entries, uniform between −`scale` and `scale`.

    Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    return layers_from(_uniform(lambda rows, columns: scale), key, widths, balanced)


@STARTS.register("xavier_normal")
def xavier_normal(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """Normal entries of variance `scale`² · 2 / (fan-in + fan-out) (Glorot, Bengio 2010).

    The fans of the end-to-end matrix are m and n. Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    draw = _normal(lambda rows, columns: scale * (2 / (rows + columns)) ** 0.5)
    return layers_from(draw, key, widths, balanced)


@STARTS.register("xavier_uniform")
def xavier_uniform(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """Uniform entries of mean 0 and variance `scale`² · 2 / (fan-in + fan-out).

    Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    draw = _uniform(lambda rows, columns: scale * (6 / (rows + columns)) ** 0.5)
    return layers_from(draw, key, widths, balanced)


@STARTS.register("kaiming_normal")
def kaiming_normal(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """Normal entries of variance `scale`² / fan-in (He, Zhang, Ren, Sun 2015).

    A `scale` of 1 keeps the variance of the signal through linear layers; √2 is the one for
    rectified units. Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    return layers_from(_normal(lambda rows, columns: scale / columns**0.5), key, widths, balanced)


@STARTS.register("kaiming_uniform")
def kaiming_uniform(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1.0, balanced: bool = False
) -> Weights:
    """Uniform entries of mean 0 and variance `scale`² / fan-in; see `kaiming_normal`.

    Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    draw = _uniform(lambda rows, columns: scale * (3 / columns) ** 0.5)
    return layers_from(draw, key, widths, balanced)


@STARTS.register("small")
def small(
    key: PRNGKey, widths: Widths, target: Target, *, scale: float = 1e-2, balanced: bool = False
) -> Weights:
    """A start near the saddle W = 0, from which modes are learned one after the other (§8).

    Layer by layer the entries are normal with standard deviation `scale` / √fan-in, so that the
    singular values of the generator are of the order `scale`^N. Balanced, the generator itself has
    entries of standard deviation `scale` / √m and singular values of the order `scale`.

    Raises `InvalidOption` unless `scale` > 0.
    """
    check_positive(scale=scale)
    return layers_from(_normal(lambda rows, columns: scale / columns**0.5), key, widths, balanced)
