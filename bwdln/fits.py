"""Laws fitted to what was measured: powers, exponential rates, and when a level is crossed. NumPy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bwdln.types import Array


class Law(NamedTuple):
    """y = factor · x^exponent, fitted to `points` points; NaN if fewer than two."""

    exponent: float
    factor: float
    points: int

    def at(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The values at x."""
        return np.asarray(self.factor * np.asarray(x) ** self.exponent)


class Rate(NamedTuple):
    """y = factor · exp(−rate · t), fitted to `points` points; NaN if fewer than three.

    `rate` is of the natural logarithm, per unit of t; `error` its standard error by the scatter.
    """

    rate: float
    error: float
    factor: float
    points: int

    def at(self, time: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The values at these times."""
        return np.asarray(self.factor * np.exp(-self.rate * np.asarray(time)))


def power_law(x: Float[Array, "points"], y: Float[Array, "points"], points: int | None = None) -> Law:
    """The power law through the pairs that are positive and finite: least squares in logs.

    Only the first `points` of them count, if that is given.
    """
    usable = np.flatnonzero((y > 0) & np.isfinite(y))[:points]
    if len(usable) < 2:
        return Law(np.nan, np.nan, len(usable))
    exponent, constant = np.polyfit(np.log(x[usable]), np.log(y[usable]), 1)
    return Law(float(exponent), float(np.exp(constant)), len(usable))


def exponential_rate(
    time: Float[Array, "points"], values: Float[Array, "points"], *, above: float, below: float
) -> Rate:
    """The exponential through the points with above < value < below: least squares in the logarithm.

    Records after a lane's end repeat its last time; of equal times the first counts.
    """
    first = np.append(True, np.diff(time) > 0)
    usable = first & (values > above) & (values < below)
    count = int(usable.sum())
    if count < 3:
        return Rate(np.nan, np.nan, np.nan, count)
    t, logarithms = time[usable], np.log(values[usable])
    centered = t - t.mean()
    slope = float(centered @ logarithms / (centered @ centered))
    level = float(logarithms.mean() - slope * t.mean())
    scatter = logarithms - level - slope * t
    error = float(np.sqrt(scatter @ scatter / (count - 2) / (centered @ centered)))
    return Rate(-slope, error, float(np.exp(level)), count)


def crossing_time(time: Float[Array, "points"], values: Float[Array, "points"], level: float) -> float:
    """When the values first reach the level from below, linear in between; NaN if they do not."""
    reached = np.flatnonzero(values >= level)
    if not reached.size:
        return np.nan
    after = int(reached[0])
    if after == 0:
        return float(time[0])
    low, high = values[after - 1], values[after]
    return float(time[after - 1] + (time[after] - time[after - 1]) * (level - low) / (high - low))


class Line(NamedTuple):
    """y = intercept + slope · x, fitted to `points` points; NaN if fewer than three, or all at one x.

    `r_squared` is the share of the variance of y that it explains; NaN where y does not vary.
    """

    slope: float
    intercept: float
    r_squared: float
    points: int

    def at(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The values at x."""
        return np.asarray(self.intercept + self.slope * np.asarray(x))


def line(x: Float[Array, "points"], y: Float[Array, "points"]) -> Line:
    """The regression line through the pairs that are finite: least squares."""
    usable = np.isfinite(x) & np.isfinite(y)
    x, y, count = x[usable], y[usable], int(usable.sum())
    if count < 3 or np.ptp(x) == 0:
        return Line(np.nan, np.nan, np.nan, count)
    apart, above = x - x.mean(), y - y.mean()
    slope = float(apart @ above / (apart @ apart))
    left, total = above - slope * apart, float(above @ above)
    explained = 1 - float(left @ left) / total if total > 0 else np.nan
    return Line(slope, float(y.mean() - slope * x.mean()), explained, count)
