"""Sweeps from the command line: folders, dataset, plan, resuming, what fails, what a kill leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray

from bwdln import figures, results, simulate
from bwdln.store import Store

ROOT = Path(__file__).resolve().parent.parent
TINY = ("target.dimension=4", "network.depth=2", "seeds=2", "dynamics.steps=20", "record.count=5")


def sweep(*arguments, folder, environment=()):
    """A sweep in a process of its own: status, output, errors."""
    command = [sys.executable, "-m", "experiments.train", "-m", *arguments, f"hydra.sweep.dir={folder}"]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | dict(environment)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)
    return done.returncode, done.stdout, done.stderr


def dataset(folder):
    with xarray.open_dataset(folder / "sweep.nc", decode_times=False) as opened:
        return opened.load()


def assert_same_data(left, right, tolerance=0.0):
    assert set(left.variables) == set(right.variables)
    for name, variable in left.variables.items():
        if variable.dtype.kind in "OU":
            np.testing.assert_array_equal(variable.values, right[name].values, err_msg=name)
        else:
            np.testing.assert_allclose(
                variable.values, right[name].values, rtol=tolerance, atol=tolerance, err_msg=name
            )


@pytest.fixture
def here(command, monkeypatch):
    """Sweeps in this process, into the folder `here` of an empty one; figures are not drawn."""
    monkeypatch.setattr(figures, "sweep", lambda dataset, folder, objective: [])
    return lambda *arguments: command("-m", *TINY, "hydra.sweep.dir=here", *arguments)


def test_a_sweep_leaves_a_folder_for_each_job_and_one_dataset(here, tmp_path):
    status, out, err = here("loss.tau=0,0.1", "network.depth=1,2")
    assert (status, err) == (0, "")
    assert "4 jobs: 4 to run, 0 done before, 0 refused" in out
    for number, (tau, depth) in enumerate([(0, 1), (0.1, 1), (0, 2), (0.1, 2)]):
        folder = tmp_path / "here" / str(number)
        for name in ("config", "hydra", "overrides"):
            assert (folder / ".hydra" / f"{name}.yaml").is_file()
        result = results.load(folder)
        assert dict(result.config.loss.options)["tau"] == tau
        assert result.config.network.depth == depth
        assert f'"depth": {depth}' in (folder / "train.log").read_text()
    grid = dataset(tmp_path / "here").set_index(config=["loss.tau", "network.depth"]).unstack("config")
    alone = simulate.run(results.load(tmp_path / "here" / "3").config)
    cell = grid.sel({"loss.tau": 0.1, "network.depth": 2})["relative_gap"]
    np.testing.assert_allclose(cell, alone.dataset["relative_gap"], rtol=1e-10)


def test_the_plan_is_shown_and_nothing_is_written(here, tmp_path):
    status, out, err = here("loss.tau=0,0.1,0.2", "sweep.dry_run=true")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "plan      3 jobs: 3 to run, 0 done before, 0 refused"
    program = "          bures_wasserstein, gradient_descent, widths 4×3"
    assert lines[1:4] == [
        "programs  2, for 6 lanes in 2 batches",
        f"{program}, loss.tau=0.0: 1 job, 2 lanes, 1 batch",
        f"{program}: 2 jobs, 4 lanes, 1 batch",
    ]
    assert lines[-2] == "devices   1 x cpu"
    assert lines[-1].startswith("memory    about ")
    assert list(tmp_path.iterdir()) == []


def test_a_larger_sweep_computes_only_what_is_missing(here, tmp_path):
    here("loss.tau=0.1,0.2")
    status, out, _ = here("loss.tau=0.05,0.1,0.2")
    assert status == 0
    assert "3 jobs: 1 to run, 2 done before, 0 refused" in out
    assert "3 of 3 jobs done, 2 of them by an earlier sweep, 0 failed" in out
    # The folders are those of the new jobs.
    assert dict(results.load(tmp_path / "here" / "0").config.loss.options)["tau"] == 0.05
    assert "loss.tau=0.05" in (tmp_path / "here" / "0" / ".hydra" / "overrides.yaml").read_text()
    assert dataset(tmp_path / "here").sizes["config"] == 3
    status, out, _ = here("loss.tau=0.05,0.1,0.2", "sweep.fresh=true")
    assert "3 jobs: 3 to run, 0 done before" in out


def test_jobs_that_fail_do_not_stop_the_others(here, tmp_path):
    status, out, err = here("dynamics.step_size=-1,0.02,1e9", "network.depth=2,nine")
    assert status == 1
    lines = err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["job 0", "job 3", "job 4", "job 5"]
    assert lines[0].startswith("job 0: dynamics.step_size: got -1")
    assert lines[1].startswith("job 3: network.depth: got 'nine'")
    assert "2 of 6 jobs done, 0 of them by an earlier sweep, 4 failed" in out
    found = dataset(tmp_path / "here")
    assert found["job"].values.tolist() == [1, 2]
    assert set(json.loads(found.attrs["failed"])) == {"0", "3", "4", "5"}
    assert set(found["outcome"].values[1]) == {"diverged"}


def test_zipped_options_move_together(here, tmp_path):
    status, _, err = here(
        "loss.tau=0.1,0.2", "dynamics.step_size=0.01,0.02", "sweep.zip=[loss.tau,dynamics.step_size]"
    )
    assert (status, err) == (0, "")
    found = dataset(tmp_path / "here")
    assert list(zip(found["loss.tau"].values, found["dynamics.step_size"].values, strict=True)) == [
        (0.1, 0.01),
        (0.2, 0.02),
    ]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("sweep.lanes_per_batch=0", "sweep.lanes_per_batch: got 0; takes an integer from 1, or null"),
        ("sweep.devices=9", "sweep.devices: got 9; takes an integer up to 1, the cpu devices there are,"),
        ("sweep.lanes=3", "sweep.lanes: got 3; takes one of "),
        ("hydra.launcher.lanes=3", "hydra.launcher.lanes: got 3; takes "),
        ("sweep.fresh=true,false", "sweep.fresh: got several values; takes one value for the whole sweep"),
        ("figures=never,always", "figures: got several values; takes one value for the whole sweep"),
        ("objective=nothing", "objective: got nothing; takes one of "),
        ("hydra/launcher=batched,basic", "Sweeping over Hydra's configuration is not supported : 'hydra/l"),
        ("hydra.job.chdir=true,false", "Sweeping over Hydra's configuration is not supported : 'hydra.job"),
        ("sweep.zip=[seed,loss.tau] loss.tau=0,1,2", "sweep.zip: got "),
        ("network.dept=1,2", "network.dept: got 1,2; takes one of "),
        ("loss=bures", "loss: got bures; takes one of "),
    ],
)
def test_what_concerns_the_sweep_is_refused_in_one_line(here, tmp_path, arguments, line):
    status, _, err = here(*arguments.split(), "seed=0,1")
    assert status == 1
    assert err.startswith(line), err
    assert err.count("\n") == 1
    if not line.startswith("job"):
        assert not (tmp_path / "here" / "0").exists()


def test_a_file_that_is_not_of_the_sweep_is_never_replaced(here, tmp_path):
    foreign = tmp_path / "here" / "0" / "result.nc"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    status, out, err = here("seed=0,1")
    assert status == 1
    assert err.count("\n") == 1
    assert err.startswith("job 0: ")
    assert str(foreign.parent) in err
    assert foreign.read_text() == "mine"
    assert "1 of 2 jobs done" in out


def test_a_result_that_was_damaged_in_its_folder_is_computed_again(here, tmp_path):
    """It is the stored file under another name."""
    here("seed=0,1")
    path = tmp_path / "here" / "0" / "result.nc"
    path.write_text("not a result")
    status, out, err = here("seed=0,1")
    assert (status, err.count("\n")) == (0, 1)
    assert "is computed again" in err
    assert "2 of 2 jobs done, 1 of them by an earlier sweep, 0 failed" in out
    assert results.load(path.parent).config.seed == 0


def test_two_sweeps_in_one_folder(here, tmp_path):
    with Store(tmp_path / "here" / "store").lock():
        status, _, err = here("seed=0,1")
    assert status == 1
    assert err.startswith(f"hydra.sweep.dir: got {tmp_path}/here")
    assert f"process {os.getpid()}" in err


def test_the_folder_is_that_of_the_base_configuration(command, monkeypatch, tmp_path):
    monkeypatch.setattr(figures, "sweep", lambda dataset, folder, objective: [])
    for grid in (("loss.tau=0.1",), ("loss.tau=0.1,0.2", "sweep.lanes_per_batch=1")):
        assert command("-m", *TINY, *grid, "seed=0,1")[0] == 0
    # One value is part of the base, several are not.
    first, second = sorted(tmp_path.glob("outputs/train/*/store"))
    assert first.parent.name.startswith("zipf-gradient_descent-")
    assert command("-m", *TINY, "loss.tau=0.3,0.4", "seed=0,1")[0] == 0
    assert sorted(tmp_path.glob("outputs/train/*/store")) == [first, second]


def test_a_study_in_a_sweep_runs_on_its_own_and_only_once(command, tmp_path):
    study = (
        "-m",
        "hydra.sweep.dir=here",
        "+experiment=descent_to_flow",
        "study.step_sizes=[0.1,0.05]",
        "seeds=1",
    )
    status, out, err = command(*study, "seed=0,1")
    assert (status, err) == (0, "")
    assert "2 studies one by one" in out
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.csv"))
    assert len([path for path, _ in before if not path.name.endswith(".data.csv")]) == 2
    assert command(*study, "seed=0,1")[0] == 0
    assert before == sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*.csv"))


def test_figures_per_job_only_on_request(command, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(figures, "save_all", lambda result, folder: drawn.append(folder) or [])
    monkeypatch.setattr(figures, "sweep", lambda dataset, folder, objective: drawn.append(folder) or [])
    for number, choice in enumerate(("auto", "always", "never")):
        command("-m", *TINY, "seed=0,1", f"figures={choice}", f"hydra.sweep.dir={number}")
    assert [str(path.relative_to(tmp_path)) for path in drawn] == ["0", "1/0", "1/1", "1"]


@pytest.mark.slow
def test_eight_devices_give_the_same_dataset(tmp_path):
    grid = ("loss.tau=0,0.1", "network.depth=2,3", "seeds=3", *TINY[:1], *TINY[3:])
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    assert sweep(*grid, folder=tmp_path / "one")[0] == 0
    for name, more in (
        ("eight", ()),
        ("two", ("sweep.devices=2",)),
        ("padded", ("sweep.lanes_per_batch=3",)),
    ):
        status, out, err = sweep(*grid, *more, folder=tmp_path / name, environment=flags)
        assert (status, err) == (0, "")
        assert f"devices   {2 if more[:1] == ('sweep.devices=2',) else 8} x cpu" in out
        assert_same_data(dataset(tmp_path / "one"), dataset(tmp_path / name), 1e-10)


@pytest.mark.slow
def test_a_sweep_that_is_killed_twenty_times_ends_as_if_it_had_not_been(tmp_path):
    """200 jobs in batches of 20 lanes; every kill leaves a folder from which the next one goes on."""
    taus = ",".join(f"{0.001 * number:.3f}" for number in range(1, 101))
    grid = (
        *("target.dimension=4", "network.depth=2", "seeds=1", "figures=never"),
        *("dynamics=gradient_descent,end_to_end_flow", "initialization.balanced=true"),
        *(f"loss.tau={taus}", "sweep.lanes_per_batch=20", "sweep.checkpoint_seconds=0", "record.count=10"),
    )
    began = time.perf_counter()
    assert sweep(*grid, folder=tmp_path / "undisturbed")[0] == 0
    undisturbed = time.perf_counter() - began
    moment, folder = random.Random(0), tmp_path / "killed"
    command = [sys.executable, "-m", "experiments.train", "-m", *grid, f"hydra.sweep.dir={folder}"]
    for _ in range(20):
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
        )
        kept = {path.name: path.stat().st_ino for path in (folder / "store").glob("[!.]*.nc")}
        time.sleep(moment.uniform(0.1, 1.0) * undisturbed)
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[0]
        # What was complete before is counted as done, and its files are the same.
        assert not said or f"{len(kept)} done before" in said
        now = {path.name: path.stat().st_ino for path in (folder / "store").glob("[!.]*.nc")}
        assert kept.items() <= now.items()
    status, out, err = sweep(*grid, folder=folder)
    assert (status, err) == (0, "")
    assert f"200 of 200 jobs done, {len(now)} of them by an earlier sweep, 0 failed" in out
    assert_same_data(dataset(tmp_path / "undisturbed"), dataset(folder))
