"""What generators learn of real data against its principal components, over bottlenecks and τ.

At τ = 0 the best generator of rank k is the data's principal component analysis: its loss is Σ_{i>k} λ_i and
its covariance that of the k leading components; with τ their variances are λ_i − τ (docs/theory.md §3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bwdln import data, figures, results
from bwdln.comparison import principal_components as comparison
from bwdln.comparison.principal_components import Comparison, Learned
from bwdln.config import Config
from bwdln.errors import InvalidOption, check
from bwdln.registry import Choice
from bwdln.studies.base import (
    STUDIES,
    Claim,
    Findings,
    OnProgress,
    Runs,
    check_different,
    cut_short,
    prepared,
    run_all,
    write_table,
)

COLUMNS = (
    "k",
    "τ",
    "loss",
    "by PCA",
    "difference / tr Σ₀",
    "distance of covariances",
    "1 − |cosine|",
    "converged",
)

#: A loss counts as that of principal component analysis up to this share of the variance of the data.
AGREES = 1e-9
#: A covariance counts as the best one up to this share, in the Frobenius norm; an error enters the loss by
#: its square.
CLOSE = 1e-4


@STUDIES.register("principal_components")
def principal_components(
    config: Config,
    folder: Path,
    on_progress: OnProgress | None,
    *,
    bottlenecks: tuple[int, ...],
    taus: tuple[float, ...],
) -> Findings:
    """Train at `network.bottleneck` and τ = 0, at every other bottleneck, and with every τ.

    The target is estimated from samples; where these are images, components and samples are drawn as such.
    Principal components are computed from the samples by the eigenvectors of their covariance matrix, which
    the target never forms.

    Writes the results of all runs into folders of their own (`bottleneck_8`, `tau_0.1`, …), a table
    `principal_components.csv` with one row for each run and seed, another, `components.csv`, for each
    component of these, the figures of the main run and those of the study. Ctrl-C keeps the runs that
    finished, and what the ones in progress have recorded. The score is the largest final gap at τ = 0,
    relative to the variance of the data.

    Raises `InvalidOption`, before anything compiles, for a target that is not estimated from samples, a loss
    other than Bures-Wasserstein at τ = 0, bottlenecks and τ out of range, and for whatever a run refuses.
    """
    jobs = plan(config, bottlenecks, taus)
    problems = prepared(jobs, folder)
    runs = run_all(problems, results.writable(folder), on_progress)
    notes, rows = [], []
    said: list[Claim] = []
    files: list[Path] = []
    drawn: list[Path] = []
    score = np.inf
    main = runs.results.get(_of_bottleneck(_bottleneck(config)))
    if main is not None:
        found = compare(config, runs)
        files = [_write(found, folder), _write_components(found, folder)]
        drawn = figures.save_all(main, folder)
        drawn += figures.principal_components.save_all(found, folder)
        rows, notes, score = table(found), sentences(found), worst(found)
        said = claims(found)
    notes += cut_short(runs, len(jobs))
    return Findings(COLUMNS, rows, notes, runs.paths, files, drawn, score, runs.interrupted, said)


# --- the runs -------------------------------------------------------------------------------------


def plan(config: Config, bottlenecks: Sequence[int], taus: Sequence[float]) -> dict[str, Config]:
    """The runs by the names of their folders, the main one first.

    Raises `InvalidOption` for what cannot be compared with principal components.
    """
    check(
        data.samples(config.target) is not None,
        "target",
        config.target.name,
        "a target estimated from samples",
    )
    check(config.loss.name == "bures_wasserstein", "loss", config.loss.name, "bures_wasserstein")
    tau = config.loss.option("tau", 0.0)
    check(tau == 0, "loss.tau", tau, "0 in this study, which takes study.taus")
    check(config.network.widths is None, "network.widths", config.network.widths, "null in this study")
    _check_numbers("study.bottlenecks", bottlenecks, "integers from 1", 1)
    _check_numbers("study.taus", taus, "finite numbers above 0", np.nextafter(0, 1))
    own = _bottleneck(config)
    ranks = own, *sorted(bottlenecks)
    jobs = {_of_bottleneck(rank): _with_bottleneck(config, rank) for rank in ranks}
    return jobs | {f"tau_{each:.12g}": _with_tau(config, each) for each in sorted(taus)}


def _bottleneck(config: Config) -> int:
    """The bottleneck of the main run, and of those with τ."""
    own = config.network.bottleneck
    if own is None:
        takes = "an integer in this study: the one of the main run"
        raise InvalidOption("network.bottleneck", "null", takes)
    return own


def _check_numbers(option: str, values: Sequence[float], takes: str, lowest: float) -> None:
    """Refuse numbers out of range and numbers that come twice; the list may be empty."""
    for value in values:
        check(lowest <= value < np.inf, option, value, takes)
    check_different(option, values)


def _of_bottleneck(rank: int) -> str:
    return f"bottleneck_{rank}"


def _with_bottleneck(config: Config, rank: int) -> Config:
    network = dataclasses.replace(config.network, bottleneck=rank)
    return dataclasses.replace(config, study=None, network=network)


def _with_tau(config: Config, tau: float) -> Config:
    loss = Choice("bures_wasserstein", (("tau", float(tau)),))
    return dataclasses.replace(config, study=None, loss=loss)


# --- what was found -------------------------------------------------------------------------------


def compare(config: Config, runs: Runs) -> Comparison:
    """What the runs came to, against the components of the samples."""
    samples = data.samples(config.target)
    assert samples is not None
    pca = comparison.components(samples.values, center=samples.center)
    return comparison.compare(
        list(runs.results.values()), runs.results[_of_bottleneck(_bottleneck(config))], pca
    )


def everyone(found: Comparison) -> list[Learned]:
    """Every run once: by rank, then those with τ."""
    return [*found.by_rank, *(each for each in found.by_tau if each.tau > 0)]


def table(found: Comparison) -> list[tuple[str, ...]]:
    """A row for each run, as `COLUMNS` names them: medians over the seeds, but the largest errors."""
    return [
        (
            f"{each.rank}",
            f"{each.tau:g}",
            f"{np.median(each.loss):.6g}",
            f"{each.optimum:.6g}",
            f"{np.max(found.gap(each)):.1e}",
            f"{np.max(each.distance):.1e}",
            f"{np.max(each.misalignment):.1e}",
            f"{int(np.sum(each.outcome == 'converged'))} of {len(each.seed)}",
        )
        for each in everyone(found)
    ]


def claims(found: Comparison) -> list[Claim]:
    """That what is learnt are principal components, and what τ changes of them."""
    away = worst(found)
    apart = max(float(np.max(each.distance)) for each in found.by_rank)
    ranks = f"at k = {', '.join(str(each.rank) for each in found.by_rank)}"
    said = [
        Claim(
            "the generator of rank k ends at the loss of principal component analysis, Σ_{i>k} λ_i",
            "the paper, §3",
            "equal",
            f"within {away:.1e} of tr Σ₀ {ranks}",
            away <= AGREES,
        ),
        Claim(
            "what it generates has the covariance of the k leading principal components",
            "the paper, §3",
            "equal",
            f"within {apart:.1e}",
            apart <= CLOSE,
        ),
    ]
    strict = [each for each in found.by_tau if each.tau > 0 and each.learnable.all()]
    if strict:
        apart = max(float(np.max(each.distance)) for each in strict)
        statement = "with τ below λ_k the learnt variances are λ_i − τ, in the same directions"
        said.append(Claim(statement, "§3", "equal", f"within {apart:.1e}", apart <= CLOSE))
    cut = [each for each in found.by_tau if not each.learnable.all()]
    if cut:
        right = [_learnt(each) for each in cut]
        measured = ", ".join(
            f"{int(np.median(count))} of {each.rank} at {each.tau:g}"
            for each, count in zip(cut, right, strict=True)
        )
        predicted = ", ".join(f"{int(each.learnable.sum())} at {each.tau:g}" for each in cut)
        held = all((count == each.learnable.sum()).all() for each, count in zip(cut, right, strict=True))
        said.append(Claim("components with λ_i ≤ τ are not learnt", "§3", predicted, measured, held))
    return said


def _learnt(each: Learned) -> np.ndarray:
    """How many components every seed has: with more than half of the smallest variance to be learnt."""
    threshold = np.min(each.expected, where=each.learnable, initial=np.inf) / 2
    return np.sum(each.variances > min(threshold, each.tau), axis=1)


def sentences(found: Comparison) -> list[str]:
    """How well losses and covariances agree, and which runs are not at their end."""
    main = found.main
    share = main.variances.sum(axis=1) / found.components.total
    said = [
        f"k = {main.rank}: {np.median(share):.2%} of the variance is generated, that of PCA is "
        f"{main.expected.sum() / found.components.total:.2%}",
        f"losses are those of PCA within {worst(found):.1e} of the variance, "
        f"over {len(found.by_rank)} bottlenecks",
    ]
    for each in everyone(found):
        gaps = found.gap(each)
        short = int(np.sum(~(gaps <= AGREES)))
        if short:
            where = f"k = {each.rank}" + (f", τ = {each.tau:g}" if each.tau else "")
            why = (
                "components with λ_i ≤ τ decay by a power of time"
                if each.tau and not each.learnable.all()
                else "try a larger dynamics.end_time, or more steps"
            )
            said.append(
                f"{where}: {short} of {len(each.seed)} seeds end above a relative gap of {AGREES:g}, "
                f"at {np.max(gaps):.1e}: {why}"
            )
    return said


def worst(found: Comparison) -> float:
    """The largest final gap of the runs at τ = 0, relative to the variance of the data."""
    gaps = np.concatenate([np.abs(found.gap(each)) for each in found.by_rank])
    return float(np.max(np.where(np.isfinite(gaps), gaps, np.inf)))


def _write(found: Comparison, folder: Path) -> Path:
    """The table of every run and seed."""
    columns = (
        "bottleneck",
        "tau",
        "seed",
        "outcome",
        "loss",
        "loss_of_pca",
        "relative_gap",
        "covariance_distance",
        "largest_misalignment",
    )
    rows = [
        (each.rank, each.tau, seed, each.outcome[lane], each.loss[lane], each.optimum, gaps[lane], *errors)
        for each in everyone(found)
        for gaps in [found.gap(each)]
        for lane, seed in enumerate(each.seed)
        for errors in [(each.distance[lane], each.misalignment[lane])]
    ]
    return write_table(folder / "principal_components.csv", columns, rows)


def _write_components(found: Comparison, folder: Path) -> Path:
    """The table of every component of every run and seed."""
    columns = ("bottleneck", "tau", "seed", "component", "variance", "expected", "learned", "cosine")
    rows = [
        (
            each.rank,
            each.tau,
            seed,
            mode + 1,
            found.components.variances[mode],
            each.expected[mode],
            each.variances[lane, mode],
            each.cosines[lane, mode],
        )
        for each in everyone(found)
        for lane, seed in enumerate(each.seed)
        for mode in range(each.rank)
    ]
    return write_table(folder / "components.csv", columns, rows)
