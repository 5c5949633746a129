"""How runs of gradient descent differ from the gradient flow they follow: pure functions of results.

All runs start from the same weights, seed by seed, and are recorded at the same flow times. A seed is
compared at a step size where both its runs came to the end; elsewhere its values are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bwdln import analysis
from bwdln.analysis import Band
from bwdln.errors import check
from bwdln.fits import Law, power_law
from bwdln.results import Result
from bwdln.types import Array

#: The order in the step size (docs/theory.md §5) of the distance to the flow, as of any method of first
#: order, and of the drift of the imbalance in one step.
DISTANCE_ORDER, DRIFT_ORDER = 1, 2

#: How many step sizes, the smallest, an order is fitted to: it is that of the limit.
FITTED = 3

#: Flow times, and weights at the start, are the same within this part: rounding, in float32 as well.
SAME = 1e-4


class Curve(NamedTuple):
    """The relative gap of one run against flow time: the band over the seeds, and what diverged.

    `lost_time`, `lost_gap`: (lost, R+1), the seeds that diverged, until they did.
    """

    band: Band
    lost_time: Float[Array, "lost records"]
    lost_gap: Float[Array, "lost records"]


class Scaling(NamedTuple):
    """A quantity by step size: `values` (step sizes, seeds), NaN where there are none to compare.

    `median`, `low`, `high`: (step sizes,), over the seeds; `law`: the power of the step size fitted to the
    medians at the smallest step sizes.
    """

    values: Float[Array, "sizes seeds"]
    median: Float[Array, "sizes"]
    low: Float[Array, "sizes"]
    high: Float[Array, "sizes"]
    law: Law


class Comparison(NamedTuple):
    """Descent at several step sizes, ascending, against the flow; step sizes along the first axis.

    `distance`: the largest ‖W_η(t) − W(t)‖_F / ‖W(t)‖_F over the records. `drift`: how far the imbalance
    G_j = W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ of all interfaces has moved per step, √(Σ_j ‖ΔG_j‖_F²) / steps, or None
    at depth 1. `compared`: whether a seed has them.
    """

    step_size: Float[Array, "sizes"]
    steps: Int[Array, "sizes"]
    seed: Int[Array, "seeds"]
    outcome: Shaped[Array, "sizes seeds"]
    compared: Bool[Array, "sizes seeds"]
    distance: Scaling
    drift: Scaling | None
    flow: Curve
    descents: tuple[Curve, ...]


def compare(flow: Result, descents: Mapping[float, Result]) -> Comparison:
    """Compare the runs of descent, by their step sizes, with the flow from the same starts.

    All need `end_to_end` among their records, and `descents` at least one run.

    Raises `InvalidOption` where there are none, and `ValueError` where the runs of a seed do not start
    alike, or their records lie at different flow times.
    """
    check(len(descents) > 0, "descents", "nothing", "at least one run")
    step_sizes = np.array(sorted(descents))
    runs = [descents[step_size] for step_size in step_sizes]
    compared = np.array([at_end(flow) & at_end(run) for run in runs])
    pairs = list(zip(runs, compared, strict=True))
    deep = "weights_2" in runs[0].dataset
    drifts = [imbalance_drift(flow, *pair) for pair in pairs] if deep else None
    return Comparison(
        step_size=step_sizes,
        steps=np.array([dict(run.config.dynamics.options)["steps"] for run in runs]),
        seed=flow.dataset["seed"].values,
        outcome=np.array([run.outcomes for run in runs]),
        compared=compared,
        distance=scaling(step_sizes, [distance(flow, *pair) for pair in pairs]),
        drift=None if drifts is None else scaling(step_sizes, drifts),
        flow=curve(flow),
        descents=tuple(curve(run) for run in runs),
    )


def at_end(result: Result) -> Bool[Array, "seeds"]:
    """Which seeds came to the end of their run, with finite losses."""
    return ~analysis.diverged(result) & np.array([each == "reached_end" for each in result.outcomes])


def distance(flow: Result, descent: Result, compared: Bool[Array, "seeds"]) -> Float[Array, "seeds"]:
    """The largest ‖W_η(t) − W(t)‖_F / ‖W(t)‖_F over the records, of the seeds that are compared.

    Raises `ValueError` where the runs of these do not start alike, or their records lie at different
    flow times.
    """
    times = [run.dataset["time"].transpose("seed", "record").values[compared] for run in (flow, descent)]
    shapes_differ = times[0].shape != times[1].shape
    if shapes_differ or np.any(np.abs(times[0] - times[1]) > SAME * np.max(times[0], initial=0)):
        raise ValueError("the records of descent and flow lie at different flow times")
    dims = ("seed", "record", "feature", "latent")
    exact, near = (run.dataset["end_to_end"].transpose(*dims).values[compared] for run in (flow, descent))
    relative = np.linalg.norm(near - exact, axis=(2, 3)) / np.linalg.norm(exact, axis=(2, 3))
    if np.any(relative[:, 0] > SAME):
        raise ValueError("descent and flow start from different weights")
    return _scattered(relative.max(axis=1), compared)


def imbalance_drift(flow: Result, descent: Result, compared: Bool[Array, "seeds"]) -> Float[Array, "seeds"]:
    """How far descent moved the imbalance of all interfaces, by the end, per step.

    The flow conserves it (docs/theory.md §5), so it is what the flow has at the end that descent began
    with, whether the start was balanced or not.
    """
    moved = imbalances(descent)
    if "weights_1" in flow.dataset:  # an end-to-end flow has no layers: those it stands for are balanced
        moved = [near - exact for near, exact in zip(moved, imbalances(flow), strict=True)]
    squares = sum(np.sum(each[compared] ** 2, axis=(1, 2)) for each in moved)
    steps = descent.dataset["step"].transpose("seed", "record").values[compared, -1]
    return _scattered(np.sqrt(squares) / steps, compared)


def imbalances(result: Result) -> list[Float[Array, "seeds _ _"]]:
    """G_j = W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ of the final weights, for every interface j."""
    depth = len(result.dataset.attrs["widths"]) - 1
    layers = [result.dataset[f"weights_{layer}"].values for layer in range(1, depth + 1)]
    return [above.mT @ above - below @ below.mT for below, above in pairwise(layers)]


def scaling(step_sizes: Float[Array, "sizes"], values: list[Float[Array, "seeds"]]) -> Scaling:
    """Median and range over the seeds at each step size (ascending), and the law of the medians."""
    every = np.array(values)
    spread = np.array([_spread(each[np.isfinite(each)]) for each in every])
    median, low, high = spread.T
    return Scaling(every, median, low, high, power_law(step_sizes, median, FITTED))


def curve(result: Result) -> Curve:
    """The relative gap against flow time; values below its floor of rounding are set to it."""
    floor, lost = analysis.gap_floor(result), analysis.diverged(result)
    band = analysis.band(result, "relative_gap", axis="time")
    raised = {name: np.maximum(getattr(band, name), floor) for name in ("median", "low", "high")}
    gaps = result.dataset["relative_gap"].transpose("seed", "record").values[lost]
    times = result.dataset["time"].transpose("seed", "record").values[lost]
    return Curve(band._replace(**raised), times, np.maximum(gaps, floor))


def _scattered(values: Array, compared: Bool[Array, "seeds"]) -> Float[Array, "seeds"]:
    """The values at the places of the seeds that are compared, NaN at the others."""
    every = np.full(len(compared), np.nan)
    every[compared] = values
    return every


def _spread(values: Float[Array, "some"]) -> tuple[float, float, float]:
    """Median, smallest and largest; NaN of nothing."""
    if not values.size:
        return np.nan, np.nan, np.nan
    return float(np.median(values)), float(values.min()), float(values.max())
