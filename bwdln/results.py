"""The result of a run and its file: the only module that reads and writes results.

On disk a result is one NetCDF file, `result.nc`, that `xarray.open_dataset` reads. It holds arrays,
texts and numbers only: nothing is imported, instantiated or unpickled because a file says so.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import shlex
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import netCDF4
import numpy as np
import xarray

from bwdln.config import Config, from_mapping
from bwdln.errors import InvalidOption, check, within
from bwdln.initializations import balanced
from bwdln.targets import Target
from bwdln.types import Array, Weights

#: The layout this version writes, and the newest it reads.
SCHEMA = 1

#: Variables of at least this many bytes are compressed, losslessly, and get a checksum; for smaller
#: ones both would only make the file larger.
COMPRESS_FROM = 2**16
LARGE = {"zlib": True, "complevel": 1, "shuffle": True, "fletcher32": True}

#: The packages whose versions a result records.
PACKAGES = ("bwdln", "jax", "jaxlib", "optax", "numpy", "xarray", "netCDF4")


class Description(NamedTuple):
    """What the attributes of a variable say, as in the CF conventions; unit 1: no dimension."""

    units: str
    long_name: str


#: Every variable of a result but the weights. Lengths are in units of the data; a loss is in their
#: square (Bures-Wasserstein) or fourth power (Frobenius), written "loss".
VARIABLES = {
    "seed": Description("1", "seed of the lane"),
    "record": Description("1", "number of the record, from 0 at the start"),
    "mode": Description("1", "position in descending order, from 1"),
    "interface": Description("1", "between layers j and j + 1, from 1"),
    "time": Description("flow time", "flow time covered; by descent, the step sizes summed"),
    "step": Description("steps", "steps taken"),
    "rejected": Description("1", "attempts at a step that were rejected"),
    "evaluations": Description("1", "gradients evaluated by the dynamics"),
    "fallbacks": Description("1", "gradients by matrix products that took a decomposition after all"),
    "loss": Description("loss", "loss"),
    "gap": Description("loss", "loss above its minimum at this rank"),
    "relative_gap": Description("1", "gap over the trace of the target covariance"),
    "gradient_norm": Description("loss / data units", "norm of the gradient in all layers"),
    "rank": Description("1", "numerical rank of the generator"),
    "effective_rank": Description("1", "exponential of the entropy of the singular values"),
    "covariance_distance": Description(
        "data units squared", "Frobenius norm of generated covariance + tau I - target covariance"
    ),
    "optimum_distance_bures_wasserstein": Description(
        "data units", "Bures-Wasserstein distance from the generated to the optimal covariance"
    ),
    "optimum_distance_frobenius": Description(
        "data units squared", "Frobenius distance from the generated to the optimal covariance"
    ),
    "imbalance": Description("1", "norm of W_{j+1}' W_{j+1} - W_j W_j'"),
    "singular_values": Description("data units", "singular values of the generator"),
    "alignment": Description("1", "|cosine| between left singular vector and eigenvector i"),
    "eigenvalue_error": Description("data units squared", "singular value squared + tau - target eigenvalue"),
    "sharpness": Description("loss / weights squared", "largest eigenvalue of the Hessian in the layers"),
    "smallest_curvature": Description("loss / weights squared", "smallest eigenvalue of that Hessian"),
    "certificate": Description("1", "name of what theory promises of a run from its start"),
    "certificate_bound": Description("loss", "largest loss it allows; NaN: no promise"),
    "certificate_verdict": Description("1", "obeyed, violated, or not entitled"),
    "certificate_failing": Description("1", "the hypothesis that fails, if one does"),
    "margin": Description("data units", "lower bound on the singular values from the start on; 0: none"),
    "outcome": Description("1", "how the lane ended"),
    "minimum": Description("loss", "smallest loss at this rank"),
    "target_trace": Description("data units squared", "trace of the target covariance"),
    "optimal_singular_values": Description("data units", "singular values at the minimum"),
    "target_eigenvalues": Description("data units squared", "eigenvalues of the target covariance"),
    "target_eigenvectors": Description("1", "eigenvectors of the target covariance, as columns"),
    "final_cosines": Description("1", "|cosine| between final singular vectors and eigenvectors"),
    "end_to_end": Description("data units", "the generator W at each record"),
    "initial_end_to_end": Description("data units", "the generator W before the first step"),
    "final_end_to_end": Description("data units", "the generator W at the end"),
    "sample_mean": Description("data units", "mean of the data, or 0 where the target is about 0"),
    "real_samples": Description("data units", "examples from the data, not centered"),
}

#: What a file must hold to be a result; the rest depends on the depth and on the target.
REQUIRED = ("seed", "record", "mode", "step", "time", "loss", "relative_gap", "outcome", "final_end_to_end")
#: What a file must hold to be the dataset of a sweep.
REQUIRED_OF_SWEEP = ("job", "records", "clock", "seed", "record", "loss", "relative_gap", "outcome")


@dataclass(frozen=True)
class Result:
    """One run: its records, its final weights, and where they come from.

    `dataset` has the dimensions `seed`, `record` and `mode`, and one more per shape; `VARIABLES`
    says what each variable is, and every variable carries that as its attributes. The attributes
    hold the configuration, the versions, the device and the precision.
    """

    dataset: xarray.Dataset

    def __post_init__(self) -> None:
        object.__setattr__(self, "dataset", described(self.dataset))

    @property
    def config(self) -> Config:
        """The configuration of the run. Raises `InvalidOption` if this version has no such one."""
        with within("configuration"):
            config: Config = from_mapping(json.loads(self.dataset.attrs["configuration"]))
        return config

    @property
    def target(self) -> Target:
        """The target, in data coordinates; eigenvalues (n,), eigenvectors (n, n) as columns."""
        names = ("target_eigenvalues", "target_eigenvectors")
        values = [_jax_array(self.dataset[x].values) if x in self.dataset else None for x in names]
        return Target(*values)

    def weights(self, seed_index: int = 0) -> Weights:
        """The final weights of the lane at that position, in data coordinates.

        Those of an end-to-end flow are the balanced layers of its generator. Raises `InvalidOption`
        for a position there is no lane at, and for a depth that is no integer.
        """
        lanes, widths = self.dataset.sizes["seed"], self.dataset.attrs["widths"]
        check(0 <= seed_index < lanes, "seed_index", seed_index, f"an integer from 0 to {lanes - 1}")
        if "weights_1" not in self.dataset:
            depth = float(self.dataset.attrs["depth"])
            check(depth == int(depth), "depth", depth, "an integer: other depths have no layers")
            generator = _jax_array(self.dataset["final_end_to_end"].values[seed_index])
            return balanced(generator, tuple(map(int, widths)))
        layers = range(1, len(widths))
        values = (self.dataset[f"weights_{layer}"].values[seed_index] for layer in layers)
        return tuple(_jax_array(each) for each in values)

    @property
    def outcomes(self) -> tuple[str, ...]:
        """How each lane ended: `converged`, `reached_end`, `diverged`, `stalled` or `running`."""
        return tuple(str(each) for each in self.dataset["outcome"].values)


def described(dataset: xarray.Dataset) -> xarray.Dataset:
    """The dataset with units and a long name on every variable it has; the argument stays as it is."""
    copy = dataset.copy()
    for name, variable in copy.variables.items():
        description = _description(str(name))
        if description is not None:
            variable.attrs.update(description._asdict())
    return copy


def _description(name: str) -> Description | None:
    layer = name.removeprefix("weights_")
    if layer != name:
        return Description("1", f"final weights of layer {layer}")
    return VARIABLES.get(name)


def _jax_array(values: np.ndarray) -> Array:
    """As a JAX array of the same precision.

    JAX rounds float64 to float32 unless told otherwise for the whole process: so it is told here,
    as `simulate` does, or reloaded weights would not give the recorded loss.
    """
    if values.dtype == np.float64:
        jax.config.update("jax_enable_x64", True)
    return jnp.asarray(values)


def provenance() -> dict[str, str]:
    """The attributes that say where a result comes from: versions, device, command and time."""
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    devices = jax.devices()
    command = [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
    return {
        "versions": json.dumps(versions, sort_keys=True),
        "device": f"{len(devices)} x {devices[0].platform} ({devices[0].device_kind})",
        "command": shlex.join(command),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


@functools.cache
def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# --- writing --------------------------------------------------------------------------------------


def save(result: Result, folder: str | Path) -> Path:
    """Write `folder/result.nc` and return its path; where that name is taken, `result-2.nc` and on.

    Nothing is ever overwritten, and no reader ever sees part of a file: it is written under a
    hidden name beside it, flushed to the disk, then given its name if that is still free.

    Raises `InvalidOption` if the folder cannot be written; nothing is left there then.
    """
    folder = writable(folder)
    temporary = folder / f".result-{uuid.uuid4().hex}.nc"
    try:
        with writing(folder):
            _write(result.dataset, temporary)
            _flush(temporary)
            return _publish(temporary, folder)
    finally:
        temporary.unlink(missing_ok=True)


def write(result: Result, path: str | Path) -> None:
    """Write a result to that path, in place of what is there, at once or not at all.

    It is not flushed to the disk: a process that is killed leaves no part of a file under that name, but a
    machine that loses its power may.
    Raises `InvalidOption` if it cannot be written; what was there stays then.
    """
    write_dataset(result.dataset, path)


def write_dataset(dataset: xarray.Dataset, path: str | Path) -> None:
    """Write any dataset as `write` does a result."""
    path = Path(path)
    writable(path.parent)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.nc")
    try:
        with writing(path.parent):
            _write(dataset, temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def joined(parts: Sequence[Result], config: Config) -> Result:
    """Results of one configuration but for their seeds, which follow each other, as that of `config`."""
    first = parts[0].dataset
    dataset = xarray.concat(
        [part.dataset for part in parts],
        "seed",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="exact",
        combine_attrs="override",
    )
    attributes = {"configuration": config.json(), "seed": config.seed, "seeds": config.seeds}
    attributes["wall_seconds"] = sum(float(part.dataset.attrs["wall_seconds"]) for part in parts)
    return Result(dataset[list(first.variables)].assign_attrs(attributes))


def writable(folder: str | Path) -> Path:
    """Make the folder if it is missing; raises `InvalidOption` unless a file can be made in it."""
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{uuid.uuid4().hex}"
        probe.touch(exist_ok=False)
        probe.unlink()
    return folder


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Failures to write as one line (netCDF4 reports a full disk as a `RuntimeError`)."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidOption("folder", folder, f"a folder that can be written ({reason})") from error


def _write(dataset: xarray.Dataset, path: Path) -> None:
    """Write all of a file; NaN is stored as it is, not as a fill value.

    What `xarray.Dataset.to_netcdf` writes, in a fifth of its time, which counts in a sweep of thousands.
    """
    with netCDF4.Dataset(path, "w", format="NETCDF4") as file:
        file.set_fill_off()
        for name, size in dataset.sizes.items():
            file.createDimension(str(name), size)
        attributes = dict(dataset.attrs)
        beside = [str(name) for name in dataset.coords if name not in dataset.dims]
        if beside:
            attributes["coordinates"] = " ".join(beside)
        file.setncatts(attributes)
        made = {name: _made(file, str(name), variable) for name, variable in dataset.variables.items()}
        # All values come after all definitions: the library changes between the two at a price.
        for name, variable in dataset.variables.items():
            if variable.size:
                made[name][...] = variable.values.astype(object) if _is_text(variable) else variable.values


def _made(file: netCDF4.Dataset, name: str, variable: xarray.Variable) -> netCDF4.Variable:
    """The definition of a variable in a file, with its attributes."""
    large: dict[str, Any] = LARGE if variable.nbytes >= COMPRESS_FROM and not _is_text(variable) else {}
    kind: Any = str if _is_text(variable) else variable.dtype
    made = file.createVariable(name, kind, [str(each) for each in variable.dims], **large)
    made.setncatts(variable.attrs)
    return made


def _is_text(variable: xarray.Variable) -> bool:
    return variable.dtype.kind in "OU"


def _flush(path: Path) -> None:
    """Ask the system to put a file, or the names in a folder, on the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, folder: Path) -> Path:
    """Give the file the first free name: `result.nc`, `result-2.nc`, `result-3.nc`, …"""
    for number in itertools.count(1):
        path = folder / ("result.nc" if number == 1 else f"result-{number}.nc")
        with contextlib.suppress(FileExistsError):
            _rename_without_replacing(temporary, path)
            break
    with contextlib.suppress(OSError):  # some systems cannot flush a folder; the file itself is safe
        _flush(folder)
    return path


def _rename_without_replacing(source: Path, path: Path) -> None:
    """Rename, or raise `FileExistsError`; a link does it at once. The source may stay.

    Some file systems (exFAT, mounted cloud folders) have no links: there the name is claimed by an
    empty file first, which only one process can make.
    """
    try:
        os.link(source, path)
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            source.replace(path)
        except BaseException:
            path.unlink()
            raise


# --- reading --------------------------------------------------------------------------------------


def load(path: str | Path) -> Result:
    """Read a result from its file, or from the folder that holds `result.nc`; the file is closed.

    Raises `InvalidOption` for a file that is missing, truncated, not a result, or newer than this
    version can read.
    """
    path = Path(path)
    return read(path / "result.nc" if path.is_dir() else path)


def read(file: Path) -> Result:
    """Read a result from its file; see `load`."""
    check(file.is_file(), "path", f"{file}, where there is none", "a result.nc or its folder")
    dataset = _read(file)
    _check_ours(dataset, file)
    return Result(dataset)


def load_sweep(path: str | Path) -> xarray.Dataset:
    """Read the dataset of a sweep (`collection`) from its file, or from the folder that holds `sweep.nc`.

    Raises `InvalidOption` as `load` does.
    """
    path = Path(path)
    file = path / "sweep.nc" if path.is_dir() else path
    check(file.is_file(), "path", f"{file}, where there is none", "a sweep.nc or its folder")
    dataset = _read(file)
    schema: Any = dataset.attrs.get("schema")
    ours = isinstance(schema, int | np.integer) and dataset.attrs.get("kind") == "sweep"
    check(ours, "path", file, "the dataset of a sweep of bwdln; this NetCDF file is something else")
    _check_layout(schema, file)
    missing = [name for name in REQUIRED_OF_SWEEP if name not in dataset.variables]
    check(not missing, "path", file, f"a complete sweep; this one has no {', '.join(missing)}")
    return dataset


def _check_layout(schema: int, path: Path) -> None:
    """Raise `InvalidOption` for a layout that only a newer version knows."""
    takes = f"a result of layout up to {SCHEMA}; this one is {schema}, of a newer version of bwdln"
    check(schema <= SCHEMA, "path", path, takes)


def _read(path: Path) -> xarray.Dataset:
    """All of a NetCDF file, in memory, without guesses at what is a date or missing."""
    try:
        with xarray.open_dataset(path, engine="netcdf4", decode_times=False, mask_and_scale=False) as dataset:
            return dataset.load()
    except Exception as error:  # a damaged or foreign file can make the readers raise anything
        takes = "a NetCDF file of bwdln; it is damaged, truncated or something else"
        raise InvalidOption("path", path, takes) from error


def _check_ours(dataset: xarray.Dataset, path: Path) -> None:
    """Raise `InvalidOption` unless the dataset is a result with a layout this version knows."""
    schema: Any = dataset.attrs.get("schema")
    ours = isinstance(schema, int | np.integer) and "configuration" in dataset.attrs
    check(ours, "path", path, "a result of bwdln; this NetCDF file is something else")
    _check_layout(schema, path)
    missing = _missing(dataset)
    check(not missing, "path", path, f"a complete result; this one has no {', '.join(missing)}")


def _missing(dataset: xarray.Dataset) -> Sequence[str]:
    depth = len(np.atleast_1d(dataset.attrs.get("widths", ()))) - 1
    layers = range(1, depth + 1) if "weights_1" in dataset.variables else ()
    names = (*REQUIRED, *(f"weights_{layer}" for layer in layers))
    return [name for name in names if name not in dataset.variables]
