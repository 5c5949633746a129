"""Critical points against the losses, differences, brute force and exact counting."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import SPECTRA, orthogonal, spectrum, target

from bwdln import losses, networks
from bwdln.errors import InvalidOption
from bwdln.targets import Target
from bwdln.theory import critical_points as theory
from bwdln.theory import subsets

#: (loss, τ)
KINDS = (("bures_wasserstein", 0.0), ("bures_wasserstein", 0.3), ("frobenius", 0.0))
#: n = 5: tall and wide at depth 1, uneven ones with the bottleneck at an end and inside.
WIDTHS = ((3, 5), (7, 5), (3, 6, 4, 5), (6, 2, 4, 5))

DISTINCT = (2.0, 1.4, 0.9, 0.6, 0.1)  # the last below τ = 0.3


def loss_of(name, tau):
    return losses.frobenius() if name == "frobenius" else losses.bures_wasserstein(tau)


@functools.cache
def measured(name, tau):
    """(loss, ∇L in function space, gradients of the layers) of weights; compiled once for each shape."""
    loss = loss_of(name, tau)

    def call(weights, sigma):
        value, gradient = loss.value_and_gradient(networks.end_to_end(weights), sigma)
        layers = losses.layer_gradients(loss, networks.pack(weights), sigma)
        return value, gradient, networks.unpack(layers)

    return jax.jit(call)


def five(seed=0, values=DISTINCT):
    basis = orthogonal(5, np.random.default_rng(seed))
    return Target(jnp.asarray(values), jnp.asarray(basis))


def points_of(sigma, widths, name, tau):
    return theory.critical_points(sigma.eigenvalues, min(widths), tau=tau, loss=name, widths=widths)


# --- which there are ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tau"), KINDS)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_all_are_listed_once_the_minimizer_first(name, tau, rank):
    points = list(theory.critical_points(DISTINCT, rank, tau=tau, loss=name))
    learnable = 4 if tau else 5
    most = min(rank, learnable)
    smallest = most if name == "bures_wasserstein" and not tau else 0
    expected = sum(math.comb(learnable, size) for size in range(smallest, most + 1))
    assert theory.count(DISTINCT, rank, tau=tau, loss=name) == len(points) == expected
    sets = [point.index_set for point in points]
    assert len(set(sets)) == len(sets)
    assert all(set(each) <= set(range(learnable)) and smallest <= len(each) <= most for each in sets)
    assert [len(each) for each in sets] == sorted(map(len, sets), reverse=True)
    assert sets[0] == theory.minimizing_set(DISTINCT, rank, tau=tau, loss=name) == tuple(range(most))
    assert points[0].value == theory.minimum(DISTINCT, rank, tau=tau, loss=name)
    assert all(point.value > points[0].value for point in points[1:])
    assert [point.kind for point in points].count("minimum") == 1


def test_zero_eigenvalues_are_never_learnt():
    singular = (2.0, 1.0, 0.0, 0.0)
    assert [each.index_set for each in theory.critical_points(singular, 3)] == [(0, 1)]
    assert theory.count(singular, 3, loss="frobenius") == 4
    assert theory.minimum(singular, 3) == 0
    assert theory.count((0.0, 0.0), 1) == 1
    assert next(theory.critical_points((0.0, 0.0), 1)) == ((), 0.0, 0, "minimum")
    above = theory.critical_points((0.5, 0.2), 2, tau=0.5)
    assert [each.kind for each in above] == ["minimum"]  # λ = τ is not above it


def test_enumeration_is_lazy_and_counts_are_exact_where_there_are_very_many():
    eigenvalues = np.linspace(3, 1, 500)
    points = list(itertools.islice(theory.critical_points(eigenvalues, 250), 3))
    assert [point.index_set[-1] for point in points] == [249, 250, 251]
    assert theory.count(eigenvalues, 250) == math.comb(500, 250)
    expected = sum(math.comb(500, size) for size in range(251))
    assert theory.count(eigenvalues, 250, loss="frobenius") == expected


@pytest.mark.parametrize(("name", "tau"), KINDS)
def test_kinds_and_indices(name, tau):
    """By the definitions of §4, pair by pair."""
    for point in theory.critical_points(DISTINCT, 3, tau=tau, loss=name):
        inside = set(point.index_set)
        pairs = [(a, l) for a in set(range(5)) - inside for l in inside if DISTINCT[a] > DISTINCT[l]]  # noqa: E741
        assert point.index == len(pairs) == theory.index(DISTINCT, point.index_set, tau=tau, loss=name)
        if pairs:
            assert point.kind == "strict saddle"
        elif len(inside) == 3:
            assert point.kind == "minimum"
        else:
            # At τ = 0.3 the smallest eigenvalue is below it: W = 0 is no maximum.
            is_top = not inside and name == "frobenius"
            assert point.kind == ("maximum" if is_top else "higher-order saddle")


def test_at_depth_one_raising_the_rank_counts():
    """J = {0} of n = 5 at m = 3: (3 − 1) directions for each of three larger than τ; none inside."""
    points = {p.index_set: p for p in theory.critical_points(DISTINCT, 3, tau=0.3, widths=(3, 5))}
    assert points[(0,)][2:] == (6, "strict saddle")
    assert points[(1,)].index == 1 + 6
    assert points[()].index == 12
    assert points[(0, 1, 2)][2:] == (0, "minimum")
    deep = {p.index_set: p for p in theory.critical_points(DISTINCT, 3, tau=0.3, widths=(3, 4, 5))}
    assert deep[(0,)][2:] == (0, "higher-order saddle")


# --- sampling -------------------------------------------------------------------------------------


@given(st.integers(0, 8), st.sets(st.integers(0, 8), min_size=1))
def test_subsets_by_place_are_those_listed(items, sizes):
    sizes = sorted(sizes, reverse=True)
    expected = [each for size in sizes for each in itertools.combinations(range(items), size)]
    assert list(subsets.listed(items, sizes)) == expected
    assert subsets.count(items, sizes) == len(expected)
    assert [subsets.at(place, items, sizes) for place in range(len(expected))] == expected
    with pytest.raises(IndexError):
        subsets.at(len(expected), items, sizes)


def test_every_set_of_places_is_equally_likely():
    """All C(6, 3) = 20 sets in 4000 draws: χ² with 19 degrees of freedom, 99.9 % below 43.8."""
    seen = [tuple(subsets.drawn(seed, 6, 3)) for seed in range(4000)]
    counts = np.array([seen.count(each) for each in itertools.combinations(range(6), 3)])
    assert counts.sum() == 4000
    assert np.sum((counts - 200) ** 2 / 200) < 43.8


@given(st.integers(0, 2**32), st.integers(0, 40), st.integers(0, 50))
def test_places_are_drawn_without_replacement(seed, total, number):
    places = subsets.drawn(seed, total, number)
    assert places == sorted(set(places))
    assert len(places) == min(total, number)
    assert set(places) <= set(range(total))


@pytest.mark.parametrize(("name", "tau"), KINDS)
def test_samples_hold_the_minimizer_and_different_others(name, tau):
    everything = list(theory.critical_points(DISTINCT, 2, tau=tau, loss=name))
    total = len(everything)
    for number in (total, total + 1, 10**6):
        assert theory.sample(0, DISTINCT, 2, number, tau=tau, loss=name) == everything
    assert theory.sample(3, DISTINCT, 2, 1, tau=tau, loss=name) == everything[:1]
    drawn = [theory.sample(seed, DISTINCT, 2, 4, tau=tau, loss=name) for seed in range(40)]
    assert all(each[0] == everything[0] and len(set(each)) == 4 for each in drawn)
    assert set(itertools.chain(*drawn)) == set(everything)
    assert drawn[7] == theory.sample(7, DISTINCT, 2, 4, tau=tau, loss=name)


@pytest.mark.parametrize("name", ["bures_wasserstein", "frobenius"])
def test_samples_where_there_are_very_many(name):
    eigenvalues = np.geomspace(3, 0.01, 500)
    points = theory.sample(1, eigenvalues, 250, 60, loss=name)
    assert len({point.index_set for point in points}) == 60
    assert points[0].kind == "minimum"
    sizes = [len(point.index_set) for point in points[1:]]
    # Of all subsets of at most 250 of 500, one in 14 has 250; fewer than 200 are out of the question.
    assert set(sizes) == {250} if name == "bures_wasserstein" else len(set(sizes)) > 10 and min(sizes) > 200
    # Each mode is in about half of the sets; the standard deviation of this mean is 1.
    assert abs(np.mean([np.mean(point.index_set) for point in points[1:]]) - 249.5) < 5
    for point in points[:4]:
        value = theory.value(eigenvalues, point.index_set, loss=name)
        np.testing.assert_allclose(point.value, value, rtol=1e-13)
        assert point.index == theory.index(eigenvalues, point.index_set, loss=name)


# --- what they are --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tau"), KINDS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_gradients_vanish_and_the_value_is_that_of_the_loss(name, tau, widths):
    sigma = five()
    for point in points_of(sigma, widths, name, tau):
        weights = theory.layers(sigma, point.index_set, widths, tau=tau, loss=name)
        assert networks.layer_widths(weights) == widths
        np.testing.assert_allclose(networks.imbalance(weights), 0, atol=1e-14)
        generator = theory.end_to_end(sigma, point.index_set, widths[0], tau=tau, loss=name)
        np.testing.assert_allclose(networks.end_to_end(weights), generator, atol=1e-14)
        value, gradient, layers = measured(name, tau)(weights, sigma)
        np.testing.assert_allclose(value, point.value, rtol=1e-12, atol=1e-13)
        assert max(float(jnp.abs(each).max()) for each in (gradient, *layers)) <= 1e-12


@settings(max_examples=30)
@given(
    st.sampled_from(SPECTRA),
    st.sampled_from(KINDS),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(4, 2), (3, 5)]),
)
def test_every_kind_of_spectrum(kind, loss, seed, shape):
    """With random rows, and all that is asked of one point at a time."""
    (name, tau), (n, m) = loss, shape
    rng = np.random.default_rng(seed)
    sigma = target(kind, n, rng)
    for point in theory.sample(seed, sigma.eigenvalues, min(shape), 3, tau=tau, loss=name):
        inside = list(point.index_set)
        rows = orthogonal(m, rng)[: len(inside)]
        generator = theory.end_to_end(sigma, inside, m, tau=tau, loss=name, rows=rows)
        value, gradient, _ = measured(name, tau)((generator,), sigma)
        np.testing.assert_allclose(value, point.value, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(theory.value(sigma.eigenvalues, inside, tau=tau, loss=name), point.value)
        # The polar factor is as accurate as its condition number, here up to 1e7, allows.
        atol = 1e-8 if kind == "ill_conditioned" else 1e-12
        np.testing.assert_allclose(gradient, 0, atol=atol)
        singular = theory.singular_values(sigma.eigenvalues, inside, tau=tau, loss=name)
        measured_values = np.linalg.svd(generator, compute_uv=False)[: len(inside)]
        np.testing.assert_allclose(np.sort(singular)[::-1], measured_values, rtol=1e-9)
        backwards = theory.end_to_end(sigma, inside[::-1], m, tau=tau, loss=name, rows=rows[::-1])
        np.testing.assert_allclose(backwards, generator, atol=1e-14)


@pytest.mark.parametrize(("name", "tau"), KINDS[1:])
@pytest.mark.parametrize("widths", [(3, 3), (2, 2, 3)])
def test_index_against_the_hessian_by_differences(name, tau, widths):
    """At every point: negative eigenvalues of the matrix of differences of the gradients."""
    sigma = Target(jnp.array([1.7, 1.0, 0.5]), jnp.asarray(orthogonal(3, np.random.default_rng(1))))
    for point in points_of(sigma, widths, name, tau):
        weights = theory.layers(sigma, point.index_set, widths, tau=tau, loss=name)
        flat, shaped = jax.flatten_util.ravel_pytree(weights)
        columns = []
        for unit in np.eye(len(flat)):
            ends = [measured(name, tau)(shaped(flat + sign * 1e-4 * unit), sigma)[2] for sign in (1, -1)]
            ahead, behind = (np.concatenate([np.ravel(each) for each in end]) for end in ends)
            columns.append((ahead - behind) / 2e-4)
        eigenvalues = np.linalg.eigvalsh((np.array(columns) + np.array(columns).T) / 2)
        assert np.sum(eigenvalues < -1e-3) == point.index
        found = theory.index(sigma.eigenvalues, point.index_set, tau=tau, loss=name, widths=widths)
        assert found == point.index


@pytest.mark.parametrize(("name", "tau"), KINDS)
def test_lanes_of_targets_and_of_index_sets(name, tau):
    rng = np.random.default_rng(2)
    spectra = jnp.asarray([spectrum("distinct", 5, rng) + 0.3 for _ in range(4)])
    sets = list(itertools.combinations(range(5), 3))

    @jax.jit
    def lanes(spectra, sets, tau):
        def one(function):
            pick = functools.partial(function, tau=tau, loss=name)
            return jax.vmap(jax.vmap(pick, (None, 0)), (0, None))(spectra, sets)

        return one(theory.value), one(theory.index), one(theory.singular_values)

    values, indices, singular = lanes(spectra, jnp.asarray(sets), tau)
    for i, j in np.ndindex(4, len(sets)):
        lone = {"tau": tau, "loss": name}
        np.testing.assert_allclose(values[i, j], theory.value(spectra[i], sets[j], **lone), rtol=1e-13)
        assert indices[i, j] == theory.index(spectra[i], sets[j], **lone)
        np.testing.assert_allclose(singular[i, j], theory.singular_values(spectra[i], sets[j], **lone))


def test_points_may_be_traced():
    """Inside `jit`, target, index set, τ and rows: the same matrices."""
    sigma, rows = five(), orthogonal(4, np.random.default_rng(10))[:2]

    @jax.jit
    def traced(sigma, inside, tau, rows):
        generator = theory.end_to_end(sigma, inside, 4, tau=tau, rows=rows)
        return generator, theory.layers(sigma, inside, (4, 3, 5), tau=tau)

    generator, weights = traced(sigma, jnp.array([3, 1]), 0.3, rows)
    np.testing.assert_allclose(generator, theory.end_to_end(sigma, (3, 1), 4, tau=0.3, rows=rows), rtol=1e-13)
    for found, expected in zip(weights, theory.layers(sigma, (3, 1), (4, 3, 5), tau=0.3), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_values_differentiate_at_a_singular_target():
    slope = jax.grad(theory.value)(jnp.array([2.0, 1.0, 0.0]), (1,))
    np.testing.assert_allclose(slope, [1, 0, 0], atol=1e-15)


def test_float32_stays_float32():
    sigma = Target(jnp.array([2.0, 1.0, 0.5], jnp.float32), None)
    assert theory.value(sigma.eigenvalues, (0, 1)).dtype == jnp.float32
    weights = theory.layers(sigma, (0, 2), (2, 3, 3))
    direction = theory.descent_direction(sigma, (0, 2), (2, 3, 3))
    assert {each.dtype for each in (*weights, *direction)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(networks.end_to_end(weights)[:, 1], [0, 0, 0.5**0.5], rtol=1e-6)


# --- minima and ways down -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tau"), KINDS)
@pytest.mark.parametrize("widths", [(3, 5), (3, 6, 4, 5)])
def test_nothing_near_the_minimizer_is_lower(name, tau, widths):
    sigma, rng = five(), np.random.default_rng(3)
    best = theory.minimizing_set(sigma.eigenvalues, 3, tau=tau, loss=name)
    weights = theory.layers(sigma, best, widths, tau=tau, loss=name)
    lowest = theory.minimum(sigma.eigenvalues, 3, tau=tau, loss=name)
    for size in (1e-6, 1e-3, 0.1, 1.0):
        for _ in range(10):
            near = tuple(each + size * rng.normal(size=each.shape) for each in weights)
            value, _, _ = measured(name, tau)(near, sigma)
            assert value >= lowest * (1 - 1e-14)
            assert size < 1e-3 or value > lowest


def predicted_change(sigma, inside, widths, name, tau, step):
    """(order, change): half a squared step times the smallest curvature of §4, or the raised mode's."""
    lam, depth = np.asarray(sigma.eigenvalues), len(widths) - 1
    outside = [a for a in range(len(lam)) if a not in inside and lam[a] > tau]
    curvatures = [
        (lam[l] - tau) ** ((depth - 1) / depth)
        * (
            4 * (lam[l] - lam[a])
            if name == "frobenius"
            else 2 * (lam[l] - lam[a]) / (lam[l] + (lam[a] * tau) ** 0.5)
        )
        for a in outside
        for l in inside  # noqa: E741
    ]
    if curvatures and min(curvatures) < 0:
        return 2, min(curvatures) * step**2 / 2
    largest = lam[outside[0]]
    added = (step / depth**0.5) ** depth
    if name == "frobenius":
        return 2 * depth, added**4 - 2 * largest * added**2
    change = (np.sqrt(added**2 + tau) - np.sqrt(largest)) ** 2 - (np.sqrt(tau) - np.sqrt(largest)) ** 2
    return 2 * depth if tau else depth, change


@pytest.mark.parametrize(("name", "tau"), KINDS)
@pytest.mark.parametrize("widths", WIDTHS)
def test_from_every_other_point_the_predicted_way_leads_down(name, tau, widths):
    """By the predicted amount and order, from two steps."""
    sigma = five(seed=4)
    for point in points_of(sigma, widths, name, tau):
        if point.kind == "minimum":
            continue
        weights = theory.layers(sigma, point.index_set, widths, tau=tau, loss=name)
        direction = theory.descent_direction(sigma, point.index_set, widths, tau=tau, loss=name)
        np.testing.assert_allclose(sum(jnp.sum(each**2) for each in direction), 1, rtol=1e-14)
        order, _ = predicted_change(sigma, point.index_set, widths, name, tau, 1.0)
        # Small for the quadratic term; the other formula holds for every step.
        steps = (0.001, 0.002) if order == 2 else (0.3, 0.6) if order > 3 else (0.01, 0.02)
        drops = []
        for step in steps:
            moved = tuple(w + step * d for w, d in zip(weights, direction, strict=True))
            drops.append(float(measured(name, tau)(moved, sigma)[0]) - point.value)
            _, expected = predicted_change(sigma, point.index_set, widths, name, tau, step)
            np.testing.assert_allclose(drops[-1], expected, rtol=5e-3, atol=1e-14)
        assert drops[1] < drops[0] < 0
        np.testing.assert_allclose(math.log2(drops[1] / drops[0]), order, atol=0.05)


def test_below_full_rank_without_perturbation_the_kink_leads_down():
    """At τ = 0 a point of too low rank is a saddle all the same: down at the order N."""
    sigma, widths = five(), (2, 3, 5)
    weights = theory.layers(sigma, (0,), widths)
    direction = theory.descent_direction(sigma, (0,), widths)
    start = float(theory.value(sigma.eigenvalues, (0,)))
    for step in (1e-3, 1e-1, 0.5):
        moved = tuple(w + step * d for w, d in zip(weights, direction, strict=True))
        change = float(measured("bures_wasserstein", 0.0)(moved, sigma)[0]) - start
        _, expected = predicted_change(sigma, (0,), widths, "bures_wasserstein", 0.0, step)
        np.testing.assert_allclose(change, expected, rtol=1e-7)
    assert theory.index(sigma.eigenvalues, (0,), widths=(2, 5)) == 4


def test_zero_is_a_local_maximum_at_every_depth():
    sigma, rng = five(values=(2.0, 1.4, 0.9, 0.6, 0.4)), np.random.default_rng(5)
    for widths in ((3, 5), (3, 6, 4, 5)):
        points = [
            each for each in points_of(sigma, widths, "bures_wasserstein", 0.3) if each.kind == "maximum"
        ]
        assert [each.index_set for each in points] == [()]
        for _ in range(20):
            weights = tuple(0.05 * rng.normal(size=shape) for shape in itertools.pairwise(widths[::-1]))[::-1]
            assert measured("bures_wasserstein", 0.3)(weights, sigma)[0] < points[0].value


# --- repeated eigenvalues -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tau"), KINDS)
def test_with_repeated_eigenvalues_any_basis_of_the_eigenspace_will_do(name, tau):
    values, rng = (1.5, 1.5, 1.5, 0.8, 0.8), np.random.default_rng(6)
    sigma = five(values=values)
    points = list(theory.critical_points(values, 2, tau=tau, loss=name))
    least = [each for each in points if each.kind == "minimum"]
    assert {each.index_set for each in least} == {(0, 1), (0, 2), (1, 2)}
    assert {each.index for each in least} == {0}
    assert {each.value for each in least} == {theory.minimum(values, 2, tau=tau, loss=name)}
    turn = np.eye(5)
    turn[:3, :3], turn[3:, 3:] = orthogonal(3, rng), orthogonal(2, rng)
    turned = sigma._replace(eigenvectors=sigma.eigenvectors @ turn)
    for point in points:
        weights = theory.layers(turned, point.index_set, (2, 5), tau=tau, loss=name)
        value, gradient, _ = measured(name, tau)(weights, sigma)
        np.testing.assert_allclose(value, point.value, rtol=1e-12)
        np.testing.assert_allclose(gradient, 0, atol=1e-12)
        if point.kind == "minimum":
            with pytest.raises(InvalidOption, match="a minimum; takes a critical point from which"):
                theory.descent_direction(sigma, point.index_set, (2, 5), tau=tau, loss=name)


# --- the nearest one ------------------------------------------------------------------------------


@given(st.lists(st.integers(-4, 4), max_size=7), st.sets(st.integers(0, 7), min_size=1))
def test_subsets_come_in_the_order_of_their_sums(weights, sizes):
    weights, sizes = sorted(map(float, weights)), [size for size in sizes if size <= len(weights)]
    found = list(subsets.by_sum(weights, sizes))
    expected = {each for size in sizes for each in itertools.combinations(range(len(weights)), size)}
    assert len(found) == len(expected)
    assert {places for _, places in found} == expected
    assert all(total == sum(weights[each] for each in places) for total, places in found)
    totals = [total for total, _ in found]
    assert totals == sorted(totals)


def distance_to(generator, sigma, inside, tau):
    """min_Q ‖W − Ω_J S Qᵀ‖_F by the formula with the nuclear norm."""
    learnt = np.asarray(sigma.eigenvectors)[:, inside]
    scale = np.sqrt(np.asarray(sigma.eigenvalues)[inside] - tau)
    nuclear = np.linalg.norm(scale[:, None] * (learnt.T @ generator), "nuc") if inside else 0
    return math.sqrt(max(0, np.sum(generator**2) + np.sum(scale**2) - 2 * nuclear))


@settings(max_examples=60)
@given(
    st.sampled_from(SPECTRA),
    st.sampled_from(KINDS),
    st.sampled_from([(5, 3), (5, 5), (4, 6)]),
    st.sampled_from([0.01, 0.3, 2.0]),
    st.integers(0, 2**32 - 1),
)
def test_nearest_against_all_of_them(kind, loss, shape, size, seed):
    (name, tau), (n, m) = loss, shape
    rng = np.random.default_rng(seed)
    sigma, rank = target(kind, n, rng), int(rng.integers(1, min(shape) + 1))
    inside = [list(p.index_set) for p in theory.critical_points(sigma.eigenvalues, rank, tau=tau, loss=name)]
    chosen = inside[rng.integers(len(inside))]
    rows = orthogonal(m, rng)[: len(chosen)]
    at = np.asarray(theory.end_to_end(sigma, chosen, m, tau=tau, loss=name, rows=rows))
    change = size * rng.normal(size=shape)
    found = theory.nearest(at + change, sigma, rank, tau=tau, loss=name)
    distances = [distance_to(at + change, sigma, each, tau) for each in inside]
    assert found.certified
    np.testing.assert_allclose(found.distance, min(distances), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        distance_to(at + change, sigma, list(found.index_set), tau), found.distance, rtol=1e-6, atol=1e-7
    )
    assert found.distance <= np.linalg.norm(change) + 1e-12
    one = theory.nearest(at + change, sigma, rank, tau=tau, loss=name, most=1)
    assert one.distance >= found.distance
    assert one.distance == found.distance or not one.certified


def test_nearest_is_certified_only_after_enough_of_them(monkeypatch):
    """Rows of W that are all parallel make the bound weak. At most `most` are looked at."""
    looked, procrustes = [], theory._procrustes
    monkeypatch.setattr(theory, "_procrustes", lambda *each: looked.append(each) or procrustes(*each))
    rng = np.random.default_rng(7)
    sigma, generator = five(), np.outer(rng.normal(size=5), rng.normal(size=5))
    enough = next(most for most in range(1, 12) if theory.nearest(generator, sigma, 3, most=most).certified)
    assert enough > 2
    few = [theory.nearest(generator, sigma, 3, most=most) for most in range(1, enough)]
    assert not any(each.certified for each in few)
    assert all(a.distance >= b.distance for a, b in itertools.pairwise(few))
    looked.clear()
    theory.nearest(generator, sigma, 3, most=2)
    assert len(looked) == 2


def test_nearest_at_full_rank_is_the_loss():
    """Identity I3: L(W) = min ‖W − R Q‖² where the rank is n."""
    rng = np.random.default_rng(8)
    sigma, generator = five(), rng.normal(size=(5, 6))
    found = theory.nearest(generator, sigma, 5)
    value, _, _ = measured("bures_wasserstein", 0.0)((jnp.asarray(generator),), sigma)
    np.testing.assert_allclose(found.distance**2, value, rtol=1e-12)
    assert found.index_set == (0, 1, 2, 3, 4)


def test_nearest_of_a_large_critical_point_is_itself():
    rng = np.random.default_rng(9)
    sigma = Target(jnp.asarray(np.linspace(3, 1, 300)), None)
    inside = sorted(rng.choice(300, 150, replace=False).tolist())
    generator = theory.end_to_end(sigma, inside, 160, rows=orthogonal(160, rng)[:150])
    found = theory.nearest(generator, sigma, 150)
    assert (found.index_set, found.certified) == (tuple(inside), True)
    assert found.distance < 1e-12


# --- bad input ------------------------------------------------------------------------------------

SIGMA = Target(jnp.asarray(DISTINCT), None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: theory.critical_points(DISTINCT, 0),
            "rank: got 0; takes an integer from 1 to the dimension 5",
        ),
        (
            lambda: theory.critical_points(DISTINCT, 6),
            "rank: got 6; takes an integer from 1 to the dimension 5",
        ),
        (lambda: theory.count(DISTINCT, 2.5), "rank: got 2.5; takes an integer"),
        (lambda: theory.critical_points((1.0, 2.0), 1), "eigenvalues: got an ascending pair"),
        (lambda: theory.minimum((1.0, np.nan), 1), "eigenvalues: got .*nan.*; takes finite numbers"),
        (lambda: theory.count(DISTINCT, 2, tau=-1), "tau: got -1; takes a finite number from 0"),
        (
            lambda: theory.count(DISTINCT, 2, tau=0.1, loss="frobenius"),
            "tau: got 0.1; takes 0 with frobenius",
        ),
        (lambda: theory.minimizing_set(DISTINCT, 2, loss="l2"), "loss: got l2; takes one of"),
        (lambda: theory.sample(0, DISTINCT, 2, 0), "number: got 0; takes an integer from 1"),
        (lambda: theory.critical_points(DISTINCT, 2, widths=(3, 5)), "rank: got 2; takes 3, the bottleneck"),
        (
            lambda: theory.critical_points(DISTINCT, 2, widths=(2, 4)),
            r"widths: got \[2, 4\]; takes .* dimension 5",
        ),
        (lambda: theory.value(DISTINCT, (0, 5)), "index_set: got position 5; takes positions from 0 to 4"),
        (lambda: theory.value(DISTINCT, (0, 1.5)), r"index_set: got \[1.5\]; takes integers"),
        (lambda: theory.value(DISTINCT, (1, 1)), r"index_set: got \[1\] more than once"),
        (lambda: theory.index(DISTINCT, (4,), tau=0.3), "index_set: got position 4, of the eigenvalue 0.1"),
        (lambda: theory.index(DISTINCT, (0, 1), widths=(1, 5)), "index_set: got 2 positions; takes at most"),
        (lambda: theory.index(DISTINCT, (0,), widths=(5,)), r"widths: got \[5\]; takes two or more"),
        (lambda: theory.singular_values((1.0, 0.0), (1,)), "index_set: got position 1, of the eigenvalue 0"),
        (lambda: theory.end_to_end(SIGMA, (0, 1), 1), "index_set: got 2 positions; takes at most the rank 1"),
        (lambda: theory.end_to_end(SIGMA, (0,), 2, rows=np.ones((2, 2))), r"rows: got shape \(2, 2\)"),
        (lambda: theory.end_to_end(SIGMA, (0,), 2, rows=np.ones((1, 2))), "rows: got rows whose products"),
        (
            lambda: theory.layers(SIGMA, (0, 1), (3, 1, 5)),
            "index_set: got 2 positions; takes at most the rank 1",
        ),
        (lambda: theory.layers(SIGMA, (0,), (3, 4)), r"widths: got \[3, 4\]; takes"),
        (
            lambda: theory.descent_direction(SIGMA, (0, 1), (2, 5)),
            r"index_set: got \[0, 1\], a minimum; takes",
        ),
        (
            lambda: theory.descent_direction(SIGMA, (0, 1, 2, 3), (5, 5), tau=0.3),
            r"index_set: got \[0, 1, 2, 3\], a minimum; takes",
        ),
        (
            lambda: theory.nearest(np.ones((4, 2)), SIGMA, 2),
            r"generator: got shape \(4, 2\); takes shape \(5, m\)",
        ),
        (
            lambda: theory.nearest(np.full((5, 2), np.nan), SIGMA, 2),
            "generator: got 10 of 10 entries not finite",
        ),
        (lambda: theory.nearest(np.ones((5, 2)), SIGMA, 3), r"rank: got 3; takes .*min\(n, m\) = 2"),
        (lambda: theory.nearest(np.ones((5, 2)), SIGMA, 2, most=0), "most: got 0; takes an integer from 1"),
    ],
)
def test_refuses_bad_input_at_once_and_in_one_line(call, message):
    with pytest.raises(InvalidOption, match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)
