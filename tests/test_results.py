"""What is saved comes back bit for bit, nothing is overwritten, and nothing half-written is seen."""

import datetime
import json
import multiprocessing
import os
import resource
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray

from bwdln import results
from bwdln.errors import InvalidOption
from bwdln.results import VARIABLES, Result, load, save
from tests import synthetic


@pytest.fixture(scope="module")
def result():
    return synthetic.digits()


def assert_same_bits(one: xarray.Dataset, other: xarray.Dataset) -> None:
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        a, b = one[name], other[name]
        assert a.dims == b.dims and a.attrs == b.attrs
        if a.dtype.kind == "U":
            assert a.values.tolist() == b.values.tolist()
        else:
            assert a.dtype == b.dtype and a.values.tobytes() == b.values.tobytes()
    assert set(one.attrs) == set(other.attrs)
    for name, value in one.attrs.items():
        np.testing.assert_array_equal(value, other.attrs[name])


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# --- what comes back ------------------------------------------------------------------------------


def test_round_trip_is_bitwise(result, tmp_path):
    odd = result.dataset.copy(deep=True)
    odd["gap"].values[0, :4] = [np.nan, -0.0, np.inf, 5e-324]
    odd["rank"].values[0, 0] = np.iinfo(np.int64).min
    odd.attrs["seed"] = 2**32 - 1
    path = save(Result(odd), tmp_path)
    assert path == tmp_path / "result.nc" and os.listdir(tmp_path) == ["result.nc"]
    assert_same_bits(Result(odd).dataset, load(path).dataset)
    again = save(load(path), tmp_path / "again")
    assert_same_bits(Result(odd).dataset, load(again).dataset)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_round_trip_at_every_depth_and_precision(depth, tmp_path):
    single = synthetic.gaussian(depth=depth).dataset.copy(deep=True)
    for name in single:
        if single[name].dtype == np.float64:
            single[name] = single[name].astype(np.float32)
    loaded = load(save(Result(single), tmp_path))
    assert_same_bits(Result(single).dataset, loaded.dataset)
    assert [each.dtype for each in loaded.weights()] == [np.float32] * depth


def test_plain_xarray_reads_it(result, tmp_path):
    with xarray.open_dataset(save(result, tmp_path)) as dataset:
        assert dataset.sizes["seed"] == 3 and dataset.sizes["mode"] == 10
        assert dataset["time"].attrs["units"] == "flow time" and dataset["time"].dtype == np.float64
        assert dataset["step"].attrs["units"] == "steps"
        assert json.loads(dataset.attrs["configuration"])["seeds"] == 3
        np.testing.assert_array_equal(dataset["loss"], result.dataset["loss"])
        np.testing.assert_array_equal(dataset["outcome"], result.dataset["outcome"])


def test_every_variable_is_described(result):
    for name, variable in result.dataset.variables.items():
        assert variable.attrs["units"] and variable.attrs["long_name"], name
    undescribed = set(map(str, result.dataset.variables)) - set(VARIABLES)
    assert undescribed == {"weights_1", "weights_2", "weights_3"}


def test_describing_leaves_the_argument_alone():
    dataset = xarray.Dataset({"loss": ("seed", [1.0])}, coords={"seed": [0]})
    assert results.described(dataset)["loss"].attrs["units"] == "loss"
    assert not dataset["loss"].attrs and not dataset["seed"].attrs


def test_loaded_data_is_in_memory(result, tmp_path):
    path = save(result, tmp_path)
    loaded = load(path)
    path.write_bytes(b"gone")
    np.testing.assert_array_equal(loaded.dataset["weights_1"], result.dataset["weights_1"])
    descriptors = Path("/proc/self/fd")
    if descriptors.is_dir():
        assert str(path) not in {os.readlink(each) for each in descriptors.iterdir() if each.is_symlink()}


def test_a_folder_or_a_text_is_a_path_too(result, tmp_path):
    save(result, tmp_path / "deep" / "down")
    assert load(str(tmp_path / "deep" / "down")).outcomes == ("reached_end",) * 3


def test_reloaded_weights_and_target_give_the_recorded_loss(result, tmp_path):
    loaded = load(save(result, tmp_path))
    eigenvalues, vectors = map(np.asarray, loaded.target)
    for lane in range(3):
        weights = [np.asarray(each) for each in loaded.weights(lane)]
        assert [each.shape for each in weights] == [(64, 10), (64, 64), (64, 64)]
        generator = vectors.T @ weights[2] @ weights[1] @ weights[0]
        loss, _ = synthetic.loss_and_gradient(generator, eigenvalues, 0.0)
        np.testing.assert_allclose(loss, result.dataset["loss"].values[lane, -1], rtol=1e-12)


def test_reloaded_arrays_keep_their_precision_in_a_fresh_process(result):
    jax.config.update("jax_enable_x64", False)
    try:
        assert result.weights()[0].dtype == np.float64
        jax.config.update("jax_enable_x64", False)
        assert result.target.eigenvectors.dtype == np.float64
    finally:
        jax.config.update("jax_enable_x64", True)


def test_target_without_eigenvectors(result):
    target = Result(result.dataset.drop_vars("target_eigenvectors")).target
    assert target.eigenvectors is None and target.eigenvalues.shape == (64,)


def test_weights_of_no_lane(result):
    with pytest.raises(InvalidOption, match="seed_index: got 3; takes an integer from 0 to 2"):
        result.weights(3)
    with pytest.raises(InvalidOption, match="seed_index: got -1"):
        result.weights(-1)


def test_configuration_comes_back_and_instantiates_nothing(result, tmp_path):
    loaded = load(save(result, tmp_path))
    assert loaded.config == result.config and loaded.config.network.widths == (10, 64, 64, 64)
    hostile = result.dataset.copy()
    hostile.attrs["configuration"] = json.dumps({"_target_": "os.system", "command": "false"})
    with pytest.raises(InvalidOption, match=r"configuration\._target_") as error:
        _ = load(save(Result(hostile), tmp_path / "hostile")).config
    one_line(error)


def test_provenance():
    attributes = results.provenance()
    versions = json.loads(attributes["versions"])
    assert versions["jax"] == jax.__version__ and versions["numpy"] == np.__version__
    assert {"python", "bwdln", "jaxlib", "optax", "xarray", "netCDF4"} <= set(versions)
    assert "cpu" in attributes["device"] and shlex.split(attributes["command"])[1:] == sys.orig_argv[1:]
    created = datetime.datetime.fromisoformat(attributes["created"])
    assert abs(datetime.datetime.now(datetime.UTC) - created) < datetime.timedelta(minutes=1)


# --- never overwritten, never half there ----------------------------------------------------------


def test_a_taken_name_is_not_overwritten(tmp_path):
    first, second, third = (synthetic.gaussian(seeds=count) for count in (1, 2, 3))
    paths = [save(each, tmp_path) for each in (first, second, third)]
    assert [each.name for each in paths] == ["result.nc", "result-2.nc", "result-3.nc"]
    assert [load(each).dataset.sizes["seed"] for each in paths] == [1, 2, 3]
    paths[1].unlink()
    assert save(second, tmp_path).name == "result-2.nc"


@pytest.mark.parametrize("failure", [PermissionError(1, "no links here"), OSError(95, "not supported")])
def test_file_systems_without_links(failure, tmp_path, monkeypatch):
    def refuse(*_):
        raise failure

    monkeypatch.setattr(os, "link", refuse)
    one, other = synthetic.gaussian(seeds=1), synthetic.gaussian(seeds=2)
    paths = [save(one, tmp_path), save(other, tmp_path)]
    assert sorted(os.listdir(tmp_path)) == ["result-2.nc", "result.nc"]
    assert [load(each).dataset.sizes["seed"] for each in paths] == [1, 2]


def test_nothing_has_the_name_while_it_is_written(tmp_path, monkeypatch):
    seen = []
    flush = results._flush
    monkeypatch.setattr(results, "_flush", lambda path: (seen.append(os.listdir(tmp_path)), flush(path)))
    save(synthetic.gaussian(), tmp_path)
    assert len(seen[0]) == 1 and seen[0][0].startswith(".result-")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(error, tmp_path, monkeypatch):
    def fail(path):
        assert path.stat().st_size > 0
        raise error

    monkeypatch.setattr(results, "_flush", fail)
    with pytest.raises(InvalidOption if isinstance(error, OSError) else KeyboardInterrupt) as raised:
        save(synthetic.gaussian(), tmp_path)
    assert os.listdir(tmp_path) == []
    if isinstance(error, OSError):
        assert "folder" in one_line(raised) and "No space left" in one_line(raised)


def _fill_the_disk(folder: str) -> None:
    """Save where files cannot grow beyond 100 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    with pytest.raises(InvalidOption) as raised:
        save(synthetic.digits(steps=1, records=1), folder)
    one_line(raised)
    assert os.listdir(folder) == []


def _killed(folder: str) -> None:
    """Die at the end of a write, with no chance to clean up."""
    results._flush = lambda _: os._exit(3)
    save(synthetic.gaussian(), folder)


def _save_some(folder: str) -> None:
    for _ in range(4):
        save(synthetic.gaussian(), folder)


def _processes(functions: list, folder: Path) -> list[int | None]:
    context = multiprocessing.get_context("spawn")
    running = [context.Process(target=each, args=(str(folder),)) for each in functions]
    for each in running:
        each.start()
    for each in running:
        each.join(60)
    return [each.exitcode for each in running]


def test_a_full_disk_leaves_nothing(tmp_path):
    assert _processes([_fill_the_disk], tmp_path) == [0]


def test_a_killed_process_leaves_no_result(tmp_path):
    assert _processes([_killed], tmp_path) == [3]
    assert not list(tmp_path.glob("result*")) and len(os.listdir(tmp_path)) == 1
    assert save(synthetic.gaussian(), tmp_path).name == "result.nc"


def test_processes_at_once_get_names_of_their_own(tmp_path):
    assert _processes([_save_some, _save_some], tmp_path) == [0, 0]
    names = {"result.nc", *(f"result-{number}.nc" for number in range(2, 9))}
    assert set(os.listdir(tmp_path)) == names
    for name in names:
        assert_same_bits(
            load(tmp_path / name).dataset.drop_attrs(), synthetic.gaussian().dataset.drop_attrs()
        )


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidOption) as error:
            save(synthetic.gaussian(), folder)
        assert one_line(error).startswith(f"folder: got {folder}; takes a folder that can be written (")
    assert os.listdir(tmp_path) == ["file"]


# --- what is refused ------------------------------------------------------------------------------


def test_a_missing_file(tmp_path):
    for path in (tmp_path / "none.nc", tmp_path):
        with pytest.raises(InvalidOption, match=r"path: got .* where there is none; takes") as error:
            load(path)
        one_line(error)


@pytest.mark.parametrize("kept", [0.0, 0.0001, 0.01, 0.5, 0.9, 0.9999])
def test_a_truncated_file(kept, result, tmp_path):
    content = save(result, tmp_path).read_bytes()
    short = tmp_path / "short.nc"
    short.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(InvalidOption, match="damaged, truncated or something else") as error:
        load(short)
    assert str(short) in one_line(error)


def test_a_damaged_file(result, tmp_path):
    path = save(result, tmp_path)
    content = bytearray(path.read_bytes())
    third = len(content) // 3  # the weights, which are large enough to have a checksum
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)
    with pytest.raises(InvalidOption, match="damaged") as error:
        load(path)
    one_line(error)


def test_a_foreign_file(tmp_path):
    text, image, other = tmp_path / "text.nc", tmp_path / "image.nc", tmp_path / "other.nc"
    text.write_text("step,loss\n1,2\n")
    image.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(1000))
    foreign = xarray.Dataset({"t": ("x", [1.0], {"units": "years since the flood"})})
    foreign.to_netcdf(other, engine="netcdf4")
    for path in (text, image, other):
        with pytest.raises(InvalidOption, match="something else") as error:
            load(path)
        one_line(error)


def test_a_newer_layout(tmp_path):
    newer = synthetic.gaussian().dataset.copy()
    newer.attrs["schema"] = results.SCHEMA + 1
    path = save(Result(newer), tmp_path)
    with pytest.raises(InvalidOption, match="layout up to 1; this one is 2, of a newer version") as error:
        load(path)
    one_line(error)


def test_an_incomplete_result(tmp_path):
    partial = synthetic.gaussian().dataset.drop_vars(["loss", "weights_2"])
    with pytest.raises(InvalidOption, match="this one has no loss, weights_2") as error:
        load(save(Result(partial), tmp_path))
    one_line(error)
