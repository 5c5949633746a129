"""Sweeps on a real Slurm of this machine, which tests/slurm/start starts: equal to those that ran inline."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import engines
import pytest
from engines import LONG, WIDE

pytestmark = pytest.mark.slow

CLUSTER = (engines.ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


def _why_not() -> str | None:
    """Why there is no Slurm to test with, if so."""
    if shutil.which("sbatch") is None:
        return "there is no sbatch: install slurm-wlm, slurm-client and munge"
    asked = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, timeout=60)
    if asked.returncode or not {"idle", "mixed", "allocated"} & set(asked.stdout.split()):
        said = asked.stderr.strip()
        return f"no Slurm answers; start one by tests/slurm/start, and export SLURM_CONF ({said})"
    return None


@pytest.fixture(scope="module", autouse=True)
def slurm():
    reason = _why_not()
    if reason is None:
        return
    if os.environ.get("BWDLN_REQUIRE_SLURM"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    """The long sweep, run here."""
    folder = tmp_path_factory.mktemp("inline")
    done = engines.run(folder, *LONG)
    assert done.returncode == 0, done.stderr
    return folder


SLURM = ("sweep.engine=slurm", "sweep.tasks=2")


def jobs_of_slurm(folder):
    """The jobs of Slurm that a sweep handed out, running or not, by what they go by."""
    columns = ["--noheader", "--array", "--states=all", "--format=%i %j"]
    asked = subprocess.run(["squeue", *columns], capture_output=True, text=True, timeout=60, check=True)
    jobs = (line.split() for line in asked.stdout.splitlines())
    return sorted(job for job, name in jobs if name.startswith(f"bwdln-{folder.name}-"))


def test_an_array_of_200_jobs_equals_them_inline(tmp_path):
    here, there = tmp_path / "here", tmp_path / "array-of-200"
    assert engines.run(here, *WIDE).returncode == 0
    done = engines.run(there, *WIDE, "sweep.engine=slurm", "sweep.tasks=4", "sweep.slurm.partition=main")
    assert done.returncode == 0, done.stderr
    assert "200 of 200 jobs done" in done.stdout
    assert "engine    slurm, 4 tasks" in done.stdout
    engines.assert_equal(here, there)
    jobs = jobs_of_slurm(there)
    assert len(jobs) == 4
    assert len({job.partition("_")[0] for job in jobs}) == 1  # one array
    assert all(len(list((there / str(number)).glob("result.nc"))) == 1 for number in range(200))


def test_a_task_that_is_killed_goes_on_where_it_was_saved(tmp_path, inline):
    folder = tmp_path / "killed"
    sweep = engines.start(folder, *LONG, *SLURM)
    engines.kill_task(engines.until(lambda: engines.began(folder))[0])
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    engines.assert_equal(inline, folder)
    assert sorted(task["times"] for task in engines.handed_out(folder)) == [1, 2]
    (reason,) = [reason for task in engines.handed_out(folder) for reason in task["reasons"]]
    assert reason.startswith("FAILED")
    logs = [path.read_text() for path in folder.glob("store/tasks/logs/*.err")]
    assert sum("goes on behind record" in text for text in logs) == 1


def test_a_task_that_is_cancelled_is_handed_out_again(tmp_path, inline):
    folder = tmp_path / "cancelled"
    sweep = engines.start(folder, *LONG, *SLURM)
    engines.until(lambda: engines.began(folder))
    cancelled = engines.handed_out(folder)[0]["name"]
    subprocess.run(["scancel", cancelled], check=True, timeout=60)
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    engines.assert_equal(inline, folder)
    reasons = [reason for task in engines.handed_out(folder) for reason in task["reasons"]]
    assert len(reasons) == 1 and re.match("CANCELLED|FAILED", reasons[0])


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """A sweep that takes minutes, run here."""
    folder = tmp_path_factory.mktemp("longer")
    assert engines.run(folder, *LONG, LONGER, timeout=600).returncode == 0
    return folder


LONGER = "dynamics.steps=300000"
TOGETHER = ("sweep.engine=slurm", "sweep.tasks=1", "sweep.slurm.ntasks_per_node=2", "sweep.slurm.mem=4000M")


@pytest.mark.parametrize("handed", [SLURM, TOGETHER], ids=["alone", "of two processes"])
def test_a_task_past_its_time_saves_itself_and_is_queued_again(tmp_path, longer, handed):
    folder = tmp_path / "late"
    # Slurm sends the signal up to a minute early: about half a minute after the start, that is.
    limits = ("sweep.slurm.time=2", "sweep.slurm.signal_delay_s=57")
    done = engines.run(folder, *LONG, LONGER, *handed, *limits, timeout=600)
    assert done.returncode == 0, done.stderr
    engines.assert_equal(longer, folder)
    logs = [path.read_text() for path in folder.glob("store/tasks/logs/*.err")]
    assert sum(text.count("this job is timed-out") for text in logs) >= 1
    assert any("goes on behind record" in text for text in logs)
    assert all(task["times"] == 1 and task["state"] == "done" for task in engines.handed_out(folder))


def test_a_command_that_was_killed_comes_back_to_its_tasks(tmp_path, inline):
    folder = tmp_path / "left"
    sweep = engines.start(folder, *LONG, *SLURM)
    engines.until(lambda: engines.handed_out(folder))
    engines.kill(sweep)
    before = jobs_of_slurm(folder)
    shown = engines.status(folder)
    assert "command  none is at work" in shown
    assert "2 tasks of slurm" in shown
    done = engines.run(folder, *LONG, *SLURM)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs done" in done.stdout
    engines.assert_equal(inline, folder)
    assert jobs_of_slurm(folder) == before and len(before) == 2
    assert all(task["times"] == 1 for task in engines.handed_out(folder))


def test_a_command_that_was_killed_as_it_submitted_comes_back_to_its_tasks(tmp_path, inline):
    folder = tmp_path / "as-it-submits"
    sweep = engines.start(folder, *LONG, *SLURM)
    engines.until(lambda: engines.handed_out(folder))
    engines.kill(sweep)
    before, written = jobs_of_slurm(folder), engines.ledger(folder)
    # What was written before the submission, as if there had been no time for more.
    asked = ["squeue", "--noheader", "--states=all", f"--jobs={before[0].partition('_')[0]}", "--format=%j"]
    name = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0]
    lanes = {task: handed["lanes"] for task, handed in written["tasks"].items()}
    written |= {"tasks": {}, "submitting": {name.rpartition("-")[2]: lanes}}
    (folder / "store" / "ledger.json").write_text(json.dumps(written))
    assert "2 tasks of slurm" in engines.status(folder)
    done = engines.run(folder, *LONG, *SLURM)
    assert done.returncode == 0, done.stderr
    engines.assert_equal(inline, folder)
    assert jobs_of_slurm(folder) == before and len(before) == 2


def test_a_command_can_leave_and_come_back(tmp_path, inline):
    folder = tmp_path / "detached"
    done = engines.run(folder, *LONG, *SLURM, "sweep.wait_seconds=0")
    assert done.returncode == 0, done.stderr
    assert "2 tasks are left to themselves" in done.stderr
    refused = engines.run(folder, *LONG)
    assert refused.returncode == 1
    assert "sweep.engine: got inline; takes slurm while 2 of its tasks run" in refused.stderr
    assert engines.run(folder, *LONG, *SLURM).returncode == 0
    engines.assert_equal(inline, folder)
    assert len(jobs_of_slurm(folder)) == 2


def test_a_job_of_two_processes_equals_one(tmp_path, inline):
    folder = tmp_path / "two-processes"
    done = engines.run(folder, *LONG, *TOGETHER)
    assert done.returncode == 0, done.stderr
    engines.assert_equal(inline, folder)
    logs = [path.read_text() for path in folder.glob("store/tasks/logs/*_1_log.err")]
    assert logs and all("this is process 2 of 2" in text for text in logs)


def test_a_task_of_two_processes_of_which_one_is_killed_goes_on_where_it_was_saved(tmp_path, inline):
    folder = tmp_path / "one-of-two"
    sweep = engines.start(folder, *LONG, *TOGETHER)
    engines.until(lambda: len(list(folder.glob("store/checkpoints/[!.]*-of-2.npz"))) == 2)
    (second,) = [number for number in second_processes() if str(folder) in command_line(number)]
    os.kill(second, signal.SIGKILL)
    _, errors = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, errors
    engines.assert_equal(inline, folder)
    assert [task["times"] for task in engines.handed_out(folder)] == [2]
    assert any("goes on behind record" in path.read_text() for path in folder.glob("store/tasks/logs/*.err"))


def second_processes():
    """The processes that are the second of their step of Slurm."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if b"SLURM_PROCID=1\0" in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def command_line(number):
    """How a process was started."""
    return Path(f"/proc/{number}/cmdline").read_bytes().decode()


def test_a_step_of_two_processes_needs_no_addresses(tmp_path, inline):
    """`sweep.engine=distributed` inside an allocation: Slurm tells the processes of each other."""
    folder = tmp_path / "step"
    step = ["srun", "--ntasks=2", "--mem-per-cpu=2500M", "--time=5"]
    done = subprocess.run(
        [*step, *engines.command(folder, *LONG, "sweep.engine=distributed")],
        cwd=engines.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 of 2 jobs done") == 1
    engines.assert_equal(inline, folder)


def test_what_fails_again_and_again_is_reported_with_its_log(tmp_path):
    folder = tmp_path / "too-little-memory"
    done = engines.run(folder, *LONG, *SLURM, "sweep.slurm.mem=60M", "sweep.retries=1")
    assert done.returncode == 1
    assert "0 of 2 jobs done" in done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("job ")]
    assert len(lines) == 2
    assert all("its task ended 2 times before its time" in line and "_log.err" in line for line in lines)
    assert all(task["times"] == 2 and task["state"] == "failed" for task in engines.handed_out(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["sweep.slurm.partition=nowhere"], "sweep.slurm: got partition=nowhere; takes what sbatch takes"),
        (["sweep.slurm.additional_parameters={nonsense:1}"], "sweep.slurm: got additional_parameters={"),
    ],
)
def test_what_sbatch_says_is_one_line(tmp_path, options, message):
    done = engines.run(tmp_path / "refused", *LONG, *SLURM, *options)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(message), line


def test_a_folder_that_tasks_do_not_see_is_said(tmp_path):
    """The command sees another file system in that place than Slurm does."""
    folder = tmp_path / "unseen"
    folder.mkdir()
    run = engines.command(folder, *LONG, *SLURM, "sweep.retries=0")
    script = f'mount -t tmpfs tmpfs {folder} && exec "$@"'
    try:
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *run],
            cwd=engines.ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this machine allows no mounts: {done.stderr.strip()}")
    assert done.returncode == 1
    assert f"its machine must see {folder}" in done.stderr, done.stderr


DOCUMENTED = re.findall(
    r"^python -m experiments.train (.+)$",
    "".join(re.findall(r"^```bash\n(.*?)^```$", CLUSTER, flags=re.MULTILINE | re.DOTALL)),
    flags=re.MULTILINE,
)


@pytest.mark.parametrize("line", DOCUMENTED)
def test_the_documented_commands_plan_what_they_say(line):
    if "engine=ray" in line and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    planned = [sys.executable, "-m", "experiments.train", *shlex.split(line), "sweep.dry_run=true"]
    done = subprocess.run(planned, cwd=engines.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "memory    about " in done.stdout
    for engine, tasks in re.findall(r"sweep.engine=(\w+)(?: sweep.tasks=(\d+))?", line):
        assert re.search(rf"^engine    {engine}", done.stdout, flags=re.MULTILINE)
        assert not tasks or f"{engine}, {tasks} tasks" in done.stdout


def test_a_signal_that_a_task_saves_itself_on_is_the_one_of_submitit():
    submitit = pytest.importorskip("submitit")
    from submitit.core.job_environment import JobEnvironment

    assert JobEnvironment._usr_sig() == signal.SIGUSR2, submitit
