"""A look at critical points: curvature at each, the loss between them, and the blow-up at small τ.

Not a job of runs: nothing is trained. `conduct` takes a configuration of its own kind, `config.Landscape`,
and everything it says is in closed form (docs/theory.md §3, §4), beside derivatives where these are cheap.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from bwdln import figures, results
from bwdln.config import Landscape
from bwdln.errors import check
from bwdln.interruption import Interruption
from bwdln.losses import LOSSES
from bwdln.registry import Choice, load_plugins
from bwdln.studies.base import Claim, Findings, write_table
from bwdln.targets import TARGETS
from bwdln.theory import landscape, measured
from bwdln.theory.checks import LossName
from bwdln.theory.landscape import Overview, Paths, Points, Survey, over_targets
from bwdln.theory.measured import BlowUp, Pair
from bwdln.types import Array

#: Automatic differentiation is compared with up to so many parameters, at so many points of so many targets.
PARAMETERS, COMPARED, COMPARED_TARGETS = 100, 64, 4
#: Closed forms count as equal to automatic differentiation up to this share of the largest eigenvalue.
DERIVED = 1e-10
#: Eigenvalues below this share of the largest are zeros to rounding.
ZERO = 1e-9
#: As many points are listed on the terminal; the table has all.
LISTED = 16
#: Places on a path.
PLACES = 101

COLUMNS = ("loss", "point", "value", "index", "λ_max", "λ_min", "κ relative", "κ absolute")
#: The quantities of a point, as the tables name them, and those that the terminal shows.
QUANTITIES = Survey._fields
SHOWN = ("value", "index", "largest", "smallest", "relative_condition", "absolute_condition")
#: The losses in the table of the terminal.
SHORT = {"bures_wasserstein": "BW", "frobenius": "F"}


class Kind(NamedTuple):
    """A loss that is looked at, by its name in `theory`, and its τ."""

    name: LossName
    tau: float


class Problem(NamedTuple):
    """All that a configuration asks for, checked: targets by their eigenvalues, shape (targets, n)."""

    seeds: list[int]
    eigenvalues: Float[Array, "targets n"]
    rank: int
    depth: float
    kinds: tuple[Kind, ...]
    points: Points
    paths: int


class Part(NamedTuple):
    """What a part of the work found: how its tables and figures are written, and what is said of it.

    `score` is what a sweeper looks at, from the part that knows it.
    """

    write: Callable[[], list[Path]]
    draw: Callable[[], list[Path]]
    rows: list[tuple[str, ...]]
    notes: list[str]
    score: float = sys.float_info.max
    claims: Sequence[Claim] = ()


def conduct(config: Landscape, folder: str | Path) -> Findings:
    """Look at the critical points that a configuration asks for, and write what is found into the folder.

    Writes `critical_points.csv`, a row for each loss and point with mean and deviation over the targets;
    `targets.csv`, a row for each loss, target and point; `paths.csv`; `blow_up.csv` where the loss is
    that of Bures-Wasserstein; `differentiation.csv`, closed forms beside automatic differentiation, where
    there are few parameters; and the figures. Ctrl-C keeps the parts that are finished.

    Raises `InvalidOption`, before more than the targets is computed, for what cannot be looked at.
    """
    load_plugins(config.plugins)
    problem = prepare(config)
    folder = results.writable(folder)
    rows: list[tuple[str, ...]] = []
    notes = said_of_points(problem)
    tables: list[Path] = []
    drawn: list[Path] = []
    claims: list[Claim] = []
    score, interrupted = sys.float_info.max, False
    with Interruption() as interruption:
        try:
            for part in _work(problem, folder, interruption.check):
                with Interruption(hold=True) as held:
                    tables += part.write()
                    drawn += part.draw()
                rows += part.rows
                notes += part.notes
                claims += part.claims
                score = min(score, part.score)
                interruption.requested |= held.requested
        except KeyboardInterrupt:
            interrupted = True
            notes.append("interrupted: what was finished until now is kept")
    return Findings(COLUMNS, rows, notes, [], tables, drawn, score, interrupted, claims)


def _work(problem: Problem, folder: Path, look: Callable[[], None]) -> Iterator[Part]:
    """The parts of the work, one after the other; `look` ends it where Ctrl-C was pressed."""
    sets = problem.points.sets
    surveys = [
        landscape.survey(
            problem.eigenvalues,
            sets,
            problem.rank,
            depth=problem.depth,
            tau=kind.tau,
            loss=kind.name,
            on_block=lambda done, total: look(),
        )
        for kind in problem.kinds
    ]
    # Losses are compared over the same targets at each point.
    missing = np.isnan(surveys[0].value)
    surveys = [Survey(*(np.where(missing, np.nan, field) for field in each)) for each in surveys]
    # From the lowest loss to the highest.
    order = np.argsort(over_targets(surveys[0].value).mean, kind="stable").tolist()
    shown = [
        landscape.overview(sets, survey, order, tau=kind.tau, loss=kind.name)
        for kind, survey in zip(problem.kinds, surveys, strict=True)
    ]
    yield Part(
        lambda: [_write_points(shown, folder), _write_targets(problem, surveys, order, folder)],
        lambda: figures.landscape.save_points(shown, folder),
        table(shown),
        [],
        _finite(shown[0].over["relative_condition"].mean[0]),
        _claims_of_condition(shown),
    )
    starts = starts_of_paths(problem, shown[0].sets)
    if starts:
        look()
        places = np.linspace(0, 1, PLACES)
        climbs = [
            landscape.to_minimizer(
                problem.eigenvalues, starts, places, depth=problem.depth, tau=kind.tau, loss=kind.name
            )
            for kind in problem.kinds
        ]
        yield Part(
            lambda: [_write_paths(climbs, shown[0].sets, folder)],
            lambda: figures.landscape.save_paths(climbs, problem.depth, folder),
            [],
            [_of_paths(climb, problem.depth) for climb in climbs],
        )
    if problem.kinds[0].name == "bures_wasserstein":
        look()
        found = measured.blow_up(problem.eigenvalues, problem.rank)
        yield Part(
            lambda: [_write_blow_up(problem.seeds, found, folder)],
            lambda: figures.landscape.save_blow_up(found, folder),
            [],
            _of_blow_up(found),
            claims=[_claim_of_blow_up(found)],
        )
    if _comparable(problem):
        points = {each: place for place, each in enumerate(shown[0].sets, start=1)}
        compared = [_compared(problem, kind, points, look) for kind in problem.kinds]
        yield Part(
            lambda: [_write_compared(compared, points, folder)],
            lambda: figures.landscape.save_pairs(
                {each.kind.name: each.of_first(points) for each in compared}, folder
            ),
            [],
            [_agreement(each) for each in compared],
            claims=_claims_of_spectra(compared),
        )


# --- the problem ----------------------------------------------------------------------------------


def prepare(config: Landscape) -> Problem:
    """The problem of a configuration. Raises `InvalidOption` for one that has none."""
    names = get_args(LossName)
    takes = f"{' or '.join(names)}: the critical points of others are not known"
    check(config.loss.name in names, "loss", config.loss.name, takes)
    LOSSES.build(config.loss)
    tau = float(config.loss.option("tau", 0.0))
    kinds = [Kind(config.loss.name, tau)]  # type: ignore[arg-type]
    if config.against is not None and config.against != config.loss.name:
        kinds.append(Kind(config.against, 0.0))
    choices = _targets(config)
    spectra = [np.asarray(TARGETS.build(choice).eigenvalues, dtype=np.float64) for choice in choices]
    eigenvalues = np.stack(spectra)
    dimension, lowest = eigenvalues.shape[1], float(eigenvalues[:, 0].min())
    takes = f"a number below the largest eigenvalue of every target, {lowest:g}"
    check(tau < lowest, "loss.tau", tau, takes)
    rank = max(1, dimension // 2) if config.rank is None else config.rank
    check(1 <= rank <= dimension, "rank", rank, f"an integer from 1 to the dimension {dimension}, or null")
    chosen = landscape.points(
        eigenvalues, rank, tau=tau, loss=kinds[0].name, most=config.points, seed=config.seed
    )
    seeds = [int(choice.option("seed", 0)) for choice in choices]
    return Problem(seeds, eigenvalues, rank, float(config.depth), tuple(kinds), chosen, config.paths)


def _targets(config: Landscape) -> list[Choice]:
    """The choice of each target: equal but for the seed."""
    name, options = config.target.name, dict(config.target.options)
    taken = TARGETS.options(name)
    if "seed" not in taken:
        check(config.targets == 1, "targets", config.targets, f"1 with {name}: it has no seed")
        return [config.target]
    first = TARGETS.checked(name, options).get("seed", taken["seed"].default)
    seeds = range(first, first + config.targets)
    return [Choice(name, tuple(sorted((options | {"seed": seed}).items()))) for seed in seeds]


def starts_of_paths(problem: Problem, sets: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Where paths to the minimizer begin: of its size, evenly over the points in their order.

    Modes that every target can learn, or, where these leave no choice, that some can.
    """
    modes = landscape.learnable(problem.eigenvalues, problem.kinds[0].tau)
    for available in (int(modes.min()), int(modes.max())):
        size = min(problem.rank, available)
        lowest = tuple(range(size))
        others = [each for each in sets if len(each) == size and max(each) < available and each != lowest]
        if others:
            places = np.unique(np.linspace(0, len(others) - 1, problem.paths).astype(int))
            return [others[place] for place in places.tolist()]
    return []


# --- automatic differentiation --------------------------------------------------------------------


def _comparable(problem: Problem) -> bool:
    """Whether automatic differentiation is cheap: a whole depth and few parameters."""
    return problem.depth == int(problem.depth) and _parameters(_widths(problem)) <= PARAMETERS


def _widths(problem: Problem) -> tuple[int, ...]:
    dimension = problem.eigenvalues.shape[1]
    return (problem.rank, *[dimension] * int(problem.depth))


def _parameters(widths: tuple[int, ...]) -> int:
    return sum(below * above for below, above in pairwise(widths))


def _claims_of_spectra(compared: Sequence[Comparison]) -> list[Claim]:
    """That closed forms are right, and count the directions that lead down."""
    every = [pair for each in compared for pairs in each.pairs.values() for pair in pairs]
    if not every:
        return []
    worst = max(pair.deviation for pair in every)
    same = sum(_extremes(pair.closed)[4:] == _extremes(pair.differentiated)[4:] for pair in every)
    points = f"{len(every)} points"
    return [
        Claim(
            "the Hessian at critical points has the spectrum of the closed form, zeros included",
            "the paper, §4",
            "equal to automatic differentiation",
            f"within {worst:.0e} at {points}",
            worst <= DERIVED,
        ),
        Claim(
            "the saddle index counts the pairs that are in the wrong order",
            "§4",
            points,
            f"{same} points",
            same == len(every),
        ),
    ]


def _claim_of_blow_up(found: BlowUp) -> Claim:
    exponents = [law.exponent for law in found.law]
    return Claim(
        "the Hessian of the unperturbed loss blows up where the rank is low",
        "the paper, §4",
        "tau^-0.5",
        f"tau^{min(exponents):.4f} to tau^{max(exponents):.4f}",
        max(abs(each + 0.5) for each in exponents) <= 0.01,
    )


def _claims_of_condition(shown: Sequence[Overview]) -> list[Claim]:
    """The comparison of the paper, at the minimizer: the first of the points."""
    if len(shown) < 2:
        return []
    ours, theirs = (each.over["absolute_condition"].mean[0] for each in shown[:2])
    measured = f"condition number {ours:.3g}, Frobenius {theirs:.3g} (mean over the targets)"
    statement = "at the minimizer Bures-Wasserstein is better conditioned than Frobenius"
    return [Claim(statement, "the paper, §7", "smaller", measured, bool(ours < theirs))]


class Comparison(NamedTuple):
    """Closed forms beside automatic differentiation, of one loss: by the seed of the target."""

    kind: Kind
    pairs: dict[int, list[Pair]]

    def of_first(self, points: Mapping[tuple[int, ...], int]) -> dict[int, Pair]:
        """Those of the first target, by the number of the point."""
        return {points[each.index_set]: each for each in next(iter(self.pairs.values()))}


def _compared(
    problem: Problem, kind: Kind, points: Mapping[tuple[int, ...], int], look: Callable[[], None]
) -> Comparison:
    """The points of the first targets, but for those where the loss has a kink."""
    smooth = kind.tau > 0 or kind.name == "frobenius"
    found = {}
    for seed, values in list(zip(problem.seeds, problem.eigenvalues, strict=True))[:COMPARED_TARGETS]:
        look()
        modes = int(landscape.learnable(values[None], kind.tau)[0])
        sets = [each for each in points if max(each, default=-1) < modes]
        sets = [each for each in sets if smooth or len(each) == problem.rank][:COMPARED]
        widths = _widths(problem)
        found[seed] = measured.pairs_of_spectra(values, sets, widths, tau=kind.tau, loss=kind.name)
    return Comparison(kind, found)


def _agreement(compared: Comparison) -> str:
    """How far closed forms are from automatic differentiation."""
    name, every = compared.kind.name, [each for pairs in compared.pairs.values() for each in pairs]
    if not every:
        return f"automatic differentiation, {name}: every point lies on a kink of the loss"
    deviation = max(each.deviation for each in every)
    which = f"{_count(len(every), 'point')} of {_count(len(compared.pairs), 'target')}"
    return (
        f"automatic differentiation, {name}: spectra at {which} differ from the closed form "
        f"by at most {deviation:.0e} of the largest eigenvalue"
    )


def _write_compared(
    compared: Sequence[Comparison], points: Mapping[tuple[int, ...], int], folder: Path
) -> Path:
    """What the spectra come to both ways; zeros (`ZERO`) count apart and are in no condition number."""
    names = ("largest", "smallest", "relative_condition", "absolute_condition", "negative", "zeros")
    ways = ("closed", "differentiated")
    columns = (
        "loss",
        "target_seed",
        "point",
        *(f"{name}_{way}" for name in names for way in ways),
        "deviation",
    )
    rows = (
        (
            each.kind.name,
            seed,
            points[pair.index_set],
            *(part for both in zip(*map(_extremes, pair[1:]), strict=True) for part in both),
            pair.deviation,
        )
        for each in compared
        for seed, pairs in each.pairs.items()
        for pair in pairs
    )
    return write_table(folder / "differentiation.csv", columns, rows)


def _extremes(spectrum: Float[Array, "parameters"]) -> tuple[float, ...]:
    """Largest, smallest, their ratio, the ratio of largest to smallest size, negative ones, zeros."""
    sizes = np.abs(spectrum)
    there = spectrum[sizes > ZERO * sizes.max()]
    if not there.size:
        return (0.0, 0.0, np.nan, np.nan, 0, len(spectrum))
    largest, smallest = float(there.max()), float(there.min())
    absolute = largest / float(np.abs(there).min())
    return largest, smallest, largest / smallest, absolute, int(np.sum(there < 0)), len(spectrum) - there.size


# --- what is said ---------------------------------------------------------------------------------


def said_of_points(problem: Problem) -> list[str]:
    """What there is to know of the points before anything is computed."""
    tau, rank, total = problem.kinds[0].tau, problem.rank, landscape.about(problem.points.total)
    number = len(problem.points.sets)
    where = f"n = {problem.eigenvalues.shape[1]}, rank {rank}, depth {problem.depth:g}"
    which = f"a sample of {number} of {total}" if problem.points.spread else f"all {total}"
    said = [f"{which} critical points: {where}, {_count(len(problem.seeds), 'target')}"]
    modes = landscape.learnable(problem.eigenvalues, tau)
    dimension, level = problem.eigenvalues.shape[1], f"tau = {tau:g}" if tau else "0"
    if modes.min() < dimension:
        some = f"{modes.min()}" if modes.min() == modes.max() else f"{modes.min()} to {modes.max()}"
        said.append(f"{some} of {dimension} eigenvalues are above {level}: the others are never learnt")
    few = int(np.sum(modes < rank))
    if few:
        said.append(f"{few} of {len(modes)} targets have fewer of them than the rank: their minimizer, too")
    equal = int(landscape.repeated(problem.eigenvalues, tau).sum())
    if equal:
        said.append(
            f"{equal} of {len(modes)} targets have repeated eigenvalues: their points lie on families, "
            "one for each basis of an eigenspace; sets that differ by equal eigenvalues are listed apart"
        )
    if len(modes) > 1 and np.all(problem.eigenvalues == problem.eigenvalues[0]):
        said.append("all targets have the same eigenvalues: every deviation is 0")
    return said


def table(shown: Sequence[Overview]) -> list[tuple[str, ...]]:
    """A row for each loss and point, as `COLUMNS` names them; evenly chosen ones where they are many."""
    count = len(shown[0].sets)
    listed = np.unique(np.linspace(0, count - 1, min(count, LISTED)).astype(int)).tolist()
    rows = []
    for each in shown:
        for place in listed:
            spreads = [each.over[quantity] for quantity in SHOWN]
            cells = [_with_deviation(spread.mean[place], spread.deviation[place]) for spread in spreads]
            rows.append((SHORT[each.loss], _name(each.sets[place]), *cells))
    return rows


def _name(index_set: tuple[int, ...]) -> str:
    """The positions, or, where these are too many, how many differ from the largest modes."""
    name = landscape.label(index_set)
    return name if len(name) <= 12 else f"{sum(each >= len(index_set) for each in index_set)} exchanged"


def _with_deviation(mean: float, deviation: float) -> str:
    """A mean with its deviation, to the decimals that two digits of the deviation have."""
    if np.isnan(mean):
        return "–"
    moderate = mean == 0 or 1e-2 <= abs(mean) < 1e5
    if np.isnan(deviation) or deviation == 0:
        return (
            f"{mean:.4g}" if moderate and mean != int(mean) else f"{mean:.0f}" if moderate else f"{mean:.1e}"
        )
    if not moderate:
        return f"{mean:.1e} ± {deviation:.0e}"
    decimals = int(np.clip(1 - np.floor(np.log10(deviation)), 0, 3))
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"


def _of_paths(found: Paths, depth: float) -> str:
    """How many paths rise above their start."""
    spaces = ("function space",) if depth == 1 else ("function space", "parameter space")
    parts = [f"{int(each.sum())} in {space}" for space, each in zip(spaces, found.rises, strict=False)]
    total = found.rises[0].size
    return f"paths to the minimizer, {found.loss}: of {total}, {' and '.join(parts)} rise above their start"


def _of_blow_up(found: BlowUp) -> list[str]:
    slopes = ", ".join(
        f"tau^{law.exponent:.4f} along mode {mode + 1}"
        for mode, law in zip(found.modes, found.law, strict=True)
    )
    largest = _count(len(found.index_set), "largest mode")
    return [
        f"raising the rank from the {largest}, curvature at the {measured.FITTED} smallest tau: "
        f"{slopes}; theory: tau^-0.5",
        f"measured second derivatives differ from 2 (1 - sqrt(lambda/tau)) by {found.deviation:.0e} at most",
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _finite(value: float) -> float:
    return float(value) if np.isfinite(value) else sys.float_info.max


# --- what is written ------------------------------------------------------------------------------


def _write_points(shown: Sequence[Overview], folder: Path) -> Path:
    """Mean and deviation over the targets; `point` counts from 1, so do the positions."""
    names = [f"{field}_{part}" for field in QUANTITIES for part in ("mean", "deviation")]
    columns = ("loss", "point", "positions", "size", "targets", *names)
    rows = []
    for each in shown:
        for place, index_set in enumerate(each.sets):
            spreads = [each.over[field] for field in QUANTITIES]
            numbers = [part[place] for spread in spreads for part in (spread.mean, spread.deviation)]
            head = (each.loss, place + 1, _positions(index_set), len(index_set), spreads[0].count[place])
            rows.append((*head, *numbers))
    return write_table(folder / "critical_points.csv", columns, rows)


def _write_targets(problem: Problem, surveys: Sequence[Survey], order: Sequence[int], folder: Path) -> Path:
    """Every loss, target and point that is critical for it; `point` is that of `critical_points.csv`."""
    rows = (
        (kind.name, seed, place + 1, *(field[lane, column] for field in survey))
        for kind, survey in zip(problem.kinds, surveys, strict=True)
        for lane, seed in enumerate(problem.seeds)
        for place, column in enumerate(order)
        if not np.isnan(survey.value[lane, column])
    )
    return write_table(folder / "targets.csv", ("loss", "target_seed", "point", *QUANTITIES), rows)


def _write_paths(climbs: Sequence[Paths], sets: Sequence[tuple[int, ...]], folder: Path) -> Path:
    """The height at each place of each path; `start` is a `point` of `critical_points.csv`."""
    numbers = {index_set: point for point, index_set in enumerate(sets, start=1)}
    columns = ("loss", "space", "start", "place", "height_mean", "height_deviation", "targets")
    rows = (
        (found.loss, space, start, at, spread.mean[row, place], spread.deviation[row, place], found.targets)
        for found in climbs
        for space, spread in (("function", found.function_space), ("parameter", found.parameter_space))
        for row, start in enumerate(map(numbers.__getitem__, found.starts))
        for place, at in enumerate(found.places)
    )
    return write_table(folder / "paths.csv", columns, rows)


def _write_blow_up(seeds: Sequence[int], found: BlowUp, folder: Path) -> Path:
    """The curvature for each mode, counted from 1, target and τ."""
    columns = ("mode", "target_seed", "tau", "closed_form", "measured")
    rows = (
        (mode + 1, seed, tau, found.closed[row, lane, place], found.measured[row, lane, place])
        for row, mode in enumerate(found.modes)
        for lane, seed in enumerate(seeds)
        for place, tau in enumerate(found.tau)
    )
    return write_table(folder / "blow_up.csv", columns, rows)


def _positions(index_set: Sequence[int]) -> str:
    return " ".join(str(each + 1) for each in index_set)
