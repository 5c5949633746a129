"""The flow of the product alone against that of the layers, and against exact solutions (§5)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from flows import trajectory
from problems import orthogonal, target

from bwdln import losses, networks
from bwdln.dynamics.base import DYNAMICS, Outcome
from bwdln.errors import InvalidOption
from bwdln.initializations import balanced
from bwdln.registry import Choice
from bwdln.targets import Target

TIMES = np.array([0.05, 0.2, 0.5, 1.0, 1.5])


def with_singular_values(rows, columns, singular, rng):
    """A matrix of that shape and those singular values, with random singular vectors."""
    count = len(singular)
    return (orthogonal(rows, rng)[:, :count] * singular) @ orthogonal(columns, rng)[:count]


def middle(rows, columns, inner, depth):
    """Widths with `inner` hidden ones, uneven where there are several."""
    return (columns, *[inner + layer % 3 for layer in range(depth - 1)], rows)


def flow(name, weights, sigma, tau, depth, times=TIMES):
    """One lane of `gradient_flow` or `end_to_end_flow` to a tolerance of about 1e-11."""
    loss = losses.bures_wasserstein(tau)
    options = {"method": "rk54", "relative_tolerance": 1e-11, "absolute_tolerance": 1e-12}
    dynamics = DYNAMICS[name](
        lambda packed: losses.layer_gradients(loss, packed, sigma), depth, end_time=10.0, **options
    )
    return trajectory(dynamics, weights, times)[0].weights


@jax.jit
def layer_flows(weights, sigma, taus):
    """The layers of every lane, at every record."""

    def lane(weights, tau):
        records = flow("gradient_flow", networks.pack(weights), sigma, tau, len(weights))
        return jax.vmap(networks.unpack)(records)

    return jax.vmap(lane)(weights, taus)


@jax.jit
def generator_flows(generators, sigma, taus, depths):
    """The reduced generator of every lane, at every record: depth is a number of the lane."""

    def lane(generator, tau, depth):
        packed = networks.Packed((), (generator,))
        return flow("end_to_end_flow", packed, sigma, tau, depth).above[0]

    return jax.vmap(lane)(generators, taus, depths)


@jax.jit
def perturbed_values(generators, sigma, tau):
    return jax.vmap(lambda each: losses.bures_wasserstein(tau).value(each, sigma))(generators)


#: Starts that are lanes of one program, for three modes: singular values and τ.
LANES = {
    "generic": ([1.6, 1.0, 0.5], 0.0),
    "perturbed": ([1.6, 1.0, 0.5], 0.3),
    "coinciding": ([0.8, 0.8, 0.8], 0.0),
    "nearly coinciding": ([0.8, 0.8 + 1e-10, 0.4], 0.3),
    "rank_deficient": ([1.2, 0.6, 0.0], 0.0),
    "rank_deficient, perturbed": ([1.2, 0.0, 0.0], 0.3),
}


@pytest.mark.parametrize("depth", [2, 3, 7])
@pytest.mark.parametrize("shape", [(3, 5), (4, 3)])
def test_layer_flow_equals_end_to_end_flow(shape, depth):
    """To 1e-8 at every record; the product of the lifted layers, and their Gram matrices, too."""
    rows, columns = shape
    rng = np.random.default_rng(9)
    sigma = target("distinct", rows, rng)
    widths = middle(rows, columns, 3, depth)
    starts = [
        balanced(jnp.asarray(with_singular_values(rows, columns, singular, rng)), widths)
        for singular, _ in LANES.values()
    ]
    taus = jnp.asarray([tau for _, tau in LANES.values()])
    weights = jax.tree.map(lambda *layers: jnp.stack(layers), *starts)
    generators, orthonormal = jax.vmap(networks.reduction)(weights)
    layers = layer_flows(weights, sigma, taus)
    products = np.asarray(jax.vmap(jax.vmap(networks.end_to_end))(layers))
    moved = generator_flows(generators, sigma, taus, jnp.full(len(LANES), float(depth)))
    lifted = np.asarray(moved @ orthonormal[:, None])
    np.testing.assert_allclose(lifted, products, atol=1e-8)
    assert np.max(np.abs(products[:, -1] - products[:, 0])) > 0.1
    for lane, (singular, tau) in enumerate(LANES.values()):
        along = perturbed_values(moved[lane], sigma, tau)
        assert np.all(np.diff(along) <= 0)
        rank = np.count_nonzero(singular)
        values = np.linalg.svd(np.asarray(moved[lane]), compute_uv=False)
        assert np.all(values[:, rank:] <= 1e-14)
        assert np.all(values[:, :rank] > 1e-3)
        # Lifting back: balanced layers of the same product, and of the flow's Gram matrices.
        again = balanced(jnp.asarray(lifted[lane, -1]), widths)
        np.testing.assert_allclose(networks.end_to_end(again), lifted[lane, -1], atol=1e-13)
        assert np.all(np.asarray(networks.imbalance(again)) < 1e-13)
        first, last = np.asarray(layers[0][lane, -1]), np.asarray(layers[-1][lane, -1])
        np.testing.assert_allclose(again[0].T @ again[0], first.T @ first, atol=1e-8)
        np.testing.assert_allclose(again[-1] @ again[-1].T, last @ last.T, atol=1e-8)


def mode_flow(depth, eigenvalue, tau, start, end):
    """The flow time from s = start to s = end by quadrature of §5 E3: dt = ds / (−N s^{2−2/N} f'(s))."""

    def speed(s):
        slope = 2 * s * (1 - np.sqrt(eigenvalue) / np.sqrt(s**2 + tau))
        return -depth * s ** (2 - 2 / depth) * slope

    return scipy.integrate.quad(lambda s: 1 / speed(s), start, end, epsabs=1e-13, epsrel=1e-12)[0]


def test_exact_solution_3_at_real_depths():
    """Aligned modes against quadrature, lanes of any depth and τ in one program; closed forms at N = 1, 2."""
    rng = np.random.default_rng(10)
    eigenvalues, starts = np.array([2.0, 1.2, 0.8]), np.array([0.4, 0.9, 1.3])
    basis, right = orthogonal(3, rng), orthogonal(3, rng)
    sigma = Target(jnp.asarray(eigenvalues), jnp.asarray(basis))
    cases = list(itertools.product([1.0, 1.5, 2.0, 2.5, 7.0, 31.4], [0.0, 0.1, 0.5]))
    generator = jnp.asarray(basis @ np.diag(starts) @ right)
    generators = jnp.broadcast_to(generator, (len(cases), 3, 3))
    depths, taus = (jnp.asarray(column) for column in zip(*cases, strict=True))
    moved = np.asarray(generator_flows(generators, sigma, taus, depths))
    for (depth, tau), records in zip(cases, moved, strict=True):
        modes = basis.T @ records @ right.T
        singular = np.diagonal(modes, axis1=1, axis2=2)
        np.testing.assert_allclose(modes - singular[..., None] * np.eye(3), 0, atol=1e-12)
        for time, values in zip(TIMES, singular, strict=True):
            for eigenvalue, start, value in zip(eigenvalues, starts, values, strict=True):
                rest = np.sqrt(eigenvalue - tau)
                if abs(value - rest) > 1e-4:  # later the time says little about the mode
                    measured = mode_flow(depth, eigenvalue, tau, start, value)
                    np.testing.assert_allclose(measured, time, rtol=1e-6)
            if tau == 0 and depth in (1, 2):
                root = np.sqrt(eigenvalues)
                exact = {
                    1: root + (starts - root) * np.exp(-2 * time),
                    2: root / (1 + (root / starts - 1) * np.exp(-4 * root * time)),
                }[depth]
                np.testing.assert_allclose(values, exact, atol=1e-9)


def test_exact_solution_1_one_layer_of_full_rank():
    """L(t) = e^{−4t} L(0) at depth 1."""
    rng = np.random.default_rng(11)
    sigma = target("distinct", 3, rng)
    start = jnp.asarray(with_singular_values(3, 3, [1.5, 1.0, 0.4], rng))
    (moved,) = generator_flows(start[None], sigma, jnp.zeros(1), jnp.ones(1))
    along = perturbed_values(jnp.concatenate([start[None], moved]), sigma, 0.0)
    np.testing.assert_allclose(along[1:], np.exp(-4 * TIMES) * along[0], rtol=1e-9)


def test_small_starts_grow_mode_by_mode():
    """From singular values 1e-6 at N = 2, each mode by its closed form, to 1e-8 of itself."""
    rng = np.random.default_rng(12)
    eigenvalues = np.array([4.0, 1.0, 0.25])
    basis, right = orthogonal(3, rng), orthogonal(3, rng)
    sigma = Target(jnp.asarray(eigenvalues), jnp.asarray(basis))
    generator = jnp.asarray(basis @ (1e-6 * right))
    times = np.array([1.0, 2.0, 4.0])
    # An absolute tolerance far below the small modes.
    dynamics = DYNAMICS["end_to_end_flow"](
        lambda packed: losses.layer_gradients(losses.bures_wasserstein(), packed, sigma),
        2,
        end_time=10.0,
        method="rk54",
        relative_tolerance=1e-13,
        absolute_tolerance=1e-18,
    )
    records, last = jax.jit(lambda g: trajectory(dynamics, networks.Packed((), (g,)), times))(generator)
    assert last.outcome == Outcome.RUNNING
    root = np.sqrt(eigenvalues)
    for time, matrix in zip(times, np.asarray(records.weights.above[0]), strict=True):
        exact = root / (1 + (root / 1e-6 - 1) * np.exp(-4 * root * time))
        modes = basis.T @ matrix @ right.T
        np.testing.assert_allclose(np.diagonal(modes), exact, rtol=1e-8)


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "options", "message"),
    [
        (0.5, {}, r"^dynamics\.depth: got 0\.5; takes a number from 1"),
        (float("nan"), {}, r"^dynamics\.depth: got nan"),
        (2, {"end_time": 0}, r"^dynamics\.end_time: got 0"),
        (2, {"relative_tolerance": -1e-6}, r"^dynamics\.relative_tolerance: got -1e-06"),
        (2, {"method": "rk45"}, r"^dynamics\.method: got 'rk45'"),
    ],
)
def test_refuses_bad_options(depth, options, message):
    full = {"end_time": 1.0} | options
    with pytest.raises(InvalidOption, match=message):
        DYNAMICS.build(Choice("end_to_end_flow", tuple(full.items())), lambda weights: weights, depth)


def test_says_that_its_weights_are_the_generator():
    dynamics = DYNAMICS["end_to_end_flow"](lambda weights: weights, jnp.asarray(2.5), end_time=3.0)
    assert dynamics.end_to_end
    assert (dynamics.clock, dynamics.end) == ("time", 3.0)
