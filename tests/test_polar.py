"""The polar factor by each route: against SciPy, against differences, along paths, and at its limits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from problems import orthogonal

from bwdln import polar, program

factor_of = jax.jit(polar.polar_factor)


def with_singular_values(shape, singular, rng):
    """A matrix of that shape and those singular values, with random singular vectors."""
    rows, columns = shape
    count = len(singular)
    return (orthogonal(rows, rng)[:, :count] * singular) @ orthogonal(columns, rng)[:count]


@given(
    st.sampled_from(((3, 3), (5, 2), (2, 5))),
    st.floats(0, 10),
    st.integers(0, 2**32 - 1),
)
def test_polar_factor_equals_scipys_at_any_condition_number(shape, digits, seed):
    """Condition numbers 1 to 1e10: the Gram route alone loses all digits at 1e8."""
    rng = np.random.default_rng(seed)
    singular = np.geomspace(1, 10.0**-digits, min(shape))
    matrix = with_singular_values(shape, singular, rng)
    expected = scipy.linalg.polar(matrix)[0]
    # Rounding the matrix alone moves the factor by eps times its condition number.
    np.testing.assert_allclose(factor_of(matrix), expected, atol=50 * 2.3e-16 * 10.0**digits + 1e-14)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e3, 5e3, 1e5, 1e6])
def test_gram_route_is_refined_to_full_accuracy_where_it_is_accepted(condition):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(with_singular_values((6, 4), np.geomspace(1, 1 / condition, 4), rng))
    (refined, _, singular), accepted = polar._from_gram(matrix)
    assert accepted
    exact = polar._from_svd(matrix)
    np.testing.assert_allclose(refined.T @ refined, np.eye(4), atol=1e-14)
    np.testing.assert_allclose(refined, exact.factor, atol=3e-15 * condition)
    np.testing.assert_allclose(np.sort(singular)[::-1], exact.singular, rtol=max(1e-8, 3e-16 * condition**2))


@pytest.mark.parametrize("condition", [1e4, 1e5, 1e6])
def test_gram_route_loses_nothing_to_graded_rows(condition):
    """Of R W with an ill-conditioned target only R Q matters: all of its digits are there."""
    rng = np.random.default_rng(20)
    root = np.geomspace(1, condition**-0.5, 6)[:, None]
    matrix = jnp.asarray(root * with_singular_values((6, 6), np.geomspace(1, condition**-0.5, 6), rng))
    found, accepted = polar._from_gram(matrix)
    assert accepted
    np.testing.assert_allclose(root * found.factor, root * polar._from_svd(matrix).factor, atol=2e-14)


@pytest.mark.parametrize("condition", [1e8, 1e10, np.inf])
def test_gram_route_is_refused_where_it_is_inaccurate(condition):
    rng = np.random.default_rng(1)
    matrix = with_singular_values((6, 4), np.array([1, 1, 1, 1 / condition]), rng)
    assert not polar._from_gram(jnp.asarray(matrix))[1]


def test_least_norm_at_low_rank_and_at_zero():
    rng = np.random.default_rng(2)
    matrix = with_singular_values((5, 3), np.array([2.0, 1.0, 0.0]), rng)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(factor_of(matrix), left[:, :2] @ right[:2], atol=1e-14)
    np.testing.assert_array_equal(factor_of(jnp.zeros((4, 3))), np.zeros((4, 3)))


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
@pytest.mark.parametrize("singular", [[2.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
def test_derivative_equals_central_differences(shape, singular):
    """Repeated singular values included, where differentiating the decomposition gives NaN."""
    rng = np.random.default_rng(3)
    values = np.array([*singular, *[0.3] * (min(shape) - 3)])
    matrix, direction = with_singular_values(shape, values, rng), rng.normal(size=shape)
    _, tangent = jax.jvp(polar.polar_factor, (jnp.asarray(matrix),), (jnp.asarray(direction),))
    step = 1e-5
    ahead, behind = (factor_of(matrix + sign * step * direction) for sign in (1, -1))
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=1e-8)


def test_derivative_at_constant_low_rank():
    """Along directions that keep the rank, the factor of least norm is differentiable."""
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=(4, 2)), rng.normal(size=(2, 3))
    left_direction, right_direction = rng.normal(size=(4, 2)), rng.normal(size=(2, 3))

    def along(t):
        return (left + t * left_direction) @ (right + t * right_direction)

    _, tangent = jax.jvp(lambda t: polar.polar_factor(along(t)), (0.0,), (1.0,))
    step = 1e-5
    slope = (factor_of(along(step)) - factor_of(along(-step))) / (2 * step)
    np.testing.assert_allclose(tangent, slope, atol=1e-8)


# --- diagonal plus low rank -----------------------------------------------------------------------

action = jax.jit(polar.inverse_root_action)


def low_rank_problem(rng, rows, columns, smallest, zeros=0):
    """(B, d) with d from 1 down to `smallest`, then zeros, where the rows of B are zero, too."""
    diagonal = np.append(np.geomspace(1, smallest, rows - zeros), np.zeros(zeros))
    factor = np.sqrt(diagonal)[:, None] * rng.normal(size=(rows, columns))
    return jnp.asarray(factor), jnp.asarray(diagonal)


def through_svd(factor, diagonal):
    """M^{-1/2} B by the singular value decomposition of [B, diag(√d)]."""
    left, singular, right = np.linalg.svd(polar.bordered(factor, diagonal), full_matrices=False)
    kept = singular > 1e-12 * singular[0]
    return (left[:, kept] @ right[kept])[:, : factor.shape[1]]


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("zeros", [0, 30])
@pytest.mark.parametrize("columns", [1, 9])
def test_quadrature_has_all_digits(smallest, zeros, columns):
    factor, diagonal = low_rank_problem(np.random.default_rng(6), 120, columns, smallest, zeros)
    values, accurate = polar._by_quadrature(factor, diagonal)
    assert accurate
    np.testing.assert_allclose(values, through_svd(factor, diagonal), atol=1e-14)
    np.testing.assert_allclose(action(factor, diagonal), values, atol=1e-14)


@pytest.mark.parametrize("ratio", [1.0, 1e4, 1e8, 1e13])
def test_elliptic_nodes_give_the_inverse_root_on_their_range(ratio):
    points, weights = polar._elliptic_nodes(jnp.asarray(0.3), jnp.asarray(0.3 * ratio))
    x = np.geomspace(0.3, 0.3 * ratio, 500)
    roots = np.sum(np.asarray(weights) / (x[:, None] + np.asarray(points) ** 2), axis=1)
    np.testing.assert_allclose(roots * np.sqrt(x), 1, atol=2e-15)


@pytest.mark.parametrize("scale", [0.0, 1e-16])
def test_outside_of_its_range_the_exact_route_is_taken(scale):
    rng = np.random.default_rng(7)
    factor = jnp.asarray(rng.normal(size=(120, 4)))
    diagonal = scale * jnp.asarray(rng.uniform(1, 2, 120))
    assert not polar._by_quadrature(factor, diagonal)[1]
    expected = through_svd(factor, diagonal)
    np.testing.assert_allclose(action(factor, diagonal), expected, atol=1e-7 if scale else 1e-13)


def test_small_problems_take_the_polar_factor():
    factor, diagonal = low_rank_problem(np.random.default_rng(8), 5, 3, 1e-3)
    np.testing.assert_allclose(action(factor, diagonal), through_svd(factor, diagonal), atol=1e-14)


@pytest.mark.parametrize("rows", [6, 104])
def test_derivative_of_the_inverse_root_action(rows):
    rng = np.random.default_rng(9)
    factor, diagonal = low_rank_problem(rng, rows, 2, 0.1)
    directions = jnp.asarray(rng.normal(size=factor.shape)), jnp.asarray(rng.uniform(size=rows))
    _, tangent = jax.jvp(polar.inverse_root_action, (factor, diagonal), directions)
    step = 1e-6
    ahead, behind = (
        action(factor + sign * step * directions[0], diagonal + sign * step * directions[1])
        for sign in (1, -1)
    )
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=1e-8)


def test_a_lane_that_needs_the_exact_route_leaves_its_neighbor_alone():
    factor, diagonal = low_rank_problem(np.random.default_rng(10), 104, 2, 1e-3)
    factors = jnp.stack([factor, factor])
    batched = jax.jit(jax.vmap(polar.inverse_root_action))
    alone = batched(factors, jnp.stack([diagonal, diagonal]))
    mixed = batched(factors, jnp.stack([diagonal, 0 * diagonal]))
    np.testing.assert_array_equal(alone[0], mixed[0])
    np.testing.assert_allclose(mixed[1], action(factor, 0 * diagonal), atol=1e-13)
    # An argument that is the same for all lanes is not mapped over.
    shared = jax.vmap(polar.inverse_root_action, in_axes=(0, None))(factors, diagonal)
    np.testing.assert_allclose(shared, alone, atol=1e-14)


def test_nested_vmap_equals_single_calls():
    matrices = jnp.asarray(np.random.default_rng(5).normal(size=(2, 3, 4, 3)))
    nested = jax.jit(jax.vmap(jax.vmap(polar.polar_factor)))(matrices)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(nested[index], factor_of(matrices[index]), atol=1e-14)


# --- by matrix products alone ---------------------------------------------------------------------


def spectrum(kind, count, rng):
    """Singular values, largest first, of a kind."""
    kinds = {
        "well": np.geomspace(1, 0.3, count),
        "repeated": np.repeat([1.0, 0.25], [count - count // 2, count // 2]),
        "ill": np.geomspace(1, 2e-4, count),
        "worse": np.geomspace(1, 1e-12, count),
        "zero": np.append(np.geomspace(1, 0.1, count - 1), 0.0) if count > 1 else np.ones(1),
        "random": np.sort(rng.uniform(0.01, 1, count))[::-1],
    }
    return kinds[kind]


KINDS = ("well", "repeated", "ill", "worse", "zero", "random")
#: Rounding the matrix alone moves its polar factor so far, times eps; "worse" has a condition of 1e12.
TOLERANCE = dict.fromkeys(KINDS, 1e-12) | {"ill": 1e-10, "worse": 2e-3}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (9, 4), (4, 9)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_products_equal_the_exact_route(kind, shape, scale):
    rng = np.random.default_rng(11)
    matrix = jnp.asarray(scale * with_singular_values(shape, spectrum(kind, min(shape), rng), rng))
    by_products = jax.jit(polar.polar_factor, static_argnums=1)(matrix, True)
    np.testing.assert_allclose(by_products, factor_of(matrix), atol=TOLERANCE[kind])
    tall = matrix if shape[0] >= shape[1] else matrix.T
    assert bool(polar.by_products(tall)[1]) == (kind not in ("worse", "zero") or min(shape) == 1)


def test_products_in_float32_lose_no_more_than_rounding():
    rng = np.random.default_rng(19)
    matrix = with_singular_values((20, 20), np.geomspace(1, 0.5, 20), rng)
    factor, accurate = polar.by_products(jnp.asarray(matrix, jnp.float32))
    assert accurate
    np.testing.assert_allclose(factor, scipy.linalg.polar(matrix)[0], atol=3e-6)


def test_products_use_no_decomposition_where_they_are_accurate():
    traced = jax.make_jaxpr(polar.by_products)(jnp.ones((2, 5, 3)))
    assert {each.primitive.name for each in traced.jaxpr.eqns}.isdisjoint(program.DECOMPOSITIONS)


# --- along a path ---------------------------------------------------------------------------------

follow = jax.jit(polar.follow)


def exact_polar(matrix, diagonal):
    """The first rows of the polar factor of the matrix with diag(√d) below it, by NumPy; least norm."""
    whole = matrix if diagonal is None else np.vstack([matrix, np.diag(np.sqrt(diagonal))])
    left, singular, right = np.linalg.svd(whole, full_matrices=False)
    kept = singular > 1e-12 * singular[0]
    return (left[:, kept] @ right[kept])[: len(matrix)]


class Followed(NamedTuple):
    """The largest error along a path, and the decompositions it took."""

    error: float
    anew: int


def along(path, steps, diagonal=None):
    known, anew, error = polar.track(jnp.asarray(path(0)), diagonal), 0, 0.0
    for step in range(1, steps + 1):
        matrix = path(step)
        factor, known, new = follow(jnp.asarray(matrix), known, diagonal)
        error = max(error, np.max(np.abs(factor - exact_polar(matrix, diagonal))))
        anew += int(new)
    return Followed(error, anew)


@given(
    st.sampled_from(((3, 3), (6, 2), (8, 5))),
    st.sampled_from(KINDS),
    st.floats(-7, -1),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_following_equals_the_exact_route(shape, kind, digits, bordered, seed):
    """Paths of constant and of changing singular values, slow and fast, with and without a diagonal below."""
    rng = np.random.default_rng(seed)
    rows, columns = shape
    matrix = with_singular_values(shape, spectrum(kind, columns, rng), rng)
    turn, drift = rng.normal(size=(rows, rows)), with_singular_values(shape, np.ones(columns), rng)
    turn, speed = (turn - turn.T) / 2, 10.0**digits
    moving = 0 if kind in ("worse", "zero") else 0.02  # these keep their singular values

    def path(step):
        time = speed * step
        return scipy.linalg.expm(time * turn) @ matrix + moving * np.sin(time) * drift * (kind != "ill")

    diagonal = jnp.asarray(rng.uniform(0.1, 0.2, columns)) if bordered else None
    found = along(path, 12, diagonal)
    assert found.error < (1e-10 if bordered else max(1e-10, TOLERANCE[kind]))
    if speed < 1e-3 and (bordered or kind not in ("worse", "zero")):
        assert found.anew == 0


def test_a_range_that_stays_is_followed_at_low_rank():
    """A zero singular value is no obstacle while its direction stays, and no trap when it leaves."""
    rng = np.random.default_rng(12)
    rows, columns, zero = 6, 4, 1
    matrix = rng.normal(size=(rows, columns))
    matrix[:, zero] = 0
    speed = rng.normal(size=(rows, columns))
    speed[:, zero] = 0
    found = along(lambda step: matrix + 1e-4 * step * speed, 50)
    assert found.error < 1e-12 and found.anew == 0
    speed[:, zero] = 1e-3
    known = polar.track(jnp.asarray(matrix))
    factor, known, anew = follow(jnp.asarray(matrix + 1e-4 * speed), known)
    assert anew
    np.testing.assert_allclose(factor, exact_polar(matrix + 1e-4 * speed, None), atol=1e-8)
    assert np.count_nonzero(known.singular) == columns


def test_nothing_at_all_is_followed():
    zeros = jnp.zeros((4, 3))
    factor, known, _ = follow(zeros, polar.track(zeros))
    np.testing.assert_array_equal(factor, 0)
    some = jnp.asarray(np.random.default_rng(13).normal(size=(4, 3)))
    factor, _, anew = follow(some, known)
    assert anew
    np.testing.assert_allclose(factor, exact_polar(np.asarray(some), None), atol=1e-13)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_followed(bad):
    matrix = jnp.asarray(np.random.default_rng(14).normal(size=(4, 3)))
    _, known, anew = follow(matrix.at[1, 1].set(bad), polar.track(matrix))
    assert anew
    factor, _, anew = follow(matrix, known)  # and what is known then is not used
    assert anew
    np.testing.assert_allclose(factor, exact_polar(np.asarray(matrix), None), atol=1e-13)


@pytest.mark.parametrize("bordered", [False, True])
@pytest.mark.parametrize("columns", [4, 7, 13])
def test_a_long_path_does_not_drift(columns, bordered):
    """10⁵ steps that turn the polar factor around many times, by bases as old as the path."""
    rng = np.random.default_rng(15)
    rows = columns + 1
    singular = np.append(np.repeat(0.5, columns - 2), [0.2, 0.1])
    matrix = with_singular_values((rows, columns), singular, rng)
    turn = rng.normal(size=(rows, rows))
    turn = jnp.asarray(scipy.linalg.expm(1e-3 * (turn - turn.T)))
    diagonal = jnp.full(columns, 0.05) if bordered else None

    def step(_, carry):
        matrix, known, count = carry
        matrix = turn @ matrix
        _, known, anew = polar.follow(matrix, known, diagonal)
        return matrix, known, count + anew

    begin = jnp.asarray(matrix), polar.track(jnp.asarray(matrix), diagonal), 0
    matrix, known, count = jax.jit(lambda carry: jax.lax.fori_loop(0, 100_000, step, carry))(begin)
    factor, _, anew = polar.follow(matrix, known, diagonal)
    assert not anew
    np.testing.assert_allclose(factor, exact_polar(np.asarray(matrix), diagonal), atol=1e-12)
    # AᵀA stays as it is while A turns, and so do V and s.
    assert count == 0
    np.testing.assert_array_equal(known.inverse, known.inverse.T)


@pytest.mark.parametrize("columns", [1, 2, 4])
def test_no_step_loses_a_digit(columns):
    """Steps that shrink, as those of descent, whose errors add up."""
    rng = np.random.default_rng(19)
    end = with_singular_values((5, columns), np.geomspace(1, 0.5, columns), rng)
    way = rng.normal(size=end.shape)
    for contraction in (0.2, 0.375, 0.6, 0.8):
        found = along(lambda step, base=contraction: end + base**step * way, 40)
        assert found.error < 4 * columns * 2.3e-16


def test_old_bases_are_renewed_in_time():
    """A path whose AᵀA changes altogether: V and s are renewed now and then, not at each step."""
    rng = np.random.default_rng(16)
    first, second = (with_singular_values((6, 4), np.geomspace(1, 0.2, 4), rng) for _ in range(2))
    found = along(lambda step: first + step / 2000 * (second - first), 2000)
    assert found.error < 1e-11
    assert 0 < found.anew < 400


def test_a_member_is_followed_as_if_it_were_alone():
    rng = np.random.default_rng(17)
    easy, other = rng.normal(size=(2, 5, 3))
    hard = other @ np.diag([1.0, 1.0, 1e-9])
    moved = [matrix + 1e-5 * rng.normal(size=(5, 3)) for matrix in (easy, hard, easy, easy)]
    moved[2] = easy + 1e-3 * rng.normal(size=(5, 3))  # it needs more corrections than the first
    moved[3] = 1.1 * easy  # too far for corrections, which would bring it near
    matrices = jnp.asarray([easy, hard, easy, easy])
    known = jax.vmap(polar.track)(matrices)
    factors, after, anew = jax.jit(jax.vmap(lambda matrix, known: polar.follow(matrix, known)))(
        jnp.asarray(moved), known
    )
    np.testing.assert_array_equal(anew, [False, True, False, True])
    for index, matrix in enumerate(moved):
        alone, known_alone, _ = follow(jnp.asarray(matrix), polar.track(matrices[index]))
        np.testing.assert_allclose(factors[index], alone, atol=1e-7 if index == 1 else 1e-13)
        np.testing.assert_allclose(after.inverse[index], known_alone.inverse, rtol=1e-6, atol=1e-12)


def test_float32_is_followed_to_its_own_accuracy():
    rng = np.random.default_rng(18)
    matrix = with_singular_values((6, 4), np.geomspace(1, 0.1, 4), rng)
    speed = 1e-4 * rng.normal(size=(6, 4))
    known = polar.track(jnp.asarray(matrix, jnp.float32))
    for step in range(1, 100):
        factor, known, anew = follow(jnp.asarray(matrix + step * speed, jnp.float32), known)
        assert not anew
        np.testing.assert_allclose(factor, exact_polar(matrix + step * speed, None), atol=1e-4)
    assert factor.dtype == jnp.float32
