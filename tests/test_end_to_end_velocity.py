"""The velocity of the flow of the product: its kernel, by 60 digits, and against balanced layers."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import orthogonal, target

from bwdln import losses, networks
from bwdln.dynamics import end_to_end_flow
from bwdln.initializations import balanced

LOSSES = {
    "bures_wasserstein": losses.bures_wasserstein(),
    "perturbed": losses.bures_wasserstein(0.3),
    "frobenius": losses.frobenius(),
}

REAL_DEPTHS = (1.0, 1.0 + 1e-9, 1.001, 1.5, 2.0, 2.5, 3.0, 7.0, 100.0, 1e3)

kernel = jax.jit(end_to_end_flow.kernel)
velocity = jax.jit(end_to_end_flow.velocity)
gradient_norm = jax.jit(end_to_end_flow.gradient_norm)
gradients = {name: jax.jit(loss.gradient) for name, loss in LOSSES.items()}


def with_singular_values(rows, columns, singular, rng):
    """A matrix of that shape and those singular values, with random singular vectors."""
    count = len(singular)
    return (orthogonal(rows, rng)[:, :count] * singular) @ orthogonal(columns, rng)[:count]


def symmetric(size, rng):
    matrix = rng.normal(size=(size, size))
    return matrix + matrix.T


# --- the kernel -----------------------------------------------------------------------------------


def exact_kernel(first, second, depth):
    """K by 60 digits, from the quotient of differences that floats cannot form."""
    with mpmath.workdps(60):
        x, y, n = mpmath.mpf(first), mpmath.mpf(second), mpmath.mpf(depth)
        if x == y == 0:
            return mpmath.mpf(depth == 1)
        if x == y:
            return n * x ** (2 * (n - 1) / n)
        roots = [mpmath.mpf(0) if z == 0 else z ** (2 / n) for z in (x, y)]
        return (x**2 - y**2) / (roots[0] - roots[1])


@st.composite
def pairs(draw):
    """Singular values that are apart, nearly or exactly equal, or zero."""
    x = 10.0 ** draw(st.floats(-300, 100))
    kind = draw(st.sampled_from(["apart", "near", "equal", "zero"]))
    near = x * (1 + 10.0 ** draw(st.floats(-17, 0)))
    other = {"apart": 10.0 ** draw(st.floats(-300, 100)), "near": near, "equal": x, "zero": 0.0}[kind]
    return (x, other) if draw(st.booleans()) else (other, x)


@given(pairs(), st.one_of(st.sampled_from(REAL_DEPTHS), st.floats(1, 1e3)))
@settings(max_examples=300)
def test_kernel_has_all_digits(pair, depth):
    """But for those that x to a power has not, where |log x| is large."""
    exact = exact_kernel(*pair, depth)
    logarithm = max(abs(np.log(each)) if each else 0 for each in pair)
    measured = float(kernel(*map(jnp.asarray, pair), depth))
    assert np.isfinite(measured)
    assert abs(mpmath.mpf(measured) - exact) <= 2.3e-16 * (8 + 4 * logarithm) * exact + 1e-290


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
def test_kernel_is_the_sum_at_integer_depth(depth):
    values = jnp.array([0.0, 1e-9, 0.5, 0.5 + 1e-12, 2.0])
    x, y = np.asarray(values)[:, None], np.asarray(values)[None, :]
    powers = [x ** (2 * (depth - j) / depth) * y ** (2 * (j - 1) / depth) for j in range(1, depth + 1)]
    measured = kernel(values[:, None], values[None, :], depth)
    np.testing.assert_allclose(measured, sum(powers), rtol=1e-14)


@pytest.mark.parametrize("depth", REAL_DEPTHS)
def test_kernel_where_a_value_vanishes(depth):
    zero, x = jnp.zeros(()), jnp.asarray(0.7)
    assert kernel(zero, zero, depth) == (1 if depth == 1 else 0)
    expected = 0.7 ** (2 * (depth - 1) / depth)
    np.testing.assert_allclose([kernel(x, zero, depth), kernel(zero, x, depth)], expected, rtol=1e-14)
    assert kernel(zero, zero + 1e-300, 1) == 1


# --- the velocity ---------------------------------------------------------------------------------


def sum_of_powers(generator, symmetric_part, depth):
    """−Σ_j (WWᵀ)^{(N−j)/N} ∇L (WᵀW)^{(j−1)/N} by NumPy, for integer depth and any shape."""

    left, values, right = np.linalg.svd(generator)
    singular = np.zeros(sum(generator.shape))
    singular[: len(values)] = values

    def power(vectors, exponent):
        return (vectors * singular[: len(vectors)] ** (2 * exponent)) @ vectors.T

    gradient = symmetric_part @ generator
    terms = (
        power(left, (depth - j) / depth) @ gradient @ power(right.T, (j - 1) / depth)
        for j in range(1, depth + 1)
    )
    return -sum(terms)


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(4, 4), (5, 2), (5, 1)])
@pytest.mark.parametrize("singular", [[2.0, 1.0, 0.7, 0.3], [1.0] * 4, [1.5, 0.02, 0.02, 0.01]])
def test_velocity_is_the_sum_of_fractional_powers(depth, shape, singular):
    rng = np.random.default_rng(0)
    generator = with_singular_values(*shape, singular[: min(shape)], rng)
    shaped = symmetric(shape[0], rng)
    measured = velocity(jnp.asarray(generator), jnp.asarray(shaped @ generator), depth)
    np.testing.assert_allclose(measured, sum_of_powers(generator, shaped, depth), atol=1e-12)


@pytest.mark.parametrize("depth", [1.0, 1.5, 2.5, 4.0])
def test_velocity_is_a_block_of_a_power_at_real_depth(depth):
    """[[A, G], [0, B]]^N holds the divided differences of x^N at A = (WWᵀ)^{1/N}, B = (WᵀW)^{1/N}."""
    rng = np.random.default_rng(1)
    generator = with_singular_values(3, 3, [1.5, 1.0, 0.4], rng)
    gradient = symmetric(3, rng) @ generator
    roots = [
        scipy.linalg.fractional_matrix_power(gram, 1 / depth)
        for gram in (generator @ generator.T, generator.T @ generator)
    ]
    block = np.block([[roots[0], gradient], [np.zeros((3, 3)), roots[1]]])
    expected = -scipy.linalg.fractional_matrix_power(block, depth)[:3, 3:]
    measured = velocity(jnp.asarray(generator), jnp.asarray(gradient), depth)
    np.testing.assert_allclose(measured, expected, atol=1e-10)


def middle(rows, columns, inner, depth):
    """Widths with `inner` hidden ones, uneven where there are several."""
    return (columns, *[inner + layer % 3 for layer in range(depth - 1)], rows)


#: (n, m, smallest hidden width, singular values)
STARTS = {
    "square": (4, 4, 4, [1.8, 1.1, 0.6, 0.4]),
    "tall": (5, 3, 3, [1.8, 1.1, 0.6]),
    "wide": (3, 5, 4, [1.8, 1.1, 0.6]),
    "bottleneck": (5, 4, 2, [1.8, 1.1]),
    "rank_deficient": (4, 4, 4, [1.8, 1.1]),
    "coinciding": (4, 5, 4, [1.1, 1.1, 0.4, 0.4]),
    "nearly": (4, 4, 4, [1.1, 1.1 - 1e-9, 0.4, 0.4 - 1e-13]),
}


def layer_slopes(weights, gradient):
    """∂L/∂W_j = (W_N ⋯ W_{j+1})ᵀ ∇L (W_{j−1} ⋯ W_1)ᵀ, in NumPy."""
    layers = [np.asarray(layer) for layer in weights]
    slopes = []
    for index in range(len(layers)):
        above, below = np.eye(layers[-1].shape[0]), np.eye(layers[0].shape[1])
        for layer in layers[:index]:
            below = layer @ below
        for layer in reversed(layers[index + 1 :]):
            above = above @ layer
        slopes.append(above.T @ gradient @ below.T)
    return slopes


def product(layers):
    return functools.reduce(lambda below, layer: layer @ below, layers)


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("start", STARTS)
def test_velocity_and_gradient_norm_are_those_of_balanced_layers(start, name, depth):
    """d/dt of the product is Σ_j W_N ⋯ W_{j+1} (dW_j/dt) W_{j−1} ⋯ W_1; the row space is kept."""
    rows, columns, inner, singular = STARTS[start]
    rng = np.random.default_rng(2)
    sigma = target("distinct", rows, rng)
    generator = with_singular_values(rows, columns, singular, rng)
    weights = balanced(jnp.asarray(generator), middle(rows, columns, inner, depth))
    slopes = layer_slopes(weights, np.asarray(gradients[name](jnp.asarray(generator), sigma)))
    expected = sum(
        product([*map(np.asarray, weights[:index]), -slope, *map(np.asarray, weights[index + 1 :])])
        for index, slope in enumerate(slopes)
    )
    reduced, rows_of = networks.reduction(weights)
    gradient = gradients[name](reduced, sigma)
    scale = np.linalg.norm(expected)
    measured = np.asarray(velocity(reduced, gradient, depth) @ rows_of)
    np.testing.assert_allclose(measured, expected, atol=2e-13 * scale)
    size = np.sqrt(sum(np.sum(slope**2) for slope in slopes))
    np.testing.assert_allclose(gradient_norm(reduced, gradient, depth), size, rtol=1e-12)
    # √(−dL/dt) along the flow.
    np.testing.assert_allclose(size**2, -np.sum(np.asarray(gradient @ rows_of) * expected), rtol=1e-11)


@pytest.mark.parametrize("depth", [1.0, 2.5, 50.0])
@pytest.mark.parametrize("rows", [3, 6])
def test_velocity_turns_with_the_latent_basis(depth, rows):
    """X → X P gives dX/dt P, also where singular values coincide or vanish."""
    rng = np.random.default_rng(3)
    for singular in ([2.0, 1.0, 0.5], [1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]):
        generator, turn = with_singular_values(rows, 3, singular, rng), orthogonal(3, rng)
        gradient = symmetric(rows, rng) @ generator
        plain = velocity(jnp.asarray(generator), jnp.asarray(gradient), depth)
        turned = velocity(jnp.asarray(generator @ turn), jnp.asarray(gradient @ turn), depth)
        scale = np.linalg.norm(plain)
        np.testing.assert_allclose(turned, np.asarray(plain) @ turn, atol=1e-13 * scale)


EXTREMES = {
    jnp.float64: [0.0, 1e-320, 1e-300, 1e-160, 1e-17, 1e-8, 1.0, 1.0, 1e60],
    jnp.float32: [0.0, 1e-44, 1e-37, 1e-20, 1e-8, 1.0, 1.0, 1e10],
}


@given(st.data(), st.sampled_from([(3, 3), (4, 2)]), st.sampled_from([jnp.float32, jnp.float64]))
def test_no_number_is_lost(data, shape, dtype):
    rng = np.random.default_rng(4)
    singular = [data.draw(st.sampled_from(EXTREMES[dtype])) for _ in range(shape[1])]
    depth = data.draw(st.sampled_from([*REAL_DEPTHS, 1e6]))
    if data.draw(st.booleans()):  # singular vectors along the axes: zeros are exact
        generator = np.eye(*shape) * singular
    else:
        generator = with_singular_values(*shape, np.array(singular), rng)
    arrays = jnp.asarray(generator, dtype), jnp.asarray(symmetric(shape[0], rng) @ generator, dtype)
    assert np.all(np.isfinite(velocity(*arrays, depth)))
    assert gradient_norm(*arrays, depth) >= 0
    both = velocity(*arrays, depth), gradient_norm(*arrays, depth)
    assert all(each.dtype == dtype for each in both)


@pytest.mark.parametrize("depth", [1, 1.0 + 1e-9, 3])
@pytest.mark.parametrize("shape", [(3, 3), (4, 2)])
def test_zero_stays_zero(depth, shape):
    zeros = jnp.zeros(shape)
    np.testing.assert_array_equal(velocity(zeros, zeros, depth), zeros)
    assert gradient_norm(zeros, zeros, depth) == 0


def test_nothing_is_computed_in_double_precision_for_float32():
    single = jnp.ones((4, 2), jnp.float32)
    for function in (end_to_end_flow.velocity, end_to_end_flow.gradient_norm):
        assert "f64" not in str(jax.make_jaxpr(lambda *a: function(*a, 2.5))(single, single))  # noqa: B023
        traced = jax.make_jaxpr(function)(single, single, jnp.float32(2.5))
        assert "f64" not in str(traced)


# --- the fast route and the exact one -------------------------------------------------------------


@pytest.mark.parametrize("condition", [1.0, 10.0, 50.0])
@pytest.mark.parametrize("shape", [(20, 20), (20, 6)])
def test_gram_route_is_accurate_where_it_is_accepted(condition, shape):
    rng = np.random.default_rng(5)
    generator = with_singular_values(*shape, np.geomspace(1, 1 / condition, shape[1]), rng)
    arrays = jnp.asarray(generator), jnp.asarray(symmetric(20, rng) @ generator), jnp.asarray(7.0)
    fast, accurate = end_to_end_flow._through_gram(*arrays)
    exact = end_to_end_flow._through_svd(*arrays)
    assert accurate
    # Relative to every singular value: after the velocity is divided by the generator.
    error, inverse = np.asarray(fast - exact), np.linalg.pinv(generator)
    whole = np.linalg.norm(np.asarray(exact) @ inverse)
    assert np.linalg.norm(error @ inverse) <= 3e-13 * whole


@pytest.mark.parametrize("singular", [[1, 1e-3, 1e-5], [1, 1, 0], [0, 0, 0], [1e-170, 1e-170, 1e-170]])
def test_gram_route_is_refused_where_it_is_not(singular):
    generator = jnp.asarray(with_singular_values(3, 3, np.array(singular), np.random.default_rng(6)))
    assert not end_to_end_flow._through_gram(generator, generator, jnp.asarray(2.0))[1]


def test_lanes_of_either_route_and_any_depth_leave_one_another_alone():
    rng = np.random.default_rng(7)
    generators = [with_singular_values(4, 3, [1.0, 0.5, last], rng) for last in (0.4, 0.0, 1e-7)]
    stacked = jnp.asarray(np.stack(generators))
    gradients = jnp.asarray(symmetric(4, rng)) @ stacked
    depths = jnp.array([1.0, 2.5, 7.0])
    lanes = jax.jit(jax.vmap(end_to_end_flow.velocity))
    together = lanes(stacked, gradients, depths)
    for lane, depth in enumerate((1.0, 2.5, 7.0)):
        alone = velocity(stacked[lane], gradients[lane], depth)
        np.testing.assert_allclose(together[lane], alone, rtol=1e-12, atol=1e-15)
    quiet = lanes(stacked[jnp.array([0, 0, 0])], gradients[jnp.array([0, 0, 0])], depths)
    np.testing.assert_array_equal(quiet[0], together[0])


@pytest.mark.parametrize("depth", [1.0, 2.0, 3.5, 30.0])
def test_small_modes_keep_their_digits_beside_large_ones(depth):
    """s = 1e-6 beside 1: the velocity of the small mode against 60 digits, at coordinate axes."""
    rng = np.random.default_rng(8)
    singular = np.array([1.0, 0.8, 1e-6, 1e-6])
    shaped = symmetric(4, rng)
    generator = np.diag(singular)  # nothing is rounded, so that the digits can be counted
    exact = np.array([[float(exact_kernel(a, b, depth)) for b in singular] for a in singular])
    expected = -exact * (shaped @ generator)
    measured = np.asarray(velocity(jnp.asarray(generator), jnp.asarray(shaped @ generator), depth))
    np.testing.assert_allclose(measured / singular, expected / singular, atol=1e-13 * np.abs(exact).max())
