"""What a record holds, against NumPy from the weights alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import bures_wasserstein, orthogonal

from bwdln import diagnostics, losses, networks
from bwdln.targets import Target

EIGENVALUES = np.array([3.0, 2.0, 1.0, 0.5, 0.1])
CASES = {
    "unperturbed": (losses.bures_wasserstein(), 0.0),
    "perturbed": (losses.bures_wasserstein(0.3), 0.3),
    "frobenius": (losses.frobenius(), 0.0),
}


@functools.cache
def recorded(case, low_rank=False):
    """(values of a record, layers, W) for widths 4, 3, 6, 5; at `low_rank` W has rank 2."""
    rng = np.random.default_rng(0)
    layers = [rng.normal(size=shape) for shape in ((3, 4), (6, 3), (5, 6))]
    if low_rank:
        layers[0][2] = layers[0][0] - 2 * layers[0][1]
    weights = tuple(map(jnp.asarray, layers))
    sigma = Target(jnp.asarray(EIGENVALUES), None)
    loss = CASES[case][0]
    values = jax.jit(lambda packed: diagnostics.record(packed, sigma, loss))(networks.pack(weights))
    return values, layers, layers[2] @ layers[1] @ layers[0]


@pytest.mark.parametrize("case", CASES)
def test_spectrum_and_rank(case):
    values, _, generator = recorded(case)
    left, singular, _ = np.linalg.svd(generator)
    np.testing.assert_allclose(values["singular_values"], singular[:3], rtol=1e-12)
    assert values["rank"] == 3
    np.testing.assert_allclose(values["alignment"], np.abs(np.diag(left)[:3]), atol=1e-12)
    errors = singular[:3] ** 2 + CASES[case][1] - EIGENVALUES[:3]
    np.testing.assert_allclose(values["eigenvalue_error"], errors, atol=1e-11)
    shares = singular[:3] / singular[:3].sum()
    np.testing.assert_allclose(values["effective_rank"], np.exp(-np.sum(shares * np.log(shares))))


@pytest.mark.parametrize("case", CASES)
def test_distances(case):
    """To the target, and to the minimizer diag(λ_i − τ) over the leading three, in two metrics."""
    values, _, generator = recorded(case)
    tau = CASES[case][1]
    covariance = generator @ generator.T
    optimum = np.diag(np.append(EIGENVALUES[:3] - tau, [0, 0]))
    to_target = np.linalg.norm(covariance + tau * np.eye(5) - np.diag(EIGENVALUES))
    np.testing.assert_allclose(values["covariance_distance"], to_target, rtol=1e-12)
    frobenius = np.linalg.norm(covariance - optimum)
    np.testing.assert_allclose(values["optimum_distance_frobenius"], frobenius, rtol=1e-12)
    squared = bures_wasserstein(generator, optimum, 0.0)
    np.testing.assert_allclose(values["optimum_distance_bures_wasserstein"], np.sqrt(squared), rtol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_loss_gap_gradient_and_imbalance(case):
    values, layers, generator = recorded(case)
    tau, trace = CASES[case][1], EIGENVALUES.sum()
    if case == "frobenius":
        expected = np.sum((generator @ generator.T - np.diag(EIGENVALUES)) ** 2)
        minimum = np.sum(EIGENVALUES[3:] ** 2)
    else:
        expected = bures_wasserstein(generator, np.diag(EIGENVALUES), tau)
        learnt = np.append(EIGENVALUES[:3] > tau, [False, False])
        minimum = np.sum((np.sqrt(EIGENVALUES) - np.sqrt(tau))[~learnt] ** 2)
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-7)
    np.testing.assert_allclose(values["gap"], expected - minimum, rtol=1e-7)
    np.testing.assert_allclose(values["relative_gap"], (expected - minimum) / trace, rtol=1e-7)
    sigma = Target(jnp.asarray(EIGENVALUES), None)
    outer = np.asarray(CASES[case][0].gradient(jnp.asarray(generator), sigma))
    first, second, third = layers
    gradients = (
        (third @ second).T @ outer,
        third.T @ outer @ first.T,
        outer @ (second @ first).T,
    )
    norm = np.sqrt(sum(np.sum(each**2) for each in gradients))
    np.testing.assert_allclose(values["gradient_norm"], norm, rtol=1e-10)
    drift = [np.linalg.norm(up.T @ up - down @ down.T) for down, up in ((first, second), (second, third))]
    np.testing.assert_allclose(values["imbalance"], drift, rtol=1e-12)


def test_rank_counts_what_is_there():
    values, _, _ = recorded("unperturbed", low_rank=True)
    assert values["rank"] == 2
    assert values["effective_rank"] <= 2


def test_effective_rank_of_equal_values_is_their_number_and_of_none_is_zero():
    np.testing.assert_allclose(diagnostics.effective_rank(jnp.full(4, 0.7)), 4, rtol=1e-14)
    np.testing.assert_allclose(diagnostics.effective_rank(jnp.array([2.0, 0.0])), 1, rtol=1e-14)
    assert diagnostics.effective_rank(jnp.zeros(3)) == 0


def test_cosines_are_between_singular_vectors_and_eigenvectors():
    rng = np.random.default_rng(1)
    left = orthogonal(5, rng)[:, :3]
    layer = jnp.asarray((left * [3.0, 2.0, 1.0]) @ orthogonal(3, rng))
    measured = diagnostics.cosines(networks.pack((layer,)))
    np.testing.assert_allclose(measured, np.abs(left.T), atol=1e-13)
