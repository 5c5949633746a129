"""The results of a sweep as one dataset: what is recorded of every configuration, along `config`.

The swept options are coordinates, so that plain xarray makes a grid of it:
`dataset.set_index(config=["loss.tau", "seeds"]).unstack("config")`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray

from bwdln.results import SCHEMA, Result, described

#: What variables may lie along, beside `config`, in this order. What lies along anything else is a matrix, a
#: weight or a sample: those stay in the files of the jobs.
DIMENSIONS = ("seed", "certificate", "record", "mode", "interface", "eigenvalue")
MATRIX = {"mode", "eigenvalue"}

#: What variables of a sweep say of themselves that no result has.
DESCRIPTIONS = {
    "job": "number of the job",
    "depth": "number of layers",
    "eigenvalue": "position in descending order, from 1",
    "records": "how many records the job has; NaN behind them",
    "clock": "what the job is recorded by: step or time",
    "seed_number": "seed of the lane",
}


class _Part(NamedTuple):
    """What is kept of a result: variables with their dimensions, and the labels along these."""

    variables: dict[str, tuple[tuple[str, ...], np.ndarray]]
    labels: dict[str, np.ndarray]
    clock: str
    depth: float


class Collection:
    """Results of the jobs of a sweep, gathered one by one; only what the dataset needs is kept of them.

    `swept` holds, by the number of the job, the value of every option that differs between jobs.
    """

    def __init__(self, swept: Mapping[int, Mapping[str, Any]]) -> None:
        self._swept = swept
        self._parts: dict[int, _Part] = {}

    def add(self, number: int, result: Result) -> None:
        """Take in the result of a job; one that was there before is replaced."""
        variables, labels = {}, {}
        for name, variable in result.dataset.variables.items():
            if name in DIMENSIONS:
                labels[str(name)] = variable.values
            elif set(variable.dims) <= set(DIMENSIONS) and not set(variable.dims) >= MATRIX:
                dimensions = tuple(each for each in DIMENSIONS if each in variable.dims)
                ordered = variable if dimensions == variable.dims else variable.transpose(*dimensions)
                variables[str(name)] = (dimensions, ordered.values)
        if "eigenvalue" in result.dataset.sizes:
            labels["eigenvalue"] = np.arange(1, result.dataset.sizes["eigenvalue"] + 1)
        attributes = result.dataset.attrs
        clock, depth = str(attributes.get("clock", "step")), float(attributes.get("depth", np.nan))
        self._parts[number] = _Part(variables, labels, clock, depth)

    def dataset(self, attributes: Mapping[str, Any]) -> xarray.Dataset:
        """All results along `config`, in the order of the jobs; what a job has fewer of is padded.

        Padding is NaN, or "" in texts. Coordinates on `config`: `job`, and the swept options by name; an
        option that is named like a variable, such as `loss`, is `option.loss`. An option whose values are all
        numbers is numeric, another one is text, as on the command line; the attribute `option` is its name.
        Where all jobs have the same seeds these are the coordinate `seed`; else it counts them from 0, and
        `seed_number` (config, seed) names them.
        """
        numbers = sorted(self._parts)
        parts = [self._parts[number] for number in numbers]
        same_seeds = all(np.array_equal(part.labels["seed"], parts[0].labels["seed"]) for part in parts)
        if not same_seeds:
            parts = [_seeds_counted(part) for part in parts]
        labels = _labels(parts)
        dimensions_of = {name: dims for part in parts for name, (dims, _) in part.variables.items()}
        places = [{name: _places(own, labels[name]) for name, own in part.labels.items()} for part in parts]
        shapes = {name: tuple(len(labels[dim]) for dim in dims) for name, dims in dimensions_of.items()}
        variables = {
            name: (("config", *dims), _gathered(name, parts, places, shapes[name]))
            for name, dims in dimensions_of.items()
        }
        variables["records"] = (("config",), np.array([len(part.labels["record"]) for part in parts]))
        variables["depth"] = (("config",), np.array([part.depth for part in parts]))
        variables["clock"] = (("config",), np.array([part.clock for part in parts], dtype=object))
        coordinates = {"job": (("config",), np.array(numbers)), **labels}
        whole = xarray.Dataset(variables, coordinates, {**attributes, "schema": SCHEMA, "kind": "sweep"})
        whole = described(whole.assign_coords(self._options(numbers, {"config", *map(str, whole.variables)})))
        for name in DESCRIPTIONS.keys() & whole.variables.keys():
            whole[name].attrs.update(units="1", long_name=DESCRIPTIONS[name])
        if not same_seeds:
            whole["seed"].attrs.update(long_name="position of the lane in its job, from 0")
        return whole

    def _options(self, numbers: Sequence[int], taken: set[str]) -> dict[str, xarray.Variable]:
        """A coordinate on `config` for each swept option, in the order they are swept."""
        names = dict.fromkeys(name for number in numbers for name in self._swept[number])
        coordinates = {}
        for option in names:
            values = [self._swept[number].get(option) for number in numbers]
            # A file takes a slash, as of a group within a group, for a folder within the file.
            name = option.replace("/", ".")
            name = f"option.{name}" if name in taken else name
            attributes = {"long_name": f"option {option}", "option": option}
            coordinates[name] = xarray.Variable(("config",), _column(values), attributes)
        return coordinates


def _seeds_counted(part: _Part) -> _Part:
    """With positions for seeds, and the seeds as a variable."""
    seeds = part.labels["seed"]
    variables = {**part.variables, "seed_number": (("seed",), seeds)}
    return part._replace(variables=variables, labels={**part.labels, "seed": np.arange(len(seeds))})


def _labels(parts: Sequence[_Part]) -> dict[str, np.ndarray]:
    """The labels along every dimension: those of all jobs. Numbers ascend, names keep their order."""
    every = {}
    for name in DIMENSIONS:
        lists = dict.fromkeys(tuple(part.labels[name].tolist()) for part in parts if name in part.labels)
        labels = list(dict.fromkeys(itertools.chain.from_iterable(lists)))
        if lists:
            texts = any(isinstance(label, str) for label in labels)
            every[name] = np.array(labels, dtype=object) if texts else np.sort(np.array(labels, dtype=int))
    return every


def _places(own: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where labels of one job lie among those of all."""
    if len(own) <= len(labels) and np.array_equal(own, labels[: len(own)]):
        return np.arange(len(own))
    position = {label: index for index, label in enumerate(labels.tolist())}
    return np.array([position[label] for label in own.tolist()])


def _gathered(
    name: str, parts: Sequence[_Part], places: Sequence[Mapping[str, np.ndarray]], shape: tuple[int, ...]
) -> np.ndarray:
    """The values of a variable by job, shape (configs, …); padded where a job has fewer or none."""
    own = [part.variables.get(name) for part in parts]
    arrays = [values for _, values in filter(None, own)]
    text = arrays[0].dtype.kind not in "iufb"
    if len(arrays) == len(parts) and all(values.shape == shape for values in arrays):
        stacked = np.stack(arrays)
        return stacked.astype(object) if text else stacked
    kind = np.dtype(object) if text else np.result_type(*{values.dtype for values in arrays})
    kind = kind if kind.kind in "fO" else np.dtype(np.float64)
    padded = np.full((len(parts), *shape), "" if text else np.nan, dtype=kind)
    for index, variable in enumerate(own):
        if variable is not None:
            dimensions, values = variable
            place: Any = np.ix_(*(places[index][each] for each in dimensions))
            padded[(index, *place)] = values
    return padded


def _column(values: Sequence[Any]) -> np.ndarray:
    """Values of an option as numbers if all are, else as texts.

    One null makes texts of them, too: xarray silently drops what has NaN for an index when it unstacks.
    """
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = np.array(values)
        return numbers if numbers.dtype == np.int64 else numbers.astype(np.float64)
    return np.array([_text(value) for value in values], dtype=object)


def _text(value: Any) -> str:
    """As it is typed on the command line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str, ensure_ascii=False, separators=(",", ":")).replace('"', "")
