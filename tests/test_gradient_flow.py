"""The layer flow against the exact solutions and conserved quantities of docs/theory.md §5."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from flows import trajectory
from problems import orthogonal, target

from bwdln import losses, networks
from bwdln.dynamics.base import DYNAMICS
from bwdln.dynamics.gradient_flow import gradient_flow
from bwdln.errors import InvalidOption
from bwdln.initializations import balanced
from bwdln.registry import Choice
from bwdln.targets import Target


def flowed(weights, sigma, loss, times, **options):
    """The layers at each of the times."""

    def run(packed):
        dynamics = gradient_flow(
            lambda each: losses.layer_gradients(loss, each, sigma),
            len(weights),
            end_time=times[-1],
            **options,
        )
        return jax.vmap(networks.unpack)(trajectory(dynamics, packed, times)[0].weights)

    return jax.jit(run)(networks.pack(weights))


def random_layers(widths, rng):
    return tuple(
        jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[1]))
        for shape in zip(widths[1:], widths, strict=False)
    )


@pytest.mark.parametrize(("shape", "method"), [((3, 3), "auto"), ((3, 5), "rk32")])
def test_exact_solution_1_one_layer_of_full_rank(shape, method):
    """E1: L(t) = e^{−4t} L(0)."""
    rng = np.random.default_rng(0)
    sigma, loss = target("distinct", shape[0], rng), losses.bures_wasserstein()
    start = (orthogonal(3, rng) * rng.uniform(1, 2, 3)) @ orthogonal(shape[1], rng)[:3]
    times = np.linspace(0.1, 2, 8)
    (layer,) = flowed((jnp.asarray(start),), sigma, loss, times, method=method, relative_tolerance=1e-9)
    measured = jax.vmap(lambda generator: loss.value(generator, sigma))(layer)
    expected = np.exp(-4 * times) * float(loss.value(jnp.asarray(start), sigma))
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


ALIGNED_EIGENVALUES, ALIGNED_START = np.array([2.0, 1.2, 0.4]), np.array([0.4, 1.6, 0.9])
ALIGNED_TIMES = np.array([0.05, 0.3, 1.0])


def speed(value, eigenvalue, tau, depth):
    """ds/dt of E3."""
    drive = 1 - np.sqrt(eigenvalue) / np.sqrt(value**2 + tau)
    return -depth * value ** (2 - 2 / depth) * 2 * value * drive


@functools.cache
def aligned(depth):
    """The values of the modes at `ALIGNED_TIMES` as a function of τ, the start as given below."""
    weights = balanced(jnp.diag(jnp.asarray(ALIGNED_START)), (3,) * (depth + 1))
    sigma = Target(jnp.asarray(ALIGNED_EIGENVALUES), None)

    def run(tau):
        options = {"method": "rk54", "relative_tolerance": 1e-9}
        layers = flowed(weights, sigma, losses.bures_wasserstein(tau), ALIGNED_TIMES, **options)
        return jax.vmap(networks.end_to_end)(layers)

    return jax.jit(run)


@pytest.mark.parametrize("tau", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("depth", [1, 2, 3, 14])
def test_exact_solution_3_aligned_start(depth, tau):
    """E3: modes decouple; closed forms at τ = 0 for N = 1 and 2, the time by quadrature elsewhere.

    One mode grows, one shrinks, and at τ = 1 one lies below τ.
    """
    eigenvalues, start, times = ALIGNED_EIGENVALUES, ALIGNED_START, ALIGNED_TIMES
    products = np.asarray(aligned(depth)(tau))
    values = np.diagonal(products, axis1=1, axis2=2)
    np.testing.assert_allclose(products, np.einsum("ti,ij->tij", values, np.eye(3)), atol=1e-11)
    root, time = np.sqrt(eigenvalues), times[:, None]
    if tau == 0 and depth <= 2:
        first = root + (start - root) * np.exp(-2 * time)
        second = root / (1 + (root / start - 1) * np.exp(-4 * root * time))
        np.testing.assert_allclose(values, first if depth == 1 else second, rtol=1e-7)
    for mode, eigenvalue in enumerate(eigenvalues):
        exact = scipy.integrate.solve_ivp(
            lambda _, s, eigenvalue=eigenvalue: speed(s, eigenvalue, tau, depth),
            (0, 1),
            start[mode : mode + 1],
            method="DOP853",
            rtol=1e-12,
            atol=1e-14,
            t_eval=times,
        )
        np.testing.assert_allclose(values[:, mode], exact.y[0], rtol=1e-6)
        # The time it takes, by quadrature.
        taken, _ = scipy.integrate.quad(
            lambda s, eigenvalue=eigenvalue: 1 / speed(s, eigenvalue, tau, depth),
            start[mode],
            values[0, mode],
            epsrel=1e-10,
        )
        np.testing.assert_allclose(taken, times[0], rtol=1e-5)


@pytest.mark.parametrize(("method", "tau"), [("auto", 0.0), ("rk54", 0.1), ("rk32", 0.0), ("rkc", 0.1)])
def test_imbalance_is_conserved_and_the_loss_never_increases(method, tau):
    rng = np.random.default_rng(4)
    sigma, loss = target("distinct", 4, rng), losses.bures_wasserstein(tau)
    weights, times = random_layers((5, 3, 6, 4), rng), np.linspace(0.1, 4, 40)
    layers = flowed(weights, sigma, loss, times, method=method, relative_tolerance=1e-6)
    slack = 2e-5 if method != "rkc" else 1e-4
    for j in range(2):

        def gram(below, above):
            return np.swapaxes(above, -1, -2) @ above - below @ np.swapaxes(below, -1, -2)

        before = gram(np.asarray(weights[j]), np.asarray(weights[j + 1]))
        after = gram(np.asarray(layers[j]), np.asarray(layers[j + 1]))
        np.testing.assert_allclose(after, np.broadcast_to(before, after.shape), atol=slack)
    value = jax.vmap(lambda generator: loss.value(generator, sigma))
    measured = np.asarray(value(jax.vmap(networks.end_to_end)(layers)))
    start = float(loss.value(networks.end_to_end(weights), sigma))
    assert np.all(np.diff([start, *measured]) <= 1e-14)
    assert measured[-1] < 0.5 * start


def test_gradient_norm_is_that_of_all_layers():
    rng = np.random.default_rng(5)
    sigma, loss = target("distinct", 3, rng), losses.bures_wasserstein(0.2)
    weights = random_layers((3, 4, 3), rng)
    dynamics = gradient_flow(lambda each: losses.layer_gradients(loss, each, sigma), 2, end_time=1.0)
    gradients = jax.grad(lambda each: losses.deep_value(loss, each, sigma))(weights)
    expected = np.sqrt(sum(float(jnp.sum(each**2)) for each in gradients))
    np.testing.assert_allclose(dynamics.gradient_norm(networks.pack(weights)), expected, rtol=1e-10)
    assert dynamics.clock == "time" and not dynamics.end_to_end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^dynamics\.end_time: got nothing; takes a number$"),
        ({"end_time": 0.0}, r"^dynamics\.end_time: got 0\.0; takes a finite number above 0$"),
        ({"end_time": 1.0, "relative_tolerance": -1.0}, r"^dynamics\.relative_tolerance: got -1\.0;"),
        ({"end_time": 1.0, "method": "rk5"}, r"^dynamics\.method: got 'rk5'; takes auto or euler or"),
        ({"end_time": 1.0, "tolerance": 1e-3}, r"^dynamics\.tolerance: .*did you mean .*tolerance"),
    ],
)
def test_refuses_bad_options(options, message):
    with pytest.raises(InvalidOption, match=message):
        DYNAMICS.build(Choice("gradient_flow", tuple(options.items())), lambda weights: weights, 3)
