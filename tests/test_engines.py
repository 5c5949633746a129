"""Tasks, and the command's care for them: with an engine that runs them here, or loses them as it is told."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from problems import job

from bwdln import config, distribution, engines, lanes, sweep
from bwdln.batching import Detached
from bwdln.config import Sweep, from_mapping
from bwdln.engines import base, driver, processes, slurm, status, tasks
from bwdln.engines.base import Standing
from bwdln.engines.ledger import Handed, Ledger
from bwdln.errors import Failure, InvalidOption
from bwdln.initializations import STARTS
from bwdln.store import Store
from bwdln.sweep import Batch, Piece
from experiments import display
from experiments import status as command

TAUS = (0.1, 0.2, 0.3, 0.4)
OPTIONS = Sweep(engine="slurm", tasks=2, retries=1)


class Here:
    """An engine that runs tasks as they are handed out; `fate` says what becomes of each attempt.

    run: it runs; die: it ends without a word; hang: it is never heard of; wait: it waits for ever; other
    words are those of a standing.
    """

    outlives, pace, grace, parallel, at_once = True, 0.0, 0.0, None, 100

    def __init__(self, *fate):
        self.fate, self.handed, self.cancelled, self.standing = list(fate), [], [], {}
        self.labels = {}

    def submit(self, files, label):
        names = self.labels[label] = []
        for file in files:
            name, fate = str(len(self.handed)), self.fate.pop(0) if self.fate else "run"
            self.handed.append(file.stem)
            if fate == "run":
                tasks.run(str(file))
            states = {"run": "ended", "die": "ended", "hang": "running", "wait": "waiting"}
            self.standing[name] = Standing(states.get(fate, fate), "NODE_FAIL" if fate == "die" else "")
            names.append(name)
        return names

    def standings(self, names):
        return {name: self.standing.get(name, Standing("ended", "forgotten")) for name in names}

    def find(self, label, count):
        return self.labels.get(label, [])

    def reaches(self, name):
        return True

    def cancel(self, names):
        self.cancelled += names
        self.standing |= dict.fromkeys(names, Standing("ended", "CANCELLED"))

    def kill(self, names):
        self.cancel(names)

    def log(self, name):
        return None

    def close(self):
        pass


@pytest.fixture
def engine(monkeypatch):
    """Put such an engine in the place of all."""
    monkeypatch.setattr(driver, "PACE", 0.01)

    def put(*fate):
        here = Here(*fate)
        monkeypatch.setattr(base, "make", lambda options, folder: here)
        return here

    return put


def configs(**changes):
    return {number: job(loss__tau=tau, seeds=2, **changes) for number, tau in enumerate(TAUS)}


def ran(store, options=OPTIONS, jobs=None):
    """What became of each job."""
    planned = engines.plan(jobs or configs(), options, store)
    return {done.job: done.outcome for done in engines.execute(planned, options, store)}


@pytest.fixture(scope="module")
def inline():
    return sweep.run(list(configs().values()))


def assert_as_inline(found, inline):
    assert sorted(found) == list(range(len(inline)))
    for number, result in enumerate(inline):
        for name in ("loss", "final_end_to_end", "singular_values"):
            np.testing.assert_array_equal(found[number].dataset[name], result.dataset[name])


# --- how batches become tasks ---------------------------------------------------------------------


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 12))
def test_batches_are_dealt_evenly_and_in_order(lanes, count):
    batches = [
        Batch((Piece(number, f"key{number}", FakeProblem(each)),), each) for number, each in enumerate(lanes)
    ]
    dealt = tasks.dealt(batches, count)
    assert [batch for task in dealt for batch in task.batches] == batches
    assert len(dealt) <= count and len({task.name for task in dealt}) == len(dealt)
    assert all(task.lanes <= sum(lanes) / count + max(lanes) for task in dealt)
    assert [task.batches for task in tasks.dealt(batches, None)] == [(batch,) for batch in batches]


class FakeProblem:
    def __init__(self, seeds):
        self.config = dataclasses.replace(job(), seeds=seeds)


def test_tasks_cut_the_lanes_of_a_sweep(tmp_path):
    planned = sweep.plan(configs(), Sweep(engine="slurm", tasks=3), Store(tmp_path))
    assert [batch.lanes for batch in planned.batches] == [2, 2, 2, 2]
    assert len(engines.dealt(planned.batches, 3)) == 3
    assert len(sweep.plan(configs(), Sweep(engine="slurm"), Store(tmp_path)).batches) == 1


# --- what becomes of them -------------------------------------------------------------------------


def test_tasks_elsewhere_equal_those_inline(tmp_path, engine, inline):
    here = engine()
    store = Store(tmp_path)
    assert_as_inline(ran(store), inline)
    assert len(here.handed) == 2
    assert not list((tmp_path / "tasks").glob("*.json"))  # nothing is left of tasks that ended well
    assert [task.state for task in Ledger(tmp_path).tasks.values()] == ["done", "done"]
    assert_as_inline(ran(store), inline)
    assert len(here.handed) == 2  # all is stored


def test_jobs_cut_into_tasks_are_put_together(tmp_path, engine):
    engine()
    whole = {0: job(seeds=7)}
    options = Sweep(engine="slurm", tasks=3)
    (found,) = ran(Store(tmp_path), options, whole).values()
    np.testing.assert_array_equal(found.dataset["seed"], np.arange(7))
    (alone,) = sweep.run(list(whole.values()))
    np.testing.assert_allclose(found.dataset["loss"], alone.dataset["loss"], rtol=1e-13)


def test_a_task_that_dies_is_handed_out_again(tmp_path, engine, inline):
    here = engine("die", "run")
    assert_as_inline(ran(Store(tmp_path)), inline)
    assert Counter(here.handed).most_common(1)[0][1] == 2
    assert sorted(task.times for task in Ledger(tmp_path).tasks.values()) == [1, 2]


def test_a_task_that_dies_too_often_is_given_up_alone(tmp_path, engine, inline):
    here = engine("die", "run", "die")
    found = ran(Store(tmp_path))
    assert len(here.handed) == 3
    failed = [number for number, outcome in found.items() if isinstance(outcome, Exception)]
    assert failed == [0, 1]
    words = "its task ended 2 times before its time .NODE_FAIL.; it left no log; its machine must see"
    for number in failed:
        with pytest.raises(Failure, match=words):
            raise found[number]
    engine()
    assert_as_inline(ran(Store(tmp_path)), inline)  # the next command tries again


@pytest.fixture
def impatient(monkeypatch):
    """Silence may be short."""
    monkeypatch.setattr(config, "LEAST_SILENCE", 0.0)
    return dataclasses.replace(OPTIONS, silence_seconds=0.05)


def test_silence_has_a_limit(tmp_path, engine, inline, impatient):
    here = engine("hang", "run")
    found = ran(Store(tmp_path), impatient)
    assert_as_inline(found, inline)
    assert here.cancelled == ["0"]
    assert "no sign of life for 0.05 s" in str(Ledger(tmp_path).tasks[here.handed[0]].reasons)


def test_what_is_silent_is_not_handed_out_again_before_it_has_ended(tmp_path, engine, inline, impatient):
    here = engine("hang", "run")
    here.kill = here.cancelled.extend  # Slurm takes its time

    looks = []

    def standings(names):
        if here.cancelled and len(looks) < 3:
            looks.append(len(here.handed))
        if len(looks) == 3:
            here.standing["0"] = Standing("ended", "CANCELLED")
        return {name: here.standing[name] for name in names}

    here.standings = standings
    found = ran(Store(tmp_path), dataclasses.replace(impatient, silence_seconds=1.0))
    assert_as_inline(found, inline)
    assert here.cancelled == ["0"] and looks == [2, 2, 2] and len(here.handed) == 3


def test_what_nothing_ends_is_left_behind(tmp_path, engine, inline, impatient):
    """Such as a process on a machine that is gone."""
    here = engine("hang", "run")
    here.kill = here.cancelled.extend
    assert_as_inline(ran(Store(tmp_path), impatient), inline)
    assert here.cancelled == ["0"] and len(here.handed) == 3


@pytest.mark.parametrize("standing", ["wait", "unknown"])
def test_waiting_in_a_queue_is_no_silence_nor_is_an_engine_that_does_not_answer(
    tmp_path, engine, impatient, standing
):
    here = engine(standing, standing)
    with pytest.raises(Detached, match="2 tasks are left to themselves"):
        ran(Store(tmp_path), dataclasses.replace(impatient, wait_seconds=0.3))
    assert not here.cancelled and len(here.handed) == 2


def test_what_would_never_run_is_said_at_once(tmp_path, engine):
    here = engine("stuck", "run")
    here.standings = lambda names: {
        name: here.standing[name]._replace(reason="BadConstraints") for name in names
    }
    found = ran(Store(tmp_path))
    failed = [number for number, outcome in found.items() if isinstance(outcome, Exception)]
    assert failed == [0, 1] and str(found[0]) == "slurm would never run it: BadConstraints"
    assert here.cancelled == ["0"] and len(here.handed) == 2


def test_an_engine_that_does_not_take_a_task_again_at_once_is_asked_later(tmp_path, engine, inline):
    here = engine("die", "run")
    submit, refusals = here.submit, []

    def later(files, label):
        if len(here.handed) == 2 and len(refusals) < 3:
            refusals.append(label)
            raise InvalidOption("sweep.slurm", "nothing", "what sbatch takes (Socket timed out)")
        return submit(files, label)

    here.submit = later
    assert_as_inline(ran(Store(tmp_path)), inline)
    assert len(refusals) == 3 and len(here.handed) == 3
    assert Ledger(tmp_path).submitting == {}


def test_a_task_that_is_never_taken_again_fails_alone(tmp_path, engine, impatient):
    here = engine("die", "run")
    submit = here.submit

    def never(files, label):
        if len(here.handed) == 2:
            raise InvalidOption("sweep.slurm", "nothing", "what sbatch takes (AssocMaxSubmitJobLimit)")
        return submit(files, label)

    here.submit = never
    found = ran(Store(tmp_path), impatient)
    failed = [number for number, outcome in found.items() if isinstance(outcome, Exception)]
    assert failed == [0, 1] and "NODE_FAIL, and is not taken again: sweep.slurm: got" in str(found[0])


def test_results_that_are_gone_are_computed_again(tmp_path, engine, inline):
    here = engine()
    submit = here.submit

    def losing(files, label):
        names = submit(files, label)
        if len(here.handed) == 2:  # the first time
            next(tmp_path.glob("*.nc")).unlink()
        return names

    here.submit = losing
    assert_as_inline(ran(Store(tmp_path)), inline)
    assert len(here.handed) == 3


def test_a_job_that_fails_in_a_task_fails_alone(tmp_path, engine, inline, monkeypatch):
    engine()
    monkeypatch.setattr(STARTS, "_functions", dict(STARTS._functions))

    @STARTS.register("fails_now_and_then")
    def fails_now_and_then(key, widths, target, *, scale: float = 0.0):
        if isinstance(scale, float) and scale == 2:  # where options are checked
            raise ArithmeticError("two is too much")
        return STARTS["xavier_normal"](key, widths, target)

    jobs = {
        number: job(initialization={"name": "fails_now_and_then", "scale": float(number)}, seeds=2)
        for number in range(4)
    }
    found = ran(Store(tmp_path), OPTIONS, jobs)
    assert [number for number, outcome in found.items() if isinstance(outcome, Exception)] == [2]
    assert str(found[2]) == "ArithmeticError: two is too much"


def test_a_task_of_other_code_is_refused_and_not_repeated(tmp_path, engine):
    here = engine()
    submit = here.submit

    def altering(files, label):
        for file in files:
            content = json.loads(file.read_text())
            content["keys"] = ["another" for _ in content["keys"]]
            file.write_text(json.dumps(content))
        with pytest.raises(InvalidOption):
            submit(files[:1], label)
        with pytest.raises(InvalidOption):
            submit(files[1:], label)
        here.standing |= {"0": Standing("ended"), "1": Standing("ended")}
        return ["0", "1"]

    here.submit = altering
    found = ran(Store(tmp_path))
    assert len(here.handed) == 2
    assert all("takes the code and the packages that handed it out" in str(each) for each in found.values())


def test_a_task_uses_the_cores_it_is_given(tmp_path, monkeypatch):
    monkeypatch.setenv(lanes.CORES, "7")
    with pytest.raises(InvalidOption):
        tasks.run(str(tmp_path / "none.json"), cores=1)
    assert os.environ[lanes.CORES] == "1" and lanes.cores() == 1


def test_a_fresh_sweep_takes_no_older_result_for_one_that_failed(tmp_path, engine, inline):
    engine()
    assert_as_inline(ran(Store(tmp_path)), inline)
    engine("die", "run", "die")
    found = ran(Store(tmp_path), dataclasses.replace(OPTIONS, fresh=True))
    assert [number for number, outcome in found.items() if isinstance(outcome, Exception)] == [0, 1]


def test_a_file_that_is_not_there_names_the_folder(tmp_path):
    with pytest.raises(
        InvalidOption, match=r"hydra.sweep.dir: got .*none.json on .*one that all of them see"
    ):
        tasks.run(str(tmp_path / "store" / "tasks" / "none.json"))


# --- coming back ----------------------------------------------------------------------------------


def test_what_runs_is_not_handed_out_twice(tmp_path, engine, inline):
    here = engine("wait", "wait")
    store = Store(tmp_path)
    with pytest.raises(Detached):
        ran(store, dataclasses.replace(OPTIONS, wait_seconds=0.0))
    first = list(here.handed)
    assert len(first) == 2
    for name in first:  # meanwhile they run
        tasks.run(str(tmp_path / "tasks" / f"{name}.json"))
    assert_as_inline(ran(store), inline)
    assert here.handed == first


def test_a_larger_sweep_waits_for_the_tasks_of_a_smaller_one(tmp_path, engine, inline):
    here = engine("wait")
    store, smaller = Store(tmp_path), {number: configs()[number] for number in (1, 2)}
    with pytest.raises(Detached):
        ran(store, Sweep(engine="slurm", wait_seconds=0.0), smaller)
    (first,) = here.handed
    submit = here.submit

    def then(files, label):
        tasks.run(str(tmp_path / "tasks" / f"{first}.json"))
        return submit(files, label)

    here.submit = then
    assert_as_inline(ran(store, Sweep(engine="slurm")), inline)
    assert len(here.handed) == 2
    assert here.handed[1] != first


@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_command_killed_as_it_submits_forgets_nothing(tmp_path, engine, inline, killed):
    here, store, options = engine(*["wait"] * 3), Store(tmp_path), dataclasses.replace(OPTIONS, tasks=4)
    here.at_once, submit, submissions = 3, here.submit, []

    def dying(files, label):
        submissions.append(label)
        # Whoever is killed here writes nothing more.
        written = json.loads((tmp_path / "ledger.json").read_text())["submitting"]
        assert list(written[label]) == [file.stem for file in files]
        if killed == "after":
            submit(files, label)
        raise KeyboardInterrupt

    here.submit = dying
    with pytest.raises(KeyboardInterrupt):
        ran(store, options)
    assert list(Ledger(tmp_path).submitting) == submissions
    here.submit = submit
    if killed == "after":
        assert len(engines.plan(configs(), options, store).batches) == 4
        for name in here.handed:
            tasks.run(str(tmp_path / "tasks" / f"{name}.json"))
    else:
        here.fate = []
    assert_as_inline(ran(store, options), inline)
    assert sorted(Counter(here.handed).values()) == [1, 1, 1, 1]
    assert Ledger(tmp_path).submitting == {}


def test_what_was_taken_before_a_submission_failed_is_known(tmp_path, engine, inline):
    here, store, options = engine("wait", "wait"), Store(tmp_path), dataclasses.replace(OPTIONS, tasks=4)
    here.at_once, submit = 2, here.submit

    def full(files, label):
        if here.handed:
            raise InvalidOption("sweep.slurm", "nothing", "what sbatch takes (the queue is full)")
        return submit(files, label)

    here.submit = full
    with pytest.raises(InvalidOption, match="the queue is full"):
        ran(store, options)
    assert len(Ledger(tmp_path).out()) == 2
    here.submit = submit
    for name in here.handed:
        tasks.run(str(tmp_path / "tasks" / f"{name}.json"))
    assert_as_inline(ran(store, options), inline)
    assert len(here.handed) == len(set(here.handed)) == 4


def test_a_submission_without_an_answer_may_have_been_taken(tmp_path, engine, inline):
    here = engine()
    submit = here.submit

    def slow(files, label):
        submit(files, label)
        raise InvalidOption("sweep.slurm", "nothing", "what sbatch takes (Socket timed out)")

    here.submit = slow
    assert_as_inline(ran(Store(tmp_path)), inline)
    assert len(here.handed) == 2


def test_a_submission_that_nobody_knows_the_end_of_is_not_repeated(tmp_path, engine, inline):
    """Neither sbatch nor squeue answers for a while: what sbatch took has run meanwhile."""
    here = engine("die", "run", "wait")
    submit, find, silent = here.submit, here.find, []

    def slow(files, label):
        names = submit(files, label)
        if len(here.handed) == 3:
            silent.append(label)
            raise InvalidOption("sweep.slurm", "nothing", "what sbatch takes (Socket timed out)")
        return names

    def late(label, count):
        if 0 < len(silent) < 3:
            silent.append(label)
            raise InvalidOption("sweep.engine", "slurm", "slurm when squeue answers")
        if silent:
            tasks.run(str(tmp_path / "tasks" / f"{here.handed[2]}.json"))
        return find(label, count)

    here.submit, here.find = slow, late
    assert_as_inline(ran(Store(tmp_path)), inline)
    assert len(here.handed) == 3 and len(silent) == 3 and len(set(silent)) == 1
    assert Ledger(tmp_path).submitting == {}
    assert [task.name for task in Ledger(tmp_path).tasks.values() if task.times == 2] == ["2"]


def test_a_submission_without_an_answer_that_ended_leaves_nothing_to_ask_for(tmp_path, engine, inline):
    here = engine("die", "run", "run")
    submit = here.submit

    def slow(files, label):
        names = submit(files, label)
        if len(here.handed) == 3:
            raise InvalidOption("sweep.slurm", "nothing", "what sbatch takes (Socket timed out)")
        return names

    def unanswered(label, count):
        raise InvalidOption("sweep.engine", "slurm", "slurm when squeue answers")

    here.submit, here.find = slow, unanswered
    assert_as_inline(ran(Store(tmp_path)), inline)
    assert len(here.handed) == 3 and Ledger(tmp_path).submitting == {}


def test_another_engine_waits_for_a_submission_that_nobody_knows_the_end_of(tmp_path, engine):
    here, store = engine(), Store(tmp_path / "store")

    def interrupted(files, label):
        raise KeyboardInterrupt

    here.submit = interrupted
    with pytest.raises(KeyboardInterrupt):
        ran(store)

    def unanswered(label, count):
        raise InvalidOption("sweep.engine", "slurm", "slurm when squeue answers")

    find, here.find = here.find, unanswered
    with pytest.raises(InvalidOption, match=r"sweep.engine: got inline; takes slurm while 2 of"):
        engines.check_free(Sweep(), store)
    assert [task.state for task in engines.look(tmp_path).tasks] == ["unknown", "unknown"]
    with pytest.raises(InvalidOption, match=r"--cancel: got .*slurm does not answer.*ledger.json"):
        engines.cancel(tmp_path)
    here.find = find
    engines.check_free(Sweep(), store)


def test_a_command_that_does_not_wait_gathers_what_is_there(tmp_path, engine, inline):
    here = engine("wait", "wait", "wait")
    store, jobs = Store(tmp_path), {0: job(seeds=7)}
    options = Sweep(engine="slurm", tasks=3, wait_seconds=0.0)
    with pytest.raises(Detached, match="3 tasks are left to themselves"):
        ran(store, options, jobs)
    for name in here.handed:
        tasks.run(str(tmp_path / "tasks" / f"{name}.json"))
    (found,) = ran(store, options, jobs).values()
    np.testing.assert_array_equal(found.dataset["seed"], np.arange(7))


def test_parts_of_a_job_are_found_again_however_it_would_be_cut(tmp_path, engine):
    here = engine("run", "run", "die", "die")
    store, jobs = Store(tmp_path), {0: job(seeds=7)}
    (failed,) = ran(store, Sweep(engine="slurm", tasks=3, retries=1), jobs).values()
    assert isinstance(failed, Failure)
    before = list(here.handed)
    planned = engines.plan(jobs, Sweep(engine="slurm", tasks=1), store)
    assert [piece.lanes for batch in planned.batches for piece in batch.pieces] == [3, 3, 1]
    seeds, began = [], sweep.simulate.begin
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setattr(
            sweep.simulate,
            "begin",
            lambda problems, *rest: (
                seeds.extend(each.config.seeds for each in problems) or began(problems, *rest)
            ),
        )
        (found,) = ran(store, Sweep(engine="slurm", tasks=1), jobs).values()
    np.testing.assert_array_equal(found.dataset["seed"], np.arange(7))
    assert seeds == [1] and len(here.handed) == len(before) + 1


def test_jobs_that_share_seeds_share_pieces(tmp_path, engine):
    engine()
    jobs = {0: job(seeds=4), 1: job(seeds=8), 2: job(seed=4, seeds=8)}
    found = ran(Store(tmp_path), Sweep(engine="slurm", tasks=5), jobs)
    for number, each in jobs.items():
        np.testing.assert_array_equal(
            found[number].dataset["seed"], np.arange(each.seed, each.seed + each.seeds)
        )


def test_what_runs_is_not_handed_out_twice_when_other_jobs_have_ended(tmp_path, engine, inline):
    here, options = engine("run", "run", "run", "wait"), dataclasses.replace(OPTIONS, tasks=4)
    store, watched = Store(tmp_path), here.standings

    def left_by_its_command(names):
        if len(names) == 1:
            raise Detached
        return watched(names)

    here.standings = left_by_its_command
    with pytest.raises(Detached):
        ran(store, options)
    assert [task.state for task in Ledger(tmp_path).tasks.values()] == [*["done"] * 3, "out"]
    here.submit = lambda files, label: pytest.fail(f"{files} are handed out again")
    running = tmp_path / "tasks" / f"{here.handed[3]}.json"

    def standings(names):
        if running.exists() and not running.with_suffix(".report.json").exists():
            tasks.run(str(running))
        return watched(names)

    here.standings = standings
    assert_as_inline(ran(store, options), inline)


def test_a_larger_sweep_cuts_its_jobs_as_they_run(tmp_path, engine):
    here = engine(*["wait"] * 4)
    store, jobs = Store(tmp_path), {0: job(seeds=7), 1: job(loss__tau=0.3, seeds=5)}
    options = Sweep(engine="slurm", tasks=4)
    with pytest.raises(Detached, match="4 tasks are left to themselves"):
        ran(store, dataclasses.replace(options, wait_seconds=0.0), jobs)
    before, submit, seeds = list(here.handed), here.submit, []

    def then(files, label):
        seeds.extend(
            (config.loss.option("tau"), config.seeds) for file in files for config in tasks.configs_of(file)
        )
        for name in before:
            tasks.run(str(tmp_path / "tasks" / f"{name}.json"))
        return submit(files, label)

    here.submit = then
    jobs = {0: job(loss__tau=0.4, seeds=9), 1: job(loss__tau=0.3, seeds=11), 2: jobs[0]}
    found = ran(store, options, jobs)
    assert sum(count for tau, count in seeds if tau == 0.4) == 9
    assert sum(count for tau, count in seeds if tau == 0.3) == 11 - 5
    assert sum(count for _, count in seeds) == 9 + 6
    for number, each in jobs.items():
        np.testing.assert_array_equal(found[number].dataset["seed"], np.arange(each.seeds))


def test_another_engine_goes_on_from_what_a_dead_task_saved(tmp_path, engine):
    here = engine("wait", "wait", "wait")
    store, jobs, options = Store(tmp_path / "store"), {0: job(seeds=7)}, Sweep(engine="slurm", tasks=3)
    with pytest.raises(Detached):
        ran(store, dataclasses.replace(options, wait_seconds=0.0), jobs)
    pieces = [key for name in here.handed for key in tasks.keys_of(store.folder / "tasks" / f"{name}.json")]
    here.cancel(list(here.standing))
    planned = engines.plan(jobs, Sweep(), store)
    assert [piece.key for batch in planned.batches for piece in batch.pieces] == pieces
    assert engines.begin(Sweep(), store, planned.keys, {}).tasks == {}
    assert not list(store.folder.glob("tasks/*"))


def test_what_died_meanwhile_is_handed_out_again(tmp_path, engine, inline):
    here = engine("wait", "wait")
    store = Store(tmp_path)
    with pytest.raises(Detached):
        ran(store, dataclasses.replace(OPTIONS, wait_seconds=0.0))
    here.standing |= dict.fromkeys(here.standing, Standing("ended", "NODE_FAIL"))
    assert_as_inline(ran(store), inline)
    assert len(here.handed) == 4


def test_what_came_to_its_end_meanwhile_is_forgotten(tmp_path, engine, inline):
    here = engine("wait", "wait")
    store = Store(tmp_path)
    with pytest.raises(Detached):
        ran(store, dataclasses.replace(OPTIONS, wait_seconds=0.0))
    for name in here.handed:
        tasks.run(str(tmp_path / "tasks" / f"{name}.json"))
    here.standing |= dict.fromkeys(here.standing, Standing("ended"))
    assert_as_inline(ran(store), inline)  # from the store alone
    assert Ledger(tmp_path).out() == {} and not list((tmp_path / "tasks").glob("*.json"))


def test_another_engine_waits_until_no_task_lives(tmp_path, engine):
    here = engine("wait", "wait")
    store = Store(tmp_path / "store")
    with pytest.raises(Detached):
        ran(store, dataclasses.replace(OPTIONS, wait_seconds=0.0))
    inline, ours = Sweep(), OPTIONS
    with pytest.raises(InvalidOption, match=r"sweep.engine: got inline; takes slurm while 2 of"):
        engines.check_free(inline, store)
    engines.check_free(ours, store)
    here.cancel(list(here.standing))
    engines.check_free(inline, store)


# --- the ledger and the status --------------------------------------------------------------------


def test_the_ledger_is_read_as_it_was_written(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.begin("slurm", {0: "a", 3: "b"}, {})
    ledger.tasks["x"] = Handed("17_0", 5, 2, "out", ["TIMEOUT"])
    ledger.tasks["y"] = Handed("17_1", 5, 1, "done")
    ledger.failed[3] = "why"
    ledger.save()
    again = Ledger(tmp_path)
    assert (again.engine, again.jobs, again.failed) == ("slurm", {0: "a", 3: "b"}, {3: "why"})
    assert again.tasks == ledger.tasks and list(again.out()) == ["x"]
    again.begin("slurm", {0: "a"}, {})
    assert list(Ledger(tmp_path).tasks) == ["x"] and Ledger(tmp_path).failed == {}
    (tmp_path / "ledger.json").write_text("{")
    with pytest.raises(InvalidOption, match=r"hydra.sweep.dir: got .*; takes a folder whose ledger.json can"):
        Ledger(tmp_path)
    (tmp_path / "ledger.json").write_text("[1]")
    with pytest.raises(InvalidOption, match=r"takes a folder whose ledger.json can be read"):
        Ledger(tmp_path)
    (tmp_path / "ledger.json").write_text('{"tasks": {"x": {"name": "7", "of": "another version"}}}')
    with pytest.raises(InvalidOption, match=r"takes a folder whose ledger.json is of this version"):
        Ledger(tmp_path)


def test_the_status_counts_jobs_and_tasks_by_reason(tmp_path, engine):
    here = engine("die", "run", "die")
    store = Store(tmp_path / "store")
    planned = sweep.plan(configs(), OPTIONS, store)
    record = Ledger(store.folder)
    record.begin("slurm", planned.keys, {})
    for done in engines.execute(planned, OPTIONS, store, record):
        if isinstance(done.outcome, Exception):
            record.failed[done.job] = str(done.outcome)
    record.save()
    found = engines.look(tmp_path)
    assert (found.jobs, found.done, sum(found.failed.values()), len(found.failed)) == (4, 2, 2, 1)
    assert sorted(task.state for task in found.tasks) == ["done", "failed"]
    text = "\n".join(display.status(found))
    assert "jobs     4: 2 done, 0 running, 2 failed, 0 to do" in text
    assert "tasks    2 tasks of slurm: 1 done, 1 failed" in text
    assert "handed out 2 times" in text and "2 × NODE_FAIL" in text
    assert "failed   2 × its task ended 2 times" in text
    assert here.handed


def test_the_status_of_what_runs(tmp_path, engine, capsys):
    engine("wait", "hang")
    store = Store(tmp_path / "store")
    options = dataclasses.replace(OPTIONS, wait_seconds=0.0)
    planned = sweep.plan(configs(), options, store)
    record = Ledger(store.folder)
    record.begin("slurm", planned.keys, {})
    with pytest.raises(Detached):
        list(engines.execute(planned, options, store, record))
    name = list(record.tasks)[1]
    sign = {"host": "node7", "pid": 1, "lanes_done": 1.4}
    (store.folder / "tasks" / f"{name}.alive.json").write_text(json.dumps(sign))
    command.main([str(tmp_path)])
    text = capsys.readouterr().out
    assert "jobs     4: 0 done, 2 running, 0 failed, 2 to do" in text
    assert "tasks    2 tasks of slurm: 1 waiting, 1 running" in text
    assert "1 running, 1 of 4 lanes, on node7, last sign 0 s ago" in text
    command.main([str(tmp_path), "--cancel"])
    assert capsys.readouterr().out == "cancelled  0, 1\n"
    command.main([str(tmp_path), "--cancel"])
    assert "nothing: no task waits or runs" in capsys.readouterr().out


def test_the_status_says_which_command_is_at_work(tmp_path):
    store = Store(tmp_path / "store")
    with store.lock():
        Ledger(store.folder).begin("inline", {}, {})
        assert str(status.look(tmp_path).command).startswith("process ")
        with pytest.raises(InvalidOption, match=r"--cancel: got .*; takes a sweep without a command at work"):
            engines.cancel(tmp_path)
    assert status.look(tmp_path).command is None


def test_a_folder_without_a_sweep_is_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([str(tmp_path)])
    assert capsys.readouterr().err == f"PATH: got {tmp_path}; takes the folder of a sweep that began\n"


# --- what Slurm says ------------------------------------------------------------------------------

QUEUE = """\
7_0|PENDING|Resources
7_1|RUNNING|None
7_2|TIMEOUT|TimeLimit
7_3|CANCELLED by 1000|None
8|COMPLETED|None
9|OUT_OF_MEMORY|OutOfMemory
"""


def test_the_words_of_slurm_are_understood(monkeypatch, tmp_path):
    asked = []

    def answer(*command):
        asked.append(command)
        return QUEUE if command[0] == "squeue" else "5|NODE_FAIL|None\n"

    monkeypatch.setattr(slurm, "asked", answer)
    names = ["7_0", "7_1", "7_2", "7_3", "8", "9", "5", "4"]
    found = slurm.Slurm(config.Slurm(), tmp_path).standings(names)
    assert [found[name].state for name in names] == ["waiting", "running", *["ended"] * 6]
    reasons = ["TIMEOUT, TimeLimit", "CANCELLED", "COMPLETED", "OUT_OF_MEMORY, OutOfMemory", "NODE_FAIL"]
    assert [found[name].reason for name in names[2:]] == [*reasons, "Slurm knows it no more"]
    assert [command[0] for command in asked] == ["squeue", "sacct"]


def test_a_slurm_that_does_not_answer_leaves_all_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(slurm, "asked", lambda *command: None)
    assert slurm.Slurm(config.Slurm(), tmp_path).standings(["7_0"]) == {"7_0": Standing("unknown")}


def test_cores_asked_for_are_those_of_the_step_too(tmp_path):
    given = slurm.Slurm(config.Slurm(cpus_per_task=4, mem="8G", gpus_per_node=1), tmp_path)._parameters(
        "name"
    )
    assert given["srun_args"] == ["--kill-on-bad-exit=1", "--cpus-per-task=4"]
    assert given["additional_parameters"] == {"requeue": True}
    assert (given["mem"], given["gpus_per_node"]) == ("8G", 1)
    assert "partition" not in given and "max_num_timeout" not in given


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "pbs"}, "sweep.engine: got 'pbs'; takes inline or processes or slurm or ray or distrib"),
        ({"tasks": 3}, "sweep.tasks: got 3; takes null with sweep.engine=inline"),
        ({"engine": "slurm", "tasks": 0}, "sweep.tasks: got 0; takes an integer from 1, or null"),
        ({"wait_seconds": 3}, "sweep.wait_seconds: got 3.0; takes null with sweep.engine=inline"),
        ({"engine": "slurm", "wait_seconds": -1}, "sweep.wait_seconds: got -1.0; takes a number of seconds"),
        ({"engine": "slurm", "retries": -1}, "sweep.retries: got -1; takes an integer from 0"),
        ({"engine": "slurm", "silence_seconds": 9}, "sweep.silence_seconds: got 9.0; takes a number from 30"),
        ({"engine": "ray", "slurm": {"mem": "8G"}}, "sweep.slurm.mem: got 8G; takes nothing with sweep.eng"),
        ({"engine": "slurm", "slurm": {"time": 1}}, "sweep.slurm.time: got 1; takes an integer of minutes"),
        (
            {"engine": "slurm", "slurm": {"time": 2, "signal_delay_s": 60}},
            "sweep.slurm.signal_delay_s: got 60; takes an integer of seconds up to 59 with sweep.slurm.time",
        ),
        (
            {"engine": "slurm", "slurm": {"time": 60, "signal_delay_s": 900}},
            "sweep.slurm.signal_delay_s: got 900; takes an integer of seconds up to 660",
        ),
        (
            {"engine": "slurm", "slurm": {"additional_parameters": {"job-name": "mine"}}},
            "sweep.slurm.additional_parameters: got job-name; takes options of sbatch that are neither",
        ),
        (
            {"engine": "slurm", "slurm": {"additional_parameters": {"time": 3}}},
            "sweep.slurm.additional_parameters: got time; takes options of sbatch that are neither",
        ),
        ({"engine": "slurm", "slurm": None}, "sweep.slurm: got None; takes options by name, as slurm.OPTION"),
        ({"engine": "processes", "processes": 3}, "sweep.processes: got 3; takes options by name"),
        (
            {
                "engine": "distributed",
                "distributed": {"coordinator_address": "node1", "num_processes": 2, "process_id": 0},
            },
            "sweep.distributed.coordinator_address: got node1; takes HOST:PORT, with a port from 1 to",
        ),
        ({"engine": "slurm", "slurm": {"nodes": 0}}, "sweep.slurm.nodes: got 0; takes an integer from 1"),
        ({"engine": "slurm", "slurm": {"gpu": 1}}, "sweep.slurm.gpu: got 1; takes one of account, addit"),
        ({"engine": "ray", "ray": {"num_cpus": -1}}, "sweep.ray.num_cpus: got -1.0; takes a finite numb"),
        ({"engine": "processes", "processes": {"parallel": 0}}, "sweep.processes.parallel: got 0; takes"),
        (
            {"engine": "distributed", "distributed": {"num_processes": 2}},
            "sweep.distributed.coordinator_address: got null; takes a value beside num_processes",
        ),
        (
            {
                "engine": "distributed",
                "distributed": {"coordinator_address": "a:1", "num_processes": 2, "process_id": 2},
            },
            "sweep.distributed.process_id: got 2; takes an integer from 0 to 1, another one in each process",
        ),
    ],
)
def test_options_that_make_no_sense_are_one_line(options, message):
    with pytest.raises(InvalidOption) as error:
        config.Training.of({"sweep": options})
    assert str(error.value).startswith(message)


def test_options_of_engines_are_read():
    given = {"engine": "slurm", "slurm": {"additional_parameters": {"nice": 5}, "setup": ["module load x"]}}
    read = from_mapping(given, Sweep)
    assert read.slurm.additional_parameters == {"nice": 5} and read.slurm.setup == ("module load x",)


@pytest.mark.parametrize(
    ("engine", "library", "extra"),
    [("processes", "submitit", "processes"), ("slurm", "submitit", "slurm"), ("ray", "ray", "ray")],
)
def test_an_engine_that_is_not_installed_says_what_to_install(monkeypatch, engine, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    message = f"sweep.engine: got {engine} without {library}; takes .*pip install 'bwdln.{extra}.'"
    with pytest.raises(InvalidOption, match=message):
        engines.prepared(Sweep(engine=engine))


def test_a_folder_named_like_a_library_is_not_taken_for_it(monkeypatch, tmp_path):
    (tmp_path / "ray").mkdir()
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(InvalidOption, match="got ray without ray"):
        base.library("ray", "ray")


def test_no_sbatch_is_one_line(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InvalidOption, match=r"sweep.engine: got slurm; takes a machine"):
        engines.check_there(Sweep(engine="slurm"), tmp_path)
    assert engines.prepared(Sweep(engine="slurm")).engine == "slurm"  # a plan is made anywhere


def test_a_slurm_that_does_not_answer_is_said_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(slurm, "asked", lambda *command: None)
    with pytest.raises(InvalidOption, match=r"sweep.engine: got slurm; takes a Slurm that answers: sinfo"):
        engines.check_there(Sweep(engine="slurm"), tmp_path)
    monkeypatch.setattr(slurm, "asked", lambda *command: "idle")
    engines.check_there(Sweep(engine="slurm"), tmp_path)
    with pytest.raises(InvalidOption, match=r"hydra.sweep.dir: got .*; takes a folder without a percent"):
        engines.check_there(Sweep(engine="slurm"), tmp_path / "50%")


def test_a_lost_submission_is_asked_for_by_a_name_that_is_no_list(monkeypatch, tmp_path):
    command = []
    monkeypatch.setattr(slurm, "asked", lambda *words: command.append(words) or "12\n12\n")
    own = slurm.Slurm(config.Slurm(), tmp_path / "tau=0,1 n=2" / "store" / "tasks")
    assert own.find("ab12", 2) == ["12_0", "12_1"]
    assert own.find("ab12", 1) == ["12"]
    assert "--name=bwdln-tau=0_1_n=2-ab12" in command[0]
    assert own._parameters("ab12")["job_name"] == "bwdln-tau=0_1_n=2-ab12"


def test_where_nothing_listens_is_said_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
        assert not distribution.listens(place, 0.1)
        free.listen()
        assert distribution.listens(place, 5)
    assert not distribution.listens("nowhere.invalid:70000", 0.1)
    with pytest.raises(InvalidOption, match=r"sweep.distributed.coordinator_address: got .*where something"):
        distribution.initialize(place, 2, 1, patience=1)


def test_a_process_of_another_machine_lives_while_it_gives_signs(tmp_path, monkeypatch):
    own = processes.Processes(config.Processes(), tmp_path)
    sign = tmp_path / "one.alive.json"
    assert own.standings(["elsewhere:1"])["elsewhere:1"].state == "ended"
    sign.write_text(json.dumps({"host": "elsewhere"}))
    assert own.standings(["elsewhere:1"])["elsewhere:1"].state == "running"
    assert own.standings(["another:1"])["another:1"].state == "ended"
    assert not own.reaches("elsewhere:1") and own.reaches(f"{socket.gethostname()}:1")
    os.utime(sign, (0, 0))
    assert own.standings(["elsewhere:1"])["elsewhere:1"].state == "ended"


def test_tasks_of_ray_cannot_be_left(monkeypatch):
    monkeypatch.setattr(base, "library", lambda name, engine: None)
    with pytest.raises(InvalidOption, match=r"sweep.wait_seconds: got 5.0; takes null"):
        engines.prepared(Sweep(engine="ray", wait_seconds=5.0))


def test_what_tasks_import_is_what_the_command_can(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])
    monkeypatch.setenv("PYTHONPATH", "before")
    with base.importable() as variables:
        assert variables["PYTHONPATH"].split(":")[0] == str(Path.cwd())
    assert os.environ["PYTHONPATH"] == "before"
