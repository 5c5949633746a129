"""The command line of experiments.train: configuration, errors, folders, summary."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from registries import REGISTRIES

from bwdln import analysis, figures, results, simulate
from bwdln import config as configurations
from bwdln.errors import InvalidOption
from bwdln.lanes import Progress
from bwdln.losses import LOSSES, frobenius
from bwdln.registry import Choice
from bwdln.sweep import SweepProgress
from experiments import command_line, display, train

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
TINY = ("target.dimension=4", "network.depth=2", "seeds=2", "dynamics.steps=20", "record.count=5")
COLUMNS = ["seed", "final", "loss", "gap", "relative", "gap", "rank", "steps", "flow", "time", "outcome"]
#: Values for the options that have no default.
NEEDED = {
    "target=explicit": ("target.eigenvalues=[2.0,1.0]",),
    "target=file": ("target.path=samples.npy",),
    "network=explicit": ("network.widths=[5,20]",),
    "initialization=file": ("initialization.path=weights.npz",),
}


def composed(*overrides, name="config"):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return command_line.plain(compose(name, list(overrides)))


def configuration(*overrides):
    return command_line.training(composed(*overrides)).config


def group_files():
    files = (path.relative_to(CONFIGS) for path in sorted(CONFIGS.rglob("*.yaml")))
    return [path for path in files if len(path.parts) > 1 and path.parts[0] != "hydra"]


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# --- configuration --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", group_files(), ids=str)
def test_every_choice_composes_and_lists_exactly_the_options_of_its_function(path):
    group, name = str(path.parent), path.stem
    if group == "experiment/paper_convergence":  # what the experiment sets for one of several dynamics
        chosen = dict(configuration("+experiment=paper_convergence", f"dynamics={name}").dynamics.options)
        own = OmegaConf.to_container(OmegaConf.load(CONFIGS / path))
        assert own.items() <= chosen.items()
        return
    choice = f"{group}={name}"
    if choice == "experiment=paper_hessians":
        assert command_line.landscape(composed(f"+{choice}", name="landscape")).targets == 16
        return
    config = configuration(("+" if group == "experiment" else "") + choice, *NEEDED.get(choice, ()))
    if group in REGISTRIES:
        chosen = dict(config.dynamics.options)[group[9:]] if "/" in group else getattr(config, group)
        assert chosen.name == name
        assert dict(chosen.options).keys() == REGISTRIES[group].options(name).keys()
        assert REGISTRIES[group].resolved(chosen)


def test_the_defaults_are_a_job_that_can_run():
    problem = simulate.prepare(configuration())
    assert problem.static.widths == (20, 20, 20, 20)


def test_the_main_job_is_what_it_should_be():
    config = configuration("+experiment=quickstart")
    assert (config.target.name, config.seeds) == ("digits", 16)
    assert (config.network.depth, config.network.bottleneck) == (3, 10)
    assert dict(config.dynamics.options)["gap_tolerance"] == 1e-12


@pytest.mark.parametrize("path", [p for p in group_files() if p.parts[0] != "experiment"], ids=str)
def test_every_option_has_a_comment(path):
    lines = (CONFIGS / path).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    options = [line for line in lines if re.match(r"\w+: *\S", line)]
    assert options
    for line in options:
        assert " # " in line or line.split(":")[0] in ("name", "profile"), line


def test_every_option_of_the_primary_file_has_a_comment():
    lines = (CONFIGS / "config.yaml").read_text(encoding="utf-8").splitlines()
    options = [line for line in lines if re.match(r" *\w+: *[^#\s]", line)]
    assert options
    assert all(" # " in line for line in options)


def test_documented_options_can_be_given():
    config = configuration(
        *("target.rank=5", "network.depth=4", "network.hidden_width=8", "network.latent_dim=7"),
        *("network.bottleneck=3", "initialization=small", "initialization.scale=0.5", "loss.tau=0.1"),
        *("dynamics.step_size=1e-3", "dynamics.steps=50", "dynamics.gap_tolerance=1e-9"),
        *("dynamics/optimizer=adam", "dynamics/schedule=cosine", "record.count=7"),
        *("record.spacing=logarithmic", "seeds=3", "seed=5", "precision=float32"),
    )
    dynamics = dict(config.dynamics.options)
    assert dict(config.target.options)["rank"] == 5
    assert config.network == configurations.Network("constant", 4, 8, 7, 3)
    assert dict(config.initialization.options)["scale"] == 0.5
    assert config.loss == Choice("bures_wasserstein", (("kernel", "auto"), ("tau", 0.1)))
    assert (dynamics["step_size"], dynamics["steps"], dynamics["gap_tolerance"]) == (1e-3, 50, 1e-9)
    assert (dynamics["optimizer"].name, dynamics["schedule"].name) == ("adam", "cosine")
    assert config.record == configurations.Record(7, "logarithmic")
    assert (config.seeds, config.seed, config.precision) == (3, 5, "float32")


def test_widths_can_be_given_without_contradicting_a_default():
    config = configuration("network.widths=[3,4,20]")
    assert simulate.prepare(config).static.widths == (3, 4, 20)


def test_a_mapping_survives_the_way_to_a_configuration_and_back():
    config = configuration("loss=frobenius")
    assert configurations.from_mapping(config.mapping()) == config


def test_tau_zero_is_dropped_for_a_loss_without_tau():
    assert configuration("loss=frobenius").loss == Choice("frobenius")
    assert configuration("loss=frobenius", "loss.tau=0").loss == Choice("frobenius")
    with pytest.raises(InvalidOption, match=r"loss\.tau: got 0\.1; takes only 0 with frobenius"):
        configuration("loss=frobenius", "loss.tau=0.1")


def test_a_plugin_is_imported_before_choices_are_looked_up(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.setattr(LOSSES, "_functions", dict(LOSSES._functions))
    Path("plugin_with_a_loss.py").write_text(
        "from bwdln.losses import LOSSES, frobenius\n"
        "@LOSSES.register('weighted')\n"
        "def weighted(*, weight: float = 1.0):\n"
        "    return frobenius()\n"
    )
    config = configuration("plugins=[plugin_with_a_loss]", "loss.name=weighted", "+loss.weight=2")
    assert config.loss == Choice("weighted", (("weight", 2),))
    assert type(LOSSES.build(config.loss)) is type(frobenius())


# --- refusals -------------------------------------------------------------------------------------

REFUSALS = [
    ("netwrk.depth=3", "netwrk.depth: got 3; takes .*did you mean network"),
    ("network.depht=3", "network.depht: got 3; takes .*did you mean network.depth"),
    ("targett=zipf", "targett: got zipf; takes .*did you mean target"),
    ("dynamics/optimiser=adam", "dynamics/optimiser: got adam; takes .*did you mean dynamics/optimizer"),
    ("target=zipff", "target: got zipff; takes .*did you mean zipf"),
    ("dynamics/optimizer=adm", "dynamics/optimizer: got adm; takes .*did you mean adam"),
    ("+experiment=quickstar", "experiment: got quickstar; takes .*did you mean quickstart"),
    ("target={dimenson:3}", "target.dimenson: got {dimenson:3}; takes .*did you mean target.dimension"),
    ("dynamics.optimizer=adm", "dynamics.optimizer: got adm; takes .*did you mean adam"),
    ("dynamics.optimizer=3", "dynamics.optimizer: got 3; takes a name"),
    (
        "dynamics=gradient_flow dynamics/optimizer=adam",
        "dynamics/optimizer: got adam; takes nothing with dynamics=gradient_flow, which has no optimizer",
    ),
    (
        "dynamics=gradient_flow +dynamics/optimizer=adam",
        "dynamics.optimizer: got adam; takes one of absolute_tolerance",
    ),
    (
        "precision=float32 dynamics=gradient_flow dynamics.end_time=1e-60",
        r"dynamics.end_time: got 1e-60; takes 0 or a number from 1e-38 to 3e\+38 in float32",
    ),
    ("experiment=quickstart", r"experiment: got quickstart; takes .*\+experiment=quickstart"),
    ("loss=null", "loss=null: .*must be a string"),
    ("seeds.a=3", "seeds.a: got 3; takes nothing: seeds has no options"),
    ("network=explicit", "network.widths: got nothing; takes a value"),
    ("network=explicit network.depth=3", "network.depth: got 3; takes .*network.widths"),
    ("outputs/train", r"command line: got outputs/train; takes option=value \(missing EQUAL"),
    ("seeds=[1", r"command line: got seeds=\[1; takes option=value"),
    ("loss.tau=0,1", "loss.tau: got 0,1; takes one value; several need -m"),
    ("--frobnicate", "command line: got --frobnicate; .*unrecognized"),
    ("--config-name nothing", "--config-name: got nothing; takes the name of a YAML file"),
    ("-m --cfg job", "Only one of"),
    ("seed=${nothing}", r"seed: got an interpolation; takes .*\(Interpolation key 'nothing'"),
    ("hydra.run.dir=${nothing}", "hydra.run.dir: got an interpolation; takes"),
    ("hydra.run.dir=/dev/null/x", r"hydra.run.dir: got /dev/null/x; takes .*\(Not a directory\)"),
    ("hydra.run.dir=/proc/x", "hydra.run.dir: got /proc/x; takes a folder that can be written"),
    ("-m hydra.sweep.dir=/dev/null/x seed=1,2", "hydra.sweep.dir: got /dev/null/x; takes"),
    ("hydra/launcher=nothing", "hydra/launcher: got nothing; takes one of basic"),
    ("hydra.job.num=a", "Error merging override hydra.job.num=a: Value 'a'"),
    ("+seeds=3", "Could not append to config. An item is already at 'seeds'"),
    ("seeds=many", "seeds: got 'many'; takes an integer"),
    ("seeds=0", "seeds: got 0; takes an integer from 1"),
    ("precision=float16", "precision: got 'float16'; takes float64 or float32"),
    ("plugins=[no_such_module]", r"plugins: got no_such_module; .*\(ModuleNotFoundError: No module"),
    ("plugins=no_such_module", "plugins: got 'no_such_module'; takes a list"),
    ("loss.tau=-1", "loss.tau: got -1"),
    ("loss.tau=nan", "loss.tau: got nan"),
    ("loss=frobenius loss.tau=0.1", "loss.tau: got 0.1; takes only 0"),
    ("loss.name=bures", "loss: got bures; takes .*bures_wasserstein"),
    ("+loss.taus=1", "loss.taus: got 1; takes .*tau"),
    ("dynamics.step_size=0", "dynamics.step_size: got 0"),
    ("record.count=3000", "record.count: got 3000; takes"),
    ("target.rank=21", "target.rank: got 21"),
    ("network.bottleneck=21", "network.bottleneck: got 21"),
]


@pytest.mark.parametrize(("line", "message"), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_bad_input_gets_one_line_and_leaves_nothing_but_the_log(command, tmp_path, line, message):
    status, out, err = command(*line.split())
    assert status == 1
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert re.match(message, err)
    kept = ("train.log", "multirun.yaml")  # a sweep is described before its jobs are composed
    assert all(name.endswith(kept) for name in written(tmp_path))
    assert not list(tmp_path.rglob(".hydra"))
    assert os.environ.get("HYDRA_FULL_ERROR") != "1"


def test_the_log_of_a_refused_run_holds_the_line(command):
    _, _, err = command("seeds=0", "hydra.run.dir=here")
    assert err.strip() in Path("here/train.log").read_text()


def test_an_unreadable_plugin_is_named_with_the_reason(command, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("plugin_with_a_mistake.py").write_text("1 +\n")
    status, _, err = command("plugins=[plugin_with_a_mistake]")
    assert status == 1
    assert err.startswith("plugins: got plugin_with_a_mistake; takes modules that can be imported (Syn")
    assert len(err.splitlines()) == 1


def test_a_mistake_of_ours_shows_its_traceback(command, monkeypatch):
    def run(config, on_progress):
        raise ValueError("ours")

    monkeypatch.setattr(simulate, "run", run)
    with pytest.raises(ValueError, match="ours"):
        command(*TINY)


def test_every_traceback_can_be_asked_for(command, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(InvalidOption):
        command("seeds=0")


# --- runs -----------------------------------------------------------------------------------------


def test_a_run_prints_its_summary_and_logs_it_and_is_never_overwritten(command, tmp_path):
    status, out, err = command(*TINY, "hydra.run.dir=here")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].split() == COLUMNS
    assert [line.split()[0] for line in lines[1:3]] == ["0", "1"]
    assert lines[3] == "0 of 2 seeds are within 1e-09 relative gap of the optimum"
    assert [line.split()[0] for line in lines[-5:]] == ["time", "result", "report", "figures", "log"]
    assert lines[-4:] == [
        "result   here/result.nc",
        "report   here/report.html",
        "figures  here/{gap}.{pdf,png}",
        "log      here/train.log",
    ]
    kept = {name: Path("here", name).read_bytes() for name in written(Path("here"))}
    log = kept["train.log"].decode()
    assert lines[1] in log and '"seeds": 2' in log and "jax" in log
    assert {"result.nc", ".hydra/config.yaml"} <= kept.keys()

    status, out, err = command(*TINY, "hydra.run.dir=here", "seeds=3")
    assert (status, out) == (1, "")
    assert err == f"hydra.run.dir: got {tmp_path}/here; takes a folder without a result; this one has one\n"
    assert written(Path("here")) == sorted(kept)
    for name in kept.keys() - {"train.log"}:
        assert Path("here", name).read_bytes() == kept[name]


def test_a_sweep_runs_every_job_and_says_which_was_refused(command):
    status, _, err = command("-m", *TINY, "hydra.sweep.dir=here", "seed=0,1")
    assert (status, err) == (0, "")
    assert {"0/result.nc", "1/result.nc"} <= set(written(Path("here")))

    status, _, err = command("-m", *TINY, "hydra.sweep.dir=there", "dynamics.step_size=-1,0.02")
    assert status == 1
    assert err.startswith("job 0: dynamics.step_size: got -1")
    assert "refused: dynamics.step_size: got -1" in Path("there/0/train.log").read_text()
    assert "dynamics.step_size=-1" in Path("there/0/.hydra/overrides.yaml").read_text()
    assert not Path("there/0/result.nc").exists()
    assert "1/result.nc" in written(Path("there"))


def test_an_interrupted_run_keeps_what_was_recorded(command, monkeypatch):
    def interrupt(progress):
        if progress.position >= 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(display, "progress", lambda: memoryless(interrupt))
    status, out, _ = command(*TINY, "hydra.run.dir=here")
    assert status == 130
    assert out.splitlines()[0] == "interrupted: what was recorded until now is kept"
    result = results.load("here")
    assert result.dataset.attrs["interrupted"] == 1
    assert result.outcomes == ("running", "running")


def test_an_interruption_at_any_other_time_is_one_line(command, monkeypatch):
    def run(config, on_progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "run", run)
    monkeypatch.setattr(os, "_exit", sys.exit)
    assert command(*TINY) == (130, "", "interrupted\n")


LONG = ("target.dimension=6", "seeds=3", "dynamics.steps=2000000000", "dynamics.step_size=1e-9")


def long_run(folder):
    """A run of hours in a process of its own, once it has begun."""
    arguments = ["-m", "experiments.train", *LONG, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (folder / "train.log").exists() or "device" not in (folder / "train.log").read_text():
        assert process.poll() is None
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.3, 1.5, 4.0, 10.0])
def test_ctrl_c_keeps_what_was_recorded_whenever_it_comes(tmp_path, seconds):
    """During set-up, while something compiles, and between blocks of steps."""
    process = long_run(tmp_path)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "interrupted: what was recorded until now is kept" in out
    result = results.load(tmp_path)
    assert result.outcomes == ("running",) * 3
    assert result.dataset.attrs["interrupted"] == 1


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_process_at_once(tmp_path):
    process = long_run(tmp_path)
    for _ in range(2):
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err in ("interrupted\n", "")


def test_a_sweeper_never_gets_nan(monkeypatch, tmp_path):
    given = command_line.training(composed(*TINY))
    monkeypatch.setattr(figures, "save_all", lambda result, folder: [])
    monkeypatch.setattr(command_line, "is_sweep", lambda: True)
    gap = train.train(given, tmp_path)
    assert 0 < gap < 1
    monkeypatch.setattr(analysis, "objective", lambda result, name: math.nan)
    assert train.train(given, tmp_path) == sys.float_info.max


class memoryless:
    """A context that gives the same thing every time."""

    def __init__(self, given):
        self.given = given

    def __enter__(self):
        return self.given

    def __exit__(self, *error):
        return None


# --- display --------------------------------------------------------------------------------------

AT = SimpleNamespace(
    position=1200.0,
    end=2000.0,
    clock="step",
    running=3,
    converged=12,
    diverged=0,
    lanes=16,
    best_gap=1.5e-9,
    median_gap=2e-3,
)


def test_the_bar_shows_lanes_and_gaps_on_a_terminal_only(monkeypatch, capsys):
    with display.progress() as on_progress:
        on_progress(AT)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with display.progress() as on_progress:
        on_progress(AT)
    out, err = capsys.readouterr()
    assert out == ""
    assert "step 1,200/2,000 · 3/16 running, 12 converged · gap 1.5e-09, median 2.0e-03 · left" in err


BATCH = Progress(**vars(AT))
WHOLE = SweepProgress(jobs=5, done=2, stored=1, failed=1, lanes=32, lanes_done=8, running=BATCH)


def test_a_sweep_tells_how_far_it_is_in_two_bars_on_a_terminal_only(monkeypatch, capsys, tmp_path):
    with display.sweep_progress(tmp_path) as on_progress:
        on_progress(WHOLE)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    with display.sweep_progress(tmp_path) as on_progress:
        on_progress(WHOLE)
    out, err = capsys.readouterr()
    assert out == ""
    # 8 lanes of batches that ended, and 16 at 3/5 of their way.
    assert re.search(r"2/5 jobs, 1 failed · 18/32 lanes, .* a second · left", err)
    assert "step 1,200/2,000 · 3/16 running, 12 converged" in err


def test_a_sweep_tells_other_programs_how_far_it_is(tmp_path):
    path = tmp_path / "progress.json"
    with pytest.raises(KeyboardInterrupt), display.sweep_progress(tmp_path) as on_progress:
        on_progress(WHOLE._replace(running=BATCH._replace(best_gap=math.nan)))
        raise KeyboardInterrupt
    told = json.loads(path.read_text())
    assert {name: told[name] for name in ("state", "jobs", "done", "failed", "lanes")} == {
        "state": "interrupted", "jobs": 5, "done": 2, "failed": 1, "lanes": 32
    }  # fmt: skip
    assert told["running"]["converged"] == 12
    assert told["running"]["best_gap"] is None
    assert told["seconds_left"] >= 0
    with display.sweep_progress(tmp_path) as on_progress:
        on_progress(WHOLE._replace(running=None, lanes_done=32))
    told = json.loads(path.read_text())
    assert (told["state"], told["running"], told["seconds_left"]) == ("finished", None, 0.0)
    assert list(tmp_path.iterdir()) == [path]


def test_the_bar_of_a_flow_shows_its_time():
    at = SimpleNamespace(**vars(AT) | {"position": 0.5, "end": 3.0, "clock": "time"})
    assert display.state(at).startswith("time 0.5/3 · 3/16 running, 12 converged")


def test_long_tables_are_cut_on_a_terminal_only(monkeypatch, capsys):
    row = SimpleNamespace(
        seed=0, outcome="reached_end", step=10, time=0.1, loss=1.0, gap=0.5, relative_gap=0.1, rank=3
    )
    display.show([row] * 50)
    assert len(capsys.readouterr().out.splitlines()) == 51
    monkeypatch.setenv("FORCE_COLOR", "1")
    display.show([row] * 50)
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1 + display.LISTED + 1
    assert "18 more seeds" in out


# --- processes ------------------------------------------------------------------------------------

QUICK = """
import os, sys
from experiments import train
os.environ["COMP_LINE"] = "python experiments/train.py network=l"
for flags in (["--help"], ["--cfg", "job"], ["-sc", "query=bash"], ["seeds=0"], ["--info"]):
    sys.argv = ["train.py", *flags]
    try:
        train.main()
    except SystemExit as end:
        print("status", end.code)
    print("<<<>>>")
assert "jax" not in sys.modules and "matplotlib" not in sys.modules
"""


def test_looking_around_is_quick_because_jax_is_imported_late(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", QUICK], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shown_help, shown_job, completed, refused, shown_info, _ = done.stdout.split("<<<>>>\n")
    said = ("Common options", "dynamics/optimizer: adam", "+experiment=quickstart", "loss.tau", '"$(python')
    for text in said:
        assert text in shown_help
    assert OmegaConf.create(shown_job) == OmegaConf.create(composed())
    assert "Config search path" in shown_info
    assert completed == "network=linear\n"
    assert refused == "status 1\n"


COMPLETE = """
eval "$(python experiments/train.py -sc install=bash)"
for line in "loss" "network=l" "dynamics.st"; do
    COMP_LINE="python experiments/train.py $line"
    COMP_WORDS=($COMP_LINE)
    COMP_CWORD=2
    hydra_bash_completion
    echo "${COMPREPLY[@]}"
done
"""


def test_tab_completion_works_as_the_help_says():
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", COMPLETE], cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "loss. loss=",
        "network=linear",
        "dynamics.step_size= dynamics.steps=",
    ], done.stderr


def test_a_real_process_writes_result_figures_and_log(tmp_path):
    arguments = [*TINY, f"hydra.run.dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = written(tmp_path)
    assert {"result.nc", "train.log", "gap.pdf", "gap.png"} <= set(names)
    assert results.load(tmp_path).config.seeds == 2
    assert f"result   {tmp_path}/result.nc" in done.stdout
