"""Losses against their identities, independent NumPy, differences, and extended precision."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import SHAPES, SPECTRA, orthogonal, spectrum, target
from problems import bures_wasserstein as reference_bures
from problems import frobenius as reference_frobenius

from bwdln import losses
from bwdln.errors import InvalidOption
from bwdln.polar import polar_factor
from bwdln.registry import Choice
from bwdln.targets import Target

EPS = np.finfo(np.float64).eps


@functools.cache
def compiled(name, function, *, static=(), **options):
    """One function of a loss, compiled once for all examples of a test."""
    loss = losses.LOSSES[name](**options)
    return jax.jit(getattr(loss, function), static_argnums=static)


@functools.cache
def compiled_tau(function, static=()):
    """A function of the Bures-Wasserstein loss with a traced τ as its last argument."""

    def call(tau, *arguments):
        return getattr(losses.bures_wasserstein(tau), function)(*arguments)

    return jax.jit(call, static_argnums=static)


def bures(function, tau, *arguments, static=()):
    """Call it with τ as a plain 0, or traced."""
    if tau == 0 and isinstance(tau, int):
        return compiled("bures_wasserstein", function, static=static)(*arguments)
    return compiled_tau(function, tuple(i + 1 for i in static))(jnp.asarray(float(tau)), *arguments)


@functools.cache
def differentiated(tau):
    """`jax.grad` of the value, compiled once."""
    loss = losses.frobenius() if tau == "frobenius" else losses.bures_wasserstein(tau)
    return jax.jit(jax.grad(loss.value))


#: Plain 0 takes the k × k route, a float (0.0 included) the traced one.
TAUS = (0, 0.0, 0.3)

problems = st.fixed_dictionaries(
    {
        "shape": st.sampled_from(SHAPES),
        "kind": st.sampled_from(SPECTRA),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def drawn(problem):
    """(rng, generator, target) of an example."""
    rng = np.random.default_rng(problem["seed"])
    n, m = problem["shape"]
    return rng, rng.normal(size=(n, m)), target(problem["kind"], n, rng)


# --- values and gradients -------------------------------------------------------------------------


@given(problems, st.sampled_from(TAUS))
def test_bures_value_equals_its_definition(problem, tau):
    _, generator, sigma = drawn(problem)
    expected = reference_bures(generator, np.asarray(sigma.covariance), float(tau))
    np.testing.assert_allclose(bures("value", tau, generator, sigma), expected, atol=1e-6, rtol=1e-9)


@given(problems)
def test_frobenius_value_equals_its_definition(problem):
    _, generator, sigma = drawn(problem)
    expected = reference_frobenius(generator, np.asarray(sigma.covariance))
    value = compiled("frobenius", "value")(generator, sigma)
    np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-12)


@given(problems, st.sampled_from((*TAUS, "frobenius")))
def test_gradient_equals_central_differences_and_autodiff(problem, tau):
    rng, generator, sigma = drawn({**problem, "kind": "distinct"})
    call = functools.partial(bures, "value", tau)
    gradient = functools.partial(bures, "gradient", tau)
    if tau == "frobenius":
        call, gradient = compiled("frobenius", "value"), compiled("frobenius", "gradient")
    direction, step = rng.normal(size=generator.shape), 1e-6
    exact = gradient(generator, sigma)
    ahead, behind = (call(generator + sign * step * direction, sigma) for sign in (1, -1))
    slope = (ahead - behind) / (2 * step)
    scale = 1 + np.abs(exact).max()
    np.testing.assert_allclose(np.sum(exact * direction), slope, atol=3e-6 * scale)
    automatic = differentiated(tau)(jnp.asarray(generator), sigma)
    np.testing.assert_allclose(automatic, exact, atol=1e-11 * scale)


@pytest.mark.parametrize("shape", [(3, 3), (5, 2), (2, 4)])
@pytest.mark.parametrize("tau", [0, 0.3, "frobenius"])
def test_hessian_equals_differences_of_the_gradient(shape, tau):
    rng = np.random.default_rng(1)
    sigma, generator = target("distinct", shape[0], rng), rng.normal(size=shape)
    loss = losses.frobenius() if tau == "frobenius" else losses.bures_wasserstein(tau)
    hessian = jax.jit(jax.hessian(loss.value))(jnp.asarray(generator), sigma)
    direction, step = rng.normal(size=shape), 1e-5
    ahead, behind = (loss.gradient(generator + sign * step * direction, sigma) for sign in (1, -1))
    product = jnp.tensordot(hessian, direction, axes=2)
    np.testing.assert_allclose(product, (ahead - behind) / (2 * step), atol=1e-7)
    flat = hessian.reshape(generator.size, -1)
    np.testing.assert_allclose(flat, flat.T, atol=1e-12)


def test_hessian_is_finite_and_right_at_repeated_singular_values():
    """At W = R every singular value may coincide; the closed form of §4 at N = 1 is the oracle."""
    sigma = Target(jnp.full(3, 2.0), jnp.eye(3))
    hessian = jax.jit(jax.hessian(losses.bures_wasserstein().value))(jnp.sqrt(2.0) * jnp.eye(3), sigma)
    eigenvalues = np.linalg.eigvalsh(hessian.reshape(9, 9))
    np.testing.assert_allclose(eigenvalues, [0] * 3 + [2] * 6, atol=1e-12)


def test_deep_value_differentiates_through_layers():
    rng = np.random.default_rng(2)
    sigma = target("distinct", 4, rng)
    weights = tuple(jnp.asarray(rng.normal(size=shape)) for shape in ((3, 2), (5, 3), (4, 5)))
    loss = losses.bures_wasserstein(0.1)
    gradients = jax.grad(lambda layers: losses.deep_value(loss, layers, sigma))(weights)
    outer = loss.gradient(weights[2] @ weights[1] @ weights[0], sigma)
    np.testing.assert_allclose(gradients[0], (weights[2] @ weights[1]).T @ outer, atol=1e-12)
    np.testing.assert_allclose(gradients[2], outer @ (weights[1] @ weights[0]).T, atol=1e-12)
    batched = jax.vmap(lambda scale: losses.deep_value(loss, tuple(scale * w for w in weights), sigma))
    np.testing.assert_allclose(
        batched(jnp.array([1.0, 2.0]))[0], losses.deep_value(loss, weights, sigma), rtol=1e-13
    )


def test_derivatives_in_tau_and_in_the_target():
    rng = np.random.default_rng(3)
    sigma, generator = target("distinct", 4, rng), jnp.asarray(rng.normal(size=(4, 2)))

    def of_tau(tau):
        return losses.bures_wasserstein(tau).value(generator, sigma)

    def of_spectrum(eigenvalues):
        return losses.bures_wasserstein(0.2).value(generator, sigma._replace(eigenvalues=eigenvalues))

    step = 1e-6
    np.testing.assert_allclose(
        jax.grad(of_tau)(0.2), (of_tau(0.2 + step) - of_tau(0.2 - step)) / (2 * step), rtol=1e-7
    )
    bump = step * jnp.eye(4)[1]
    slope = (of_spectrum(sigma.eigenvalues + bump) - of_spectrum(sigma.eigenvalues - bump)) / (2 * step)
    np.testing.assert_allclose(jax.grad(of_spectrum)(sigma.eigenvalues)[1], slope, rtol=1e-7)


# --- identities of docs/theory.md §2 --------------------------------------------------------------


@given(problems)
def test_identity_1_gradient_and_loss_without_perturbation(problem):
    _, generator, sigma = drawn(problem)
    modes = np.asarray(sigma.to_eigenbasis(generator))
    weighted = np.sqrt(np.asarray(sigma.eigenvalues))[:, None] * modes
    left, singular, _ = np.linalg.svd(weighted, full_matrices=False)
    left = left[:, singular > 1e-12 * singular[0]]
    missing = np.sum(np.asarray(sigma.eigenvalues) * (1 - np.sum(left**2, axis=1)))
    value, gradient = bures("value", 0, generator, sigma), bures("gradient", 0, generator, sigma)
    # The polar factor of a matrix is as accurate as its condition number allows.
    np.testing.assert_allclose(np.sum(gradient**2), 4 * (value - missing), atol=1e-9, rtol=1e-9)


@given(problems, st.sampled_from([0.01, 0.3, 1.5]))
def test_identity_2_gradient_and_loss_with_perturbation(problem, tau):
    _, generator, sigma = drawn(problem)
    eigenvalues = np.asarray(sigma.eigenvalues)
    modes = np.asarray(sigma.to_eigenbasis(generator))
    half = np.sqrt(eigenvalues)[:, None]
    inner = half * (modes @ modes.T + tau * np.eye(len(modes))) * half.T
    values, vectors = np.linalg.eigh(inner)
    kept = values > 1e-12 * values[-1]
    inverse_root = (vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T
    transport = half * inverse_root * half.T
    value, gradient = bures("value", tau, generator, sigma), bures("gradient", tau, generator, sigma)
    expected = 4 * (value - tau * np.sum((np.eye(len(modes)) - transport) ** 2))
    np.testing.assert_allclose(np.sum(gradient**2), expected, atol=1e-8)


@given(problems)
def test_identity_3_procrustes_and_singular_values(problem):
    rng, generator, sigma = drawn(problem)
    n, m = generator.shape
    value = float(bures("value", 0, generator, sigma))
    size = max(n, m)
    padded = np.pad(np.asarray(sigma.to_eigenbasis(generator)), ((0, 0), (0, size - m)))
    half = np.pad(np.diag(np.sqrt(np.asarray(sigma.eigenvalues))), ((0, 0), (0, size - n)))[:, :size]
    left, _, right = np.linalg.svd(half.T @ padded)
    np.testing.assert_allclose(np.sum((padded - half @ left @ right) ** 2), value, atol=1e-12 * size * 10)
    other = orthogonal(size, rng)
    assert np.sum((padded - half @ other) ** 2) >= value - 1e-12
    singular = np.zeros(n)
    singular[: min(n, m)] = np.linalg.svd(generator, compute_uv=False)
    assert np.all(np.abs(singular - np.sqrt(sigma.eigenvalues)) <= np.sqrt(value) + 1e-12)


@pytest.mark.parametrize(("columns", "order"), [(4, 1.0), (2, 0.5)])
def test_identity_4_limit_of_small_perturbations(columns, order):
    """|L_τ − L| = O(τ) at full rank and O(√τ) below: slopes by a fit."""
    rng = np.random.default_rng(4)
    sigma, generator = target("distinct", 4, rng), rng.normal(size=(4, columns))
    taus = np.geomspace(1e-10, 1e-7, 7)
    limit = bures("value", 0, generator, sigma)
    distances = [abs(bures("value", tau, generator, sigma) - limit) for tau in taus]
    slope = np.polyfit(np.log(taus), np.log(distances), 1)[0]
    np.testing.assert_allclose(slope, order, atol=0.02)


@given(problems)
def test_traced_zero_is_the_unperturbed_loss(problem):
    _, generator, sigma = drawn({**problem, "kind": "distinct"})
    for function in ("value", "gradient"):
        traced, plain = (bures(function, tau, generator, sigma) for tau in (0.0, 0))
        np.testing.assert_allclose(traced, plain, atol=1e-10)


@given(problems, st.sampled_from(TAUS))
def test_equivariance_under_rotations(problem, tau):
    """Of the data: value unchanged, gradient rotated. Of the latent space: likewise."""
    rng, generator, sigma = drawn({**problem, "kind": "distinct"})
    n, m = generator.shape
    data, latent = orthogonal(n, rng), orthogonal(m, rng)
    turned = Target(sigma.eigenvalues, data @ sigma.eigenvectors)
    value, gradient = bures("value", tau, generator, sigma), bures("gradient", tau, generator, sigma)
    moved = data @ generator @ latent
    np.testing.assert_allclose(bures("value", tau, moved, turned), value, atol=1e-11)
    expected = data @ gradient @ latent
    np.testing.assert_allclose(bures("gradient", tau, moved, turned), expected, atol=1e-9)
    moved_value = compiled("frobenius", "value")(moved, turned)
    np.testing.assert_allclose(moved_value, compiled("frobenius", "value")(generator, sigma), rtol=1e-11)


# --- optimum and gap ------------------------------------------------------------------------------


@given(problems, st.sampled_from((*TAUS, "frobenius")), st.integers(1, 6))
def test_optimum_is_attained_and_not_undercut(problem, tau, rank):
    _, generator, sigma = drawn(problem)
    rank = min(rank, *generator.shape)
    loss = losses.frobenius() if tau == "frobenius" else losses.bures_wasserstein(float(tau))
    eigenvalues = np.asarray(sigma.eigenvalues)
    level = 0.0 if tau == "frobenius" else float(tau)
    learnt = (np.arange(len(eigenvalues)) < rank) & (eigenvalues > level)
    if tau == "frobenius":
        expected = np.sum(eigenvalues[~learnt] ** 2)
    else:
        expected = np.sum((np.sqrt(eigenvalues[~learnt]) - np.sqrt(level)) ** 2)
    np.testing.assert_allclose(loss.minimum(sigma, rank), expected, atol=1e-13)
    spectrum_at_optimum = np.where(learnt, eigenvalues - level, 0)
    basis = np.asarray(sigma.eigenvectors)
    covariance = (basis * spectrum_at_optimum) @ basis.T
    np.testing.assert_allclose(loss.minimizer(sigma, rank), covariance, atol=1e-12)
    optimum = (basis * np.sqrt(spectrum_at_optimum))[:, :rank]
    assert loss.gap(optimum, sigma, rank) <= 1e-28 * max(1.0, np.sum(eigenvalues) ** 2)
    gap = loss.gap(generator[:, :rank], sigma, rank)
    assert gap >= 0
    value = loss.value(generator[:, :rank], sigma)
    np.testing.assert_allclose(gap, value - expected, rtol=1e-10, atol=1e-10 * max(1, value))


def exact_gap(generator, eigenvalues, tau, rank):
    """L_τ(W) − L_τ* in 90 digits, in the eigenbasis of the target."""
    with mpmath.workdps(90):
        n, m = generator.shape
        weights = mpmath.matrix(n, m)
        for i in range(n):
            for j in range(m):
                weights[i, j] = mpmath.mpf(float(generator[i, j]))
        lam = [mpmath.mpf(float(value)) for value in eigenvalues]
        level, roots = mpmath.mpf(float(tau)), [mpmath.sqrt(value) for value in lam]
        perturbed = weights * weights.T + level * mpmath.eye(n)
        inner = mpmath.matrix(n, n)
        for i in range(n):
            for j in range(n):
                inner[i, j] = roots[i] * perturbed[i, j] * roots[j]
        traces = sum(perturbed[i, i] for i in range(n)) + sum(lam)
        values = mpmath.eigsy(inner, eigvals_only=True)
        value = traces - 2 * sum(mpmath.sqrt(max(each, mpmath.mpf(0))) for each in values)
        skipped = (i for i in range(n) if i >= rank or lam[i] <= level)
        return value - sum((roots[i] - mpmath.sqrt(level)) ** 2 for i in skipped)


@settings(max_examples=60)
@given(
    st.sampled_from(((4, 4, 4), (5, 2, 2), (5, 3, 3), (4, 1, 1), (3, 5, 3))),
    st.sampled_from(SPECTRA),
    st.sampled_from((0, 0.0, 0.05, 0.5)),
    st.floats(0, 12),
    st.integers(0, 2**32 - 1),
)
def test_gap_against_ninety_digits(shape, kind, tau, digits, seed):
    """From relative gaps of order one down to 1e-24; §9 bounds the error."""
    n, m, rank = shape
    rng = np.random.default_rng(seed)
    eigenvalues = spectrum(kind, n, rng)
    learnt = np.sqrt(np.maximum(eigenvalues - tau, 0))[:rank]
    latent = orthogonal(m, rng)[:rank]
    near = np.eye(n)[:, :rank] @ (learnt[:, None] * latent)
    generator = near + 10.0**-digits * rng.normal(size=(n, m))
    sigma = Target(jnp.asarray(eigenvalues), None)
    computed = float(bures("gap", tau, generator, sigma, rank, static=(2,)))
    exact = exact_gap(generator, eigenvalues, tau, rank)
    trace = float(np.sum(eigenvalues))
    error = float(abs(mpmath.mpf(computed) - exact))
    assert computed >= 0
    bound = EPS * (float(exact) + np.sqrt(float(exact) * trace)) + EPS**2 * trace
    assert error <= 40 * bound


def test_gap_resolves_a_relative_gap_of_1e_24():
    """Two digits are left there, as §9 says; the usual form has none from 1e-16 on."""
    rng = np.random.default_rng(5)
    eigenvalues = np.array([2.0, 1.0, 0.5, 0.25])
    generator = np.diag(np.sqrt(eigenvalues))[:, :3] + 1e-12 * rng.normal(size=(4, 3))
    sigma = Target(jnp.asarray(eigenvalues), None)
    exact = float(exact_gap(generator, eigenvalues, 0, 3))
    assert 1e-25 < exact / eigenvalues.sum() < 1e-22
    computed = losses.bures_wasserstein().gap(jnp.asarray(generator), sigma, 3)
    np.testing.assert_allclose(computed, exact, rtol=0.05)


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("kind", SPECTRA)
def test_everything_is_finite_at_low_rank(tau, kind):
    rng = np.random.default_rng(6)
    sigma = target(kind, 4, rng)
    flat = np.outer(rng.normal(size=4), rng.normal(size=3))
    for generator in (np.zeros((4, 3)), flat, np.asarray(sigma.eigenvectors)[:, -3:] * [1.0, 0, 0]):
        for function in ("value", "gradient"):
            assert np.all(np.isfinite(bures(function, tau, generator, sigma)))
        gap = bures("gap", tau, generator, sigma, 3, static=(2,))
        assert np.isfinite(gap)
        assert gap >= 0
        assert np.all(np.isfinite(differentiated(tau)(jnp.asarray(generator), sigma)))


def test_gradient_of_least_norm_where_the_loss_has_a_kink():
    sigma = Target(jnp.array([2.0, 1.0]), jnp.eye(2))
    generator = jnp.array([[1.0, 0.0], [0.0, 0.0]])
    expected = 2 * (generator - jnp.array([[np.sqrt(2.0), 0.0], [0.0, 0.0]]))
    gradient = losses.bures_wasserstein().gradient(generator, sigma)
    np.testing.assert_allclose(gradient, expected, atol=1e-15)


def test_small_rank_in_a_large_dimension_takes_the_small_problem():
    """n = 200, k = 5, τ > 0: the quadrature equals the transport map of §2 by NumPy."""
    rng = np.random.default_rng(9)
    eigenvalues = np.append(np.geomspace(3, 1e-4, 150), np.zeros(50))
    generator = rng.normal(size=(200, 5))
    sigma = Target(jnp.asarray(eigenvalues), None)
    gradient = losses.bures_wasserstein(0.2).gradient(jnp.asarray(generator), sigma)
    half = np.sqrt(eigenvalues)[:150, None]
    inner = half * (generator[:150] @ generator[:150].T + 0.2 * np.eye(150)) * half.T
    values, vectors = np.linalg.eigh(inner)
    transported = half * ((vectors / np.sqrt(values)) @ vectors.T @ (half * generator[:150]))
    expected = 2 * (generator - np.pad(transported, ((0, 50), (0, 0))))
    np.testing.assert_allclose(gradient, expected, atol=1e-9)


def test_tau_is_a_lane_with_zero_among_them():
    rng = np.random.default_rng(7)
    sigma, generator = target("distinct", 4, rng), jnp.asarray(rng.normal(size=(4, 4)))
    taus = jnp.array([0.0, 0.1, 1.0])
    values = jax.vmap(lambda tau: losses.bures_wasserstein(tau).value(generator, sigma))(taus)
    singly = [losses.bures_wasserstein(float(tau)).value(generator, sigma) for tau in taus]
    np.testing.assert_allclose(values, singly, rtol=1e-12)


def test_float32_stays_float32():
    sigma = Target(jnp.array([2.0, 1.0], jnp.float32), None)
    generator = jnp.ones((2, 2), jnp.float32)
    for loss in (losses.bures_wasserstein(), losses.bures_wasserstein(0.5), losses.frobenius()):
        outputs = (
            loss.value(generator, sigma),
            loss.gradient(generator, sigma),
            loss.gap(generator, sigma, 2),
            loss.minimum(sigma, 1),
            loss.minimizer(sigma, 1),
        )
        assert {output.dtype for output in outputs} == {jnp.dtype("float32")}


@pytest.mark.parametrize("tau", [-0.1, float("nan"), float("inf")])
def test_refuses_a_bad_tau(tau):
    with pytest.raises(InvalidOption, match=r"tau: got .*; takes a finite number from 0"):
        losses.bures_wasserstein(tau)
    with pytest.raises(InvalidOption, match=r"^loss\.tau: got "):
        losses.LOSSES.build(Choice("bures_wasserstein", (("tau", tau),)))


def test_refuses_a_rank_the_generator_cannot_have():
    sigma = Target(jnp.ones(3), None)
    with pytest.raises(InvalidOption, match=r"rank: got 3; takes an integer from 1 to min\(n, m\) = 2"):
        losses.bures_wasserstein().gap(jnp.ones((3, 2)), sigma, 3)


def test_lanes_do_not_reach_each_other():
    """A lane that needs the exact route leaves its neighbor as if it were alone."""
    rng = np.random.default_rng(8)
    easy, hard = rng.normal(size=(4, 4)), np.outer(rng.normal(size=4), rng.normal(size=4))
    alone = jax.vmap(polar_factor)(jnp.asarray([easy, easy]))
    beside = jax.vmap(polar_factor)(jnp.asarray([easy, hard]))
    np.testing.assert_array_equal(alone[0], beside[0])
