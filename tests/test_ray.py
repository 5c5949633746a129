"""Sweeps on a real Ray of this machine: equal to those that ran inline."""

from __future__ import annotations

import importlib.util
import os
import signal

import engines
import pytest
from engines import LONG, WIDE

pytestmark = pytest.mark.slow

RAY = ("sweep.engine=ray", "sweep.tasks=2")


@pytest.fixture(scope="module", autouse=True)
def ray():
    if importlib.util.find_spec("ray") is not None:
        return
    if os.environ.get("BWDLN_REQUIRE_RAY"):
        pytest.fail("Ray is not installed")
    pytest.skip("Ray is not installed: make test EXTRAS=,ray TESTS=")


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    """The long sweep, run here."""
    folder = tmp_path_factory.mktemp("inline")
    assert engines.run(folder, *LONG).returncode == 0
    return folder


def test_tasks_of_ray_equal_them_inline(tmp_path, inline):
    done = engines.run(tmp_path / "ray", *LONG, *RAY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "engine    ray, 2 tasks" in done.stdout
    engines.assert_equal(inline, tmp_path / "ray")


def test_200_jobs_in_tasks_of_ray_equal_them_inline(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    assert engines.run(here, *WIDE).returncode == 0
    done = engines.run(there, *WIDE, "sweep.engine=ray", "sweep.tasks=4")
    assert done.returncode == 0, done.stderr
    assert "200 of 200 jobs done" in done.stdout
    engines.assert_equal(here, there)


def test_a_worker_that_is_killed_goes_on_where_it_was_saved(tmp_path, inline):
    folder = tmp_path / "killed"
    sweep = engines.start(folder, *LONG, *RAY)
    sign = engines.until(lambda: engines.began(folder))[0]
    shown = engines.status(folder)
    assert "command  process " in shown and "running, " in shown and "ended" not in shown
    engines.kill_task(sign)
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    engines.assert_equal(inline, folder)
    assert sorted(task["times"] for task in engines.handed_out(folder)) == [1, 2]
    (reason,) = [reason for task in engines.handed_out(folder) for reason in task["reasons"]]
    assert reason.startswith("WorkerCrashedError")


def test_an_interrupted_command_saves_its_tasks_and_goes_on_from_there(tmp_path, inline):
    folder = tmp_path / "interrupted"
    sweep = engines.start(folder, *LONG, *RAY)
    engines.until(lambda: engines.began(folder))
    sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert list(folder.glob("store/checkpoints/[!.]*.npz"))
    done = engines.run(folder, *LONG, *RAY)
    assert done.returncode == 0, done.stderr
    engines.assert_equal(inline, folder)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9"])
def test_a_cluster_that_is_not_there_is_one_line(tmp_path, address):
    done = engines.run(tmp_path / "nowhere", *LONG, *RAY, f"sweep.ray.address='{address}'", timeout=60)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"sweep.ray.address: got {address}; takes the address of a cluster of Ray, or null"
    )


def test_more_than_this_machine_has_is_one_line(tmp_path):
    done = engines.run(tmp_path / "much", *LONG, *RAY, "sweep.ray.num_cpus=1000")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("sweep.ray.num_cpus: got 1000; takes at most the ")


def test_what_fails_again_and_again_is_reported_with_its_log(tmp_path):
    folder = tmp_path / "hopeless"
    sweep = engines.start(folder, *LONG, *RAY, "sweep.retries=0")
    engines.kill_task(engines.until(lambda: engines.began(folder))[0])
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("job ")]
    assert "its task ended once before its time (WorkerCrashedError" in line and ".log" in line
