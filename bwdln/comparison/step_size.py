"""The largest step size that converges, from trials, against what theory says: pure functions of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float, Int, Shaped

from bwdln import analysis
from bwdln.errors import check
from bwdln.results import Result
from bwdln.theory import certificates
from bwdln.theory.certificates import Start, StepSizes
from bwdln.theory.checks import LossName
from bwdln.types import Array


class Case(NamedTuple):
    """What the step size is looked for at: a depth, and the smallest eigenvalue of the target."""

    depth: int
    smallest: float


class Bracket(NamedTuple):
    """The largest step size tried that converges, and the smallest tried above it that does not.

    `low` is 0 where the smallest one tried does not converge, `high` inf where the largest one does.
    """

    low: float = 0.0
    high: float = np.inf

    @property
    def closed(self) -> bool:
        """Whether both ends were found."""
        return self.low > 0 and self.high < np.inf

    @property
    def middle(self) -> float:
        """√(low · high), or NaN where an end was not found."""
        return float(self.low**0.5 * self.high**0.5) if self.closed else np.nan


class Limits(NamedTuple):
    """What was measured and predicted in each case, (cases,), by depth, then by smallest eigenvalue.

    `low`, `high`: the bracket; `measured`: its middle, NaN where it is open. `predicted`: the stability
    limit, and `ratio` = measured / predicted. `admissible`: the paper's, the smallest of `eta_1`, `eta_2`,
    `eta_3`, for the seed whose start it is largest for; NaN where `failing` says which hypothesis fails.
    `smaller` = measured / admissible.
    """

    depth: Int[Array, "cases"]
    smallest: Float[Array, "cases"]
    seeds: int
    low: Float[Array, "cases"]
    high: Float[Array, "cases"]
    measured: Float[Array, "cases"]
    predicted: Float[Array, "cases"]
    ratio: Float[Array, "cases"]
    admissible: Float[Array, "cases"]
    eta_1: Float[Array, "cases"]
    eta_2: Float[Array, "cases"]
    eta_3: Float[Array, "cases"]
    smaller: Float[Array, "cases"]
    failing: Shaped[Array, "cases"]


def converges(result: Result) -> bool:
    """Whether every seed of a run came closer to the optimum than it began.

    For starts so near that descent is linear: by the end the fastest mode has grown or shrunk by far
    more than all others. A step size just above the limit need not diverge: it may end in a cycle.
    """
    gaps = result.dataset["relative_gap"].transpose("seed", "record").values
    return bool(np.all(~analysis.diverged(result) & (gaps[:, -1] < gaps[:, 0])))


def narrowed(bracket: Bracket, trials: Mapping[float, bool]) -> Bracket:
    """The bracket after trials of step sizes, and whether each converges: up to the first that does not."""
    low, high = bracket
    for size in sorted(trials):
        if not trials[size]:
            return Bracket(low, size)
        low = size
    return Bracket(low, high)


def compare(brackets: Mapping[Case, Bracket], starts: Mapping[Case, Result]) -> Limits:
    """What was measured beside what theory says of the same starts: of any run of each case.

    Raises `InvalidOption` where there is none.
    """
    check(len(brackets) > 0, "brackets", "nothing", "at least one case")
    cases = sorted(brackets)
    predicted = np.array([_stability_limit(starts[case]) for case in cases])
    paper = [_paper(starts[case]) for case in cases]
    measured = np.array([brackets[case].middle for case in cases])

    def numbers(name: str) -> Float[Array, "cases"]:
        return np.array([getattr(each, name) if each.holds else np.nan for each in paper])

    return Limits(
        depth=np.array([case.depth for case in cases]),
        smallest=np.array([case.smallest for case in cases]),
        seeds=int(starts[cases[0]].dataset.sizes["seed"]),
        low=np.array([brackets[case].low for case in cases]),
        high=np.array([brackets[case].high for case in cases]),
        measured=measured,
        predicted=predicted,
        ratio=measured / predicted,
        admissible=numbers("admissible"),
        eta_1=numbers("eta_1"),
        eta_2=numbers("eta_2"),
        eta_3=numbers("eta_3"),
        smaller=measured / numbers("admissible"),
        failing=np.array([each.failing for each in paper], dtype=object),
    )


def _stability_limit(result: Result) -> float:
    """The same for every seed: that of the minimizer."""
    limit = certificates.stability_limit(_starts(result)[0])
    return limit.value if limit.holds else np.nan


def _paper(result: Result) -> StepSizes:
    """The paper's step sizes for the seed that it admits the largest one for."""
    every: Sequence[StepSizes] = [certificates.paper_step_sizes(start) for start in _starts(result)]
    return max(every, key=lambda each: each.admissible)


def _starts(result: Result) -> list[Start]:
    """The balanced start of every seed, by its generator."""
    dataset, config = result.dataset, result.config
    return [
        certificates.start_of(
            generator,
            result.target,
            depth=float(dataset.attrs["depth"]),
            tau=float(config.loss.option("tau", 0.0)),
            loss=cast(LossName, config.loss.name),
        )
        for generator in dataset["initial_end_to_end"].transpose("seed", "feature", "latent").values
    ]
