"""How tight the certificates of the flow are along runs of it: pure functions of results.

A seed is compared at a depth where theory promises something of its start, and where its run came
through; elsewhere its values are NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from bwdln import analysis
from bwdln.errors import check
from bwdln.fits import Rate, exponential_rate
from bwdln.results import Result
from bwdln.theory import certificates
from bwdln.theory.certificates import Certificate, Start
from bwdln.theory.checks import LossName
from bwdln.types import Array

#: Relative gaps between which the final rate is fitted: late enough that the margin is that of the
#: minimizer, and above the rounding and the error of an integration to 1e-10.
LATE = (1e-13, 1e-9)

#: The relative error that the weights of these runs may have (`certificates.obeyed`).
SLACK = 1e-8

#: The certificates, from the tightest to the loosest, as figures and tables have them.
CERTIFICATES: dict[str, Callable[[Start], Certificate]] = {
    "sharp": certificates.sharp,
    "sharp_constant": certificates.sharp_constant,
    "paper": certificates.paper_flow,
}


class Course(NamedTuple):
    """Loss and bounds of one depth on the way: medians over the seeds that are compared.

    All (records,), until the first of these seeds ended; `bounds` by the names of `CERTIFICATES`, those
    that all of these seeds have.
    """

    time: Float[Array, "records"]
    loss: Float[Array, "records"]
    bounds: dict[str, Float[Array, "records"]]


class Tightness(NamedTuple):
    """Certificates against runs; depths, ascending, along the first axis, seeds along the second.

    Rates are of the natural logarithm of the loss, per flow time. `measured`: in the window `LATE`, with
    its standard `error`; `final`: that of the sharp envelope in the end; `ratio` = final / measured, at
    most 1, and 1 where the envelope is as tight as can be; `initial`: that of the constant envelope;
    `paper`: that of the paper's bound; `looser` = measured / paper. `obeyed`: by the names of
    `CERTIFICATES`, whether the loss stayed within the bound, false where there is none (`promised`).
    `failing`: the hypothesis of the sharp envelope that the start fails, or "".
    """

    depth: Float[Array, "depths"]
    seed: Int[Array, "seeds"]
    outcome: Shaped[Array, "depths seeds"]
    failing: Shaped[Array, "depths seeds"]
    compared: Bool[Array, "depths seeds"]
    loss: Float[Array, "depths seeds"]
    margin: Float[Array, "depths seeds"]
    measured: Float[Array, "depths seeds"]
    error: Float[Array, "depths seeds"]
    final: Float[Array, "depths seeds"]
    ratio: Float[Array, "depths seeds"]
    initial: Float[Array, "depths seeds"]
    paper: Float[Array, "depths seeds"]
    looser: Float[Array, "depths seeds"]
    promised: dict[str, Bool[Array, "depths seeds"]]
    obeyed: dict[str, Bool[Array, "depths seeds"]]
    courses: tuple[Course, ...]


class _Lane(NamedTuple):
    """One seed at one depth: its start, what it is promised, and how it went."""

    start: Start
    promised: dict[str, Certificate]
    rate: Rate
    obeyed: dict[str, bool]


def compare(runs: Mapping[float, Result]) -> Tightness:
    """Compare the runs of the end-to-end flow, by their depths, with their certificates.

    Raises `InvalidOption` where there are none.
    """
    check(len(runs) > 0, "runs", "nothing", "at least one run")
    depths = sorted(runs)
    lanes = [[_lane(runs[depth], position) for position in range(_seeds(runs[depth]))] for depth in depths]
    failing = np.array([[lane.promised["sharp"].failing for lane in row] for row in lanes], dtype=object)
    through = np.array([~analysis.diverged(runs[depth]) for depth in depths])
    compared = (failing == "") & through

    def values(number: Callable[[_Lane], float]) -> Float[Array, "depths seeds"]:
        every = np.array([[number(lane) for lane in row] for row in lanes], dtype=float)
        return np.where(compared, every, np.nan)

    measured, final = (
        values(lambda lane: lane.rate.rate),
        values(lambda lane: lane.promised["sharp"].final_rate),
    )
    paper = values(lambda lane: lane.promised["paper"].rate or np.nan)
    return Tightness(
        depth=np.array(depths, dtype=float),
        seed=runs[depths[0]].dataset["seed"].values,
        outcome=np.array([runs[depth].outcomes for depth in depths]),
        failing=failing,
        compared=compared,
        loss=np.array([[lane.start.value for lane in row] for row in lanes]),
        margin=np.array([[lane.start.margin for lane in row] for row in lanes]),
        measured=measured,
        error=values(lambda lane: lane.rate.error),
        final=final,
        ratio=final / measured,
        initial=values(lambda lane: lane.promised["sharp_constant"].rate),
        paper=paper,
        looser=measured / paper,
        promised={
            name: compared & [[lane.promised[name].holds for lane in row] for row in lanes]
            for name in CERTIFICATES
        },
        obeyed={
            name: compared & [[lane.obeyed[name] for lane in row] for row in lanes] for name in CERTIFICATES
        },
        courses=tuple(
            course(runs[depth], row, [lane.promised for lane in each])
            for depth, row, each in zip(depths, compared, lanes, strict=True)
        ),
    )


def _seeds(result: Result) -> int:
    return int(result.dataset.sizes["seed"])


def _lane(result: Result, position: int) -> _Lane:
    """One seed of a run, by its position."""
    dataset = result.dataset
    start = certificates.start_of(
        dataset["initial_end_to_end"].transpose("seed", "feature", "latent").values[position],
        result.target,
        depth=float(dataset.attrs["depth"]),
        tau=float(result.config.loss.option("tau", 0.0)),
        loss=cast(LossName, result.config.loss.name),
    )
    promised = {name: make(start) for name, make in CERTIFICATES.items()}
    time, loss, gap = (_records(result, name)[position] for name in ("time", "loss", "relative_gap"))
    above, below = LATE
    return _Lane(
        start=start,
        promised=promised,
        rate=exponential_rate(time, gap, above=above, below=below),
        obeyed={
            name: each.holds and certificates.obeyed(each, time, loss, slack=SLACK)
            for name, each in promised.items()
        },
    )


def course(result: Result, compared: Bool[Array, "seeds"], promised: list[dict[str, Certificate]]) -> Course:
    """The medians of loss and bounds; a bound that holds for every seed holds for their medians."""
    times, losses = (_records(result, name)[compared] for name in ("time", "loss"))
    if not len(times):
        return Course(np.empty(0), np.empty(0), {})
    # Records after a lane's end repeat its last time.
    running = np.append(True, np.all(np.diff(times, axis=1) > 0, axis=0))
    shown = times[:, np.logical_and.accumulate(running)]
    lanes = [each for each, taken in zip(promised, compared, strict=True) if taken]
    bounds = {
        name: np.median([lane[name].bound(time) for lane, time in zip(lanes, shown, strict=True)], axis=0)
        for name in CERTIFICATES
        if all(lane[name].holds for lane in lanes)
    }
    return Course(shown[0], np.median(losses[:, : shown.shape[1]], axis=0), bounds)


def _records(result: Result, name: str) -> Float[Array, "seeds records"]:
    return np.asarray(result.dataset[name].transpose("seed", "record").values)
