"""What a record holds, against NumPy from the weights alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
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
def test_loss_gap_and_imbalance(case):
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
    first, second, third = layers
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


# --- the margin -----------------------------------------------------------------------------------


def measured_margin(generator, eigenvalues, loss):
    return diagnostics.margin(jnp.asarray(generator), Target(jnp.asarray(eigenvalues), None), loss)


def expected_margin(generator, eigenvalues, tau):
    """docs/theory.md §6 as it stands, by NumPy alone."""
    distance = np.sqrt(bures_wasserstein(generator, np.diag(eigenvalues), tau))
    radius = max(0.0, np.sqrt(eigenvalues[-1]) - distance)
    return np.sqrt(max(0.0, radius**2 - tau))


MARGIN_CASES = {
    "unperturbed": losses.bures_wasserstein(),
    "perturbed": losses.bures_wasserstein(0.03),
    "frobenius": losses.frobenius(),
}


@functools.cache
def compiled_margins(case):
    """The margins of a batch of generators (5, 6)."""
    sigma, loss = Target(jnp.asarray(EIGENVALUES), None), MARGIN_CASES[case]
    return jax.jit(jax.vmap(lambda generator: diagnostics.margin(generator, sigma, loss)))


@pytest.mark.parametrize("case", MARGIN_CASES)
@given(seed=st.integers(0, 2**31), size=st.floats(1e-3, 0.5))
def test_margin_is_its_definition_and_bounds_the_singular_values(case, seed, size):
    tau, margins = MARGIN_CASES[case].perturbation, compiled_margins(case)
    rng = np.random.default_rng(seed)
    minimizer = np.sqrt(EIGENVALUES - tau)[:, None] * orthogonal(6, rng)[:5]
    generators = minimizer + size * rng.normal(size=(8, 5, 6)) * np.linspace(0.01, 1, 8)[:, None, None]
    measured = margins(generators)
    expected = [expected_margin(generator, EIGENVALUES, tau) for generator in generators]
    np.testing.assert_allclose(measured, expected, atol=1e-6)
    smallest = np.linalg.svd(generators, compute_uv=False)[:, -1]
    assert (np.asarray(measured) <= smallest * (1 + 1e-12)).all()


def test_margin_at_the_minimizer_is_its_smallest_singular_value():
    """c = √(λ_n − τ) where L_τ is its minimum 0, also where r² and τ nearly cancel."""
    for tau in (0.0, 1.5, 2 - 2.0**-40):
        smallest = np.sqrt(2 - tau)
        margin = measured_margin([[smallest]], [2.0], losses.bures_wasserstein(tau))
        np.testing.assert_allclose(margin, smallest, rtol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.05])
def test_margin_is_exactly_zero_below_full_rank(tau):
    narrow = np.sqrt(EIGENVALUES)[:, None] * np.eye(5)[:, :4]
    assert measured_margin(narrow, EIGENVALUES, losses.bures_wasserstein(tau)) == 0


@pytest.mark.parametrize("tau", [0.1, 0.100001, 1.0, 5.0])
def test_margin_is_exactly_zero_where_none_exists(tau):
    minimizer = np.diag(np.sqrt(np.maximum(EIGENVALUES - tau, 0)))
    assert measured_margin(minimizer, EIGENVALUES, losses.bures_wasserstein(tau)) == 0


def test_margin_is_zero_for_a_singular_target_and_far_away():
    singular = [2.0, 1.0, 0.0]
    for tau in (0.0, 0.5):
        for generator in (np.zeros((3, 3)), np.diag(np.sqrt(singular)), np.eye(3)):
            assert measured_margin(generator, singular, losses.bures_wasserstein(tau)) == 0
    assert measured_margin(np.zeros((5, 5)), EIGENVALUES, losses.frobenius()) == 0


def test_margin_of_lanes_of_many_perturbations():
    """Lanes with and without a margin are one program, with the target and τ traced."""
    taus = np.array([0.0, 0.02, 0.1, 0.5])
    spectra = EIGENVALUES * np.linspace(1, 1.3, 4)[:, None]
    generators = np.stack(
        [np.diag(np.sqrt(np.maximum(each - tau, 0))) for each, tau in zip(spectra, taus, strict=True)]
    )
    generators += 0.01 * np.random.default_rng(0).normal(size=generators.shape)

    @jax.jit
    @jax.vmap
    def lanes(generator, eigenvalues, tau):
        return diagnostics.margin(generator, Target(eigenvalues, None), losses.bures_wasserstein(tau))

    measured = lanes(generators, spectra, taus)
    expected = [expected_margin(*each) for each in zip(generators, spectra, taus, strict=True)]
    np.testing.assert_allclose(measured, expected, atol=1e-7)
    np.testing.assert_array_equal(np.asarray(measured) > 0, [True, True, True, False])
