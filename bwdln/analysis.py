"""What figures and the summary show of a result: pure functions, NumPy in and out.

Values over the seeds are taken over the lanes that did not diverge; what diverged is counted and
named instead of being averaged in.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from bwdln.errors import check
from bwdln.results import Result
from bwdln.types import Array

#: What a run is recorded by: steps taken, or flow time.
Clock: TypeAlias = Literal["step", "time"]

#: The quantiles over the seeds that a band spans.
LOW, HIGH = 0.1, 0.9


class Band(NamedTuple):
    """A variable over the seeds, at each record: `axis` (R+1,), the others (R+1, …).

    `axis` is the step or the flow time of the lane that ran longest; `lanes` counts the seeds the
    quantiles are over. Without any, the quantiles are NaN.
    """

    axis: Float[Array, "records"]
    median: Float[Array, "records ..."]
    low: Float[Array, "records ..."]
    high: Float[Array, "records ..."]
    lanes: int


def clock(result: Result) -> Clock:
    """The clock of the run: `step` for descent, `time` (flow time) for a flow."""
    return "time" if result.dataset.attrs.get("clock") == "time" else "step"


def diverged(result: Result) -> Bool[Array, "seeds"]:
    """Which lanes diverged: by their outcome, or because a loss is not finite."""
    marked = np.array([each == "diverged" for each in result.outcomes])
    return np.asarray(marked | ~np.isfinite(result.dataset["loss"].values).all(axis=1))


def band(
    result: Result,
    variable: str,
    *,
    axis: Clock | None = None,
    low: float = LOW,
    high: float = HIGH,
) -> Band:
    """Median and quantiles over the seeds of a variable with dimensions (seed, record, …).

    `axis` is in steps or in flow time; None: by the clock of the run.
    """
    kept = ~diverged(result)
    values = result.dataset[variable].transpose("seed", "record", ...).values[kept]
    every = result.dataset[axis or clock(result)].values
    along = np.max(every[kept] if kept.any() else every, axis=0)
    return Band(along, *_quantiles(values, low, high), int(kept.sum()))


def _quantiles(values: Array, low: float, high: float) -> tuple[Array, Array, Array]:
    """Median, low and high quantile along the first axis; NaN where there is nothing."""
    if len(values) == 0:
        values = np.full((1, *values.shape[1:]), np.nan)
    middle, bottom, top = np.quantile(values, [0.5, low, high], axis=0)
    return middle, bottom, top


# --- convergence ----------------------------------------------------------------------------------


class Convergence(NamedTuple):
    """The relative gap by seed: `axis`, `relative_gap` (seeds, R+1), `seed`, `diverged` (seeds,).

    `axis` is the step or the flow time, by the clock of the run. Values of the gap below `floor` are
    rounding and set to it, so that all can be shown on a log axis.
    """

    seed: Int[Array, "seeds"]
    axis: Float[Array, "seeds records"] | Int[Array, "seeds records"]
    relative_gap: Float[Array, "seeds records"]
    diverged: Bool[Array, "seeds"]
    band: Band
    floor: float
    minimum: float
    rank: int


def convergence(result: Result) -> Convergence:
    """How the gap to the optimum closes, for every seed and over the seeds."""
    dataset, floor = result.dataset, gap_floor(result)
    over_seeds = band(result, "relative_gap")
    return Convergence(
        seed=dataset["seed"].values,
        axis=dataset[clock(result)].values,
        relative_gap=np.maximum(dataset["relative_gap"].values, floor),
        diverged=diverged(result),
        band=over_seeds._replace(
            median=np.maximum(over_seeds.median, floor),
            low=np.maximum(over_seeds.low, floor),
            high=np.maximum(over_seeds.high, floor),
        ),
        floor=floor,
        minimum=float(dataset["minimum"]),
        rank=dataset.sizes["mode"],
    )


def gap_floor(result: Result) -> float:
    """The relative gap g that is all rounding: eps (g + √g) = g at g = eps² (docs/theory.md §9)."""
    return float(np.finfo(result.dataset["relative_gap"].dtype).eps) ** 2


# --- summary --------------------------------------------------------------------------------------


class Row(NamedTuple):
    """One seed at the end of its run; `time` is flow time, `imbalance` the largest of all layers."""

    seed: int
    outcome: str
    step: int
    time: float
    loss: float
    gap: float
    relative_gap: float
    rank: int
    imbalance: float


def summary(result: Result) -> list[Row]:
    """One row per seed, in the order of the seeds."""
    last = result.dataset.isel(record=-1)
    imbalance = last["imbalance"].max("interface").values if "imbalance" in last else None
    names = [name for name in Row._fields if name not in ("outcome", "imbalance")]
    return [
        Row(
            outcome=outcome,
            imbalance=0.0 if imbalance is None else float(imbalance[lane]),
            **{name: last[name].values[lane].item() for name in names},
        )
        for lane, outcome in enumerate(result.outcomes)
    ]


def shortfalls(result: Result, relative_gap: float) -> list[str]:
    """One sentence for each seed that did not come within that relative gap (> 0), saying why."""
    check(relative_gap > 0, "relative_gap", relative_gap, "a number above 0")
    failed, gaps = diverged(result), result.dataset["relative_gap"].values
    grew = gaps[:, -1] > gaps[:, 0]
    return [
        f"seed {row.seed} ended at relative gap {row.relative_gap:.1e}: "
        + _reason(
            row, bool(failed[lane]), clock(result), remaining(result, lane, relative_gap), bool(grew[lane])
        )
        for lane, row in enumerate(summary(result))
        if not row.relative_gap <= relative_gap  # true for NaN too
    ]


def _reason(row: Row, failed: bool, clock: Clock, needed: float | None, grew: bool) -> str:
    """Why a seed came no further; `needed` is what it lacks on the clock of its run (`remaining`).

    `grew` says that its gap is larger than at the start.
    """
    flow = clock == "time"
    place = f"flow time {row.time:.4g}" if flow else f"step {row.step:,}"
    if failed:
        return f"diverged by {place}; try {'smaller tolerances or ' * flow}a smaller step size"
    if flow and row.outcome == "stalled":
        return f"stalled at {place}, step {row.step:,}; try larger tolerances or dynamics.max_steps"
    endings = {
        "running": f"interrupted at {place}",
        "converged": f"met its own gap tolerance at {place}",
        "reached_end": f"reached its end, {place}" if flow else f"reached its last step, {row.step:,}",
        "stalled": f"stalled at {place}",
    }
    if needed is None and grew:
        trend = "above where it began; try a smaller step size or smaller tolerances"
    elif needed is None:
        trend = "not decreasing lately: the limit of rounding, or a saddle"
    else:
        more = f"a flow time of {needed:.2g} more is" if flow else f"{needed:,.0f} more steps are"
        trend = f"still decreasing: at this rate about {more} needed"
    return f"{endings.get(row.outcome, row.outcome)}, {trend}"


def remaining(result: Result, lane: int, relative_gap: float) -> float | None:
    """Whole steps, or flow time, to that relative gap at the exponential rate of the lane's last tenth.

    None where the gap no longer decreases there, by less than 1 % over that tenth, or grew in all.
    """
    along = result.dataset[clock(result)].values[lane].astype(float)
    gap = result.dataset["relative_gap"].values[lane]
    before = int(np.searchsorted(along, 0.9 * along[-1], side="right")) - 1
    before = max(0, min(before, int(np.searchsorted(along, along[-1])) - 1))
    falling = 0 < gap[-1] < min(0.99 * gap[before], gap[0])
    if not (np.isfinite(gap[[before, -1]]).all() and falling):
        return None
    rate = np.log(gap[before] / gap[-1]) / (along[-1] - along[before])
    needed = max(0.0, float(np.log(gap[-1] / relative_gap) / rate))
    return needed if clock(result) == "time" else float(np.ceil(needed))


# --- spectra and singular vectors -----------------------------------------------------------------


class Spectrum(NamedTuple):
    """Eigenvalues of covariances, in squared units of the data.

    `learned`, `smallest`, `largest`: median and range over the `lanes` seeds of s_i²; `optimal`: of
    the minimizer; all (k,). `target`: all of the target's (n,), descending. Modes at or below `tau`
    (0 for losses without it) are not learned (docs/theory.md §3).
    """

    learned: Float[Array, "k"]
    smallest: Float[Array, "k"]
    largest: Float[Array, "k"]
    optimal: Float[Array, "k"]
    target: Float[Array, "n"]
    tau: float
    lanes: int


def spectrum(result: Result) -> Spectrum:
    """The learned spectrum at the last record against the optimal one and the target's."""
    learned = result.dataset["singular_values"].isel(record=-1).transpose("seed", "mode").values ** 2
    kept = learned[~diverged(result)]
    median, smallest, largest = _quantiles(kept, 0, 1)
    return Spectrum(
        learned=median,
        smallest=smallest,
        largest=largest,
        optimal=result.dataset["optimal_singular_values"].values ** 2,
        target=result.dataset["target_eigenvalues"].values,
        tau=dict(result.config.loss.options).get("tau", 0.0),
        lanes=len(kept),
    )


class Alignment(NamedTuple):
    """The generator's left singular vectors u_i and the target's eigenvectors ω_j, over the seeds.

    `axis` (R+1,), steps or flow time; `misalignment` (R+1, k): 1 − |u_i·ω_i|, from the median; values
    below `floor` are rounding and set to it. `final` (k, n): the median of |u_i·ω_j| at the end.
    """

    axis: Float[Array, "records"]
    misalignment: Float[Array, "records k"]
    final: Float[Array, "k n"]
    floor: float
    lanes: int


def alignment(result: Result) -> Alignment:
    """How the singular vectors turn to the target's eigenvectors, and where they end."""
    over_seeds = band(result, "alignment")
    cosines = result.dataset["final_cosines"].transpose("seed", "mode", "eigenvalue").values
    floor = float(np.finfo(cosines.dtype).eps)
    return Alignment(
        axis=over_seeds.axis,
        misalignment=np.maximum(1 - over_seeds.median, floor),
        final=_quantiles(cosines[~diverged(result)], LOW, HIGH)[0],
        floor=floor,
        lanes=over_seeds.lanes,
    )


# --- samples --------------------------------------------------------------------------------------


class Samples(NamedTuple):
    """Samples in units of the data, each (count, n); `trained` is None if every lane diverged.

    The untrained and the trained generator get the same latent draws. `seed` is the lane shown.
    """

    real: Float[Array, "count n"]
    untrained: Float[Array, "count n"]
    trained: Float[Array, "count n"] | None
    seed: int


def samples(result: Result, count: int = 16) -> Samples:
    """Real samples beside those of the first seed that did not diverge, before and after.

    Real samples come from the data where the target does, evenly spread over those the result
    keeps (which may be fewer than `count`), else from the target's Gaussian. The mean of the data is
    added to what is generated. Draws are from a fixed seed.
    """
    lane = shown_lane(result)
    draw = np.random.default_rng(0).standard_normal
    initial = result.dataset["initial_end_to_end"].values[lane]
    latent = draw((count, initial.shape[1]))
    mean = _mean(result)
    usable = not diverged(result)[lane]
    return Samples(
        real=_real_samples(result, count, draw((count, len(mean)))),
        untrained=latent @ initial.T + mean,
        trained=latent @ end_to_end(result, lane).T + mean if usable else None,
        seed=int(result.dataset["seed"].values[lane]),
    )


class Images(NamedTuple):
    """Samples as images (count, height, width), on one gray scale from `low` to `high`."""

    real: Float[Array, "count height width"]
    untrained: Float[Array, "count height width"]
    trained: Float[Array, "count height width"] | None
    seed: int
    low: float
    high: float


def images(result: Result, count: int = 16) -> Images:
    """`samples` of a target made of images; the gray scale is the range of the real ones."""
    drawn, size = samples(result, count), (-1, *map(int, result.dataset.attrs["image_shape"]))
    return Images(
        real=drawn.real.reshape(size),
        untrained=drawn.untrained.reshape(size),
        trained=None if drawn.trained is None else drawn.trained.reshape(size),
        seed=drawn.seed,
        low=float(drawn.real.min()),
        high=float(drawn.real.max()),
    )


def image_shape(result: Result) -> tuple[int, int] | None:
    """Height and width where the target is made of images."""
    shape = result.dataset.attrs.get("image_shape")
    return None if shape is None else (int(shape[0]), int(shape[1]))


def shown_lane(result: Result) -> int:
    """The position of the first lane that did not diverge; 0 if all did."""
    return int(np.argmin(diverged(result)))


def end_to_end(result: Result, lane: int) -> Float[Array, "n m"]:
    """The final generator of a lane, in data coordinates."""
    return result.dataset["final_end_to_end"].values[lane]


def _mean(result: Result) -> Array:
    if "sample_mean" in result.dataset:
        return result.dataset["sample_mean"].values
    return np.zeros(result.dataset["initial_end_to_end"].sizes["feature"])


def _real_samples(result: Result, count: int, draws: Array) -> Array:
    if "real_samples" in result.dataset:
        every = result.dataset["real_samples"].values
        return every[np.linspace(0, len(every) - 1, min(count, len(every))).astype(int)]
    root = np.sqrt(result.dataset["target_eigenvalues"].values)
    return (draws * root) @ eigenvectors(result).T


def eigenvectors(result: Result) -> Float[Array, "n n"]:
    """The target's eigenvectors, as columns; the identity where it has none of its own."""
    if "target_eigenvectors" in result.dataset:
        return result.dataset["target_eigenvectors"].values
    return np.eye(result.dataset.sizes["eigenvalue"])


class Cloud(NamedTuple):
    """Centered samples along the two leading eigenvectors, and their distribution's 1-sigma ellipse.

    `points` (count, 2) and `ellipse` (128, 2), a closed curve; both in units of the data.
    """

    points: Float[Array, "count 2"]
    ellipse: Float[Array, "128 2"]


class Clouds(NamedTuple):
    """The target's Gaussian, and the generators' as in `Samples`."""

    target: Cloud
    untrained: Cloud
    trained: Cloud | None
    seed: int


def clouds(result: Result, count: int = 200) -> Clouds:
    """Samples, as those of `samples`, along the target's two leading eigenvectors; n ≥ 2."""
    drawn, lane = samples(result, count), shown_lane(result)
    plane, mean = eigenvectors(result)[:, :2], _mean(result)
    root = np.sqrt(result.dataset["target_eigenvalues"].values)
    initial = result.dataset["initial_end_to_end"].values[lane]

    def cloud(values: Array, generator: Array) -> Cloud:
        return Cloud((values - mean) @ plane, _ellipse(plane.T @ generator))

    trained = drawn.trained
    return Clouds(
        target=cloud(drawn.real, eigenvectors(result) * root),
        untrained=cloud(drawn.untrained, initial),
        trained=None if trained is None else cloud(trained, end_to_end(result, lane)),
        seed=drawn.seed,
    )


def _ellipse(generator: Float[Array, "2 m"]) -> Float[Array, "128 2"]:
    """The image of the unit circle under a root of the covariance of `generator` times noise."""
    angle = np.linspace(0, 2 * np.pi, 128)
    left, singular, _ = np.linalg.svd(generator, full_matrices=False)
    root = np.zeros((2, 2))
    root[:, : len(singular)] = left * singular
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) @ root.T
