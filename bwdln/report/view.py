"""What can be compared interactively: jobs of a sweep by their options, or the seeds of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bwdln import analysis
from bwdln.analysis import Dataset
from bwdln.results import VARIABLES, Result

#: A curve on the way keeps at most so many records.
RECORDS = 60
#: The variables of a sweep with one number a configuration that are no measure of its result.
NOT_MEASURED = {"records", "job"}

#: A number; None where there is none, infinity where a run diverged.
Number = float | None


class Axis(NamedTuple):
    """An option that takes several values: these in order, and which of them each row has.

    Numbers ascend; texts are in the order of the rows. `influence`: as of `analysis.Swept`. `others`:
    options that move with it one to one.
    """

    name: str
    values: list[float] | list[str]
    at: list[int | None]
    numeric: bool
    influence: float
    others: tuple[str, ...]


class Quantity(NamedTuple):
    """A number of each row, in four digits; `meaning` says what it is, and in which unit."""

    name: str
    label: str
    meaning: str
    values: list[Number]


class Curves(NamedTuple):
    """Records on the way: `along` the steps or flow times, each list once; `which` of them a row has.

    `values` holds by quantity the values of each row at these. None where a row has no curve.
    """

    clock: str
    logarithmic: bool
    along: list[list[float]]
    which: list[int | None]
    values: dict[str, list[list[Number] | None]]


class View(NamedTuple):
    """Rows that can be compared: jobs or seeds (`noun`), by number, with how they ended.

    `options`: of every swept option the value in each row, None where it is not known. `messages`: why a row
    has no result. `objective`: the quantity that says which row is best; `best` is the place of that.
    """

    noun: str
    numbers: list[int]
    outcomes: list[str]
    messages: list[str | None]
    options: dict[str, list[Any]]
    axes: list[Axis]
    quantities: list[Quantity]
    curves: Curves
    objective: str
    best: int | None

    def quantity(self, name: str) -> Quantity:
        """The quantity of that name."""
        return next(each for each in self.quantities if each.name == name)


# --- of a sweep -----------------------------------------------------------------------------------


def of_sweep(dataset: Dataset, typed: Mapping[int, Mapping[str, str]]) -> View:
    """The jobs of a sweep; `typed` has the options of those that failed, as texts, where they are known."""
    objective = str(dataset.attrs.get("objective", "relative_gap"))
    objective = objective if objective in dataset else "relative_gap"
    failed = failures(dataset)
    rows = {row.job: row for row in analysis.sweep_rows(dataset, failed, objective)}
    there = [int(job) for job in dataset["job"].values]
    numbers = [*there, *sorted(failed)]
    options = {
        name: [*column.tolist(), *(_read(typed.get(job, {}).get(name), column) for job in sorted(failed))]
        for name, column in analysis.swept_options(dataset).items()
    }
    best = analysis.sweep_finals(dataset, objective).best
    return View(
        noun="job",
        numbers=numbers,
        outcomes=[rows[number].outcomes for number in numbers],
        messages=[rows[number].failed for number in numbers],
        options=options,
        axes=_axes(options, {each.option: each for each in analysis.swept(dataset, objective)}),
        quantities=_padded(_sweep_quantities(dataset), len(numbers)),
        curves=_sweep_curves(dataset, len(failed)),
        objective=objective,
        best=best,
    )


def failures(dataset: Dataset) -> dict[int, str]:
    """Why jobs of a sweep have no result, by number."""
    return {int(job): str(message) for job, message in json.loads(dataset.attrs.get("failed", "{}")).items()}


def _read(typed: str | None, column: np.ndarray) -> Any:
    """An option of a failed job, as the others have it; None where that is no such value."""
    if typed is None:
        return None
    if column.dtype.kind not in "if":
        return {"": "null", "True": "true", "False": "false"}.get(typed, typed)
    try:
        return float(typed)
    except ValueError:
        return None


def _axes(options: Mapping[str, Sequence[Any]], known: Mapping[str, analysis.Swept]) -> list[Axis]:
    """The options with several values, that of the most influence first."""
    follow = {other for each in known.values() for other in each.others}
    axes = []
    for name, column in options.items():
        present = [value for value in column if value is not None]
        numeric = bool(present) and not any(isinstance(value, str) for value in present)
        values = sorted(set(present)) if numeric else [str(value) for value in dict.fromkeys(present)]
        if len(values) < 2 or name in follow:
            continue
        place = {value: index for index, value in enumerate(values)}
        at = [None if value is None else place[value if numeric else str(value)] for value in column]
        swept = known.get(name)
        influence = float(swept.influence) if swept is not None else 0.0
        axes.append(Axis(name, values, at, numeric, influence, swept.others if swept is not None else ()))
    return sorted(axes, key=lambda each: -each.influence)


def _sweep_quantities(dataset: Dataset) -> list[Quantity]:
    """What was recorded at the end, the median over the seeds, and what a configuration has one number of."""
    recorded = [
        _quantity(name, dataset[name], _finals(dataset, name))
        for name in analysis.OBJECTIVES
        if name in dataset
    ]
    lost = analysis.sweep_diverged(dataset).sum(axis=1) / (dataset["outcome"].values != "").sum(axis=1)
    single = [
        _quantity(str(name), variable, variable.values.astype(float))
        for name, variable in dataset.data_vars.items()
        if variable.dims == ("config",) and variable.dtype.kind in "if" and name not in NOT_MEASURED
    ]
    share = Quantity("diverged_share", "share diverged", "share of the seeds that diverged", numbers(lost))
    return [*recorded, *single, share]


def _finals(dataset: Dataset, name: str) -> np.ndarray:
    """Final medians; NaN, not infinite, where a configuration has no such records at all."""
    median = analysis.sweep_finals(dataset, name).median
    none = np.isnan(dataset[name].transpose("config", ...).values).reshape(len(median), -1).all(axis=1)
    return np.where(none & ~analysis.sweep_diverged(dataset).any(axis=1), np.nan, median)


def _sweep_curves(dataset: Dataset, failed: int) -> Curves:
    found = analysis.sweep_curves(dataset)
    curves = [_thinned(axis, median) for axis, median in zip(found.axis, found.median, strict=True)]
    along, which = _shared([axis for axis, _ in curves])
    values = [points if any(each is not None for each in points) else None for _, points in curves]
    return Curves(
        found.clock,
        found.logarithmic,
        along,
        [*which, *[None] * failed],
        {"relative_gap": [*values, *[None] * failed]},
    )


# --- of a run -------------------------------------------------------------------------------------


def of_run(result: Result) -> View:
    """The seeds of a run, at their ends and on the way."""
    dataset, clock = result.dataset, analysis.clock(result)
    lost = analysis.diverged(result)
    seeds = [int(seed) for seed in dataset["seed"].values]
    names = [name for name in analysis.OBJECTIVES if name in dataset]
    finals = {name: dataset[name].transpose("seed", "record").values[:, -1].astype(float) for name in names}
    finals = {name: np.where(lost | ~np.isfinite(values), np.inf, values) for name, values in finals.items()}
    gap = finals["relative_gap"]
    axis = Axis("seed", [float(seed) for seed in seeds], list(range(len(seeds))), True, 1.0, ())
    return View(
        noun="seed",
        numbers=seeds,
        outcomes=[outcome.replace("_", " ") for outcome in result.outcomes],
        messages=[None] * len(seeds),
        options={},
        axes=[axis],
        quantities=[_quantity(name, dataset[name], finals[name]) for name in names],
        curves=_run_curves(dataset, clock, names, analysis.gap_floor(result)),
        objective="relative_gap",
        best=int(np.argmin(gap)) if np.isfinite(gap).any() else None,
    )


def _run_curves(dataset: Dataset, clock: str, names: Sequence[str], floor: float) -> Curves:
    axes = dataset[clock].transpose("seed", "record").values.astype(float)
    values: dict[str, list[list[Number] | None]] = {}
    curves: list[tuple[list[float], list[Number]]] = []
    for name in (each for each in names if each != clock):
        of_seeds = dataset[name].transpose("seed", "record").values.astype(float)
        of_seeds = np.where(np.isnan(of_seeds), np.inf, of_seeds)
        of_seeds = np.maximum(of_seeds, floor) if name == "relative_gap" else of_seeds
        curves = [_thinned(axis, each) for axis, each in zip(axes, of_seeds, strict=True)]
        values[name] = [points for _, points in curves]
    along, which = _shared([axis for axis, _ in curves])
    steps = axes[0][axes[0] > 0]
    spaced = len(steps) > 3 and bool(4 * steps[0] < steps[-1] / len(steps))
    return Curves(clock, spaced, along, which, values)


# --- numbers --------------------------------------------------------------------------------------


def _thinned(axis: np.ndarray, values: np.ndarray) -> tuple[list[float], list[Number]]:
    """At most `RECORDS` points of a curve, the first and the last among them; none behind its end."""
    there = np.flatnonzero(~np.isnan(axis))
    if there.size:
        ended = int(np.searchsorted(axis[there], axis[there[-1]])) + 1  # later records repeat the last state
        there = there[:ended]
        chosen = np.unique(np.linspace(0, len(there) - 1, min(RECORDS, len(there))).round().astype(int))
        there = there[chosen]
    return [float(f"{each:.6g}") for each in axis[there]], numbers(values[there])


def _shared(lists: Sequence[list[float]]) -> tuple[list[list[float]], list[int | None]]:
    """Each different list once, and which of them is at each place."""
    place: dict[tuple[float, ...], int] = {}
    which: list[int | None] = [place.setdefault(tuple(each), len(place)) for each in lists]
    return [list(each) for each in place], which


def _quantity(name: str, variable: Any, values: np.ndarray) -> Quantity:
    known = VARIABLES.get(name)
    meaning = str(variable.attrs.get("long_name", ""))
    unit = known.units if known is not None else str(variable.attrs.get("units", "1"))
    return Quantity(
        name, name.replace("_", " "), meaning + (f" ({unit})" if unit != "1" else ""), numbers(values)
    )


def _padded(quantities: Iterable[Quantity], count: int) -> list[Quantity]:
    return [each._replace(values=[*each.values, *[None] * (count - len(each.values))]) for each in quantities]


def numbers(values: np.ndarray) -> list[Number]:
    """Values in four digits; None for NaN."""
    return [None if np.isnan(each) else float(f"{each:.4g}") for each in values.tolist()]
