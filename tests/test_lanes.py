"""Lanes that run together, each as if alone: packing, independence, and how they end."""

import itertools
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from problems import job

from bwdln import lanes, program, simulate
from bwdln.dynamics.base import Outcome

ROOT = Path(__file__).resolve().parent.parent

DESCENT = {"name": "gradient_descent", "step_size": 0.05, "steps": 400, "gap_tolerance": 1e-6}
FLOW = {"name": "gradient_flow", "end_time": 20.0, "gap_tolerance": 1e-6}
END_TO_END = {**FLOW, "name": "end_to_end_flow"}
ALL = (DESCENT, FLOW, END_TO_END)

#: What must agree, whoever runs beside a lane.
SAME = ("step", "rejected", "evaluations", "outcome")
NEAR = ("time", "loss", "singular_values", "final_end_to_end", "margin")


def balanced(**changes):
    return job(**{"initialization": {"name": "xavier_normal", "balanced": True}, "seeds": 7} | changes)


def assert_same(left, right, tolerance=1e-10):
    for name in SAME:
        np.testing.assert_array_equal(left[name].values, right[name].values, err_msg=name)
    for name in NEAR:
        a, b = left[name].values, right[name].values
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("dynamics", ALL, ids=lambda d: d["name"])
def test_a_lane_is_the_same_however_lanes_are_packed(dynamics, monkeypatch):
    """Lanes end at different records, so batches of 1, 3 and 7 are packed at different times."""
    runs = []
    for width in (1, 3, 7):
        monkeypatch.setattr(lanes, "batch_size_on_cpu", lambda count, clock, width=width: width)
        runs.append(simulate.run(balanced(dynamics=dynamics, record={"count": 20})).dataset)
    assert len(set(runs[0]["step"].values[:, -1])) > 2
    assert set(runs[0]["outcome"].values) == {"converged"}
    # Where stability limits the steps, rounding decides what is left of the error, within the tolerance.
    for other in runs[1:]:
        assert_same(runs[0], other, 1e-10 if dynamics is DESCENT else 1e-6)


def followed(problem, monkeypatch):
    """The finished run of a problem, and at each record how many lanes ran in how many places."""
    seen = []
    original = lanes.Lanes.advance

    def advance(self, until, pause=lambda: None):
        if self.running():
            seen.append((self.running(), sum(len(batch.members) for batch in self.batches)))
        original(self, until, pause)

    monkeypatch.setattr(lanes.Lanes, "advance", advance)
    return simulate.run_together([problem])[0].dataset, seen


def test_lanes_that_ended_leave(monkeypatch, caplog):
    """No batch goes on at full width for its slowest lane, and nothing compiles anew for it."""
    problem = simulate.prepare(balanced(dynamics=DESCENT, record={"count": 40}, seeds=16))
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        _, seen = followed(problem, monkeypatch)
    assert seen[0] == (16, 16)
    assert len(set(seen)) > 2
    for running, places in seen:
        assert places < 4 / 3 * running + 8
    messages = [record.getMessage() for record in caplog.records]
    compiled = [each for each in messages if "Compiling" in each and "advance_all" in each]
    assert len(compiled) <= 1


def test_on_an_accelerator_lanes_move_to_smaller_programs(monkeypatch):
    alone = simulate.run(balanced(dynamics=DESCENT, record={"count": 40}, seeds=16)).dataset
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    problem = simulate.prepare(balanced(dynamics=DESCENT, record={"count": 40}, seeds=16))
    together, seen = followed(problem, monkeypatch)
    assert {places for _, places in seen} <= {16, 4, 1}
    assert len({places for _, places in seen}) > 1
    assert_same(alone, together)


@pytest.mark.parametrize("dynamics", [FLOW, END_TO_END], ids=lambda d: d["name"])
def test_problems_run_together_equal_the_same_alone(dynamics):
    """Other targets, perturbations, tolerances, end times and seeds beside each other: one program."""
    jobs = [
        balanced(
            dynamics={**dynamics, "end_time": end, "relative_tolerance": tolerance},
            loss={"name": "bures_wasserstein", "tau": tau},
            target={"name": "geometric", "dimension": 5, "condition_number": condition},
            seeds=seeds,
            seed=seed,
            record={"count": 8},
        )
        for end, tolerance, tau, condition, seeds, seed in [
            (2.0, 1e-4, 0.1, 3.0, 2, 0),
            (50.0, 1e-8, 0.01, 30.0, 3, 5),
            (0.1, 1e-6, 0.3, 1.0, 1, 9),
        ]
    ]
    together = simulate.run_together([simulate.prepare(each) for each in jobs])
    for one, config in zip(together, jobs, strict=True):
        assert one.config == config
        assert_same(one.dataset, simulate.run(config).dataset, 1e-9)


def test_depths_are_lanes_of_one_program():
    shapes = [{"depth": depth, "bottleneck": 3} for depth in (2, 3.5, 9)]
    jobs = [balanced(dynamics=END_TO_END, network=shape, seeds=1) for shape in shapes]
    problems = [simulate.prepare(each) for each in jobs]
    assert len({problem.static for problem in problems}) == 1
    for one, config in zip(simulate.run_together(problems), jobs, strict=True):
        assert_same(one.dataset, simulate.run(config).dataset, 1e-9)


@pytest.mark.parametrize("name", ["gradient_flow", "end_to_end_flow"])
def test_a_stiff_a_stalled_and_an_easy_lane_beside_each_other(name):
    """Neither steps nor values of one lane depend on what becomes of another."""
    easy = {"name": name, "end_time": 1.0, "relative_tolerance": 1e-6, "absolute_tolerance": 1e-9}
    easy["max_steps"] = 300
    hard = {**easy, "relative_tolerance": 1e-15, "absolute_tolerance": 1e-15}
    spectra = {"easy": 1.0, "stiff": 1e3, "stalled": 3.0}
    problems = {
        kind: simulate.prepare(
            balanced(
                dynamics=hard if kind == "stalled" else easy,
                target={"name": "geometric", "dimension": 5, "condition_number": 10.0, "largest": largest},
                initialization={"name": "orthogonal", "balanced": True, "scale": largest**0.5},
                seeds=1,
                record={"count": 4},
            )
        )
        for kind, largest in spectra.items()
    }
    together = simulate.run_together(list(problems.values()))
    for problem, result in zip(problems.values(), together, strict=True):
        among_its_like = simulate.run_together([problem] * 3)[0]
        for name in (*SAME, *NEAR):
            np.testing.assert_array_equal(result.dataset[name], among_its_like.dataset[name], err_msg=name)
    assert int(together[1].dataset["evaluations"][0, -1]) > 2 * int(together[0].dataset["evaluations"][0, -1])
    assert [result.outcomes for result in together] == [("reached_end",), ("reached_end",), ("stalled",)]


def state_of(running, snapshot):
    """The states of all lanes in a snapshot."""
    structure = jax.tree.structure(running.batches[0].state)
    leaves = [snapshot[f"state_{index}"] for index in range(structure.num_leaves)]
    return jax.tree.unflatten(structure, leaves)


def snapshots_on_the_way(problem):
    """The lanes of a problem after their run, and the first snapshot of every stage it went through.

    A stage is how many records there are, how many lanes have ended and how many have moved since.
    """
    _, running = simulate.begin([problem])
    stages = {}

    def take():
        snapshot = {name: values.copy() for name, values in running.snapshot().items()}
        state = state_of(running, snapshot)
        real = snapshot["members"].reshape(-1) >= 0
        ended = np.sum((state.outcome != Outcome.RUNNING) & real)
        moved = 0
        if running.records:
            before = running.records[-1]["evaluations"][snapshot["members"].reshape(-1)[real]]
            moved = np.sum(state.evaluations[real] > before)
        stages.setdefault((len(running.records), int(ended), int(moved)), snapshot)

    assert not running.run(simulate.points([problem]), None, lambda: None, on_pause=take)
    return running, stages


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("dynamics", ALL, ids=lambda d: d["name"])
def test_lanes_go_on_from_any_moment_to_the_same_bits(dynamics, width, monkeypatch):
    """Snapshots while threads move batches: some lanes have ended, some are behind the next record."""
    monkeypatch.setattr(lanes, "batch_size_on_cpu", lambda count, clock: width)
    monkeypatch.setattr(lanes, "cores", lambda: 4)
    problem = simulate.prepare(balanced(dynamics=dynamics, record={"count": 4}))
    scatter = lanes.Lanes._scatter

    def slow(self, batch, values, into):
        """Gives a snapshot the time to come between the lanes and what was seen of them."""
        if self.records:
            time.sleep(0.005)
        scatter(self, batch, values, into)

    with monkeypatch.context() as patched:
        patched.setattr(lanes, "PACE", 0.0)
        patched.setattr(lanes.Lanes, "_scatter", slow)
        running, stages = snapshots_on_the_way(problem)
    final = running.finish()
    assert any(moved for _, _, moved in stages)
    assert any(0 < ended < running.count and moved for _, ended, moved in stages)
    chosen = np.unique(np.linspace(0, len(stages) - 1, 10).astype(int))
    for stage in (sorted(stages)[number] for number in chosen):
        _, again = simulate.begin([problem])
        again.restore(stages[stage])
        assert not again.run(simulate.points([problem]), None, lambda: None)
        pairs = [*zip(running.records, again.records, strict=True), (final, again.finish())]
        for left, right in pairs:
            for name in left:
                np.testing.assert_array_equal(left[name], right[name], err_msg=f"{name} from {stage}")


def test_padding_ends_before_it_begins():
    problem = simulate.prepare(balanced(dynamics=DESCENT, seeds=7))
    _, begun = simulate.begin([problem])
    for batch in begun.batches:
        ended = np.asarray(batch.state.outcome) != Outcome.RUNNING
        np.testing.assert_array_equal(ended, batch.members < 0)
    assert begun.running() == 7


SIDE_BY_SIDE = """
from problems import job
from bwdln import lanes, program, simulate

lanes.cores = lambda: 4
for method in ("auto", "rkc"):
    dynamics = {"name": "end_to_end_flow", "end_time": 0.05, "method": method}
    simulate.run(
        job(
            target={"name": "zipf", "dimension": 20},
            network={"depth": 12},
            initialization={"name": "orthogonal", "balanced": True},
            dynamics=dynamics,
            record={"count": 20},
            seeds=64,
        )
    )
"""


@pytest.mark.slow
def test_decompositions_of_many_batches_side_by_side_never_wait_for_each_other():
    """More programs at a time than cores, each with decompositions that could run at once."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", SIDE_BY_SIDE], env=environment, timeout=180, check=False)
        assert done.returncode == 0


@pytest.mark.parametrize("dynamics", ["gradient_descent", "gradient_flow", "end_to_end_flow"])
@pytest.mark.parametrize(
    ("size", "rank", "hidden", "tau", "kernel"),
    [
        (300, 8, 300, 0.0, "auto"),
        (300, 60, 60, 0.0, "auto"),
        (300, 8, 8, 0.1, "auto"),
        (600, 8, 8, 0.0, "auto"),
        (200, 60, 60, 0.1, "products"),
    ],
)
def test_the_estimate_of_memory_covers_what_the_compiler_says(dynamics, size, rank, hidden, tau, kernel):
    options = {"step_size": 0.01, "steps": 10} if dynamics == "gradient_descent" else {"end_time": 1.0}
    config = job(
        target={"name": "geometric", "dimension": size, "condition_number": 10.0},
        network={"depth": 3, "bottleneck": rank, "hidden_width": hidden},
        initialization={"name": "xavier_normal", "balanced": dynamics == "end_to_end_flow"},
        dynamics={"name": dynamics, **options},
        loss={"name": "bures_wasserstein", "tau": tau, "kernel": kernel},
    )
    problem = simulate.prepare(config)
    estimate = lanes.bytes_per_lane(problem.static, problem.lane, "float64", 1)

    def shaped(shape):
        return jax.ShapeDtypeStruct((1, *shape), "float64")

    functions = program.program(problem.static)
    lane = jax.tree.map(lambda leaf: shaped(np.shape(leaf)), problem.lane)
    weights = tuple(shaped(pair[::-1]) for pair in itertools.pairwise(problem.static.widths))
    state, _ = jax.eval_shape(functions.init, lane, weights)
    attempts = jax.ShapeDtypeStruct((), np.int32)
    needed = functions.advance.lower(lane, state, shaped(()), attempts).compile().memory_analysis()
    assert needed.argument_size_in_bytes <= estimate.state
    assert needed.temp_size_in_bytes <= estimate.work <= 30 * needed.temp_size_in_bytes
    if (size, hidden) == (600, 8):  # no n × n matrix
        assert needed.temp_size_in_bytes < 8 * size**2
