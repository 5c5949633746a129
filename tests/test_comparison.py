"""Descent against flow, on trajectories that are known in closed form."""

import json

import numpy as np
import pytest

from bwdln.comparison import descent_to_flow as comparison
from bwdln.comparison.descent_to_flow import compare
from bwdln.errors import InvalidOption
from bwdln.results import Result
from tests import synthetic

SIZES = (0.1, 0.01, 0.001)
SEEDS = 3


def run(step_size=None, records=6, end=2.0, depth=2):
    """A made-up run: W = e^{-t} W_0, moved by the seed's multiple of the step size times t."""
    steps = 1 if step_size is None else round(end / step_size)
    dataset = synthetic.gaussian(seeds=SEEDS, steps=20, records=records, depth=depth).dataset.copy(deep=True)
    time = np.broadcast_to(np.linspace(0, end, records + 1), (SEEDS, records + 1))
    initial = dataset["initial_end_to_end"].values[:, None]
    error = (step_size or 0) * time * np.array([[1], [2], [3]])
    trajectory = (np.exp(-time) * (1 + error))[..., None, None] * initial
    dataset["time"] = ("seed", "record"), time
    dataset["step"] = ("seed", "record"), np.rint(steps * time / end).astype(int)
    dataset["end_to_end"] = ("seed", "record", "feature", "latent"), trajectory
    config = json.loads(dataset.attrs["configuration"])
    config["dynamics"] = {"name": "gradient_descent", "step_size": step_size or 1.0, "steps": steps}
    dataset.attrs["configuration"] = json.dumps(config)
    if step_size is not None and depth > 1:  # moves G_1 = W_2' W_2 - W_1 W_1', by -steps·η² I
        layer = dataset["weights_1"].values
        root = np.linalg.cholesky(layer @ layer.mT + (steps * step_size**2 + 1e-12) * np.eye(6))
        dataset["weights_1"] = ("seed", "width_1", "any"), root
    return Result(dataset)


@pytest.fixture(scope="module")
def found():
    return compare(run(), {size: run(size) for size in SIZES})


def test_distance_is_the_largest_relative_one_over_the_records(found):
    assert found.step_size.tolist() == sorted(SIZES)
    expected = np.outer(found.step_size, [2, 4, 6])
    np.testing.assert_allclose(found.distance.values, expected, rtol=1e-12)
    np.testing.assert_allclose(found.distance.median, expected[:, 1], rtol=1e-12)
    np.testing.assert_allclose([found.distance.low, found.distance.high], expected[:, [0, 2]].T, rtol=1e-12)
    assert found.distance.law.exponent == pytest.approx(1, abs=1e-10)
    assert found.distance.law.factor == pytest.approx(4, rel=1e-10)
    assert found.steps.tolist() == [2000, 200, 20] and found.compared.all()


def test_drift_is_that_of_all_interfaces_per_step(found):
    np.testing.assert_allclose(found.drift.values[:, 0], np.sqrt(6) * found.step_size**2, rtol=1e-3)
    assert found.drift.law.exponent == pytest.approx(2, abs=1e-3)


def test_drift_sums_over_interfaces_and_needs_no_balanced_start():
    flow, descent = run(depth=3), run(0.1, depth=3)
    every = np.ones(SEEDS, bool)
    drift = comparison.imbalance_drift(flow, descent, every)
    before, after = comparison.imbalances(flow), comparison.imbalances(descent)
    assert len(before) == len(after) == 2
    squares = sum(((b - a) ** 2).sum(axis=(1, 2)) for a, b in zip(before, after, strict=True))
    np.testing.assert_allclose(drift, np.sqrt(squares) / 20, rtol=1e-12)


def test_imbalances_are_those_recorded():
    result = synthetic.gaussian(depth=3)
    norms = [np.linalg.norm(each, axis=(1, 2)) for each in comparison.imbalances(result)]
    np.testing.assert_allclose(norms, result.dataset["imbalance"].values[:, -1].T, rtol=1e-9)


def test_a_flow_without_layers_is_balanced():
    flow = run()
    names = [name for name in flow.dataset if str(name).startswith("weights_")]
    descent = run(0.1)
    drift = comparison.imbalance_drift(Result(flow.dataset.drop_vars(names)), descent, np.ones(SEEDS, bool))
    (moved,) = comparison.imbalances(descent)
    np.testing.assert_allclose(drift, np.linalg.norm(moved, axis=(1, 2)) / 20, rtol=1e-12)


def test_depth_one_has_no_imbalance():
    assert compare(run(depth=1), {0.1: run(0.1, depth=1)}).drift is None


def test_seeds_that_did_not_reach_the_end_are_left_out():
    broken = synthetic.with_diverged(run(0.1), (0,))
    stalled = Result(run().dataset.assign(outcome=("seed", ["reached_end", "stalled", "reached_end"])))
    found = compare(stalled, {0.1: broken, 0.01: run(0.01)})
    assert found.compared.tolist() == [[True, False, True], [False, False, True]]
    assert np.isnan(found.distance.values).tolist() == (~found.compared).tolist()
    assert found.outcome[1].tolist() == ["diverged", "reached_end", "reached_end"]
    assert [len(each.lost_gap) for each in found.descents] == [0, 1]
    assert found.descents[1].band.lanes == 2
    np.testing.assert_allclose(found.distance.median, [0.04, 0.6], rtol=1e-9)


def test_a_step_size_at_which_all_diverge_is_not_in_the_law():
    every = tuple(range(SEEDS))
    broken = synthetic.with_diverged(run(0.1), every)
    found = compare(run(), {0.1: broken, 0.01: run(0.01), 0.001: run(0.001)})
    assert np.isnan(found.distance.median[2]) and found.distance.law.points == 2
    found = compare(run(), {0.1: broken})
    assert found.distance.law.points == 0 and np.isnan(found.distance.law.exponent)


def test_records_at_other_flow_times_are_refused():
    with pytest.raises(ValueError, match="different flow times"):
        compare(run(), {0.1: run(0.1, end=2.1)})
    with pytest.raises(ValueError, match="different flow times"):
        compare(run(), {0.1: run(0.1, records=5)})


def test_other_starts_are_refused():
    other = run(0.1).dataset.copy(deep=True)
    other["end_to_end"] *= 1.1
    with pytest.raises(ValueError, match="different weights"):
        compare(run(), {0.1: Result(other)})


def test_nothing_to_compare_is_refused():
    with pytest.raises(InvalidOption, match="descents: got nothing"):
        compare(run(), {})
