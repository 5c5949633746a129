"""Widths, products through the bottleneck, and layer gradients against autodiff."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bwdln import networks
from bwdln.config import Network
from bwdln.errors import InvalidOption

#: Full width, bottleneck at either end and inside, depth 1, wide latent, a stack to scan.
WIDTHS = (
    (4, 4, 4, 4),
    (2, 5, 4),
    (6, 4, 3),
    (5, 4, 2, 4, 5),
    (3, 4),
    (1, 3, 2),
    (5, *[3] * 15, 6),
    (3, *[3] * 15, 5),
    (6, 2, *[4] * 15, 3),
)


def random_weights(widths, seed=0):
    """Layers with standard normal entries over the root of their width."""
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(widths)
    return tuple(jnp.asarray(rng.normal(size=(up, down)) / np.sqrt(down)) for down, up in pairs)


def plain_product(weights):
    product = np.asarray(weights[0])
    for layer in weights[1:]:
        product = np.asarray(layer) @ product
    return product


@pytest.mark.parametrize("widths", WIDTHS)
def test_products_equal_numpy(widths):
    weights = random_weights(widths)
    product = plain_product(weights)
    np.testing.assert_allclose(networks.end_to_end(weights), product, atol=1e-13)
    np.testing.assert_allclose(networks.covariance(weights), product @ product.T, atol=1e-13)
    generator = networks.reduced(weights)
    assert generator.shape[1] == min(widths)
    np.testing.assert_allclose(generator @ generator.T, product @ product.T, atol=1e-13)


@pytest.mark.parametrize("widths", WIDTHS)
def test_reduction_splits_off_orthonormal_rows(widths):
    weights, smallest = random_weights(widths), min(widths)
    generator, rows = networks.reduction(weights)
    assert generator.shape == (widths[-1], smallest)
    assert rows.shape == (smallest, widths[0])
    np.testing.assert_allclose(generator @ rows, plain_product(weights), atol=1e-13)
    np.testing.assert_allclose(rows @ rows.T, np.eye(smallest), atol=1e-14)
    np.testing.assert_array_equal(networks.reduced(weights), generator)
    if widths[0] == smallest:
        np.testing.assert_array_equal(rows, np.eye(smallest))


def test_reduction_of_zero_has_orthonormal_rows_too():
    generator, rows = networks.reduction((jnp.zeros((3, 5)), jnp.zeros((4, 3))))
    np.testing.assert_array_equal(generator, np.zeros((4, 3)))
    np.testing.assert_allclose(rows @ rows.T, np.eye(3), atol=1e-15)


@pytest.mark.parametrize("widths", WIDTHS)
def test_packing_keeps_the_layers(widths):
    weights = random_weights(widths)
    unpacked = networks.unpack(networks.pack(weights))
    assert len(unpacked) == len(weights)
    for before, after in zip(weights, unpacked, strict=True):
        np.testing.assert_array_equal(before, after)


def test_long_runs_are_stacked_and_short_ones_are_not():
    packed = networks.pack(random_weights((5, *[3] * 15, 6)))
    assert [block.ndim for block in (*packed.below, *packed.above)] == [2, 3, 2]
    packed = networks.pack(random_weights((4, 4, 4)))
    assert [block.ndim for block in (*packed.below, *packed.above)] == [2, 2]


@pytest.mark.parametrize("widths", WIDTHS)
def test_layer_gradients_equal_autodiff(widths):
    """For a loss of W Wᵀ, through stacks and through the bottleneck."""
    weights = random_weights(widths)
    target = jnp.asarray(np.random.default_rng(1).normal(size=(widths[-1],) * 2))

    def loss(generator):
        return jnp.sum((generator @ generator.T - target) ** 2)

    expected = jax.jit(jax.grad(lambda layers: loss(networks.end_to_end(layers))))(weights)
    pulled = jax.jit(lambda packed: networks.pull_back(packed, jax.grad(loss)))
    gradients = networks.unpack(pulled(networks.pack(weights)))
    for gradient, exact in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, exact, atol=1e-12 * (1 + np.abs(exact).max()))


def test_the_wide_product_is_never_formed():
    """With latent dimension 50, data 40 and bottleneck 2 no array of shape (40, 50) appears."""
    packed = networks.pack(random_weights((50, 2, 40)))
    traced = jax.make_jaxpr(lambda p: networks.pull_back(p, lambda generator: generator))(packed)
    shapes = {v.aval.shape for equation in traced.eqns for v in equation.outvars}
    assert (40, 50) not in shapes
    assert (40, 2) in shapes


def test_imbalance_against_its_definition():
    weights = random_weights((3, 4, 2, 5))
    expected = [
        np.linalg.norm(np.asarray(up.T @ up - down @ down.T)) for down, up in itertools.pairwise(weights)
    ]
    np.testing.assert_allclose(networks.imbalance(weights), expected, rtol=1e-13)
    assert networks.imbalance(weights[:1]).shape == (0,)


def test_samples_have_the_covariance_and_follow_the_key():
    weights = random_weights((3, 4, 2))
    samples = networks.sample(jax.random.key(0), weights, 200_000)
    assert samples.shape == (200_000, 2)
    covariance = np.cov(np.asarray(samples).T, bias=True)
    exact = networks.covariance(weights)
    np.testing.assert_allclose(covariance, exact, atol=0.02 * np.trace(exact))
    again = networks.sample(jax.random.key(0), weights, 10)
    np.testing.assert_array_equal(again, networks.sample(jax.random.key(0), weights, 10))


# --- widths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (6, 6, 6, 6)),
        ({"depth": 1}, (6, 6)),
        ({"depth": 2, "hidden_width": 9}, (6, 9, 6)),
        ({"bottleneck": 2}, (2, 6, 6, 6)),
        ({"bottleneck": 2, "latent_dim": 5}, (5, 2, 6, 6)),
        ({"bottleneck": 2, "latent_dim": 5, "depth": 4}, (5, 6, 2, 6, 6)),
        ({"bottleneck": 2, "latent_dim": 2, "depth": 1}, (2, 6)),
        ({"latent_dim": 10, "depth": 2}, (10, 6, 6)),
        ({"profile": "linear", "depth": 4, "latent_dim": 2, "hidden_width": 10}, (2, 6, 10, 8, 6)),
        ({"widths": (3, 7, 6)}, (3, 7, 6)),
        ({"widths": (3, 7, 6), "depth": 2, "bottleneck": 3, "hidden_width": 7}, (3, 7, 6)),
    ],
)
def test_widths(options, expected):
    assert networks.widths(6, Network(**options)) == expected


@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 9), st.sampled_from(["linear", "random"]))
def test_profiles_respect_ends_and_bottleneck(depth, dimension, seed, profile):
    smallest = max(1, dimension // 2)
    network = Network(profile=profile, depth=depth, bottleneck=smallest, hidden_width=15, seed=seed)
    widths = networks.widths(dimension, network)
    assert len(widths) == depth + 1
    assert widths[0] == smallest
    assert widths[-1] == dimension
    assert min(widths) == smallest
    assert max(widths) <= 15


def test_random_widths_follow_their_seed():
    first, second = (Network(profile="random", depth=9, hidden_width=40, seed=seed) for seed in (0, 1))
    assert networks.widths(20, first) == networks.widths(20, first)
    assert networks.widths(20, first) != networks.widths(20, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, "depth: got 0; takes an integer from 1"),
        ({"hidden_width": 0}, "hidden_width: got 0; takes an integer from 1"),
        ({"latent_dim": 0}, "latent_dim: got 0; takes an integer from 1"),
        ({"bottleneck": 0}, "bottleneck: got 0; takes an integer from 1"),
        ({"bottleneck": 7, "hidden_width": 9}, "bottleneck: got 7; takes an integer up to dimension = 6"),
        ({"bottleneck": 4, "hidden_width": 3}, "bottleneck: got 4; .* up to hidden_width = 3"),
        ({"bottleneck": 4, "latent_dim": 3}, "bottleneck: got 4; .* up to latent_dim = 3"),
        ({"bottleneck": 2, "latent_dim": 5, "depth": 1}, "bottleneck: got 2; takes 5 at depth 1"),
        ({"widths": (3, 7)}, r"widths: got \[3, 7\]; takes a list that ends with the data dimension 6"),
        ({"widths": (6,)}, "widths: got .* at least two widths"),
        ({"widths": (3, 0, 6)}, "widths: got .* integers from 1"),
        ({"widths": (3, 6), "depth": 2}, r"depth: got 2; takes 1 or null with widths = \[3, 6\]"),
        ({"widths": (3, 5, 6), "bottleneck": 2}, "bottleneck: got 2; takes 3 or null"),
        ({"widths": (3, 5, 6), "hidden_width": 6}, "hidden_width: got 6; takes null"),
    ],
)
def test_refuses_impossible_widths(options, message):
    with pytest.raises(InvalidOption, match=message):
        networks.widths(6, Network(**options))
