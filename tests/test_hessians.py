"""Hessians in closed form against automatic differentiation, and Lanczos against whole spectra."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from problems import orthogonal

from bwdln import losses, networks
from bwdln.errors import InvalidOption
from bwdln.initializations.base import from_factors
from bwdln.networks import Packed
from bwdln.targets import Target
from bwdln.theory import curvature, hessians

#: Plain τ = 0 (the k × k route), a traced τ, and the Frobenius loss.
KINDS = ("unperturbed", "perturbed", "frobenius")
#: n = 5 and bottleneck 3: at the latent end, inside with m > n, inside with m < n, uneven throughout.
WIDTHS = ((3, 5), (6, 3, 5), (4, 3, 6, 5), (4, 5, 3, 4, 5))
DISTINCT = np.array([2.1, 1.6, 1.1, 0.8, 0.45])


def name_of(kind):
    return "frobenius" if kind == "frobenius" else "bures_wasserstein"


def loss_of(kind, tau):
    if kind == "frobenius":
        return losses.frobenius()
    return losses.bures_wasserstein(tau if kind == "perturbed" else 0)


@functools.cache
def automatic(kind):
    """(weights, λ, τ) ↦ the Hessian of the deep loss in all layers; one program for each shape."""

    def hessian(weights, eigenvalues, tau):
        flat, unravel = ravel_pytree(weights)
        target = Target(eigenvalues, None)
        return jax.hessian(lambda each: losses.deep_value(loss_of(kind, tau), unravel(each), target))(flat)

    return jax.jit(hessian)


@functools.cache
def closed(kind, function="spectrum"):
    """A closed form of a point with everything but the sizes traced."""

    def call(eigenvalues, positions, depth, tau):
        options = {"tau": tau if kind == "perturbed" else 0.0, "loss": name_of(kind)}
        if function != "rank_raising":
            options["depth"] = depth
        return getattr(hessians, function)(eigenvalues, positions, **options)

    return jax.jit(call)


@functools.cache
def at_minimizer(kind, rank):
    """(λ, depth, τ, step sizes over the stable one) ↦ rate, stable step, factors; all traced."""

    def call(eigenvalues, depth, tau, shares):
        options = {"depth": depth, "tau": tau if kind == "perturbed" else 0.0, "loss": name_of(kind)}
        stable = hessians.largest_stable_step(eigenvalues, rank, **options)

        def factor(share):
            return hessians.asymptotic_factor(eigenvalues, rank, step_size=share * stable, **options)

        return hessians.asymptotic_rate(eigenvalues, rank, **options), stable, jax.vmap(factor)(shares)

    return jax.jit(call)


def point(eigenvalues, positions, widths, tau, rng):
    """Balanced layers of Ω_J S Qᵀ in the eigenbasis, Q random."""
    values = np.sqrt(eigenvalues[list(positions)] - tau)
    left = np.eye(len(eigenvalues))[:, list(positions)]
    return from_factors(left, values, orthogonal(widths[0], rng)[: len(positions)], widths)


def whole_spectrum(kind, eigenvalues, positions, widths, tau):
    """All eigenvalues by the closed forms, zeros included, ascending."""
    options = {"tau": tau, "loss": name_of(kind)}
    depth, positions = len(widths) - 1, np.array(positions, int)
    parts = [closed(kind)(eigenvalues, positions, float(depth), tau)]
    if depth == 1 and len(positions) < min(widths):
        raising = closed(kind, "rank_raising")(eigenvalues, positions, 1.0, tau)
        parts.append(np.repeat(raising, widths[0] - len(positions)))
    nonzero = np.concatenate(parts)
    # Pairs of equal eigenvalues are zeros that the spectrum keeps in its place.
    nonzero = nonzero[nonzero != 0]
    zeros = hessians.zero_multiplicity(eigenvalues, tuple(positions), widths, **options)
    return np.sort(np.append(nonzero, np.zeros(zeros)))


def agrees(kind, eigenvalues, positions, widths, tau, rng):
    """Closed forms and automatic differentiation are the same at a point, to 1e-9 of the largest."""
    tau = tau if kind == "perturbed" else 0.0
    weights = point(eigenvalues, positions, widths, tau, rng)
    hessian = np.asarray(automatic(kind)(weights, eigenvalues, tau))
    expected = np.linalg.eigvalsh(hessian)
    found = whole_spectrum(kind, eigenvalues, positions, widths, tau)
    scale = np.abs(expected).max()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * max(scale, 1e-3))
    return expected


# --- the spectrum against automatic differentiation -----------------------------------------------


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_critical_point_at_dimension_five(kind, widths):
    rng = np.random.default_rng(0)
    for positions in itertools.combinations(range(5), 3):
        expected = agrees(kind, DISTINCT, positions, widths, 0.3, rng)
        found = closed(kind, "extremes")(DISTINCT, np.array(positions), len(widths) - 1.0, 0.3)
        nonzero = expected[np.abs(expected) > 1e-8]
        descending = sum(a < b for b in positions for a in set(range(5)) - set(positions))
        assert int(found.negative) == np.sum(nonzero < 0) == descending
        closest = np.abs(nonzero).min()
        wanted = (nonzero[-1], nonzero[0], closest, nonzero[-1] / nonzero[0], nonzero[-1] / closest)
        np.testing.assert_allclose(found[:5], wanted, rtol=1e-8)


@settings(max_examples=50)
@given(
    st.sampled_from(KINDS),
    st.sampled_from(WIDTHS),
    st.lists(st.floats(-2.5, 2.5), min_size=5, max_size=5),
    st.permutations(range(5)),
    st.floats(0.01, 0.97),
    st.integers(0, 2**32 - 1),
)
def test_random_spectra(kind, widths, logarithms, order, share, seed):
    """Eigenvalues over two decades, J in any order, τ up to just below the smallest on J."""
    eigenvalues, positions = np.exp(np.sort(logarithms)[::-1]), order[:3]
    tau = share * eigenvalues[positions].min()
    agrees(kind, eigenvalues, positions, widths, tau, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("widths", "count"),
    [((1, 1), 1), ((2, 4), 2), ((5, 3), 3), ((1, 3, 2), 1)],
)
def test_other_sizes(widths, count):
    rng = np.random.default_rng(1)
    for positions in itertools.combinations(range(widths[-1]), count):
        agrees("perturbed", DISTINCT[: widths[-1]], positions, widths, 0.3, rng)


@pytest.mark.parametrize("widths", [(6, 5), *WIDTHS[1:3]])
@pytest.mark.parametrize("kind", ["perturbed", "frobenius"])
def test_lower_rank_than_the_network_allows(kind, widths):
    """Depth 1: the rank-raising curvature joins. Above: zeros, so that the saddle is of higher order."""
    rng = np.random.default_rng(2)
    for positions in ((), (0,), (2,), (3,), (0, 1), (1, 3), (4, 0)):
        agrees(kind, DISTINCT, positions, widths, 0.4, rng)


def test_modes_below_tau_curve_upward():
    """Raising the rank costs where λ_a < τ; at λ_a = τ it is one more zero."""
    rng, spectrum = np.random.default_rng(3), np.array([2.0, 1.5, 0.5, 0.3, 0.0])
    expected = agrees("perturbed", spectrum, (0, 1), (6, 5), 0.5, rng)
    assert np.sum(np.abs(expected) < 1e-9) == 30 - (3 + 6 + 2 * 4)
    assert expected.min() > -1e-9
    found = hessians.rank_raising(spectrum, (0, 1), tau=0.5)
    np.testing.assert_allclose(found, [0, 2 - 2 * np.sqrt(0.6), 2], rtol=1e-14)


@pytest.mark.parametrize("widths", [(6, 5), *WIDTHS[1:3]])
def test_singular_target_without_perturbation(widths):
    """Where all of Σ₀ is learnt the loss has no kink, whatever rank the network allows beyond it."""
    rng, spectrum = np.random.default_rng(4), np.array([2.0, 0.7, 0.0, 0.0, 0.0])
    agrees("unperturbed", spectrum, (0, 1), widths, 0.0, rng)
    if widths == (6, 5):
        np.testing.assert_array_equal(hessians.rank_raising(spectrum, (0, 1)), [2.0, 2.0, 2.0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", WIDTHS[:3])
def test_repeated_eigenvalues(kind, widths):
    """The formulas hold; a repeat across J is a zero more, one inside J or outside is none."""
    rng, spectrum = np.random.default_rng(5), np.array([2.0, 2.0, 1.0, 1.0, 0.6])
    options = {"tau": 0.3 if kind == "perturbed" else 0.0, "loss": name_of(kind)}
    simple = hessians.zero_multiplicity(DISTINCT, (0, 1, 2), widths, **options)
    for positions, more in (((0, 1, 4), 0), ((0, 1, 2), 1), ((0, 2, 4), 2)):
        expected = agrees(kind, spectrum, positions, widths, 0.3, rng)
        zeros = hessians.zero_multiplicity(spectrum, positions, widths, **options)
        assert zeros == simple + more == np.sum(np.abs(expected) < 1e-9)
        found = closed(kind, "extremes")(spectrum, np.array(positions), len(widths) - 1.0, 0.3)
        np.testing.assert_allclose(found.smallest_absolute, np.sort(np.abs(expected))[zeros], rtol=1e-8)


def test_repeats_allow_any_basis_of_the_eigenspace():
    """At J = {0, 1} of λ = (2, 1, 1) the second vector may be any in the plane of the last two."""
    spectrum, angle = np.array([2.0, 1.0, 1.0, 0.5, 0.2]), 0.7
    turn = np.eye(5)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    first, *others = point(spectrum, (0, 1, 3), (6, 3, 5), 0.0, np.random.default_rng(6))
    turned = (first, *others[:-1], turn @ others[-1])
    found = np.linalg.eigvalsh(automatic("unperturbed")(turned, spectrum, 0.0))
    expected = whole_spectrum("unperturbed", spectrum, (0, 1, 3), (6, 3, 5), 0.0)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_curvature_blows_up_like_one_over_the_root_of_tau():
    rng, taus = np.random.default_rng(7), np.geomspace(1e-7, 1e-4, 5)
    closed_form, lowest = [], []
    for tau in taus:
        closed_form.append(hessians.rank_raising(DISTINCT, range(4), tau=tau)[0])
        weights = point(DISTINCT, (0, 1, 2, 3), (6, 5), tau, rng)
        lowest.append(np.linalg.eigvalsh(automatic("perturbed")(weights, DISTINCT, tau))[0])
    np.testing.assert_allclose(closed_form, lowest, rtol=1e-7)
    slope = np.polyfit(np.log(taus), np.log(-np.array(lowest)), 1)[0]
    np.testing.assert_allclose(slope, -0.5, atol=0.01)


# --- numbers --------------------------------------------------------------------------------------


def exact_pair(kind, first, second, depth, tau):
    """The eigenvalues of J = {0, 1}, n = 3, by 60 digits, from the quotients of §4."""
    with mpmath.workdps(60):
        a, b, c, n, t = (mpmath.mpf(float(x)) for x in (first, second, second / 4, depth, tau))
        x, y = (a, b) if kind == "frobenius" else (a - t, b - t)
        power = (n - 1) / n
        kernel = n * x**power if x == y else (x - y) / (x ** (1 / n) - y ** (1 / n))
        kernels = (n * x**power, kernel, n * y**power)
        pairs = ((a, a), (a, b), (b, b))
        if kind == "frobenius":
            within = [k * 4 * (p + q) for k, (p, q) in zip(kernels, pairs, strict=True)]
            across = [s**power * 4 * (p - c) for s, p in ((x, a), (y, b))]
        else:
            within = [k * 2 * (p + q - 2 * t) / (p + q) for k, (p, q) in zip(kernels, pairs, strict=True)]
            across = [s**power * 2 * (p - c) / (p + mpmath.sqrt(c * t)) for s, p in ((x, a), (y, b))]
        return [float(each) for each in (*within, *across)]


@settings(max_examples=150)
@given(
    st.sampled_from(("perturbed", "frobenius")),
    st.floats(-9, 9),
    st.one_of(st.floats(-17, 3), st.just(-40.0)),
    st.one_of(st.sampled_from((1.0, 1 + 1e-9, 2.0, 3.0, 50.0, 1e3)), st.floats(1, 100)),
    st.one_of(st.just(0.0), st.floats(0, 0.999), st.floats(1e-12, 1e-3).map(lambda x: 1 - x)),
)
def test_near_equal_eigenvalues_lose_no_digits(kind, size, closeness, depth, share):
    """Relative differences from 1e3 down to one unit of rounding and none, and τ close below λ."""
    second = 10.0**size
    first = second * (1 + 10.0**closeness)
    tau = share * second if kind == "perturbed" else 0.0
    found = closed(kind)(np.array([first, second, second / 4]), np.arange(2), depth, tau)
    np.testing.assert_allclose(found, exact_pair(kind, first, second, depth, tau), rtol=2e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_depth_is_a_continuous_number(kind):
    spectrum, positions, tau = np.array([4.0, 3.0, 2.5, 1.8, 1.5]), np.array([0, 2, 3]), 0.4
    depths = np.sort(np.append(np.linspace(1, 6, 41), [1 + 1e-9, 3 - 1e-9, 3 + 1e-9]))
    values = np.stack([closed(kind)(spectrum, positions, depth, tau) for depth in depths])
    # Every s is above 1, so every eigenvalue grows in size with depth; the integers are among them.
    assert np.all(np.diff(np.abs(values), axis=0) > 0)
    at_three = closed(kind)(spectrum, positions, 3.0, tau)
    beside = values[np.isin(depths, [3 - 1e-9, 3 + 1e-9])]
    np.testing.assert_allclose(beside, np.stack([at_three, at_three]), rtol=1e-8)
    variances = spectrum[positions] - (tau if kind == "perturbed" else 0)
    first, second = np.triu_indices(3)
    x, y = variances[first], variances[second]
    with np.errstate(invalid="ignore"):
        limit = np.where(x == y, x, (x - y) / np.log(x / y))
    shallow, deep = (closed(kind)(spectrum, positions, depth, tau) for depth in (1.0, 1e9))
    # κ is 1 at depth 1; over N it tends to the logarithmic mean of the variances, outside J to s².
    np.testing.assert_allclose(deep[:6] / shallow[:6] / 1e9, limit, rtol=1e-7)
    np.testing.assert_allclose(deep[6:] / shallow[6:], np.tile(variances, 2), rtol=1e-7)


def test_lanes_equal_a_loop_and_are_traced_once():
    rng, traces = np.random.default_rng(8), []
    spectra = np.sort(rng.uniform(0.6, 3, (6, 5)))[:, ::-1]
    positions = np.array(list(itertools.combinations(range(5), 3)))[:6]
    depths, taus = np.linspace(1, 4, 6), np.linspace(0, 0.5, 6)

    def call(eigenvalues, positions, depth, tau):
        traces.append(1)
        return (
            hessians.spectrum(eigenvalues, positions, depth=depth, tau=tau),
            hessians.extremes(eigenvalues, positions, depth=depth, tau=tau + 0.01, latent_dim=5),
            hessians.asymptotic_rate(eigenvalues, 3, depth=depth, tau=tau),
        )

    program = jax.jit(call)
    singly = [program(*each) for each in zip(spectra, positions, depths, taus, strict=True)]
    assert len(traces) == 1
    together = jax.jit(jax.vmap(call))(spectra, positions, depths, taus)
    looped = jax.tree.map(lambda *each: jnp.stack(each), *singly)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-13), together, looped)
    # A traced depth of 1 takes the rank-raising directions in, any other leaves them out.
    raising = hessians.extremes(spectra[0], positions[0], depth=1, tau=0.01, latent_dim=5)
    np.testing.assert_allclose([leaf[0] for leaf in together[1]], raising, rtol=1e-13)
    assert raising.negative == 2 * 2


def test_a_large_point_is_small_work():
    spectrum = np.geomspace(5, 1e-3, 300)
    found = closed("unperturbed", "extremes")(spectrum, np.arange(0, 300, 2), 50.0, 0.0)
    assert all(np.isfinite(each) for each in found)
    assert found.negative == 150 * 149 // 2


def test_float32_stays_float32_and_finite():
    spectrum = jnp.array([1e18, 1.0, 1e-18, 0.0], jnp.float32)
    for depth in (1, 1.5, 40):
        found = closed("unperturbed")(spectrum, np.arange(3), np.float32(depth), np.float32(0))
        assert found.dtype == jnp.float32
        assert np.all(np.isfinite(found))
        rate, step, _ = at_minimizer("unperturbed", 3)(spectrum, np.float32(depth), 0.0, np.zeros(1))
        assert rate.dtype == step.dtype == jnp.float32


def test_nothing_traced_gives_nan():
    """A traced J that is not above τ, and a traced τ of 0 where the loss has a kink."""
    spectrum = np.array([2.0, 1.0, 0.5, 0.0])
    for tau in (0.0, 0.5, 1.0, 3.0):
        for depth in (1.0, 2.5):
            assert np.all(np.isfinite(closed("perturbed")(spectrum, np.array([0, 2]), depth, tau)))
    raising = closed("perturbed", "rank_raising")(spectrum, np.array([0]), 1.0, 0.0)
    np.testing.assert_array_equal(raising, [-np.inf, -np.inf, 2.0])

    def kink(tau):
        return hessians.extremes(spectrum[:3], (), depth=1, tau=tau, latent_dim=2)

    assert not any(np.isnan(each) for each in jax.jit(kink)(0.0))


def test_no_modes_at_all():
    """W = 0: at depth 1 only the rank-raising directions, deeper only zeros."""
    flat = hessians.extremes(DISTINCT, (), depth=2, tau=0.3)
    assert flat == (0, 0, 0, np.inf, np.inf, 0)
    peak = hessians.extremes(DISTINCT, (), depth=1, tau=0.3, latent_dim=4)
    assert peak.negative == 20
    assert peak.smallest < peak.largest < 0
    assert hessians.zero_multiplicity(DISTINCT, (), (4, 3, 5), tau=0.3) == 27


# --- what follows for training --------------------------------------------------------------------


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_rate_and_stable_step_are_those_of_the_explicit_hessian(kind, widths):
    tau = 0.3 if kind == "perturbed" else 0.0
    shares = np.array([0.5, 0.99, 1.1])
    for spectrum in (DISTINCT, np.array([2.0, 2.0, 1.0, 1.0, 0.6])):
        weights = point(spectrum, (0, 1, 2), widths, tau, np.random.default_rng(9))
        values = np.linalg.eigvalsh(automatic(kind)(weights, spectrum, tau))
        smallest = values[values > 1e-9][0]
        found = at_minimizer(kind, 3)(spectrum, len(widths) - 1.0, 0.3, shares)
        factors = (1 - 2 * shares[:, None] * values[values > 1e-9] / values[-1]) ** 2
        wanted = np.array([2 * smallest, 2 / values[-1], *factors.max(axis=1)])
        np.testing.assert_allclose(np.hstack(found), wanted, rtol=1e-8)


def test_modes_below_tau_decide_the_rate():
    """Depth 1: 4 (1 − √(λ/τ)), also in the explicit Hessian. Deeper, or at λ = τ: no exponential."""
    spectrum, tau = np.array([2.0, 1.5, 0.5, 0.45, 0.1]), 0.55
    weights = point(spectrum, (0, 1), (6, 5), tau, np.random.default_rng(10))
    values = np.linalg.eigvalsh(automatic("perturbed")(weights, spectrum, tau))
    rate = at_minimizer("perturbed", 5)(spectrum, 1.0, tau, np.zeros(1))[0]
    np.testing.assert_allclose(rate, 2 * values[values > 1e-9][0], rtol=1e-9)
    np.testing.assert_allclose(rate, 4 * (1 - np.sqrt(0.5 / tau)), rtol=1e-13)
    for rank, depth, level in ((5, 2.0, tau), (3, 1.01, tau), (3, 1.0, 0.5)):
        rate, _, factors = at_minimizer("perturbed", rank)(spectrum, depth, level, np.array([0.1]))
        assert rate == 0
        assert factors == 1
    # Rank 3 at τ = 0.45 learns all it can; what lies at or below τ is out of reach.
    assert at_minimizer("perturbed", 3)(spectrum, 2.0, 0.45, np.zeros(1))[0] > 0
    singular = np.array([2.0, 1.5, 1.0, 0.0, 0.0])
    assert at_minimizer("perturbed", 5)(singular, 1.0, 0.0, np.zeros(1))[0] == 4
    assert at_minimizer("perturbed", 5)(singular, 2.0, 0.0, np.zeros(1))[0] == 0
    assert at_minimizer("frobenius", 5)(singular, 1.0, 0.0, np.zeros(1))[0] == 0


def test_a_minimizer_of_zero_has_no_limit_of_steps_when_deep():
    """All λ ≤ τ: the rank-raising curvature alone bends the loss, at depth 1."""
    rate, step, factors = at_minimizer("perturbed", 3)(DISTINCT, 2.0, 5.0, np.ones(1))
    assert (rate, step) == (0, np.inf)
    assert not np.any(np.isnan(factors))
    rate, step, _ = at_minimizer("perturbed", 3)(DISTINCT, 1.0, 5.0, np.ones(1))
    curvatures = 2 * (1 - np.sqrt(DISTINCT / 5))
    np.testing.assert_allclose((rate, step), (2 * curvatures[0], 2 / curvatures[-1]), rtol=1e-12)


def test_formulas_of_the_text():
    """§6: 4 N λ_n^{(N−1)/N} at full rank, 1 / (N λ_1^{(N−1)/N}), and the rank-deficient rate."""
    for depth in (1.0, 2.0, 3.7):
        power, none = (depth - 1) / depth, np.zeros(3)
        full, step, _ = at_minimizer("unperturbed", 5)(DISTINCT, depth, 0.0, none)
        np.testing.assert_allclose(full, 4 * depth * DISTINCT[4] ** power, rtol=1e-13)
        np.testing.assert_allclose(step, 1 / (depth * DISTINCT[0] ** power), rtol=1e-13)
        low, _, _ = at_minimizer("unperturbed", 3)(DISTINCT, depth, 0.0, none)
        expected = 4 * DISTINCT[2] ** power * (1 - DISTINCT[3] / DISTINCT[2])
        np.testing.assert_allclose(low, expected, rtol=1e-13)


def test_descent_near_the_minimum_falls_and_rises_as_predicted():
    """Steps of half the limit give the predicted factor; just below it the gap falls, above it rises."""
    widths, target, loss = (6, 3, 5), Target(DISTINCT, None), losses.bures_wasserstein()
    rng = np.random.default_rng(11)
    weights = point(DISTINCT, (0, 1, 2), widths, 0.0, rng)
    start = tuple(layer + 1e-5 * rng.normal(size=layer.shape) for layer in weights)
    limit = float(hessians.largest_stable_step(DISTINCT, 3, depth=2))

    @jax.jit
    def advance(packed, step_size):
        gradients = losses.layer_gradients(loss, packed, target)
        moved = jax.tree.map(lambda layer, gradient: layer - step_size * gradient, packed, gradients)
        return moved, loss.gap(networks.end_to_end(networks.unpack(packed)), target, 3)

    def gaps(step_size, steps):
        packed, found = networks.pack(start), []
        for _ in range(steps):
            packed, gap = advance(packed, step_size)
            found.append(float(gap))
        return np.array(found)

    late = gaps(0.5 * limit, 60)[-20:]
    factor = hessians.asymptotic_factor(DISTINCT, 3, depth=2, step_size=0.5 * limit)
    np.testing.assert_allclose(late[1:] / late[:-1], float(factor), rtol=1e-3)
    assert gaps(0.98 * limit, 80)[-1] < gaps(1.02 * limit, 1)[0] < gaps(1.02 * limit, 80)[-1]


# --- matrix-free: products ------------------------------------------------------------------------


@functools.cache
def products(kind):
    """(packed weights, packed vectors, λ, τ) ↦ the product of the Hessian and the vectors."""

    def call(weights, vectors, eigenvalues, tau):
        return curvature.hessian_operator(loss_of(kind, tau), weights, Target(eigenvalues, None))(vectors)

    return jax.jit(call)


@functools.cache
def ends(kind, iterations):
    """(packed weights, λ, τ) ↦ both ends by Lanczos."""

    def call(weights, eigenvalues, tau):
        target = Target(eigenvalues, None)
        return curvature.curvature(loss_of(kind, tau), weights, target, iterations=iterations)

    return jax.jit(call)


def random_layers(widths, rng, dtype=float):
    shapes = zip(widths[1:], widths[:-1], strict=True)
    return tuple(jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[1]), dtype) for shape in shapes)


def encloses(ritz, values, floor=0.0):
    """The ends are inside the spectrum, and an eigenvalue is as near as the errors say."""
    slack = floor + 1e-13 * np.abs(values).max()
    assert values[0] - slack <= ritz.smallest
    assert ritz.largest <= values[-1] + slack
    for end, error in ((ritz.largest, ritz.largest_error), (ritz.smallest, ritz.smallest_error)):
        assert np.abs(values - end).min() <= error


@pytest.mark.parametrize(
    ("kind", "widths"),
    [*((kind, (6, 3, 5)) for kind in KINDS), ("unperturbed", (4, 3, 6, 5)), ("perturbed", (3, 5))],
)
def test_products_are_those_of_the_explicit_hessian(kind, widths):
    """At random weights, and where the lower half has lost rank, which its factorization must survive."""
    rng = np.random.default_rng(12)
    layers, vectors = random_layers(widths, rng), random_layers(widths, rng)
    hollow = (layers[0].at[1].set(0.0), *layers[1:])
    for weights in (layers, hollow) if widths == (6, 3, 5) else (layers,):
        hessian = np.asarray(automatic(kind)(weights, DISTINCT, 0.3))
        found = products(kind)(networks.pack(weights), networks.pack(vectors), DISTINCT, 0.3)
        flat = ravel_pytree(networks.unpack(found))[0]
        scale = np.abs(hessian).max()
        np.testing.assert_allclose(flat, hessian @ ravel_pytree(vectors)[0], atol=1e-11 * scale)


def test_a_short_run_of_lanczos_encloses_the_ends():
    """Ten products of 33 parameters find the upper end, not yet to the last digit."""
    rng = np.random.default_rng(18)
    for _ in range(20):
        weights = random_layers((6, 3, 5), rng)
        values = np.linalg.eigvalsh(automatic("unperturbed")(weights, DISTINCT, 0.0))
        ritz = ends("unperturbed", 10)(networks.pack(weights), DISTINCT, 0.0)
        encloses(ritz, values)
        np.testing.assert_allclose(ritz.largest, values[-1], rtol=0.05)
        assert ritz.largest_error < 0.5 * (values[-1] - values[0])


def test_products_through_a_stack_of_layers():
    rng, widths = np.random.default_rng(13), (3, *([2] * 14), 4)
    layers, vectors, spectrum = random_layers(widths, rng), random_layers(widths, rng), DISTINCT[:4]
    target, loss = Target(spectrum, None), losses.frobenius()
    packed = networks.pack(layers)
    assert any(block.ndim == 3 for block in packed.above)

    @jax.jit
    def both(layers, vectors):
        gradient = jax.grad(lambda each: losses.deep_value(loss, each, target))
        operator = curvature.hessian_operator(loss, networks.pack(layers), target)
        product = operator(networks.pack(vectors))
        return jax.jvp(gradient, (layers,), (vectors,))[1], networks.unpack(product)

    expected, found = (ravel_pytree(each)[0] for each in both(layers, vectors))
    np.testing.assert_allclose(found, expected, atol=1e-10 * np.abs(expected).max())


def test_curvature_inside_a_larger_program():
    """As lanes of a loop: a minimum, a saddle with flat directions, and W = 0, where layers vanish."""
    widths, target = (3, 5), Target(DISTINCT, None)
    rng = np.random.default_rng(14)
    places = [point(DISTINCT, each, widths, 0.3, rng)[0] for each in ((0, 1, 2), (1, 2, 4), ())]

    @jax.jit
    def each(stack):
        loss = losses.bures_wasserstein(0.3)
        return jax.lax.map(lambda w: curvature.curvature(loss, Packed((), (w,)), target), stack)

    found = each(jnp.stack(places))
    for lane, place in enumerate(places):
        values = np.linalg.eigvalsh(automatic("perturbed")((place,), DISTINCT, 0.3))
        encloses(jax.tree.map(lambda leaf, lane=lane: leaf[lane], found), values)
        np.testing.assert_allclose(found.largest[lane], values[-1], rtol=1e-12)
        np.testing.assert_allclose(found.smallest[lane], values[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_weights_are_a_flat_point(kind):
    zeros = Packed((jnp.zeros((3, 6)),), (jnp.zeros((5, 3)),))
    product = products(kind)(zeros, jax.tree.map(jnp.ones_like, zeros), DISTINCT, 0.3)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(product))


def test_float32_curvature_stays_float32_and_encloses():
    layers = random_layers((3, 5), np.random.default_rng(15), np.float32)
    single, tau, packed = DISTINCT.astype(np.float32), np.float32(0.3), networks.pack(layers)
    ritz = ends("perturbed", 10)(packed, single, tau)
    assert {each.dtype for each in ritz} == {jnp.dtype("float32")}
    doubles = tuple(np.asarray(layer, float) for layer in layers)
    values = np.linalg.eigvalsh(automatic("perturbed")(doubles, single.astype(float), float(tau)))
    encloses(ritz, values, floor=1e-5)
    np.testing.assert_allclose(ritz.largest, values[-1], rtol=1e-2)


# --- matrix-free: Lanczos -------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="iterations")
def lanczos_of(matrix, iterations, key=None):
    """Lanczos on vectors of two blocks, by a symmetric matrix."""
    like = Packed((jnp.zeros((2, 3), matrix.dtype),), (jnp.zeros((len(matrix) - 6, 1), matrix.dtype),))
    _, unravel = ravel_pytree(like)
    return curvature.lanczos(
        lambda v: unravel(matrix @ ravel_pytree(v)[0]), like, iterations=iterations, key=key
    )


SPECTRA_OF_OPERATORS = {
    "zero": np.zeros(12),
    "identity": np.ones(12),
    "negative": -np.ones(12),
    "projector": np.repeat([0.0, 1.0], 6),
    "one": np.append(np.zeros(11), 3.0),
    "three values": np.repeat([-2.0, 0.5, 5.0], 4),
    "tiny beside large": np.append(1e3, np.geomspace(1e-12, 1e-6, 11)),
    "dense": np.linspace(-3, 2, 12),
}


@pytest.mark.parametrize("iterations", [1, 5, 40])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_lanczos_encloses_every_kind_of_spectrum(dtype, iterations):
    """Invariant subspaces reached early, and more iterations than parameters, included."""
    basis = orthogonal(12, np.random.default_rng(16))
    for values in SPECTRA_OF_OPERATORS.values():
        matrix = (basis * values) @ basis.T
        ritz = lanczos_of(jnp.asarray((matrix + matrix.T) / 2, dtype), iterations)
        assert all(np.isfinite(each) and each.dtype == dtype for each in ritz)
        scale = np.abs(values).max()
        eps = np.finfo(dtype).eps
        encloses(ritz, np.sort(values), floor=20 * eps * scale)
        if iterations >= len(np.unique(values)):
            found = (ritz.largest, ritz.smallest)
            np.testing.assert_allclose(found, (values.max(), values.min()), atol=50 * eps * scale)
            assert ritz.largest_error <= 1000 * eps * scale


@pytest.mark.parametrize("factor", [2.0, -3.0])
def test_lanczos_goes_on_where_nothing_is_left_of_a_vector(factor):
    """A multiple of the identity: every remainder is exactly 0, or rounding. No 0 enters the spectrum."""
    ritz = lanczos_of(factor * jnp.eye(12), 40)
    np.testing.assert_allclose((ritz.largest, ritz.smallest), (factor, factor), rtol=1e-14)
    assert max(ritz.largest_error, ritz.smallest_error) < 1e-12


def test_lanczos_repeats_itself_and_takes_a_key():
    rng = np.random.default_rng(17)
    matrix = jnp.diag(jnp.asarray(rng.normal(size=12)))
    assert lanczos_of(matrix, 4) == lanczos_of(matrix, 4)
    assert lanczos_of(matrix, 4, jax.random.key(0)) == lanczos_of(matrix, 4)
    assert lanczos_of(matrix, 4, jax.random.key(1)).largest != lanczos_of(matrix, 4).largest


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hessians.spectrum(DISTINCT, (0, 5), depth=2), "index_set: got position 5; takes"),
        (lambda: hessians.spectrum(DISTINCT, (1, 1), depth=2), "index_set: got .*1.* more than once"),
        (lambda: hessians.spectrum(DISTINCT, (0, 4), depth=2, tau=0.5), "index_set: got position 4"),
        (lambda: hessians.spectrum(DISTINCT, (0,), depth=0.5), "depth: got 0.5"),
        (lambda: hessians.spectrum(DISTINCT[::-1], (0,), depth=2), "eigenvalues: got an ascending pair"),
        (lambda: hessians.spectrum(DISTINCT, (0,), depth=2, tau=-1), "tau: got -1"),
        (lambda: hessians.spectrum(DISTINCT, (0,), depth=2, tau=0.1, loss="frobenius"), "tau: got 0.1"),
        (lambda: hessians.spectrum(DISTINCT, (0,), depth=2, loss="other"), "loss: got other"),
        (lambda: hessians.rank_raising(DISTINCT, (0, 1)), "tau: got 0.0; takes a number above 0 .*kink"),
        (lambda: hessians.extremes(DISTINCT, (0, 1), depth=1, latent_dim=1), "latent_dim: got 1"),
        (lambda: hessians.extremes(DISTINCT, (0, 1), depth=1, latent_dim=3), "tau: got 0.0.*kink"),
        (lambda: hessians.zero_multiplicity(DISTINCT, (0,), (3, 4)), "widths: got .*dimension 5"),
        (lambda: hessians.zero_multiplicity(DISTINCT, (0, 1, 2), (4, 2, 5)), "index_set: got 3 positions"),
        (lambda: hessians.zero_multiplicity(DISTINCT, (0, 1), (4, 3, 5)), "tau: got 0.0.*kink"),
        (lambda: hessians.asymptotic_rate(DISTINCT, 6, depth=2), "rank: got 6; takes an integer from 1"),
        (lambda: hessians.largest_stable_step(DISTINCT, 0, depth=2), "rank: got 0"),
        (
            lambda: hessians.asymptotic_factor(DISTINCT, 2, depth=2, step_size=0.0),
            "step_size: got 0.0; takes a finite number above 0",
        ),
        (lambda: lanczos_of(jnp.eye(12), 0), "iterations: got 0"),
    ],
)
def test_bad_input_is_said_in_one_line(call, message):
    with pytest.raises(InvalidOption, match=message):
        call()
