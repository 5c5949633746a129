"""The polar factor against SciPy, differences and its own limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from problems import orthogonal

from bwdln import linalg

polar = jax.jit(linalg.polar_factor)


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
    np.testing.assert_allclose(polar(matrix), expected, atol=50 * 2.3e-16 * 10.0**digits + 1e-14)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e3, 5e3])
def test_gram_route_is_refined_to_full_accuracy_where_it_is_accepted(condition):
    rng = np.random.default_rng(0)
    matrix = jnp.asarray(with_singular_values((6, 4), np.geomspace(1, 1 / condition, 4), rng))
    refined, accepted = linalg._polar_from_gram(matrix)
    assert accepted
    np.testing.assert_allclose(refined.T @ refined, np.eye(4), atol=1e-14)
    np.testing.assert_allclose(refined, linalg._polar_from_svd(matrix), atol=3e-15 * condition)


@pytest.mark.parametrize("condition", [1e6, 1e8, np.inf])
def test_gram_route_is_refused_where_it_is_inaccurate(condition):
    rng = np.random.default_rng(1)
    matrix = with_singular_values((6, 4), np.array([1, 1, 1, 1 / condition]), rng)
    assert not linalg._polar_from_gram(jnp.asarray(matrix))[1]


def test_least_norm_at_low_rank_and_at_zero():
    rng = np.random.default_rng(2)
    matrix = with_singular_values((5, 3), np.array([2.0, 1.0, 0.0]), rng)
    left, _, right = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(polar(matrix), left[:, :2] @ right[:2], atol=1e-14)
    np.testing.assert_array_equal(polar(jnp.zeros((4, 3))), np.zeros((4, 3)))


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)])
@pytest.mark.parametrize("singular", [[2.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
def test_derivative_equals_central_differences(shape, singular):
    """Repeated singular values included, where differentiating the decomposition gives NaN."""
    rng = np.random.default_rng(3)
    values = np.array([*singular, *[0.3] * (min(shape) - 3)])
    matrix, direction = with_singular_values(shape, values, rng), rng.normal(size=shape)
    _, tangent = jax.jvp(linalg.polar_factor, (jnp.asarray(matrix),), (jnp.asarray(direction),))
    step = 1e-5
    ahead, behind = (polar(matrix + sign * step * direction) for sign in (1, -1))
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=1e-8)


def test_derivative_at_constant_low_rank():
    """Along directions that keep the rank, the factor of least norm is differentiable."""
    rng = np.random.default_rng(4)
    left, right = rng.normal(size=(4, 2)), rng.normal(size=(2, 3))
    left_direction, right_direction = rng.normal(size=(4, 2)), rng.normal(size=(2, 3))

    def along(t):
        return (left + t * left_direction) @ (right + t * right_direction)

    _, tangent = jax.jvp(lambda t: linalg.polar_factor(along(t)), (0.0,), (1.0,))
    step = 1e-5
    slope = (polar(along(step)) - polar(along(-step))) / (2 * step)
    np.testing.assert_allclose(tangent, slope, atol=1e-8)


# --- diagonal plus low rank -----------------------------------------------------------------------

action = jax.jit(linalg.inverse_root_action)


def low_rank_problem(rng, rows, columns, smallest, zeros=0):
    """(B, d) with d from 1 down to `smallest`, then zeros, where the rows of B are zero, too."""
    diagonal = np.append(np.geomspace(1, smallest, rows - zeros), np.zeros(zeros))
    factor = np.sqrt(diagonal)[:, None] * rng.normal(size=(rows, columns))
    return jnp.asarray(factor), jnp.asarray(diagonal)


def through_svd(factor, diagonal):
    """M^{-1/2} B by the singular value decomposition of [B, diag(√d)]."""
    left, singular, right = np.linalg.svd(linalg.bordered(factor, diagonal), full_matrices=False)
    kept = singular > 1e-12 * singular[0]
    return (left[:, kept] @ right[kept])[:, : factor.shape[1]]


@pytest.mark.parametrize("smallest", [1.0, 1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("zeros", [0, 30])
@pytest.mark.parametrize("columns", [1, 9])
def test_quadrature_has_all_digits(smallest, zeros, columns):
    factor, diagonal = low_rank_problem(np.random.default_rng(6), 120, columns, smallest, zeros)
    values, accurate = linalg._by_quadrature(factor, diagonal)
    assert accurate
    np.testing.assert_allclose(values, through_svd(factor, diagonal), atol=1e-14)
    np.testing.assert_allclose(action(factor, diagonal), values, atol=1e-14)


@pytest.mark.parametrize("ratio", [1.0, 1e4, 1e8, 1e13])
def test_elliptic_nodes_give_the_inverse_root_on_their_range(ratio):
    points, weights = linalg._elliptic_nodes(jnp.asarray(0.3), jnp.asarray(0.3 * ratio))
    x = np.geomspace(0.3, 0.3 * ratio, 500)
    roots = np.sum(np.asarray(weights) / (x[:, None] + np.asarray(points) ** 2), axis=1)
    np.testing.assert_allclose(roots * np.sqrt(x), 1, atol=2e-15)


@pytest.mark.parametrize("scale", [0.0, 1e-16])
def test_outside_of_its_range_the_exact_route_is_taken(scale):
    rng = np.random.default_rng(7)
    factor = jnp.asarray(rng.normal(size=(120, 4)))
    diagonal = scale * jnp.asarray(rng.uniform(1, 2, 120))
    assert not linalg._by_quadrature(factor, diagonal)[1]
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
    _, tangent = jax.jvp(linalg.inverse_root_action, (factor, diagonal), directions)
    step = 1e-6
    ahead, behind = (
        action(factor + sign * step * directions[0], diagonal + sign * step * directions[1])
        for sign in (1, -1)
    )
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=1e-8)


def test_a_lane_that_needs_the_exact_route_leaves_its_neighbor_alone():
    factor, diagonal = low_rank_problem(np.random.default_rng(10), 104, 2, 1e-3)
    factors = jnp.stack([factor, factor])
    batched = jax.jit(jax.vmap(linalg.inverse_root_action))
    alone = batched(factors, jnp.stack([diagonal, diagonal]))
    mixed = batched(factors, jnp.stack([diagonal, 0 * diagonal]))
    np.testing.assert_array_equal(alone[0], mixed[0])
    np.testing.assert_allclose(mixed[1], action(factor, 0 * diagonal), atol=1e-13)
    # An argument that is the same for all lanes is not mapped over.
    shared = jax.vmap(linalg.inverse_root_action, in_axes=(0, None))(factors, diagonal)
    np.testing.assert_allclose(shared, alone, atol=1e-14)


# --- shared ---------------------------------------------------------------------------------------


def test_nested_vmap_equals_single_calls():
    matrices = jnp.asarray(np.random.default_rng(5).normal(size=(2, 3, 4, 3)))
    nested = jax.jit(jax.vmap(jax.vmap(linalg.polar_factor)))(matrices)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(nested[index], polar(matrices[index]), atol=1e-14)


def test_rank_counts_relative_to_the_largest():
    values = jnp.array([[1e5, 1.0, 1e-8], [1.0, 1e-11, 0.0], [0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(linalg.numerical_rank(values), [2, 2, 0])


def test_guards():
    x = jnp.array([4.0, 0.0, -1e-20])
    np.testing.assert_array_equal(linalg.safe_sqrt(x), [2.0, 0.0, 0.0])
    np.testing.assert_array_equal(jax.grad(lambda x: linalg.safe_sqrt(x).sum())(x), [0.25, 0.0, 0.0])
    np.testing.assert_array_equal(linalg.safe_divide(x[:2], jnp.array([2.0, 0.0])), [2.0, 0.0])


# --- distances of covariances ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "rank"), [(1, 1), (5, 2), (64, 3), (65, 1), (130, 5), (200, 70), (150, 150)]
)
@pytest.mark.parametrize("closeness", [1.0, 1e-9])
def test_squared_distance_is_that_of_the_matrices(size, rank, closeness):
    rng = np.random.default_rng(size + rank)
    diagonal = np.concatenate([rng.uniform(0.5, 2.0, rank), np.zeros(size - rank)])
    factor = np.zeros((size, rank))
    factor[np.arange(rank), np.arange(rank)] = np.sqrt(diagonal[:rank])
    factor += closeness * rng.normal(size=(size, rank))
    expected = np.sum((factor @ factor.T - np.diag(diagonal)) ** 2)
    found = linalg.squared_distance(jnp.asarray(factor), jnp.asarray(diagonal))
    # Where the two are close, what is left of each entry has lost digits; the sum loses no more.
    np.testing.assert_allclose(found, expected, rtol=1e-12 if closeness == 1 else 1e-6)
    gradient = jax.grad(linalg.squared_distance)(jnp.asarray(factor), jnp.asarray(diagonal))
    by_hand = 4 * (factor @ factor.T - np.diag(diagonal)) @ factor
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-9, atol=1e-9 * max(1.0, np.abs(by_hand).max()))
