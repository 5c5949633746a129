"""The deep linear generator x = W_N ⋯ W_1 z: its widths, its products, its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from bwdln.config import Network
from bwdln.errors import check
from bwdln.linalg import squared_norm
from bwdln.types import Array, Covariance, EndToEnd, PRNGKey, Weights, Widths

#: Runs of at least this many equal layers are stacked and scanned, so that compile time does not
#: grow with depth; shorter ones are unrolled, which runs faster (docs/performance.md).
SCAN_FROM = 12

# --- widths ---------------------------------------------------------------------------------------


def widths(dimension: int, network: Network) -> Widths:
    """The widths (d_0, …, d_N) of a network for data of the given dimension, latent first.

    An explicit `network.widths` is taken as it is, and whatever else is given must agree with it.
    Otherwise: `depth` layers (default 3); hidden layers as the profile says, around `hidden_width`
    (default: the dimension): `constant`; `linear`, up from the latent dimension to `hidden_width`
    in the middle and on to the dimension; `random`, uniform between the smallest width allowed and
    `hidden_width`. A `bottleneck` k sets the latent dimension to k, unless a larger `latent_dim`
    is given: then the middle hidden layer has width k.

    Raises `InvalidOption` for a width or depth below 1, a depth that is no integer, a bottleneck
    larger than the dimension, the latent dimension or a hidden width, or one that needs a hidden
    layer at depth 1.
    """
    if network.widths is not None:
        return _explicit(dimension, network)
    depth = _whole(3 if network.depth is None else network.depth)
    hidden = dimension if network.hidden_width is None else network.hidden_width
    smallest = network.bottleneck
    latent = network.latent_dim or smallest or dimension
    for option in ("hidden_width", "latent_dim", "bottleneck"):
        value = getattr(network, option)
        check(value is None or value >= 1, option, value, "an integer from 1")
    if smallest is not None:
        bounds = {"dimension": dimension, "latent_dim": latent}
        bounds |= {"hidden_width": hidden} if depth > 1 else {}
        for name, bound in bounds.items():
            check(smallest <= bound, "bottleneck", smallest, f"an integer up to {name} = {bound}")
    middle = _hidden_widths(network, latent, hidden, dimension, depth)
    if smallest is not None and smallest < latent:
        takes = f"{latent} at depth 1 (there is no hidden layer to hold a smaller bottleneck)"
        check(depth > 1, "bottleneck", smallest, takes)
        middle[(depth - 2) // 2] = smallest
    return (latent, *middle, dimension)


def _whole(depth: float) -> int:
    takes = "an integer from 1 (another number only with end_to_end_flow)"
    check(1 <= depth < 2**31 and depth == int(depth), "depth", depth, takes)
    return int(depth)


def _explicit(dimension: int, network: Network) -> Widths:
    """The given list, checked against the dimension and against every other option given."""
    given = tuple(network.widths or ())
    check(len(given) >= 2, "widths", list(given), "at least two widths, latent dimension first")
    check(min(given) >= 1, "widths", list(given), "integers from 1")
    takes = f"a list that ends with the data dimension {dimension}"
    check(given[-1] == dimension, "widths", list(given), takes)
    implied = {"depth": len(given) - 1, "latent_dim": given[0], "bottleneck": min(given)}
    for option, value in implied.items():
        got = getattr(network, option)
        check(got in (None, value), option, got, f"{value} or null with widths = {list(given)}")
    wide = network.hidden_width
    agrees = wide is None or all(each == wide for each in given[1:-1])
    check(agrees, "hidden_width", wide, f"null with widths = {list(given)}")
    return given


def _hidden_widths(network: Network, first: int, peak: int, last: int, depth: int) -> list[int]:
    """The depth − 1 hidden widths of a profile."""
    count = depth - 1
    if network.profile == "linear":
        position = np.linspace(0, 1, depth + 1)[1:-1]
        up, down = first + 2 * position * (peak - first), peak + (2 * position - 1) * (last - peak)
        return [round(float(each)) for each in np.where(position <= 0.5, up, down)]
    if network.profile == "random":
        smallest = network.bottleneck or min(first, peak, last)
        draws = jax.random.randint(jax.random.key(network.seed), (count,), smallest, peak + 1)
        return [int(each) for each in draws]
    return [peak] * count


def bottleneck(widths: Widths) -> int:
    """The smallest width k: the largest rank the generator can have."""
    return min(widths)


def layer_widths(weights: Weights) -> Widths:
    """The widths (d_0, …, d_N) of given weights."""
    return (weights[0].shape[1], *(layer.shape[0] for layer in weights))


# --- the generator --------------------------------------------------------------------------------


def end_to_end(weights: Weights) -> EndToEnd:
    """The generator W = W_N ⋯ W_1, shape (n, m)."""
    left, right = factors(weights)
    return left if right is None else right if left is None else left @ right


def covariance(weights: Weights) -> Covariance:
    """The covariance W Wᵀ of the generated Gaussian, shape (n, n)."""
    generator = reduced(weights)
    return generator @ generator.T


def imbalance(weights: Weights) -> Float[Array, "interfaces"]:
    """The N − 1 Frobenius norms ‖W_{j+1}ᵀ W_{j+1} − W_j W_jᵀ‖ (docs/theory.md §5)."""
    norms = [jnp.linalg.norm(above.T @ above - below @ below.T) for below, above in pairwise(weights)]
    return jnp.stack(norms) if norms else jnp.zeros((0,), weights[0].dtype)


def sample(key: PRNGKey, weights: Weights, count: int) -> Float[Array, "count n"]:
    """Draw `count` samples x = W_N ⋯ W_1 z, z ~ N(0, I_m); shape (count, n)."""
    samples = jax.random.normal(key, (count, weights[0].shape[1]), weights[0].dtype)
    for layer in weights:
        samples = samples @ layer.T
    return samples


def factors(weights: Weights) -> tuple[Array | None, Array | None]:
    """W = left · right through the bottleneck: (n, k) and (k, m); None for an empty product."""
    cut = _cut(layer_widths(weights))
    return _product(weights[cut:]), _product(weights[:cut])


def reduced(weights: Weights) -> Float[Array, "n k"]:
    """A generator of the same covariance with the latent dimension reduced (§9), shape (n, k)."""
    return reduction(weights)[0]


def reduction(weights: Weights) -> tuple[Float[Array, "n k"], Float[Array, "k m"]]:
    """W = X Q through the bottleneck k, where the rows of Q are orthonormal (§9).

    X has the covariance and the singular values of W. Where the latent dimension is the bottleneck,
    X is the product itself and Q the identity.
    """
    left, right = factors(weights)
    if right is None:
        assert left is not None
        return left, jnp.eye(left.shape[1], dtype=left.dtype)
    triangular, orthonormal = _lq(right)
    return triangular if left is None else left @ triangular, orthonormal


def _product(layers: Sequence[Array]) -> Array | None:
    result = None
    for layer in layers:
        result = layer if result is None else layer @ result
    return result


def _cut(widths: Widths) -> int:
    """How many layers lie below the bottleneck; one of the ends where those are as narrow."""
    smallest, depth = min(widths), len(widths) - 1
    if widths[0] == smallest:
        return 0
    return depth if widths[-1] == smallest else widths.index(smallest)


def _lq(matrix: Float[Array, "k m"]) -> tuple[Array, Array]:
    """A = L Q with L (k, k) lower triangular and Q (k, m) with orthonormal rows, k ≤ m."""
    orthonormal, triangular = jnp.linalg.qr(matrix.T)
    return triangular.T, orthonormal.T


# --- layer gradients ------------------------------------------------------------------------------


class Packed(NamedTuple):
    """Weights as the training loop holds them: cut at the bottleneck, long equal runs stacked.

    Each block is a layer (d_j, d_{j-1}) or a stack (count, d, d) of consecutive ones.
    """

    below: tuple[Array, ...]
    above: tuple[Array, ...]


def pack(weights: Weights) -> Packed:
    """The weights in the layout of the training loop; `unpack` is its inverse."""
    cut = _cut(layer_widths(weights))
    return Packed(_blocks(weights[:cut]), _blocks(weights[cut:]))


def unpack(packed: Packed) -> Weights:
    """The layers (W_1, …, W_N) of packed weights."""
    layers: list[Array] = []
    for block in (*packed.below, *packed.above):
        layers.extend(block if block.ndim == 3 else [block])
    return tuple(layers)


def squared_size(packed: Packed) -> Array:
    """Σ_j ‖W_j‖_F² over all layers."""
    blocks = (*packed.below, *packed.above)
    return sum(jnp.sum(block**2) if block.ndim == 3 else squared_norm(block) for block in blocks)


def _blocks(layers: Sequence[Array]) -> tuple[Array, ...]:
    blocks: list[Array] = []
    start = 0
    while start < len(layers):
        stop = start
        while stop < len(layers) and layers[stop].shape == layers[start].shape:
            stop += 1
        long = stop - start >= SCAN_FROM
        blocks.extend([jnp.stack(layers[start:stop])] if long else layers[start:stop])
        start = stop
    return tuple(blocks)


def forward(blocks: Sequence[Array]) -> tuple[Array | None, list[Array | None]]:
    """The product of the blocks and, for each, the product (or products) of all below it."""
    product: Array | None = None
    prefixes: list[Array | None] = []
    for block in blocks:
        if block.ndim == 2:
            prefixes.append(product)
            product = block if product is None else block @ product
        else:
            start = jnp.eye(block.shape[-1], dtype=block.dtype) if product is None else product
            product, before = lax.scan(lambda below, layer: (layer @ below, below), start, block)
            prefixes.append(before)
    return product, prefixes


def backward(
    blocks: Sequence[Array], prefixes: Sequence[Array | None], cotangent: Array
) -> tuple[Array, ...]:
    """The gradient in each block, given the gradient `cotangent` in the product of all.

    With C_j = (W_N ⋯ W_{j+1})ᵀ C and P_j = W_{j-1} ⋯ W_1 it is C_j P_jᵀ: one pass down (§2).
    """
    gradients: list[Array] = []
    for index in reversed(range(len(blocks))):
        block, prefix = blocks[index], prefixes[index]
        if block.ndim == 2:
            gradients.append(cotangent if prefix is None else cotangent @ prefix.T)
            cotangent = block.T @ cotangent if index else cotangent
        else:
            cotangent, stacked = lax.scan(_down, cotangent, (block, prefix), reverse=True)
            gradients.append(stacked)
    return tuple(reversed(gradients))


def _down(cotangent: Array, layer_and_prefix: tuple[Array, Array]) -> tuple[Array, Array]:
    layer, prefix = layer_and_prefix
    return layer.T @ cotangent, cotangent @ prefix.T


def pull_back(packed: Packed, gradient: Callable[[EndToEnd], EndToEnd]) -> Packed:
    """The gradients of all layers of a loss of W Wᵀ, in the layout of `packed`.

    `gradient` is the loss's gradient in function space. Where the bottleneck lies inside, it is
    asked at the reduced generator of shape (n, k), and the n × m product is never formed (§9).
    """
    return pull_back_with(packed, lambda generator: (gradient(generator), None))[0]


def pull_back_with(
    packed: Packed, gradient: Callable[[EndToEnd], tuple[EndToEnd, Any]]
) -> tuple[Packed, Any]:
    """`pull_back` of a gradient that comes with something else, which is returned with the gradients."""
    above, prefixes_above = forward(packed.above)
    below, prefixes_below = forward(packed.below)
    if above is None or below is None:
        blocks = packed.above or packed.below
        prefixes = prefixes_above or prefixes_below
        inner, other = gradient(below if above is None else above)
        gradients = backward(blocks, prefixes, inner)
        return Packed(gradients, ()) if above is None else Packed((), gradients), other
    triangular, orthonormal = _lq(below)
    inner, other = gradient(above @ triangular)
    gradients_below = backward(packed.below, prefixes_below, (above.T @ inner) @ orthonormal)
    gradients_above = backward(packed.above, prefixes_above, inner @ triangular.T)
    return Packed(gradients_below, gradients_above), other
