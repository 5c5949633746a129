"""Sweeps made without running anything: results whose gap falls at a known rate, gathered as one dataset."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray

from bwdln.collection import Collection
from bwdln.results import Result


def result(
    rate: float = 0.01,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    records: int = 10,
    modes: int = 2,
    depth: int = 3,
    diverged: int = 0,
    logarithmic: bool = False,
    clock: str = "step",
    dtype: Any = np.float64,
    steps: int = 1000,
) -> Result:
    """A result with what every result has and little else; lane i closes its gap at rate · (1 + i/10).

    The first `diverged` lanes end at infinity. Nothing in two results of the same arguments differs.
    """
    lanes = np.arange(len(seeds))
    spaced = np.geomspace(1, steps, records) if logarithmic else np.linspace(0, steps, records + 1)[1:]
    step = np.tile(np.append(0, np.rint(spaced).astype(int)), (len(lanes), 1))
    gap = np.exp(-rate * (1 + lanes[:, np.newaxis] / 10) * step)
    gap[:diverged, -1] = np.inf
    outcome = np.where(lanes < diverged, "diverged", "reached_end").astype(object)
    per_record = {"loss": gap, "gap": gap, "relative_gap": gap / 2, "time": 0.1 * step}
    variables: dict[str, Any] = {
        name: (("seed", "record"), values.astype(dtype)) for name, values in per_record.items()
    }
    shape = (len(lanes), records + 1)
    variables |= {
        "step": (("seed", "record"), step),
        "singular_values": (("seed", "record", "mode"), np.full((*shape, modes), rate, dtype)),
        "outcome": ("seed", outcome),
        "margin": ("seed", np.full(len(lanes), rate, dtype)),
        "minimum": rate,
        "optimal_singular_values": ("mode", np.full(modes, rate)),
        "target_eigenvalues": ("eigenvalue", np.ones(5)),
        "final_cosines": (("seed", "mode", "eigenvalue"), np.ones((len(lanes), modes, 5), dtype)),
        "final_end_to_end": (("seed", "feature", "latent"), np.ones((len(lanes), 5, 5), dtype)),
        "weights_1": (("seed", "width_1", "width_0"), np.ones((len(lanes), 5, 5), dtype)),
    }
    coordinates = {"seed": list(seeds), "record": np.arange(records + 1), "mode": np.arange(modes) + 1}
    if depth > 1:
        variables["imbalance"] = (
            ("seed", "record", "interface"),
            np.full((*shape, depth - 1), rate, dtype),
        )
        coordinates["interface"] = np.arange(1, depth)
    return Result(xarray.Dataset(variables, coordinates, {"clock": clock}))


def product(**options: Sequence[Any]) -> list[dict[str, Any]]:
    """The jobs of a grid; two underscores in a name stand for a dot."""
    names = [name.replace("__", ".") for name in options]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*options.values())]


def dataset(jobs: Sequence[Mapping[str, Any]], make: Callable[[Mapping[str, Any]], Result]) -> xarray.Dataset:
    """The dataset of a sweep whose jobs have these options, and what `make` makes of them for results."""
    collection = Collection(dict(enumerate(jobs)))
    for number, options in enumerate(jobs):
        collection.add(number, make(options))
    return collection.dataset({})
