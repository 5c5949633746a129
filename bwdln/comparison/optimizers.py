"""How optimizers learn from a small start, and whether they see coordinates: pure functions of results.

Every optimizer runs twice: from a start, and from the same start in other coordinates of the hidden layers
(`initializations.rotated`). The gradient flow from the same start is what they are compared with. A seed is
compared where all three runs came to the end; elsewhere its values are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bwdln import analysis
from bwdln.analysis import Band
from bwdln.errors import check
from bwdln.results import Result
from bwdln.types import Array

#: Where runs are compared at equal gap: at these parts of the first gap closed.
PROGRESS = np.linspace(0.05, 0.95, 19)

#: An optimizer is of low rank like the flow if its excess of effective rank, in modes, is at most this.
LOW_RANK = 0.25

#: A run has converged if its relative gap is at most this.
CONVERGED = 1e-3

#: Starts are the same within this part: rounding, in float32 as well.
SAME = 1e-4


class Learning(NamedTuple):
    """The effective rank while a run learns; NaN where it does not come so far, or did not end well.

    `ranks` (seeds, levels): where the parts `PROGRESS` of the gap at the start are closed for the first
    time. `median` (levels,): over the seeds. `half` (seeds,): where the largest singular value first is
    half of what it is at the minimizer. Linear between records.
    """

    ranks: Float[Array, "seeds levels"]
    median: Float[Array, "levels"]
    half: Float[Array, "seeds"]


class Trial(NamedTuple):
    """One optimizer. Along the seeds, NaN where not compared; `outcome` is that of the worse of both runs.

    `gap`: the relative gap against the step. `excess`: the mean over `PROGRESS` of the effective rank above
    that of the flow at equal gap. `deviation` (records,): the median over the seeds of
    ‖W(t) − W̃(t)‖_F / ‖W(t)‖_F between the generators of both runs, at the steps `gap.axis`. `while_learning`:
    the largest of a seed until its gap is closed by the last part of `PROGRESS`; `in_all`: until the end.
    `learnt`: the median of the steps until then.
    """

    step_size: float
    outcome: Shaped[Array, "seeds"]
    compared: Bool[Array, "seeds"]
    gap: Band
    final_gap: Float[Array, "seeds"]
    learning: Learning
    excess: Float[Array, "seeds"]
    deviation: Float[Array, "records"]
    while_learning: Float[Array, "seeds"]
    in_all: Float[Array, "seeds"]
    learnt: float


class Comparison(NamedTuple):
    """Optimizers by name, and the flow. `flow_gap` is against the steps of plain descent, t / η.

    `rounding`: the largest deviation that passes for amplified rounding, the root of the machine epsilon:
    half of the digits agree.
    """

    seed: Shaped[Array, "seeds"]
    trials: dict[str, Trial]
    flow: Learning
    flow_gap: Band
    rounding: float
    step_size: float


def compare(flow: Result, pairs: Mapping[str, tuple[Result, Result]], *, step_size: float) -> Comparison:
    """Compare the two runs of each optimizer, by name, with each other and with the flow.

    All need `end_to_end` among their records, but for the flow. `step_size` is that of plain descent.

    Raises `InvalidOption` where there are none, and `ValueError` where the runs of a seed do not start with
    the same generator, or the two of a pair are recorded at different steps.
    """
    check(len(pairs) > 0, "pairs", "nothing", "at least one optimizer")
    of_flow = learning(flow, at_end(flow))
    first, _ = next(iter(pairs.values()))
    gap = _gap(flow)
    return Comparison(
        seed=flow.dataset["seed"].values,
        trials={name: trial(flow, of_flow, *pair) for name, pair in pairs.items()},
        flow=of_flow,
        flow_gap=gap._replace(axis=gap.axis / step_size),
        rounding=float(np.finfo(first.dataset["end_to_end"].dtype).eps ** 0.5),
        step_size=step_size,
    )


def trial(flow: Result, of_flow: Learning, plain: Result, rotated: Result) -> Trial:
    """What one optimizer did, from its two runs."""
    compared = at_end(flow) & at_end(plain) & at_end(rotated)
    own, apart = learning(plain, compared), deviation(flow, plain, rotated, compared)
    last = _records_of_learning(plain, compared)
    until = [largest(each[: stop + 1]) for each, stop in zip(apart, last, strict=True)]
    steps = plain.dataset["step"].transpose("seed", "record").values
    well = np.array([each == "reached_end" for each in plain.outcomes])
    outcomes = (np.array(run.outcomes, object) for run in (rotated, plain))
    return Trial(
        step_size=float(dict(plain.config.dynamics.options)["step_size"]),
        outcome=np.where(well, *outcomes),
        compared=compared,
        gap=_gap(plain),
        final_gap=np.where(compared, plain.dataset["relative_gap"].isel(record=-1).values, np.nan),
        learning=own,
        excess=np.mean(own.ranks - of_flow.ranks, axis=1),
        deviation=median(apart),
        while_learning=np.array(until),
        in_all=np.array([largest(each) for each in apart]),
        learnt=float(median(steps[compared, last[compared]])),
    )


def _records_of_learning(result: Result, compared: Bool[Array, "seeds"]) -> Int[Array, "seeds"]:
    """The first record by which a seed has closed the last part of `PROGRESS`; the last one if none."""
    progress = closed(result)
    last = np.full(len(progress), progress.shape[1] - 1)
    for lane in np.flatnonzero(compared):
        (place,) = first_reached(progress[lane], PROGRESS[-1:])
        last[lane] = last[lane] if np.isnan(place) else int(np.ceil(place))
    return last


def at_end(result: Result) -> Bool[Array, "seeds"]:
    """Which seeds came to the end of their run, with finite losses."""
    return ~analysis.diverged(result) & np.array([each == "reached_end" for each in result.outcomes])


# --- low rank -------------------------------------------------------------------------------------


def learning(result: Result, compared: Bool[Array, "seeds"]) -> Learning:
    """The effective rank of a run by what it has learnt, of the seeds that are compared."""
    ranks = result.dataset["effective_rank"].transpose("seed", "record").values
    leading = result.dataset["singular_values"].transpose("seed", "record", "mode").values[:, :, 0]
    halves = leading / (result.dataset["optimal_singular_values"].values[0] / 2)
    progress = closed(result)
    every = np.full((len(compared), len(PROGRESS)), np.nan)
    half = np.full(len(compared), np.nan)
    for lane in np.flatnonzero(compared):
        every[lane] = _at(ranks[lane], first_reached(progress[lane], PROGRESS))
        half[lane] = _at(ranks[lane], first_reached(halves[lane], np.ones(1)))[0]
    return Learning(every, median(every), half)


def closed(result: Result) -> Float[Array, "seeds records"]:
    """What part of the gap at the start is closed at each record: 0 at the start, 1 at the optimum."""
    gaps = result.dataset["relative_gap"].transpose("seed", "record").values
    first = gaps[:, :1]
    return 1 - np.divide(gaps, first, out=np.zeros_like(gaps), where=first > 0)


def first_reached(values: Float[Array, "records"], levels: Float[Array, "levels"]) -> Float[Array, "levels"]:
    """The numbers of the records, with fractions, at which values first reach levels; NaN: never."""
    highest = np.fmax.accumulate(values)
    places = np.full(len(levels), np.nan)
    for position, level in enumerate(levels):
        after = int(np.searchsorted(highest, level))
        if after == 0:
            places[position] = 0
        elif after < len(values):
            before, then = values[after - 1], values[after]
            places[position] = after - 1 + (level - before) / (then - before)
    return places


def _at(values: Float[Array, "records"], places: Float[Array, "levels"]) -> Float[Array, "levels"]:
    """Values at numbers of records with fractions, linear between two; NaN at NaN."""
    return np.interp(places, np.arange(len(values)), values)


# --- the gauge ------------------------------------------------------------------------------------


def deviation(
    flow: Result, plain: Result, rotated: Result, compared: Bool[Array, "seeds"]
) -> Float[Array, "seeds records"]:
    """‖W(t) − W̃(t)‖_F / ‖W(t)‖_F between two runs at each record, NaN for seeds that are not compared.

    Raises `ValueError` where the runs of these do not start alike, or the records lie at other steps.
    """
    steps = [run.dataset["step"].transpose("seed", "record").values[compared] for run in (plain, rotated)]
    if not np.array_equal(steps[0], steps[1]):
        raise ValueError("the two runs of an optimizer are recorded at different steps")
    dims = ("seed", "record", "feature", "latent")
    one, other = (run.dataset["end_to_end"].transpose(*dims).values[compared] for run in (plain, rotated))
    relative = _relative(one, other)
    initial = flow.dataset["initial_end_to_end"].transpose("seed", "feature", "latent").values[compared]
    if np.any(relative[:, 0] > SAME) or np.any(_relative(initial, one[:, 0]) > SAME):
        raise ValueError("the runs of a seed start from different generators")
    every = np.full((len(compared), plain.dataset.sizes["record"]), np.nan)
    every[compared] = relative
    return every


def _relative(one: Array, other: Array) -> Array:
    """The distance of matrices in units of the size of the first, unless that is 0."""
    apart, size = np.linalg.norm(one - other, axis=(-2, -1)), np.linalg.norm(one, axis=(-2, -1))
    return apart / np.where(size > 0, size, 1)


# --- verdicts -------------------------------------------------------------------------------------


def equivariant(found: Comparison, name: str) -> bool | None:
    """Whether no seed deviates by more than amplified rounding while it learns; None: none compared."""
    worst = largest(found.trials[name].while_learning)
    return None if np.isnan(worst) else worst <= found.rounding


def low_rank(found: Comparison, name: str) -> bool | None:
    """Whether the median excess of effective rank is at most `LOW_RANK`; None: none compared."""
    excess = float(median(found.trials[name].excess))
    return None if np.isnan(excess) else excess <= LOW_RANK


def largest(values: Float[Array, "some"]) -> float:
    """The largest that is not NaN; NaN of nothing."""
    usable = values[~np.isnan(values)]
    return float(usable.max()) if usable.size else np.nan


def median(values: Float[Array, "seeds ..."]) -> Float[Array, "..."]:
    """The median over the first axis of what has no NaN; NaN of nothing."""
    usable = values[~np.isnan(values).any(axis=tuple(range(1, values.ndim)))]
    return np.asarray(np.median(usable, axis=0) if len(usable) else np.full(values.shape[1:], np.nan))


def _gap(result: Result) -> Band:
    """The relative gap over the seeds; values below its floor of rounding are set to it."""
    band, floor = analysis.band(result, "relative_gap"), analysis.gap_floor(result)
    raised = {name: np.maximum(getattr(band, name), floor) for name in ("median", "low", "high")}
    return band._replace(**raised)
