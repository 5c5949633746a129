"""Hydra's launcher `batched`: Hydra's own suites, composition, the books of a job, failures, callbacks."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import version
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus, run_job
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite
from hydra.types import HydraContext, RunMode
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from bwdln.batching import expose_plugin
from bwdln.errors import InvalidOption
from bwdln.launcher import books, composition, core
from bwdln.launcher.composition import Composer

expose_plugin()

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = ROOT / "bwdln" / "launcher" / "plugin"
PYTHONPATH = os.pathsep.join([str(ROOT), str(PLUGIN)])


# --- Hydra's own suites ---------------------------------------------------------------------------


def test_hydra_finds_the_launcher():
    assert "BatchedLauncher" in [each.__name__ for each in Plugins.instance().discover(Launcher)]


# Hydra's suite leaves `version_base` open, and Hydra then warns of what a later version would do.
@pytest.mark.filterwarnings("ignore:Future Hydra versions:UserWarning")
@pytest.mark.parametrize("sweeper", ["basic", "grid"])
@pytest.mark.parametrize("launcher_name", ["batched"])
class TestBatchedLauncher(LauncherTestSuite):
    """Hydra's suite for launchers, with a task that does not say how to run several jobs."""

    @pytest.fixture
    def overrides(self, sweeper):
        return [f"hydra/sweeper={sweeper}"]

    @pytest.fixture(autouse=True)
    def anew(self, hydra_restore_singletons, own_logging):
        """Hydra as it is before any application has told it of a version."""
        version.VersionBase.instance().version_base = version._UNSPECIFIED_


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [
        (
            {
                "defaults": [
                    {"override hydra/launcher": "batched"},
                    {"override hydra/hydra_logging": "hydra_debug"},
                    {"override hydra/job_logging": "disabled"},
                ]
            },
            ["-m"],
        )
    ],
)
class TestBatchedLauncherIntegration(IntegrationTestSuite):
    """Hydra's suite for launchers, each time in a process of its own."""

    @pytest.fixture(autouse=True)
    def path(self, monkeypatch):
        monkeypatch.setenv("PYTHONPATH", PYTHONPATH)


# --- an application -------------------------------------------------------------------------------

CONFIG = {
    "config.yaml": """
defaults:
  - group: one
  - _self_
  - override hydra/launcher: batched
  - override hydra/sweeper: grid
number: 1
twice: ${number}${number}
text: word
flag: false
nothing: null
needed: ???
list: [1, 2]
nested:
  deep: {value: 0.5, other: null}
  job: ${hydra:job.num}
hydra:
  sweep: {dir: out, subdir: "job ${hydra.job.num}"}
""",
    "group/one.yaml": "name: one\nsize: 1",
    "group/two.yaml": "name: two\nsize: 2\nextra: ${number}",
    "experiment/sound.yaml": "# @package _global_\nnumber: 7\nneeded: 1",
    "experiment/params.yaml": "# @package _global_\nneeded: 1\nhydra:\n  sweeper:\n    max_batch_size: 2",
}


def write(folder):
    for name, text in CONFIG.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    return write(tmp_path_factory.mktemp("configs"))


@pytest.fixture
def master(configs, hydra_restore_singletons):
    """Hydra, set up for a sweep, and the configuration of the sweep."""
    return set_up(configs)


def set_up(configs, *overrides):
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    hydra = Hydra.create_main_hydra2("app", create_config_search_path(str(configs)))
    config = hydra.compose_config("config", list(overrides), RunMode.MULTIRUN, with_log_configuration=False)
    HydraConfig.instance().cfg = config
    return SimpleNamespace(hydra=hydra, config=config)


def launcher(master, task):
    """The launcher as a sweeper would have it."""
    return Plugins.instance().instantiate_launcher(
        hydra_context=hydra_context(master), task_function=task, config=master.config
    )


def hydra_context(master):
    return HydraContext(master.hydra.config_loader, Callbacks(master.config))


class Recorder:
    """A batch task that notes its jobs and does with each what it is told to."""

    def __init__(self, work=lambda job: job.number, order=list):
        self._work, self._order, self.jobs = work, order, []
        self.__name__, self.__module__ = "recorder", __name__

    def __call__(self, config):
        raise AssertionError("a batch task is never called with one job")

    def batch(self, jobs, folder):
        self.jobs, self.folder = list(jobs), folder
        assert not any(job.folder.exists() for job in jobs)
        for job in self._order(self.jobs):
            yield job.number, lambda job=job: self._work(job)


def fail(job):
    """What is wrong with a job, as its task says it."""
    if isinstance(job.options, Exception):
        raise job.options
    if job.options["number"] == 2:
        raise ValueError("two is too many")
    return job.options["number"]


# --- composition ----------------------------------------------------------------------------------

AWKWARD_VALUES = """
true null 1e-3 word '1' "two_words" '${number}' ${number} [1,x] [] {a:1,b:{c:2}} ??? 1_000 0x1f a/b
'it''s' é [[1],[2,3]] \\, nan -inf
"""
OPTIONS = """
number text flag nothing list nested.deep.value nested.deep.other nested.deep group.size needed twice
nested.job
"""
OTHERS = """
group=one group=two +new=1 +nested.new=2 ~text ~nested.deep.other ++number=4 +experiment=sound
hydra.job.name=named +hydra.job.env_set.A=b unknown=1 group=three hydra.verbose=true
"""
VALUES = st.one_of(
    st.integers(-5, 5).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(AWKWARD_VALUES.split()),
)
KEYS = st.sampled_from(OPTIONS.split())
OVERRIDES = st.one_of(
    st.builds("{}={}".format, KEYS, VALUES),
    st.builds("{}={}".format, KEYS, VALUES),
    st.sampled_from(OTHERS.split()),
)
JOBS = st.lists(st.lists(OVERRIDES, min_size=1, max_size=3), min_size=2, max_size=5)
#: Jobs of one kind, so that values are set on what the job before left.
ALIKE = st.lists(KEYS, min_size=1, max_size=3, unique=True).flatmap(
    lambda keys: st.lists(
        st.tuples(*(VALUES.map(f"{key}={{}}".format) for key in keys)).map(list), min_size=3, max_size=5
    )
)


def composed(make):
    """The whole configuration that a function makes, and the options of the task; or what it raises."""
    try:
        config = make()
    except Exception as error:
        return type(error).__name__, str(error)
    HydraConfig.instance().cfg = config
    whole = OmegaConf.to_container(config, resolve=False, enum_to_str=True)
    try:
        options = composition.options(config)
    except Exception as error:
        options = type(error).__name__, str(error)
    return repr(whole), repr(options)  # texts: nan is equal to nan there, and 1 is not 1.0


@settings(max_examples=30, phases=set(Phase) - {Phase.shrink, Phase.explain})
@given(st.one_of(JOBS, ALIKE))
@example([["number=1", "text=a"], ["number=null", "text=b"], ["number=2", "text=a"]])
@example([["nested.deep={a:1}"], ["nested.deep={b:1}"], ["nested.deep=null"]])
@example([["number=1", "number=2"], ["number=3", "number=4"]])
@example([["list=[1]"], ["list=[1,2,3]"], ["list=[]"], ["list=null"], ["list=[4]"]])
@example([["text=word", "group=two"], ["text=other", "group=one"], ["text=third", "group=two"]])
@example(
    [
        ["number=0"],
        ["nested.deep.other=0", "~nested.deep.other"],
        ["nested.deep.other=1", "~nested.deep.other"],
    ]
)
@example([["nested.deep.value=1", "nested.deep={value:2}"], ["nested.deep.value=3", "nested.deep={value:2}"]])
@example([["number=1", "++number=2"], ["number=3", "++number=2"]])
@pytest.mark.usefixtures("hydra_restore_singletons")
def test_a_job_is_composed_as_hydra_does(configs, jobs):
    """Whatever its overrides are, and whatever jobs were composed before it."""
    master = set_up(configs)
    composer = Composer(master.hydra.config_loader, master.config)
    for number, overrides in enumerate(jobs):
        expected = composed(lambda: composer.whole(number, overrides))  # noqa: B023
        assert composed(lambda: composer.job(number, overrides)) == expected  # noqa: B023


def test_jobs_that_only_set_values_are_composed_as_a_whole_once(master, monkeypatch):
    composer = Composer(master.hydra.config_loader, master.config)
    wholes = []
    whole = composer.whole
    monkeypatch.setattr(composer, "whole", lambda *given: wholes.append(given) or whole(*given))
    for number in range(20):
        config = composer.job(number, [f"number={number}", f"group={'one' if number % 2 else 'two'}"])
        assert (config.number, config.group.size) == (number, 1 if number % 2 else 2)
    assert len(wholes) == 2


def test_a_job_that_sets_up_what_runs_it_is_told_so(master):
    """An experiment that is swept over is composed after the sweeper began: its options would do nothing."""
    jobs = compose_jobs(master, ["+experiment=sound"], ["+experiment=params"])
    assert jobs[0].options["number"] == 7
    assert isinstance(jobs[1].options, InvalidOption)
    assert str(jobs[1].options).startswith("hydra.sweeper: got {'max_batch_size': 2}; takes what the whole")


def compose_jobs(master, *overrides):
    composer = Composer(master.hydra.config_loader, master.config)
    return core.compose(composer, overrides, 0, Path("out").absolute())


def test_a_task_learns_what_its_jobs_are(master):
    jobs = compose_jobs(
        master,
        ["needed=1", "number=1", "group=one", "nested.deep.value=1e-3"],
        ["needed=1", "number=2", "group=two", "nested.deep.value=1e-3"],
    )
    assert [job.number for job in jobs] == [0, 1]
    assert [job.swept for job in jobs] == [{"number": 1, "group": "one"}, {"number": 2, "group": "two"}]
    assert jobs[1].overrides == ("needed=1", "number=2", "group=two", "nested.deep.value=1e-3")
    assert jobs[1].options["twice"] == "22"
    assert jobs[1].options["group"] == {"name": "two", "size": 2, "extra": 2}
    assert jobs[1].options["nested"] == {"deep": {"value": 1e-3, "other": None}, "job": 1}
    assert jobs[1].folder == Path("out").absolute() / "job 1"
    assert "hydra" not in jobs[1].options


@pytest.mark.parametrize(
    ("jobs", "swept"),
    [
        ([["number=1"], ["number=1", "text=a"]], {"text": [None, "a"]}),
        (
            [["number=1"], ["text=a"], ["number=1", "text=b"]],
            {"number": [1, None, 1], "text": [None, "a", "b"]},
        ),
        ([["number=1"], ["++number=2"]], {"number": [1, 2]}),
        ([["~text"], ["text=a"]], {"text": [None, "a"]}),
        ([["flag=1", "number=nan"], ["flag=true", "number=nan"]], {"flag": [1, True]}),
    ],
)
def test_what_differs_between_jobs_of_different_options(master, jobs, swept):
    made = compose_jobs(master, *(["needed=1", *job] for job in jobs))
    assert {name: [job.swept[name] for job in made] for name in made[0].swept} == swept


def test_a_job_that_does_not_compose_says_why(master):
    jobs = compose_jobs(master, ["needed=1", "number=1"], ["number=2"], ["needed=1", "unknown=3"])
    assert jobs[0].options["number"] == 1
    assert "Missing mandatory value: needed" in str(jobs[1].options)
    assert "unknown" in str(jobs[2].options)
    with pytest.raises(Exception, match="needed"):
        compose_jobs(master, ["number=1"], ["number=2"])


# --- the books of a job ---------------------------------------------------------------------------

AWKWARD = ["needed='1'", "text='yes: no'", "number=1e-3", "nothing='~'", "list=['ä',null,'0x1f','']"]


@pytest.mark.parametrize("subdir", [".hydra", "null"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.usefixtures("hydra_restore_singletons", "own_logging")
def test_the_books_are_those_of_hydra(configs, tmp_path, monkeypatch, fails, subdir):
    def work():
        logging.getLogger("app").info("at work")
        if fails:
            raise ValueError("no")
        return 7

    def task(config):
        return work()

    task.__module__ = __name__
    kept = []
    for name in ("hydra", "ours"):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        quiet = "hydra.job_logging.formatters.simple.format='%(message)s'"
        master = set_up(configs, f"hydra.output_subdir={subdir}", quiet)
        composer = Composer(master.hydra.config_loader, master.config)
        composer.job(2, ["needed='0'", *AWKWARD[1:]])  # leaves what must not be seen
        composer.hydra()
        config = composer.job(3, AWKWARD)
        context = hydra_context(master)
        if name == "hydra":
            kept.append(run_job(task, config, "hydra.sweep.dir", "hydra.sweep.subdir", context))
        else:
            HydraConfig.instance().cfg = config
            kept.append(books.kept(task, work, config, context, books.folder_of(config), composer.hydra()))
    found = [contents(tmp_path / name) for name in ("hydra", "ours")]
    assert found[0] == found[1]
    assert len(found[0]) == (1 if subdir == "null" else 4)
    assert [each.status for each in kept] == [JobStatus.FAILED if fails else JobStatus.COMPLETED] * 2
    assert [str(each._return_value) for each in kept] == ["no" if fails else "7"] * 2
    assert kept[0].overrides == kept[1].overrides
    assert kept[0].task_name == kept[1].task_name


def contents(folder):
    """The texts of all files in a folder, with its own name left out of them."""
    return {
        str(path.relative_to(folder)): path.read_text().replace(str(folder), "HERE")
        for path in folder.rglob("*")
        if path.is_file()
    }


# --- failures, order, values ----------------------------------------------------------------------


@pytest.fixture
def launch(configs, tmp_path, monkeypatch, hydra_restore_singletons, own_logging):
    """Launch jobs of a task, in an empty folder: gives their returns."""
    monkeypatch.chdir(tmp_path)
    master = set_up(configs, "hydra/job_logging=none", "hydra/hydra_logging=none")

    def run(task, *overrides, first=0):
        return launcher(master, task).launch(list(overrides), first)

    return run


def numbers(*values):
    return [["needed=1", f"number={value}"] for value in values]


def test_a_job_that_fails_leaves_the_others_alone(launch):
    returns = launch(Recorder(fail), *numbers(1, 2, 3), ["number=4"])
    expected = [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.COMPLETED, JobStatus.FAILED]
    assert [each.status for each in returns] == expected
    assert [returns[0].return_value, returns[2].return_value] == [1, 3]
    assert str(returns[1]._return_value) == "two is too many"
    assert "needed" in str(returns[3]._return_value)
    assert [each.overrides for each in returns[:2]] == numbers(1, 2)


def test_jobs_that_never_end_have_no_status(launch):
    returns = launch(Recorder(order=lambda jobs: jobs[1:]), *numbers(1, 2))
    assert [each.status for each in returns] == [JobStatus.UNKNOWN, JobStatus.COMPLETED]


def test_returns_are_in_the_order_of_the_jobs(launch):
    task = Recorder(order=lambda jobs: reversed(jobs))
    assert [each.return_value for each in launch(task, *numbers(1, 2, 3))] == [0, 1, 2]


def test_ctrl_c_ends_the_sweep_and_hydra_is_as_before(launch):
    def interrupted(job):
        raise KeyboardInterrupt

    before = HydraConfig.instance().cfg
    with pytest.raises(KeyboardInterrupt):
        launch(Recorder(interrupted), *numbers(1, 2))
    assert HydraConfig.instance().cfg is before


def test_each_job_has_its_own_number_and_folder(launch, tmp_path):
    def look(job):
        runtime = HydraConfig.get()
        (Path(runtime.runtime.output_dir) / "here").touch()
        return runtime.job.num, runtime.job.override_dirname, str(Path.cwd())

    returns = launch(Recorder(look), *numbers(5, 6), first=40)
    assert [each.return_value for each in returns] == [
        (number, f"needed=1,number={value}", str(tmp_path)) for number, value in ((40, 5), (41, 6))
    ]
    assert (tmp_path / "out" / "job 41" / "here").exists()
    overrides = (tmp_path / "out" / "job 41" / ".hydra" / "overrides.yaml").read_text()
    assert overrides == "- needed=1\n- number=6\n"


def test_a_sweeper_that_chooses_as_it_goes_reads_values(launch):
    """As those that optimize do: call by call, with growing numbers."""
    task, seen = Recorder(lambda job: (job.options["number"] - 3) ** 2), {}
    value = 0
    for first in range(0, 12, 2):
        returns = launch(task, *numbers(value, value + 1), first=first)
        seen |= {value + place: each.return_value for place, each in enumerate(returns)}
        value += 1 if seen[value + 1] <= seen[value] else -1
    assert min(seen, key=seen.get) == 3
    assert task.jobs[0].number == 10


@pytest.mark.parametrize(
    ("option", "seen"),
    [("hydra.job.chdir=true", ("job 1", None)), ("+hydra.job.env_set.SET=so", ("out", "so"))],
)
@pytest.mark.usefixtures("hydra_restore_singletons", "own_logging")
def test_the_process_changes_with_the_job_where_nobody_looks_on(configs, tmp_path, monkeypatch, option, seen):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    master = set_up(configs, "hydra/job_logging=none", "hydra/hydra_logging=none", option)
    task = Recorder(lambda job: (Path.cwd().name, os.environ.get("SET")))
    assert launcher(master, task).launch(numbers(1), 1)[0].return_value == seen
    assert (Path.cwd().name, os.environ.get("SET")) == ("out", None)


# --- callbacks, and whole applications ------------------------------------------------------------

APPLICATION = """
import os, sys
from pathlib import Path

import hydra
from hydra.experimental.callback import Callback

from bwdln import batching

batching.expose_plugin()


class Told(Callback):
    def on_multirun_start(self, config, **rest):
        print("start", sorted(config.hydra.callbacks))

    def on_job_start(self, config, *, task_function, **rest):
        print("job", config.number, config.hydra.job.num, task_function.__name__)

    def on_job_end(self, config, job_return, **rest):
        print("end", config.number, job_return.status.name, job_return._return_value)

    def on_multirun_end(self, config, **rest):
        print("over")


def task(config):
    print("alone", config.number)


def batch(jobs, folder):
    print("together", [job.options["number"] for job in jobs])
    for job in jobs:
        yield job.number, lambda: (job.options["number"], Path.cwd().name, os.environ.get("SET"))


if sys.argv.pop() == "together":
    task.batch = batch
hydra.main(version_base="1.3", config_path="conf", config_name="config")(task)()
"""


@pytest.fixture
def application(tmp_path):
    """An application of somebody else, in a process of its own: gives its lines."""
    write(tmp_path / "conf")
    (tmp_path / "app.py").write_text(APPLICATION)

    def run(*arguments):
        command = [sys.executable, "app.py", "-m", "needed=1", "hydra/job_logging=none", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}  # a clone that is not installed
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if not line.startswith("[")]

    return run


def test_a_task_that_says_nothing_runs_one_by_one(application):
    assert application("number=1,2", "alone") == ["alone 1", "alone 2"]


def test_callbacks_see_every_job(application, tmp_path):
    assert application("number=1,2", "+hydra.callbacks.told._target_=__main__.Told", "together") == [
        "start ['told']",
        "together [1, 2]",
        "job 1 0 task",
        f"end 1 COMPLETED (1, '{tmp_path.name}', None)",
        "job 2 1 task",
        f"end 2 COMPLETED (2, '{tmp_path.name}', None)",
        "over",
    ]


def test_a_job_may_have_its_own_directory_and_environment(application):
    told = "+hydra.callbacks.told._target_=__main__.Told"
    lines = application("number=1,2", told, "hydra.job.chdir=true", "+hydra.job.env_set.SET=so", "together")
    ends = [line for line in lines if line.startswith("end")]
    assert ends == ["end 1 COMPLETED (1, 'job 0', 'so')", "end 2 COMPLETED (2, 'job 1', 'so')"]
