"""What figures and the summary show of a result: pure functions, NumPy in and out.

Values over the seeds are taken over the lanes that did not diverge; what diverged is counted and
named instead of being averaged in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import xarray
from jaxtyping import Bool, Float, Int, Shaped

from bwdln.errors import check, nearest
from bwdln.results import Result
from bwdln.types import Array

#: What a run is recorded by: steps taken, or flow time.
Clock: TypeAlias = Literal["step", "time"]

#: What is recorded of all configurations of a sweep, along `config` (`collection`).
Dataset: TypeAlias = xarray.Dataset

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
    columns = {name: last[name].values.tolist() for name in names}
    return [
        Row(
            outcome=outcome,
            imbalance=0.0 if imbalance is None else float(imbalance[lane]),
            **{name: values[lane] for name, values in columns.items()},
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
        tau=result.config.loss.option("tau", 0.0),
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
    mean = sample_mean(result)
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


def sample_mean(result: Result) -> Array:
    """What is added to a generated sample to be like the data, (n,): their mean where they were centered."""
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
    plane, mean = eigenvectors(result)[:, :2], sample_mean(result)
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


# --- sweeps ---------------------------------------------------------------------------------------

#: What the configurations of a sweep can be compared by: what every record holds one number of.
OBJECTIVES = (
    "relative_gap",
    "gap",
    "loss",
    "gradient_norm",
    "covariance_distance",
    "optimum_distance_bures_wasserstein",
    "optimum_distance_frobenius",
    "rank",
    "effective_rank",
    "sharpness",
    "smallest_curvature",
    "time",
    "step",
    "rejected",
    "evaluations",
    "fallbacks",
)


def check_objective(name: str) -> None:
    """Raise `InvalidOption` unless `name` is one of `OBJECTIVES`."""
    check(name in OBJECTIVES, "objective", name, nearest(name, OBJECTIVES))


def objective(result: Result, name: str) -> float:
    """The final value of a variable in `OBJECTIVES`, the median over the seeds.

    A seed that diverged counts as infinite, whatever it had come to: else a step size with which most of
    the seeds diverge would look as good as the luckiest of them.

    Raises `InvalidOption` for another name, and for what the result has no records of.
    """
    check_objective(name)
    takes = "what is recorded; this result has no such record (sharpness: set record.sharpness=true)"
    check(name in result.dataset, "objective", name, takes)
    final = _final(result.dataset[name].values[:, -1], diverged(result))
    return float(_quantiles_of_present(final[np.newaxis], [0.5])[0, 0])


def _final(values: Float[Array, "..."], lost: Bool[Array, "..."]) -> Float[Array, "..."]:
    """Final values, infinite where a lane is lost or has none."""
    return np.where(lost | ~np.isfinite(values), np.inf, values)


def _quantiles_of_present(values: Float[Array, "configs seeds ..."], levels: Sequence[float]) -> Array:
    """Quantiles over the seeds, (levels, configs, …), but for those that are NaN; infinities are numbers."""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.sum(~np.isnan(values), axis=1, keepdims=True)
    quantiles = []
    for level in levels:
        position = level * np.maximum(count - 1, 0)
        below, above = (
            np.take_along_axis(ordered, end(position).astype(int), 1) for end in (np.floor, np.ceil)
        )
        with np.errstate(invalid="ignore"):  # where both are infinite
            between = below + (above - below) * (position - np.floor(position))
        quantiles.append(np.where(below == above, below, between)[:, 0])
    return np.stack(quantiles)


class SweepRow(NamedTuple):
    """One configuration of a sweep: the swept options of its job, and what came of it.

    `objective` is as the function of this name has it, NaN where the job has no result: `failed` is its
    message then, and nothing but its number is known.
    """

    job: int
    options: dict[str, Any]
    objective: float
    outcomes: str
    best: bool
    failed: str | None


def sweep_rows(dataset: Dataset, failed: Mapping[int, str], objective: str) -> list[SweepRow]:
    """A row for every job of a sweep, the best one first, the failed ones last.

    Raises `InvalidOption` for an objective that is not in `OBJECTIVES`, or recorded by no job.
    """
    finals = sweep_finals(dataset, objective)
    options = {name: values.tolist() for name, values in swept_options(dataset).items()}
    outcomes = dataset["outcome"].transpose("config", "seed").values
    rows = [
        SweepRow(
            job=int(finals.job[index]),
            options={name: values[index] for name, values in options.items()},
            objective=float(finals.median[index]),
            outcomes=_counted(outcomes[index]),
            best=bool(index == finals.best),
            failed=None,
        )
        for index in np.argsort(finals.median, kind="stable")
    ]
    return rows + [
        SweepRow(job, {}, np.nan, "failed", best=False, failed=message)
        for job, message in sorted(failed.items())
    ]


def _counted(outcomes: Sequence[str]) -> str:
    """How many seeds ended how, the most frequent first: `14 converged, 2 diverged`."""
    counts = Counter(str(each).replace("_", " ") for each in outcomes if each)
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())


def swept_options(dataset: Dataset) -> dict[str, Shaped[Array, "configs"]]:
    """The values of every swept option: numbers, or texts."""
    swept = [each for each in dataset.coords.values() if "option" in each.attrs]
    return {each.attrs["option"]: each.values for each in swept}


class SweepFinals(NamedTuple):
    """The final objective of every configuration, median and quantiles over its seeds (`objective`).

    `best` is the index of the smallest median, None where none is finite. Values below `floor` are rounding.
    `seeds` is the largest number of seeds of a job.
    """

    job: Int[Array, "configs"]
    median: Float[Array, "configs"]
    low: Float[Array, "configs"]
    high: Float[Array, "configs"]
    best: int | None
    floor: float
    seeds: int


def sweep_finals(dataset: Dataset, objective: str) -> SweepFinals:
    """What every configuration of a sweep came to.

    Raises `InvalidOption` for an objective that is not in `OBJECTIVES`, or recorded by no job.
    """
    check_objective(objective)
    check(objective in dataset, "objective", objective, "what the jobs of the sweep record")
    values = dataset[objective].transpose("config", "seed", "record").values
    last = dataset["records"].values[:, np.newaxis, np.newaxis] - 1
    final = _final(np.take_along_axis(values, last, axis=2)[..., 0], sweep_diverged(dataset))
    final[~_present(dataset)] = np.nan
    low, median, high = _quantiles_of_present(final, [LOW, 0.5, HIGH])
    best = int(np.argmin(median)) if np.isfinite(median).any() else None
    floor = _floor(final) if objective == "relative_gap" else -np.inf
    seeds = int(_present(dataset).sum(axis=1).max())
    return SweepFinals(dataset["job"].values, median, low, high, best, floor, seeds)


def sweep_diverged(dataset: Dataset) -> Bool[Array, "configs seeds"]:
    """Which lanes diverged: by their outcome, or because a loss is not finite."""
    marked = dataset["outcome"].transpose("config", "seed").values == "diverged"
    losses = np.isfinite(dataset["loss"].transpose("config", "seed", "record").values)
    behind = np.arange(losses.shape[2]) >= dataset["records"].values[:, np.newaxis, np.newaxis]
    return np.asarray((marked | ~(losses | behind).all(axis=2)) & _present(dataset))


def _present(dataset: Dataset) -> Bool[Array, "configs seeds"]:
    """Which lanes there are; the others are padding."""
    return np.asarray(dataset["outcome"].transpose("config", "seed").values != "")


class SweepCurves(NamedTuple):
    """The relative gap on the way: by configuration, the median over the seeds that did not diverge.

    `axis` (configs, R+1), the step or the flow time of the lane that ran longest: steps where all jobs are
    recorded by them. `median` (configs, R+1), NaN where there is no record, or no seed; values below `floor`
    are rounding and set to it. `logarithmic`: records, or the ends of runs, lie over decades of the axis.
    """

    axis: Float[Array, "configs records"]
    median: Float[Array, "configs records"]
    clock: Clock
    logarithmic: bool
    floor: float
    seeds: int


def sweep_curves(dataset: Dataset) -> SweepCurves:
    """How the gap closes in every configuration of a sweep."""
    clock: Clock = "step" if (dataset["clock"].values == "step").all() else "time"
    along, gap = (
        dataset[name].transpose("config", "seed", "record").values for name in (clock, "relative_gap")
    )
    there = np.arange(gap.shape[2]) < dataset["records"].values[:, np.newaxis]
    axis = np.where(
        there, np.max(np.where(_present(dataset)[..., np.newaxis], along, -np.inf), axis=1), np.nan
    )
    lost = sweep_diverged(dataset)[..., np.newaxis]
    median = _quantiles_of_present(np.where(lost, np.nan, gap), [0.5])[0]
    ends = np.nanmax(axis, axis=1)
    ends = ends[ends > 0]
    decades = np.ptp(np.log10(ends)) > 1.5 if ends.size else False
    spaced = any(_is_logarithmic(each[~np.isnan(each)]) for each in axis)
    seeds = int(_present(dataset).sum(axis=1).max())
    floor = _floor(gap)
    return SweepCurves(axis, np.maximum(median, floor), clock, bool(decades or spaced), floor, seeds)


def _is_logarithmic(along: Float[Array, "records"]) -> bool:
    """Whether the first record comes far before where equal distances would have it."""
    return len(along) > 3 and 0 < 4 * (along[1] - along[0]) < (along[-1] - along[0]) / (len(along) - 1)


def _floor(gaps: Float[Array, "..."]) -> float:
    """`gap_floor` in the precision of these."""
    return float(np.finfo(gaps.dtype).eps) ** 2


class Swept(NamedTuple):
    """A swept option: its different values, and which of them each configuration has.

    Numbers ascend; texts are in the order of the jobs. `influence` is the share of the variance of the
    ranks of the final objectives that it explains. `others`: options that move with it one to one.
    """

    option: str
    values: Shaped[Array, "values"]
    index: Int[Array, "configs"]
    numeric: bool
    influence: float
    others: tuple[str, ...]


def swept(dataset: Dataset, objective: str) -> list[Swept]:
    """The options that take several values; of those that move together only the first."""
    median = sweep_finals(dataset, objective).median
    ranks = np.searchsorted(np.sort(median), median).astype(float)
    found: list[Swept] = []
    for option, column in swept_options(dataset).items():
        values, first, index = np.unique(column, return_index=True, return_inverse=True)
        numeric = column.dtype.kind in "if"
        if not numeric:
            order = np.argsort(first)
            values, index = values[order], np.argsort(order)[index]
        one = Swept(option, values, index, numeric, _explained(ranks, index), ())
        leader = next((at for at, each in enumerate(found) if _move_together(each, one)), None)
        if leader is not None:
            found[leader] = found[leader]._replace(others=(*found[leader].others, option))
        elif len(values) > 1:
            found.append(one)
    return found


def _move_together(one: Swept, other: Swept) -> bool:
    """Whether options move one to one; numbers also in order, or those drawn at random would, too."""
    count = len(one.values)
    pairs = np.unique(np.stack([one.index, other.index]), axis=1)
    alike = pairs.shape[1] == count == len(other.values)
    if not (alike and one.numeric and other.numeric):
        return alike
    return bool(
        np.array_equal(pairs[1], np.arange(count)) or np.array_equal(pairs[1], np.arange(count)[::-1])
    )


def _explained(ranks: Float[Array, "configs"], index: Int[Array, "configs"]) -> float:
    """The share of the variance between the values of an option, in at most √configs groups of neighbors.

    Adjusted for the number of groups: 0 is expected of an option without influence.
    """
    values, configs = int(index.max()) + 1, len(ranks)
    count = min(values, max(2, int(np.sqrt(configs))))
    group = index * count // values
    within = ranks - (np.bincount(group, ranks) / np.maximum(np.bincount(group), 1))[group]
    total = float(np.sum((ranks - ranks.mean()) ** 2))
    if total == 0 or configs <= count:
        return 0.0
    return 1 - float(np.sum(within**2)) / total * (configs - 1) / (configs - count)


def sweep_table(
    finals: SweepFinals, across: Swept, down: Swept | None = None
) -> Float[Array, "quantiles down across"]:
    """The final objective by the values of one or two options: low quantile, median and high quantile.

    With one configuration for a pair of values they are those of its seeds, with several those of their
    medians. NaN where there is none; what is below the floor is set to it.
    """
    rows = 1 if down is None else len(down.values)
    place = across.index if down is None else down.index * len(across.values) + across.index
    order, counts = np.argsort(place, kind="stable"), np.bincount(place, minlength=rows * len(across.values))
    if counts.max() <= 1:
        table = np.full((3, len(counts)), np.nan)
        table[:, place] = finals.low, finals.median, finals.high
    else:
        gathered = np.full((len(counts), counts.max()), np.nan)
        position = np.arange(len(place)) - np.repeat(np.cumsum(counts) - counts, counts)
        gathered[place[order], position] = finals.median[order]
        table = _quantiles_of_present(gathered, [LOW, 0.5, HIGH])
    return np.maximum(table, finals.floor).reshape(3, rows, len(across.values))
