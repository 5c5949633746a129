"""One run against what theory says of it: the curvature it met, and the certificates it was given."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from bwdln import analysis
from bwdln.analysis import Band
from bwdln.results import Result
from bwdln.types import Array


class Sharpness(NamedTuple):
    """The ends of the Hessian's spectrum over the seeds, in loss per squared weight.

    `limit`: 2 / step size of plain descent, above which its steps are unstable; None for others.
    """

    largest: Band
    smallest: Band
    limit: float | None


def sharpness(result: Result) -> Sharpness | None:
    """The curvature along the run, if it was recorded."""
    if "sharpness" not in result.dataset:
        return None
    options = dict(result.config.dynamics.options)
    defaults = {"optimizer": "descent", "schedule": "constant"}
    chosen = {part: options[part].name for part in defaults if part in options}
    plain = analysis.clock(result) == "step" and defaults | chosen == defaults
    return Sharpness(
        largest=analysis.band(result, "sharpness"),
        smallest=analysis.band(result, "smallest_curvature"),
        limit=2 / options["step_size"] if plain else None,
    )


class Verdicts(NamedTuple):
    """How many seeds were entitled to a certificate, and how many of them obeyed it.

    `failing` says why others were not entitled: the first reason there is, or nothing.
    """

    certificate: str
    entitled: int
    obeyed: int
    seeds: int
    failing: str


def verdicts(result: Result) -> list[Verdicts]:
    """One for each certificate that was recorded."""
    if "certificate_verdict" not in result.dataset:
        return []
    rows = []
    for name in result.dataset["certificate"].values:
        own = result.dataset.sel(certificate=name)
        said, failing = own["certificate_verdict"].values, own["certificate_failing"].values
        reasons = [str(each) for each in failing if each]
        rows.append(
            Verdicts(
                certificate=str(name),
                entitled=int(np.sum(said != "not entitled")),
                obeyed=int(np.sum(said == "obeyed")),
                seeds=len(said),
                failing=reasons[0] if reasons else "",
            )
        )
    return rows


def verdict_sentences(result: Result) -> list[str]:
    """What the certificates came to, a sentence each."""
    said = []
    for each in verdicts(result):
        if each.entitled:
            sentence = f"certificate {each.certificate}: obeyed by {each.obeyed} of {each.entitled} seeds"
            others = each.seeds - each.entitled
            sentence += f"; {others} not entitled ({each.failing})" if others else ""
        else:
            sentence = f"certificate {each.certificate}: no seed is entitled ({each.failing})"
        said.append(sentence)
    return said


class Certified(NamedTuple):
    """The loss of one seed and what was promised of it: `bounds` by name, all (R+1,)."""

    seed: int
    axis: Float[Array, "records"]
    loss: Float[Array, "records"]
    bounds: dict[str, Float[Array, "records"]]


def certified(result: Result) -> Certified | None:
    """The first seed that was entitled to a certificate, if any was."""
    if "certificate_verdict" not in result.dataset:
        return None
    dataset = result.dataset.transpose("seed", "certificate", "record", ...)
    entitled = dataset["certificate_verdict"].values != "not entitled"
    if not entitled.any():
        return None
    lane = int(np.argmax(entitled.any(axis=1)))
    names = [str(each) for each in dataset["certificate"].values[entitled[lane]]]
    bounds = dataset["certificate_bound"].values[lane, entitled[lane]]
    return Certified(
        seed=int(dataset["seed"].values[lane]),
        axis=dataset[analysis.clock(result)].values[lane],
        loss=dataset["loss"].values[lane],
        bounds=dict(zip(names, bounds, strict=True)),
    )
