"""One program over several processes, joined over loopback: the same results as one process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import engines
import numpy as np
import pytest
from problems import job

from bwdln import distribution, simulate, sweep

COMPARED = """
import json
import sys

from problems import job

from bwdln import distribution, simulate, sweep
from bwdln.config import Sweep
from bwdln.store import Store

port, count, number, folder = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
simulate.set_up_process()
if count > 1:
    distribution.initialize(f"127.0.0.1:{port}", count, number)
# Seven seeds and three, and one: shares of one length, in which some lanes are twice.
configs = [
    job(
        dynamics=dynamics,
        initialization={"name": "xavier_normal", "balanced": True},
        loss={"name": "bures_wasserstein", "tau": tau},
        record={"count": 6},
        seeds=seeds,
    )
    for dynamics in (
        {"name": "gradient_descent", "step_size": 0.05, "steps": 300, "gap_tolerance": 1e-6},
        {"name": "end_to_end_flow", "end_time": 2.0},
    )
    for tau, seeds in ((0.1, 7), (0.3, 3), (0.2, 1))
]
with sweep.first_process() as is_first:
    if not is_first:
        sys.exit()
    results = sweep.run(configs, Sweep(), store=Store(folder)) + sweep.run(configs, Sweep(lanes_per_batch=4))
names = ("loss", "singular_values", "final_end_to_end", "time")
found = [[result.dataset[name].values.tolist() for name in names] for result in results]
found.append([result.dataset["outcome"].values.tolist() for result in results])
print(json.dumps(found))
"""


def free_port():
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def processes(script, count, *arguments):
    """Run a script in so many processes; what each says, once all have ended well."""
    port = free_port()
    environment = os.environ | {"PYTHONPATH": f"{engines.ROOT}:{engines.ROOT / 'tests'}"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(port), str(count), str(number), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(count)
    ]
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0] * count, [errors[-2000:] for _, errors in said]
    return [output.splitlines()[-1] for output, _ in said if output.splitlines()]


def differences(left, right):
    """The largest relative difference between nested lists of numbers; texts must be equal."""
    if isinstance(left, list):
        assert len(left) == len(right)
        return max((differences(*pair) for pair in zip(left, right, strict=True)), default=0.0)
    if isinstance(left, str):
        assert left == right
        return 0.0
    return abs(left - right) / (1 + abs(left))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_equal_one(tmp_path, count):
    (alone,) = processes(COMPARED, 1, str(tmp_path / "alone"))
    together = processes(COMPARED, count, str(tmp_path / "together"))
    assert differences(json.loads(alone), json.loads(together[0])) <= 1e-12
    stored = [sorted(path.name for path in (tmp_path / name).glob("*.nc")) for name in ("alone", "together")]
    assert stored[0] == stored[1] and stored[0]


FAILING = """
import json
import sys

import numpy as np

from bwdln import distribution

port, count, number, what = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
distribution.initialize(f"127.0.0.1:{port}", count, number)
raised = "nothing"
try:
    with distribution.together():
        if number == 1 and what == "error":
            raise MemoryError("RESOURCE_EXHAUSTED: no room")
        if number == 1 and what == "interrupt":
            raise KeyboardInterrupt
except (Exception, KeyboardInterrupt) as error:
    raised = f"{type(error).__name__} {error}"
told = distribution.told("from the first" if number == 0 else "ignored")
lanes = distribution.gathered({"lanes": np.full((2, 3), number)}, 3)["lanes"]
print(json.dumps([raised.strip(), told, lanes.tolist()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "first", "second"),
    [
        ("nothing", "nothing", "nothing"),
        (
            "error",
            "RuntimeError process 1 of 2 failed: MemoryError: RESOURCE_EXHAUSTED: no room",
            "MemoryError RESOURCE_EXHAUSTED: no room",
        ),
        ("interrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_what_is_raised_in_one_process_is_raised_in_all(what, first, second):
    rest = ["from the first", [[0, 0, 0], [0, 0, 0], [1, 1, 1]]]
    assert list(map(json.loads, processes(FAILING, 2, what))) == [[first, *rest], [second, *rest]]


LATE = """
import sys
import time

import numpy as np

from bwdln import distribution

port, count, number = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
distribution.initialize(f"127.0.0.1:{port}", count, number)
distribution.told("ready")
time.sleep(6 * number)
try:
    print(len(distribution.gathered(np.zeros(2), 3)), flush=True)
except distribution.Separated as error:
    print("separated", error, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "said"), [("", "3"), ("--xla_cpu_collective_timeout_seconds=2", "separated")]
)
def test_a_process_waits_for_one_that_is_late_and_says_when_they_are_separated(monkeypatch, flags, said):
    """XLA waits for half an hour unless it is told otherwise: here it is two seconds, or as it is."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert [each.split()[0] for each in processes(LATE, 2)] == [said, said]


def test_processes_may_wait_long_for_each_other(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/nowhere")
    monkeypatch.setattr(distribution.jax.distributed, "initialize", lambda *given, **options: None)
    monkeypatch.setattr(distribution.jax.config, "update", lambda *given: None)
    distribution.initialize()
    wait = f"--xla_cpu_collective_timeout_seconds={distribution.LONGEST_WAIT}"
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=/nowhere {wait}" and distribution.LONGEST_WAIT >= 86400


def test_processes_that_are_separated_are_no_failure_of_a_job(monkeypatch):
    def separated(*given, **options):
        raise distribution.Separated("another process is gone")

    monkeypatch.setattr(simulate, "begin", separated)
    with pytest.raises(distribution.Separated):
        sweep.run([job(), job(seed=1)])


@pytest.mark.slow
def test_the_command_line_in_two_processes_equals_one(tmp_path):
    options = ("loss.tau=0.1,0.2,0.3", "target.dimension=6", "seeds=3", "dynamics.steps=300")
    assert engines.run(tmp_path / "one", *options).returncode == 0
    port, folder = free_port(), tmp_path / "two"
    joined = ("sweep.engine=distributed", f"sweep.distributed.coordinator_address=127.0.0.1:{port}")
    running = [
        engines.start(
            folder,
            *options,
            *joined,
            "sweep.distributed.num_processes=2",
            f"sweep.distributed.process_id={number}",
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], [errors for _, errors in said]
    assert "3 of 3 jobs done" in said[0][0]
    assert "jobs" not in said[1][0]  # the first one speaks and writes
    engines.assert_equal(tmp_path / "one", folder)


@pytest.mark.slow
def test_interrupted_processes_go_on_where_they_were_saved(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "interrupted"
    assert engines.run(whole, *engines.LONG).returncode == 0

    def both():
        port = free_port()
        return [
            engines.start(
                folder,
                *engines.LONG,
                "sweep.engine=distributed",
                f"sweep.distributed.coordinator_address=127.0.0.1:{port}",
                "sweep.distributed.num_processes=2",
                f"sweep.distributed.process_id={number}",
            )
            for number in range(2)
        ]

    running = both()
    engines.until(lambda: len(list(folder.glob("store/checkpoints/[!.]*-of-2.npz"))) == 2)
    time.sleep(0.5)
    for process in running:
        process.send_signal(signal.SIGINT)
    said = [process.communicate(timeout=300) for process in running]
    assert running[0].returncode == 130, said
    assert running[1].returncode == 0, said
    assert len(list(folder.glob("store/checkpoints/[!.]*-of-2.npz"))) == 2
    running = both()
    said = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    engines.assert_equal(whole, folder)
    assert not list(folder.glob("store/checkpoints/*"))


def test_a_single_process_has_all_lanes():
    assert distribution.processes() == 1 and distribution.is_first() and distribution.part() == ""
    np.testing.assert_array_equal(distribution.share(5), np.arange(5))
    tree = {"a": np.arange(6).reshape(3, 2)}
    assert distribution.own(tree, 3) is tree and distribution.gathered(tree, 3) is tree
    with pytest.raises(KeyError), distribution.together():
        raise KeyError


@pytest.mark.parametrize(("processes", "count"), [(2, 7), (3, 7), (4, 3), (4, 1), (5, 5)])
def test_shares_are_of_one_length_and_hold_every_lane(monkeypatch, processes, count):
    monkeypatch.setattr(distribution, "processes", lambda: processes)
    shares = []
    for number in range(processes):
        monkeypatch.setattr(distribution.jax, "process_index", lambda number=number: number)
        shares.append(distribution.share(count))
    assert len({len(each) for each in shares}) == 1
    np.testing.assert_array_equal(np.concatenate(shares)[:count], np.arange(count))


def test_nobody_to_join_is_one_line():
    cluster = ("SLURM", "JAX_", "OMPI", "PMI", "KUBERNETES")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(cluster)}
    script = "from bwdln import distribution; distribution.initialize()"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=engines.ROOT, capture_output=True, text=True, env=environment
    )
    message = "sweep.distributed.coordinator_address: got null; takes the address of the first process"
    assert message in done.stderr.splitlines()[-1]
