"""Scalar equations dy/dt = speed(y) with a speed of one sign: time by quadrature, place by inversion.

In a coordinate y in which the speed is analytic in a strip about the real line, Gauss-Legendre
panels of length one leave nothing but rounding, and no step size has to be chosen. NumPy, float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from bwdln.errors import check
from bwdln.types import Array

#: 1 / speed, elementwise in y.
InverseSpeed: TypeAlias = Callable[[Array], Array]

#: Gauss-Legendre nodes and weights on [0, 1].
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_NODES, _WEIGHTS = (_NODES + 1) / 2, _WEIGHTS / 2
#: Newton takes about five; bisection alone, where it has to step in, takes 53.
_MOST_ITERATIONS = 100


def elapsed(
    inverse_speed: InverseSpeed, start: Float[Array, "*shape"], end: Float[Array, "*#shape"]
) -> Float[Array, "*shape"]:
    """The time from y = start to y = end, ∫ dy / speed(y): negative where the flow goes the other way.

    Panels of length at most 1; the relative error is below 1e-12 if 1/speed is analytic in the strip
    |Im y| < 3/2. `inverse_speed` gets the shape of start and end with one more axis at the end, over
    the nodes: parameters that differ by element need that axis, too. Times beyond the largest float
    are inf.

    Raises `InvalidOption` for a start or an end that is not finite.
    """
    first, last = np.broadcast_arrays(np.asarray(start, float), np.asarray(end, float))
    for name, values in (("start", first), ("end", last)):
        check(bool(np.all(np.isfinite(values))), name, "numbers that are not finite", "finite numbers")
    length = last - first
    panels = max(1, int(np.ceil(np.max(np.abs(length), initial=0))))
    places = ((np.arange(panels)[:, None] + _NODES) / panels).ravel()
    weights = np.tile(_WEIGHTS / panels, panels)
    with np.errstate(over="ignore", divide="ignore"):
        slowness = np.broadcast_to(
            inverse_speed(first[..., None] + length[..., None] * places), (*length.shape, len(places))
        )
        mean = slowness @ weights
        return np.where(length == 0, 0.0, np.where(length == 0, 1.0, length) * mean)


def position(
    inverse_speed: InverseSpeed, start: float, times: Float[Array, "times"], *, limit: float
) -> Float[Array, "times"]:
    """The y reached at each of the times from y = start at time 0: the inverse of `elapsed`.

    The flow stops at `limit`, which must lie where it goes. `times` do not descend; inf is the limit.
    Safeguarded Newton in the panel of each time, to rounding in y.

    Raises `InvalidOption` for times that are negative, descending or not numbers, a start that is not
    finite, and a limit that is not finite or lies behind the start.
    """
    times = np.asarray(times, float)
    sound = times.ndim == 1 and bool(np.all(times >= 0) and np.all(times[:-1] <= times[1:]))
    check(sound, "times", times, "one dimension of numbers from 0 that do not descend")
    check(bool(np.isfinite(start)), "start", start, "a finite number")
    check(bool(np.isfinite(limit)), "limit", limit, "a finite number")
    start, length = float(start), float(limit) - float(start)
    if length == 0:
        return np.full(times.shape, start)
    direction = np.sign(length)
    edges = np.append(start + direction * np.arange(np.ceil(abs(length))), limit)
    durations = elapsed(inverse_speed, edges[:-1], edges[1:])
    check(bool(np.all(durations >= 0)), "limit", limit, "a place that the flow from the start goes to")
    with np.errstate(over="ignore"):
        reached = np.append(0.0, np.cumsum(durations))
    found = np.full(times.shape, float(limit))
    inside = np.isfinite(times) & (times < reached[-1])
    if np.any(inside):
        panel = np.searchsorted(reached, times[inside], side="right") - 1
        found[inside] = _within_panels(
            inverse_speed, edges[panel], edges[panel + 1], times[inside] - reached[panel]
        )
    return found


def _within_panels(
    inverse_speed: InverseSpeed,
    edge: Float[Array, "times"],
    end: Float[Array, "times"],
    remaining: Float[Array, "times"],
) -> Float[Array, "times"]:
    """The y in each panel at which `remaining` time has passed since its first edge."""
    span = end - edge
    low, high = np.zeros_like(edge), np.ones_like(edge)
    fraction = np.minimum(remaining / elapsed(inverse_speed, edge, end), 1.0)
    tolerance = 2e-16 * np.maximum(1, np.abs(edge))
    for _ in range(_MOST_ITERATIONS):
        place = edge + fraction * span
        excess = elapsed(inverse_speed, edge, place) - remaining
        low, high = np.where(excess <= 0, fraction, low), np.where(excess >= 0, fraction, high)
        with np.errstate(all="ignore"):
            newton = fraction - excess / (inverse_speed(place) * span)
        # Where Newton leaves the bracket, or knows no number, bisection goes on.
        following = np.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
        settled = np.abs(following - fraction) <= tolerance
        fraction = following
        if np.all(settled):
            break
    return edge + fraction * span
