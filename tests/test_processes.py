"""Sweeps whose batches go to other processes of this machine: equal to those that ran inline."""

from __future__ import annotations

import os
import signal

import engines
import pytest
from engines import LONG

pytestmark = pytest.mark.slow

PROCESSES = "sweep.engine=processes"


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    """The long sweep, run here."""
    folder = tmp_path_factory.mktemp("inline")
    assert engines.run(folder, *LONG).returncode == 0
    return folder


def test_two_processes_equal_none(tmp_path, inline):
    done = engines.run(tmp_path / "two", *LONG, PROCESSES, "sweep.processes.parallel=2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "engine    processes, 2 tasks" in done.stdout
    engines.assert_equal(inline, tmp_path / "two")


def test_more_tasks_than_processes(tmp_path, inline):
    folder = tmp_path / "in-turn"
    sweep = engines.start(folder, *LONG, PROCESSES, "sweep.tasks=2", "sweep.processes.parallel=1")
    engines.until(lambda: engines.handed_out(folder))
    assert len(engines.handed_out(folder)) == 1
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    assert len(engines.handed_out(folder)) == 2
    engines.assert_equal(inline, folder)


def test_a_process_that_is_killed_goes_on_where_it_was_saved(tmp_path, inline):
    folder = tmp_path / "killed"
    sweep = engines.start(folder, *LONG, PROCESSES)
    engines.kill_task(engines.until(lambda: engines.began(folder))[0])
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    engines.assert_equal(inline, folder)
    assert sum(task["times"] for task in engines.handed_out(folder)) == len(engines.handed_out(folder)) + 1
    assert logs(folder).count("goes on behind record") == 1


def test_a_process_that_hangs_is_ended_and_goes_on_where_it_was_saved(tmp_path, inline):
    folder = tmp_path / "hangs"
    sweep = engines.start(folder, *LONG, PROCESSES, "sweep.silence_seconds=30")
    sign = engines.until(lambda: engines.began(folder))[0]
    os.kill(sign["pid"], signal.SIGSTOP)
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    assert not is_alive(sign["pid"])
    engines.assert_equal(inline, folder)
    (reason,) = [reason for task in engines.handed_out(folder) for reason in task["reasons"]]
    assert reason == "no sign of life for 30 s"
    assert "goes on behind record" in logs(folder)


def test_what_is_killed_again_and_again_is_reported(tmp_path):
    folder = tmp_path / "hopeless"
    sweep = engines.start(folder, *LONG, PROCESSES, "sweep.tasks=1", "sweep.retries=1")
    engines.kill_task(engines.until(lambda: engines.began(folder))[0])
    engines.until(lambda: "goes on behind record" in logs(folder))
    engines.kill_task(engines.until(lambda: engines.began(folder))[0])
    output, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 1
    assert "its task ended 2 times before its time (its process is gone)" in errors
    assert "goes on behind record" in errors  # the end of its log
    shown = engines.status(folder)
    assert "tasks    1 task of processes: 1 failed" in shown
    assert "× its task ended 2 times" in shown, output


def test_an_interrupted_command_saves_its_tasks_and_goes_on_from_there(tmp_path, inline):
    folder = tmp_path / "interrupted"
    sweep = engines.start(folder, *LONG, PROCESSES)
    sign = engines.until(lambda: engines.began(folder))[0]
    sweep.send_signal(signal.SIGINT)
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 130, errors
    assert "the same command goes on from there" in errors
    assert not is_alive(sign["pid"])
    done = engines.run(folder, *LONG, PROCESSES)
    assert done.returncode == 0, done.stderr
    engines.assert_equal(inline, folder)


def test_a_command_that_was_killed_comes_back_to_its_tasks(tmp_path, inline):
    folder = tmp_path / "left"
    sweep = engines.start(folder, *LONG, PROCESSES)
    engines.until(lambda: engines.began(folder))
    engines.kill(sweep)
    before = {task["name"] for task in engines.handed_out(folder)}
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, os.path.relpath(folder, engines.ROOT), tmp_path / "link"):
        assert "command  none is at work" in engines.status(path)
        assert "ended" not in engines.status(path)
    done = engines.run(folder, *LONG, PROCESSES)
    assert done.returncode == 0, done.stderr
    engines.assert_equal(inline, folder)
    assert {task["name"] for task in engines.handed_out(folder)} == before
    assert all(task["times"] == 1 for task in engines.handed_out(folder))


def test_tasks_without_a_command_can_be_cancelled(tmp_path):
    folder, longer = tmp_path / "cancelled", (*LONG, "dynamics.steps=100000")
    assert engines.run(folder, *longer, PROCESSES, "sweep.wait_seconds=0").returncode == 0
    sign = engines.until(lambda: engines.began(folder))[0]
    assert "cancelled  " in engines.status(folder, "--cancel")
    engines.until(lambda: not is_alive(sign["pid"]))
    assert "0 failed, 2 to do" in engines.status(folder)
    done = engines.run(folder, *longer)  # inline, now that nothing runs there
    assert done.returncode == 0, done.stderr


def test_fresh_computes_anew_what_is_stored(tmp_path, inline):
    folder = tmp_path / "fresh"
    assert engines.run(folder, *LONG, PROCESSES).returncode == 0
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("store/*.nc")}
    done = engines.run(folder, *LONG, PROCESSES, "sweep.fresh=true")
    assert done.returncode == 0, done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("store/*.nc")}
    assert before.keys() == after.keys() and all(after[name] > before[name] for name in before)
    engines.assert_equal(inline, folder)


def logs(folder):
    """What the tasks of a sweep logged."""
    return "".join(path.read_text() for path in folder.glob("store/tasks/logs/*/*.err"))


def is_alive(number):
    """Whether a process has not ended."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
