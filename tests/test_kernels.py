"""Runs are the same by every kernel of the loss, alone and in blocks, and say what they fell back on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bwdln import lanes, losses, program, simulate
from bwdln.config import from_mapping
from bwdln.targets import Target

KERNELS = ("exact", "tracked", "products")
GEOMETRIC = {"name": "geometric", "dimension": 5, "condition_number": 20.0}
SINGULAR = {"name": "explicit", "eigenvalues": [3.0, 2.0, 1.0, 0.0, 0.0]}
REPEATED = {"name": "explicit", "eigenvalues": [2.0, 2.0, 2.0, 1.0, 1.0]}
ILL = {"name": "explicit", "eigenvalues": [1.0, 0.5, 0.25, 0.1, 1e-12]}
#: Of each quantity of a run: how far it may be from that by the exact route, relative to its largest value.
CLOSE = 1e-10


def run(kernel, **options):
    base = {
        "target": GEOMETRIC,
        "network": {"depth": 2},
        "initialization": {"name": "xavier_normal"},
        "loss": {"name": "bures_wasserstein", "tau": options.pop("tau", 0.0), "kernel": kernel},
        "dynamics": {"name": "gradient_descent", "step_size": 1e-2, "steps": 400},
        "record": {"count": 4},
        "seeds": 3,
    }
    return simulate.run(from_mapping({**base, **options})).dataset


def assert_equal_runs(runs, close=CLOSE):
    first, *others = runs
    for other in others:
        np.testing.assert_array_equal(first["outcome"], other["outcome"])
        for name in ("loss", "gap", "singular_values", "final_end_to_end"):
            scale = np.max(np.abs(first[name].values))
            np.testing.assert_allclose(other[name], first[name], atol=close * scale, err_msg=name)


@pytest.mark.parametrize("tau", [0.0, 0.3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target": REPEATED},
        {"target": SINGULAR},
        {"target": ILL},
        {"network": {"depth": 3, "bottleneck": 2}},
        {"network": {"widths": [4, 2, 6, 5]}},
        {"network": {"widths": [7, 6, 5]}},
        {"network": {"depth": 1}},
        {"network": {"depth": 13}, "initialization": {"name": "orthogonal", "balanced": True}},
        {
            "dynamics": {
                "name": "gradient_descent",
                "step_size": 1e-3,
                "steps": 300,
                "optimizer": {"name": "adam"},
            }
        },
        {"dynamics": {"name": "gradient_flow", "end_time": 1.0, "relative_tolerance": 1e-10}},
        {"dynamics": {"name": "end_to_end_flow", "end_time": 1.0}, "initialization": {"name": "aligned"}},
    ],
    ids=lambda options: next(iter(options), "square") if isinstance(options, dict) else None,
)
def test_runs_are_the_same_by_every_kernel(options, tau):
    assert_equal_runs([run(kernel, tau=tau, **options) for kernel in KERNELS])


def test_what_is_recorded_of_the_ways_gradients_took():
    """Steps that move little are followed; at a condition of 1e6 every step takes a decomposition."""
    fallbacks = {
        (kernel, target["name"]): run(kernel, target=target)["fallbacks"].values
        for kernel in KERNELS
        for target in (GEOMETRIC, ILL)
    }
    assert not fallbacks["exact", "explicit"].any() and not fallbacks["products", "geometric"].any()
    np.testing.assert_array_equal(fallbacks["products", "explicit"][:, -1], 400)
    followed, all_anew = fallbacks["tracked", "geometric"], fallbacks["tracked", "explicit"]
    np.testing.assert_array_equal(followed[:, 0], 0)
    assert np.all(np.diff(followed) >= 0) and np.all(np.diff(followed)[:, -1] < 50)
    np.testing.assert_array_equal(all_anew[:, -1], 400)


@pytest.mark.parametrize("tau", [0.0, 0.2])
def test_a_long_run_does_not_drift(tau):
    """10⁵ steps: the weights are those of the exact route to 1e-10 all along."""
    options = {
        "dynamics": {"name": "gradient_descent", "step_size": 1e-4, "steps": 100_000},
        "target": {**GEOMETRIC, "dimension": 3},
        "tau": tau,
        "seeds": 1,
    }
    exact, tracked = run("exact", **options), run("tracked", **options)
    assert_equal_runs([exact, tracked])
    assert tracked["fallbacks"].values[0, -1] < 300


def test_a_snapshot_of_another_kernel_is_no_snapshot():
    """What is carried from step to step differs: a run on other devices begins anew."""

    def begun(kernel):
        config = from_mapping(
            {
                "target": GEOMETRIC,
                "network": {"depth": 2},
                "initialization": {"name": "xavier_normal"},
                "loss": {"name": "bures_wasserstein", "kernel": kernel},
                "dynamics": {"name": "gradient_descent", "step_size": 1e-2, "steps": 10},
                "record": {"count": 2},
                "seeds": 2,
            }
        )
        _, running = simulate.begin([simulate.prepare(config)])
        running.advance(np.full(2, 5, np.int32))
        return running

    exact, tracked = begun("exact"), begun("tracked")
    assert not tracked.restore(exact.snapshot()) and not exact.restore(tracked.snapshot())
    assert tracked.restore(tracked.snapshot()) and exact.restore(exact.snapshot())


@pytest.mark.parametrize("tau", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4)])
def test_a_traced_perturbation_is_followed(shape, tau):
    """It may be 0: then the generators of low rank need a decomposition at each step."""
    rng = np.random.default_rng(0)
    target = Target(jnp.asarray(np.linspace(2.0, 0.5, shape[0])), None)
    generator, speed = rng.normal(size=(2, *shape))

    @jax.jit
    def follow(tau, generator, known):
        path = losses.bures_wasserstein(tau, kernel="tracked").path
        return path.gradient(generator, target, known)

    known = losses.bures_wasserstein(jnp.asarray(tau), kernel="tracked").path.start(
        jnp.asarray(generator), target
    )
    for step in range(1, 6):
        moved = jnp.asarray(generator + 1e-4 * step * speed)
        gradient, known, anew = follow(tau, moved, known)
        expected = losses.bures_wasserstein(tau, kernel="exact").gradient(moved, target)
        np.testing.assert_allclose(gradient, expected, atol=1e-11)
        assert anew == (tau == 0 and shape[1] < shape[0])


@pytest.mark.parametrize("shape", [(104, 13), (104, 14), (96, 2)])
@pytest.mark.parametrize("automatic", ["tracked", "products", "exact"])
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_thin_generators_are_followed_only_where_that_is_asked_for(shape, automatic, tau, monkeypatch):
    """On a CPU `auto` takes `exact` for them, where it is faster; for τ > 0 all take the quadrature."""
    monkeypatch.setattr(losses, "automatic_kernel", lambda: automatic)
    rng = np.random.default_rng(0)
    generator, target = jnp.asarray(rng.normal(size=shape)), Target(jnp.linspace(2.0, 0.5, shape[0]), None)
    thin = shape == (104, 13)
    auto, tracked = (losses.bures_wasserstein(tau, kernel=kernel) for kernel in ("auto", "tracked"))
    assert (auto.path is None) == (automatic == "exact")
    assert (tracked.path.start(generator, target) == ()) == (thin and tau > 0)
    if auto.path is not None:
        known = auto.path.start(generator, target)
        assert (known == ()) == (thin or automatic == "products")
        found, after, anew = auto.path.gradient(generator + 1e-6, target, known)
        np.testing.assert_allclose(found, auto.gradient(generator + 1e-6, target), atol=1e-12)
        assert jax.tree.structure(after) == jax.tree.structure(known) and not anew


# --- blocks of lanes ------------------------------------------------------------------------------


def test_lanes_in_blocks_are_as_alone(monkeypatch):
    """Eight lanes beside each other, one of them diverging, others ending early, against each for itself."""
    monkeypatch.setattr(lanes, "cores", lambda: 1)
    steps = {"name": "gradient_descent", "step_size": 0.05, "steps": 300, "gap_tolerance": 1e-6}
    configs = [
        from_mapping(
            {
                "target": {**GEOMETRIC, "condition_number": 2.0 + number},
                "network": {"depth": 2},
                "initialization": {"name": "xavier_normal"},
                "loss": {"name": "bures_wasserstein"},
                "dynamics": {**steps, "step_size": 3.0 if number == 2 else 0.05},
                "record": {"count": 30},
                "seeds": 1,
                "seed": number,
            }
        )
        for number in range(program.BLOCK)
    ]
    together = simulate.run_together([simulate.prepare(config) for config in configs])
    outcomes = set()
    for config, result in zip(configs, together, strict=True):
        alone = simulate.run(config).dataset
        outcomes.add(str(alone["outcome"].values[0]))
        for name in ("step", "fallbacks", "outcome"):
            np.testing.assert_array_equal(result.dataset[name], alone[name])
        np.testing.assert_allclose(result.dataset["loss"], alone["loss"], rtol=1e-10)
    assert {"converged", "diverged"} <= outcomes


def operations(kernel, widths, monkeypatch, dynamics="gradient_descent"):
    """What the program of a batch of 16 lanes is made of."""
    monkeypatch.setattr(lanes, "batch_size_on_cpu", lambda count, clock: 16)
    ends = {"steps": 5, "step_size": 0.1} if dynamics == "gradient_descent" else {"end_time": 1.0}
    config = from_mapping(
        {
            "target": {"name": "zipf", "dimension": widths[-1]},
            "network": {"widths": list(widths)},
            "initialization": {"name": "xavier_normal"},
            "loss": {"name": "bures_wasserstein", "kernel": kernel},
            "dynamics": {"name": dynamics, **ends},
            "record": {"count": 1},
            "seeds": 16,
        }
    )
    _, running = simulate.begin([simulate.prepare(config)])
    batch = running.batches[0]
    until = np.full(len(batch.members), 5, np.int32 if dynamics == "gradient_descent" else np.float64)
    return running.program.advance.trace(batch.lanes, batch.state, until, np.int32(5)).jaxpr


@pytest.mark.parametrize(
    ("kernel", "widths", "dynamics", "blocks"),
    [
        ("tracked", (5, 5, 5), "gradient_descent", True),
        ("products", (5, 5, 5), "gradient_descent", True),
        ("exact", (5, 5, 5), "gradient_descent", False),  # a decomposition at each step
        ("tracked", (6, 2, 5), "gradient_descent", False),  # an LQ decomposition at each step
        ("tracked", (program.BLOCK_UP_TO + 1, 5), "gradient_descent", False),
        ("tracked", (5, 5, 5), "gradient_flow", False),  # lanes need steps of their own
    ],
)
def test_which_lanes_go_in_blocks_and_none_decomposes_several_matrices(
    kernel, widths, dynamics, blocks, monkeypatch
):
    traced = operations(kernel, widths, monkeypatch, dynamics)
    assert not program.decomposes_several(traced.jaxpr)
    assert (f"f64[{program.BLOCK},{widths[1]},{widths[0]}]" in str(traced)) == blocks


def test_decompositions_of_several_matrices_are_seen_at_any_depth():
    def decomposes(function, *shape):
        return program.decomposes_several(jax.make_jaxpr(function)(jnp.zeros(shape)).jaxpr)

    def hidden(x):
        return jax.lax.cond(x.sum() > 0, lambda: jnp.linalg.svd(x)[1], lambda: x[..., 0])

    assert decomposes(jnp.linalg.eigh, 2, 3, 3)
    assert not decomposes(jnp.linalg.eigh, 3, 3)
    assert decomposes(jax.jit(jax.vmap(jnp.linalg.cholesky)), 2, 3, 3)
    assert decomposes(hidden, 2, 3, 3) and not decomposes(hidden, 3, 3)
    assert decomposes(lambda x: jax.lax.scan(lambda c, _: (c, hidden(c)), x, None, 1), 2, 3, 3)


# --- value and gradient together ------------------------------------------------------------------


@given(
    st.sampled_from(((3, 3), (4, 2), (3, 5), (1, 1))),
    st.sampled_from((0.0, 1e-3, 0.5)),
    st.booleans(),
    st.sampled_from(("exact", "products")),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_value_and_gradient_are_those_alone(shape, tau, traced, kernel, low_rank, seed):
    rng = np.random.default_rng(seed)
    rows = shape[0]
    eigenvalues = np.sort(rng.uniform(0, 2, rows))[::-1] * (np.arange(rows) < rows - (low_rank and rows > 1))
    generator = jnp.asarray(rng.normal(size=shape))
    if low_rank and min(shape) > 1:
        generator = generator.at[:, 0].set(0)
    target = Target(jnp.asarray(eigenvalues), None)

    def both(tau):
        return losses.bures_wasserstein(tau, kernel=kernel).value_and_gradient(generator, target)

    loss = losses.bures_wasserstein(tau)
    value, gradient = jax.jit(both)(tau) if traced else both(tau)
    scale = float(jnp.sum(target.eigenvalues) + jnp.sum(generator**2))
    np.testing.assert_allclose(value, loss.value(generator, target), rtol=1e-10, atol=1e-13 * scale)
    np.testing.assert_allclose(gradient, loss.gradient(generator, target), atol=1e-7 if tau == 0 else 1e-9)


def test_value_with_the_gradient_loses_nothing_near_the_optimum():
    eigenvalues = jnp.asarray([2.0, 1.0, 0.5])
    generator = jnp.diag(jnp.sqrt(eigenvalues) + jnp.asarray([1e-9, 0, -2e-9]))
    value, _ = losses.bures_wasserstein().value_and_gradient(generator, Target(eigenvalues, None))
    np.testing.assert_allclose(value, 5e-18, rtol=1e-6)
