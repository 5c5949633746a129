"""Hydra's sweeper `grid`: which jobs it makes, in which order, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bwdln.batching import Refused
from bwdln.errors import InvalidOption
from bwdln.launcher import grid

ROOT = Path(__file__).resolve().parent.parent


def parsed(*overrides):
    return OverridesParser.create().parse_overrides(list(overrides))


def jobs(*overrides, zipped=()):
    return grid.jobs(parsed(*overrides), zipped)


# --- which jobs -----------------------------------------------------------------------------------

SWEPT = st.builds(
    "{}={}".format,
    st.sampled_from(["a", "b.c", "+d", "group", "group@here", "++e"]),
    st.sampled_from(
        ["1", "1,2", "1,2,3", "range(3)", "choice(x,y)", "[1,2],[3]", "'1,2'", "{x:1},{x:2}", "a,"]
    ),
)


@given(st.lists(SWEPT, max_size=4, unique_by=lambda text: text.partition("=")[0]))
def test_jobs_are_those_of_hydra(overrides):
    try:
        (expected,) = BasicSweeper.split_arguments(parsed(*overrides), max_batch_size=None)
    except HydraException:
        with pytest.raises(HydraException):
            jobs(*overrides)
        return
    assert jobs(*overrides) == [list(job) for job in expected]


def test_the_last_option_is_the_fastest():
    assert jobs("a=1,2", "c=5", "b=3,4") == [
        ["a=1", "c=5", "b=3"],
        ["a=1", "c=5", "b=4"],
        ["a=2", "c=5", "b=3"],
        ["a=2", "c=5", "b=4"],
    ]


def test_what_is_given_again_replaces_what_was_given():
    assert jobs("a=1,2", "b=0", "a=3") == [["a=3", "b=0"]]


@pytest.mark.parametrize("override", ["a=interval(0,1)", "a=tag(x,interval(0,1))"])
def test_values_that_cannot_be_listed_are_refused(override):
    with pytest.raises(HydraException, match=r"takes a list, a range or a glob"):
        jobs(override)


# --- options that move together -------------------------------------------------------------------


def test_zipped_options_move_together():
    assert jobs("a=1,2", "b=3,4", "c=5,6", zipped=[["a", "c"]]) == [
        ["a=1", "c=5", "b=3"],
        ["a=1", "c=5", "b=4"],
        ["a=2", "c=6", "b=3"],
        ["a=2", "c=6", "b=4"],
    ]
    assert jobs("a=1,2", "b=3,4", "c=5,6", "d=7,8", zipped=[["a", "c"], ["d", "b"]]) == [
        ["a=1", "c=5", "b=3", "d=7"],
        ["a=1", "c=5", "b=4", "d=8"],
        ["a=2", "c=6", "b=3", "d=7"],
        ["a=2", "c=6", "b=4", "d=8"],
    ]


@given(st.integers(2, 5), st.integers(2, 5), st.permutations(["a", "b", "c"]))
def test_zipped_and_multiplied_jobs_are_as_many_as_they_should(together, apart, order):
    counts = {"a": together, "b": together, "c": apart}
    made = jobs(*(f"{name}=range({counts[name]})" for name in order), zipped=[["b", "a"]])
    assert len(made) == together * apart == len({tuple(job) for job in made})
    for job in made:
        values = dict(override.split("=") for override in job)
        assert values["a"] == values["b"]


@pytest.mark.parametrize(
    ("zipped", "line"),
    [
        ([["a", "b"]], "zip: got a with 2 values, b with 3 values; takes options with as many values each"),
        ([["a", "c"]], "zip: got c; takes options that are swept over: a, b"),
        ([["a", "unknown"]], "zip: got unknown; takes options that are swept over: a, b"),
        ([["a", "a"]], "zip: got a; takes each option once"),
        ([["a"], ["a", "b"]], "zip: got a; takes each option once"),
    ],
)
def test_options_that_cannot_move_together(zipped, line):
    with pytest.raises(InvalidOption) as refused:
        jobs("a=1,2", "b=1,2,3", "c=1", zipped=zipped)
    assert str(refused.value) == line


def test_nothing_is_swept_over():
    with pytest.raises(InvalidOption, match="swept over: none is"):
        jobs("a=1", zipped=[["a", "b"]])


# --- the sweep ------------------------------------------------------------------------------------


class Launcher:
    """Notes what it is to launch; jobs of the given numbers fail."""

    def __init__(self, failing=()):
        self.calls, self._failing = [], dict(failing)

    def launch(self, overrides, initial_job_idx):
        self.calls.append((initial_job_idx, overrides))
        returns = []
        for number, each in enumerate(overrides, start=initial_job_idx):
            done = JobReturn(overrides=each, status=JobStatus.COMPLETED)
            if number in self._failing:
                done.status = JobStatus.FAILED
            done.return_value = self._failing.get(number, number)
            returns.append(done)
        return returns


@pytest.fixture
def sweeper(tmp_path):
    """The options of a sweeper, by default those it has; it writes into `out`."""

    def make(launcher=None, **options):
        config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path / "out")}}, "a": 0})
        context = SimpleNamespace(config_loader=None)
        given = {"params": {}, "max_batch_size": None, "zip": [], "dry_run": False} | options
        return SimpleNamespace(config=config, hydra_context=context, launcher=launcher or Launcher(), **given)

    return make


def test_params_are_swept_over_and_the_command_line_wins(sweeper):
    made = sweeper(params={"a": "1,2", "b": "range(3)"})
    grid.sweep(made, ["b=7", "c=8,9"])
    ((first, overrides),) = made.launcher.calls
    assert first == 0
    assert overrides == [[f"a={a}", "b=7", f"c={c}"] for a in (1, 2) for c in (8, 9)]


def test_jobs_are_launched_in_batches_with_growing_numbers(sweeper, tmp_path):
    made = sweeper(max_batch_size=2)
    returns = grid.sweep(made, ["a=range(5)"])
    assert [(first, len(overrides)) for first, overrides in made.launcher.calls] == [(0, 2), (2, 2), (4, 1)]
    assert [[each.return_value for each in batch] for batch in returns] == [[0, 1], [2, 3], [4]]
    assert OmegaConf.load(tmp_path / "out" / "multirun.yaml") == made.config


@pytest.mark.parametrize("size", [0, -1])
def test_batches_hold_one_job_at_least(sweeper, size):
    with pytest.raises(InvalidOption, match=r"^hydra.sweeper.max_batch_size: got .*takes an integer from 1"):
        grid.sweep(sweeper(max_batch_size=size), ["a=1,2"])


def test_a_job_that_failed_ends_the_sweep_when_all_have_run(sweeper):
    made = sweeper(Launcher({1: ValueError("first"), 4: ValueError("second")}), max_batch_size=2)
    with pytest.raises(ValueError, match="first"):
        grid.sweep(made, ["a=range(5)"])
    assert len(made.launcher.calls) == 3
    with pytest.raises(Refused, match="told"):
        grid.sweep(sweeper(Launcher({0: Refused("told")})), ["a=1,2"])


def test_a_dry_run_shows_the_jobs_and_does_nothing(sweeper, capsys, tmp_path):
    made = sweeper(dry_run=True, zip=["a", "b"])
    assert grid.sweep(made, [f"a=range({grid.LISTED + 9})", f"b=range({grid.LISTED + 9})"]) is None
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"{grid.LISTED + 9} jobs", "#0 a=0 b=0"]
    assert lines[-1] == "… and 9 more"
    assert made.launcher.calls == []
    assert not (tmp_path / "out").exists()


def test_a_dry_run_is_shown_by_a_launcher_that_can(sweeper, capsys):
    made = sweeper(dry_run=True)
    planned = []
    made.launcher.plan = lambda overrides, first: planned.append((overrides, first)) or True
    grid.sweep(made, ["a=1,2"])
    assert planned == [([["a=1"], ["a=2"]], 0)]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("zipped", [["a", ["b", "c"]], [["a"], "b"]])
def test_zip_is_one_list_or_several(sweeper, zipped):
    with pytest.raises(InvalidOption, match="takes a list of options, or a list of such lists"):
        grid.sweep(sweeper(zip=zipped), ["a=1,2", "b=1,2"])


# --- as a user has it -----------------------------------------------------------------------------

APPLICATION = """
import hydra

from bwdln import batching

batching.expose_plugin()


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config):
    print("ran", config.a, config.group.name)
    if config.a == 2:
        raise ValueError("two is too many")


main()
"""


@pytest.fixture
def application(tmp_path):
    """An application of somebody else with options of the sweeper in its configuration."""
    conf = tmp_path / "conf"
    (conf / "group").mkdir(parents=True)
    (conf / "config.yaml").write_text("defaults: [group: x1, _self_, override hydra/sweeper: grid]\na: 0")
    for name in ("x1", "x2", "y"):
        (conf / "group" / f"{name}.yaml").write_text(f"name: {name}")
    (tmp_path / "app.py").write_text(APPLICATION)

    def run(*arguments):
        command = [sys.executable, "app.py", "-m", "hydra/hydra_logging=none", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


def test_globs_and_zips_from_the_command_line(application):
    done = application("group=glob(x*)", "a=3,4", "hydra.sweeper.zip=[a,group]")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line for line in done.stdout.splitlines() if line.startswith("ran")] == ["ran 3 x1", "ran 4 x2"]


def test_every_job_runs_and_the_failure_is_told_as_by_hydra(application):
    done = application("a=1,2,3")
    ours = [line for line in done.stdout.splitlines() if line.startswith("ran")]
    assert ours == ["ran 1 x1", "ran 2 x1", "ran 3 x1"]
    assert done.returncode == 1
    assert "Error executing job with overrides: ['a=2']" in done.stderr
    assert "ValueError: two is too many" in done.stderr
