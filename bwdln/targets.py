"""Target covariances `Σ₀ = Ω Λ Ωᵀ`: families of spectra, covariances, samples, real data.

A spectrum is a pure function of numbers and a key, so that `jax.vmap` makes lanes of it; a
registered target checks its options, calls it and adds a random basis. Data are read, checked
and decomposed on the host in NumPy float64.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bwdln import data
from bwdln.arrays import blamed_on, finite, read_array, real_array
from bwdln.data import FileKind, Photograph
from bwdln.errors import check, check_one_of
from bwdln.linalg import RANK_THRESHOLD, safe_sqrt
from bwdln.registry import Registry
from bwdln.types import Array, Basis, Covariance, PRNGKey, Scalar, Spectrum

#: Name -> function (*, options) -> Target.
TARGETS = Registry("target")

Reading: TypeAlias = Literal["eigenvalues", "singular_values"]

#: Largest eigenvalue of a target: its square, as in the Frobenius loss, is far from overflow.
LARGEST_EIGENVALUE = 1e150


class Target(NamedTuple):
    """A target covariance `Σ₀ = Ω Λ Ωᵀ` by its eigenvalues and eigenvectors (docs/theory.md §1).

    A pytree whose methods can be traced; use `jax.vmap` on a stack of targets.

    Attributes:
        eigenvalues: `λ`, shape (n,), descending, none negative.
        eigenvectors: `Ω`, shape (n, n), one a column; None when the coordinates already are those
            of the eigenbasis.
    """

    eigenvalues: Spectrum
    eigenvectors: Basis | None = None

    @property
    def dimension(self) -> int:
        """The data dimension `n`."""
        return int(self.eigenvalues.shape[-1])

    @property
    def covariance(self) -> Covariance:
        """`Σ₀`, shape (n, n)."""
        return self._with_eigenvalues(self.eigenvalues)

    @property
    def root(self) -> Covariance:
        """`R = Σ₀^{1/2}`, the symmetric square root, shape (n, n)."""
        return self._with_eigenvalues(safe_sqrt(self.eigenvalues))

    def in_eigenbasis(self) -> Target:
        """The same target in the coordinates of its eigenvectors: a diagonal covariance."""
        return Target(self.eigenvalues, None)

    def to_eigenbasis(self, matrix: Float[Array, "n _"]) -> Float[Array, "n _"]:
        """`Ωᵀ W` of a matrix `W` of shape (n, anything) in data coordinates."""
        return matrix if self.eigenvectors is None else self.eigenvectors.T @ matrix

    def from_eigenbasis(self, matrix: Float[Array, "n _"]) -> Float[Array, "n _"]:
        """`Ω X` of a matrix `X` of shape (n, anything) in the coordinates of the eigenvectors."""
        return matrix if self.eigenvectors is None else self.eigenvectors @ matrix

    def _with_eigenvalues(self, values: Spectrum) -> Covariance:
        if self.eigenvectors is None:
            return jnp.diag(values)
        return (self.eigenvectors * values[None, :]) @ self.eigenvectors.T


# Spectra: pure functions of numbers and a key. Only `dimension` and `reading` are static.


def zipf_spectrum(
    key: PRNGKey,
    dimension: int,
    *,
    rank: int | None = None,
    s_min: Scalar = 0.0,
    reading: Reading = "eigenvalues",
) -> Spectrum:
    """The authors' Zipf spectrum: `σ₁/i` plus standard normal noise (docs/theory.md §7).

    `σ₁` is the largest singular value of a Gaussian matrix, shape (dimension, dimension). The
    values are sorted and shifted so that the smallest is 1/dimension, and then lifted to `s_min`
    (where the smallest lies below it, the value at `rank` becomes `s_min + 1/dimension`; 0 never
    lifts), cut to zero beyond `rank`, and read as eigenvalues or as singular values, to be squared.

    Returns the eigenvalues, shape (dimension,). `key`, `rank` and `s_min` may be traced.
    """
    matrix_key, noise_key = jax.random.split(key)
    largest = _gaussian_singular_values(matrix_key, dimension)[0]
    noise = jax.random.normal(noise_key, (dimension,))
    values = -jnp.sort(-(largest / _positions(dimension) + noise))
    return _drawn_spectrum(values - values[-1] + 1 / dimension, rank, s_min, reading)


def random_spectrum(
    key: PRNGKey,
    dimension: int,
    *,
    rank: int | None = None,
    s_min: Scalar = 0.0,
    reading: Reading = "eigenvalues",
) -> Spectrum:
    """The authors' random spectrum: the singular values of a Gaussian matrix (docs/theory.md §7).

    Lifted, cut and read like `zipf_spectrum`. Returns the eigenvalues, shape (dimension,). `key`,
    `rank` and `s_min` may be traced.
    """
    return _drawn_spectrum(_gaussian_singular_values(key, dimension), rank, s_min, reading)


def power_law_spectrum(
    exponent: Scalar, dimension: int, *, rank: int | None = None, largest: Scalar = 1.0
) -> Spectrum:
    """`λ_i = largest · i^(-exponent)`, zero beyond `rank`; shape (dimension,).

    All but `dimension` may be traced.
    """
    return _cut(largest * _positions(dimension) ** -jnp.asarray(exponent, float), rank)


def geometric_spectrum(
    condition_number: Scalar, dimension: int, *, rank: int | None = None, largest: Scalar = 1.0
) -> Spectrum:
    """Equal ratios from `λ_1 = largest` to `λ_rank = largest / condition_number`, then zeros.

    Shape (dimension,); all but `dimension` may be traced. At rank 1 the condition number is 1
    whatever was asked for.
    """
    ratios = jnp.maximum((dimension if rank is None else rank) - 1, 1)
    exponents = (_positions(dimension) - 1) / ratios
    return _cut(largest * jnp.asarray(condition_number, float) ** -exponents, rank)


def spiked_spectrum(spikes: Float[Array, "count"], dimension: int, *, bulk: Scalar = 1.0) -> Spectrum:
    """The eigenvalues `spikes`, shape (count,), above `dimension - count` equal ones, `bulk`.

    The spiked covariance model. Shape (dimension,), sorted; all but `dimension` may be traced.
    """
    spikes = jnp.asarray(spikes, float)
    rest = jnp.full((dimension - spikes.shape[0],), bulk, dtype=float)
    return -jnp.sort(-jnp.concatenate([spikes, rest]))


def random_basis(key: PRNGKey, dimension: int) -> Basis:
    """A Haar distributed orthogonal matrix, shape (dimension, dimension).

    The orthogonal factor of a Gaussian matrix, with the signs that make the diagonal of the
    triangular factor positive: without them the distribution depends on the decomposition's own
    convention (Mezzadri 2007, arXiv math-ph/0609050).
    """
    orthogonal, triangular = jnp.linalg.qr(jax.random.normal(key, (dimension, dimension)))
    return orthogonal * jnp.where(jnp.diagonal(triangular) < 0, -1.0, 1.0)[None, :]


def _positions(dimension: int) -> Array:
    return jnp.arange(1, dimension + 1, dtype=float)


def _gaussian_singular_values(key: PRNGKey, dimension: int) -> Array:
    return jnp.linalg.svd(jax.random.normal(key, (dimension, dimension)), compute_uv=False)


def _drawn_spectrum(values: Array, rank: int | None, s_min: Scalar, reading: Reading) -> Spectrum:
    """What the authors do to descending values: lift to `s_min`, cut to `rank`, read."""
    check_one_of("reading", reading, Reading)
    dimension = values.shape[0]
    at_rank = values[(dimension if rank is None else rank) - 1]
    lift = jnp.where(values[-1] < s_min, s_min - at_rank + 1 / dimension, 0.0)
    kept = _cut(values + lift, rank)
    return kept**2 if reading == "singular_values" else kept


def _cut(values: Spectrum, rank: int | None) -> Spectrum:
    return values if rank is None else jnp.where(jnp.arange(values.shape[0]) < rank, values, 0.0)


# Targets of a family. One seed determines everything; equal seeds give families equal bases.


@TARGETS.register("zipf")
def zipf(
    *,
    dimension: int = 20,
    rank: int | None = None,
    s_min: float | None = None,
    reading: Reading = "eigenvalues",
    seed: int = 0,
) -> Target:
    """The authors' Zipf target (docs/theory.md §7): `zipf_spectrum` in a random basis.

    Raises `InvalidOption` for a value out of range. `s_min` None never lifts, like 0.
    """
    return _drawn_target(zipf_spectrum, dimension, rank, s_min, reading, seed)


@TARGETS.register("random")
def random(
    *,
    dimension: int = 20,
    rank: int | None = None,
    s_min: float | None = None,
    reading: Reading = "eigenvalues",
    seed: int = 0,
) -> Target:
    """The authors' random target (docs/theory.md §7): `random_spectrum` in a random basis.

    The authors take values and basis from one Gaussian matrix, where they are independent: drawn
    apart, as here, they have the same distribution. Raises `InvalidOption` for a value out of
    range. `s_min` None never lifts, like 0.
    """
    return _drawn_target(random_spectrum, dimension, rank, s_min, reading, seed)


@TARGETS.register("power_law")
def power_law(
    *,
    dimension: int = 20,
    rank: int | None = None,
    exponent: float = 1.0,
    largest: float = 1.0,
    seed: int = 0,
) -> Target:
    """`λ_i = largest · i^(-exponent)` in a random basis. Raises `InvalidOption`."""
    _check_shape(dimension, rank)
    check(0 <= exponent < math.inf, "exponent", exponent, "a number from 0")
    _check_largest("largest", largest)
    smallest = (rank or dimension) ** -exponent
    _check_resolved("exponent", exponent, smallest)
    return _rotated(power_law_spectrum(exponent, dimension, rank=rank, largest=largest), seed)


@TARGETS.register("geometric")
def geometric(
    *,
    dimension: int = 20,
    rank: int | None = None,
    condition_number: float = 100.0,
    largest: float = 1.0,
    seed: int = 0,
) -> Target:
    """Eigenvalues in equal ratios, `λ_1 / λ_rank` the condition number. Raises `InvalidOption`."""
    _check_shape(dimension, rank)
    takes = f"a number from 1 to {1 / RANK_THRESHOLD:g}"
    check(1 <= condition_number <= 1 / RANK_THRESHOLD, "condition_number", condition_number, takes)
    if (rank or dimension) == 1:
        takes = "1 when only one eigenvalue is not zero"
        check(condition_number == 1, "condition_number", condition_number, takes)
    _check_largest("largest", largest)
    spectrum = geometric_spectrum(condition_number, dimension, rank=rank, largest=largest)
    return _rotated(spectrum, seed)


@TARGETS.register("spiked")
def spiked(
    *,
    dimension: int = 20,
    spikes: tuple[float, ...] = (10.0, 5.0, 2.0),
    bulk: float = 1.0,
    seed: int = 0,
) -> Target:
    """A few eigenvalues, the spikes, above a flat bulk. Raises `InvalidOption`.

    With `bulk` 0 the rank is the number of spikes.
    """
    _check_shape(dimension, None)
    takes = f"a list of 1 to dimension ({dimension}) numbers"
    check(1 <= len(spikes) <= dimension, "spikes", f"{len(spikes)} numbers", takes)
    check(0 <= bulk <= LARGEST_EIGENVALUE, "bulk", bulk, f"a number from 0 to {LARGEST_EIGENVALUE:g}")
    _check_eigenvalues("spikes", spikes, bulk, f"bulk ({bulk:g})")
    if len(spikes) < dimension and bulk > 0:
        _check_resolved("spikes", f"{max(spikes):g} above a bulk of {bulk:g}", bulk / max(spikes))
    return _rotated(spiked_spectrum(jnp.asarray(spikes), dimension, bulk=bulk), seed)


@TARGETS.register("explicit")
def explicit(*, eigenvalues: tuple[float, ...], seed: int = 0) -> Target:
    """The given eigenvalues, in any order, in a random basis. Raises `InvalidOption`."""
    takes = "one number for each dimension"
    check(len(eigenvalues) >= 1, "eigenvalues", "an empty list", takes)
    _check_eigenvalues("eigenvalues", eigenvalues, 0.0, "0")
    return _rotated(jnp.asarray(sorted(eigenvalues, reverse=True), dtype=float), seed)


def _drawn_target(
    spectrum: Any, dimension: int, rank: int | None, s_min: float | None, reading: Reading, seed: int
) -> Target:
    """The two families of the authors: a spectrum drawn from the seed, then a basis."""
    _check_shape(dimension, rank)
    lift = 0.0 if s_min is None else s_min
    takes = f"a number from 0 to {LARGEST_EIGENVALUE**0.5:g}, or null"
    check(0 <= lift <= LARGEST_EIGENVALUE**0.5, "s_min", s_min, takes)
    values = spectrum(_keys(seed)[0], dimension, rank=rank, s_min=lift, reading=reading)
    return _rotated(values, seed)


def _rotated(eigenvalues: Spectrum, seed: int) -> Target:
    return Target(eigenvalues, random_basis(_keys(seed)[1], eigenvalues.shape[0]))


def _keys(seed: int) -> Array:
    """The keys of the spectrum and of the basis."""
    return jax.random.split(data.key(seed))


def _check_shape(dimension: int, rank: int | None) -> None:
    check(dimension >= 1, "dimension", dimension, "an integer from 1")
    takes = f"an integer from 1 to dimension ({dimension}), or null"
    check(rank is None or 1 <= rank <= dimension, "rank", rank, takes)


def _check_largest(option: str, value: float) -> None:
    takes = f"a number above 0, at most {LARGEST_EIGENVALUE:g}"
    check(0 < value <= LARGEST_EIGENVALUE, option, value, takes)


def _check_eigenvalues(option: str, values: tuple[float, ...], lowest: float, name: str) -> None:
    """Refuse a list with a number that is not from `lowest`, called `name`, or only zeros."""
    takes = f"numbers from {name} to {LARGEST_EIGENVALUE:g}, not all 0"
    bad = [str(value) for value in values if not lowest <= value <= LARGEST_EIGENVALUE]
    check(not bad, option, f"{', '.join(bad[:3])} ({len(bad)} of {len(values)})", takes)
    positive = [value for value in values if value > 0]
    check(bool(positive), option, "zeros only", takes)
    got = f"{min(positive):g} beside {max(positive):g}"
    _check_resolved(option, got, min(positive) / max(positive))


def _check_resolved(option: str, got: Any, ratio: float) -> None:
    """Refuse a spectrum whose smallest eigenvalue, `ratio` of the largest, would count as zero."""
    got = f"{got}, which makes the smallest eigenvalue {ratio:.2g} of the largest"
    takes = f"what leaves it 0 or at least {RANK_THRESHOLD:g} of the largest"
    check(ratio >= RANK_THRESHOLD, option, got, takes)


# Targets from a covariance or from samples, on the host.


def from_covariance(covariance: Covariance) -> Target:
    """The target with a given covariance, shape (n, n).

    Eigenvalues of at most `noise` times the largest become exactly 0, where noise is the rank
    threshold of `linalg`, or √n times the rounding of the array's own type if that is larger: so
    far does rounding its entries move an eigenvalue. Every eigenvector's largest component is
    positive.

    Raises `InvalidOption` unless it is a square matrix of finite real numbers, symmetric and
    positive semidefinite to within `noise`, and not zero.
    """
    option, given = "covariance", real_array("covariance", covariance)
    takes = "a square matrix, shape (n, n)"
    check(given.ndim == 2 and given.shape[0] == given.shape[1] >= 1, option, f"shape {given.shape}", takes)
    matrix = finite(option, given, LARGEST_EIGENVALUE)
    noise = max(RANK_THRESHOLD, matrix.shape[0] ** 0.5 * _rounding(given))
    size = np.abs(matrix).max()
    check(size > 0, option, "zeros only", "a covariance with some variance")
    asymmetry = np.abs(matrix - matrix.T).max() / size
    got = f"a matrix that differs from its transpose by {asymmetry:.2g} of its largest entry"
    check(asymmetry <= noise, option, got, f"a symmetric matrix (to {noise:.1g})")
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    ratio = values[0] / np.abs(values).max()
    got = f"a matrix whose smallest eigenvalue is {ratio:.2g} times the largest in size"
    check(ratio >= -noise, option, got, f"a positive semidefinite matrix (to {noise:.1g})")
    return _decomposed(values[::-1], vectors[:, ::-1], noise)


def from_samples(samples: Float[Array, "count n"], *, center: bool = True) -> Target:
    """The target whose covariance is that of samples, shape (count, n), one a row.

    The covariance is `XᵀX / count`, with X the samples less their mean (without `center`: the
    samples): everywhere in this package it divides by count, not count - 1. It is never formed:
    its eigenvalues are the squares of the singular values of X, over count, which keeps the digits
    of small ones. Eigenvalues below the rank threshold of `linalg`
    become exactly 0. Every eigenvector's largest component is positive.

    Raises `InvalidOption` unless the samples are finite real numbers, two or more, not all equal
    (without `center`: not all zero).
    """
    option, given = "samples", real_array("samples", samples)
    takes = "two samples or more, one a row: shape (count, n)"
    check(
        given.ndim == 2 and given.shape[0] >= 2 and given.shape[1] >= 1, option, f"shape {given.shape}", takes
    )
    matrix = finite(option, given, LARGEST_EIGENVALUE**0.5)
    count, dimension = matrix.shape
    varies = np.any(matrix != matrix[0]) if center else np.any(matrix != 0)
    if center:
        matrix = matrix - matrix.mean(axis=0)
    # A tall matrix has the singular values and right singular vectors of its triangular factor.
    reduced = np.linalg.qr(matrix, mode="r") if count > dimension else matrix
    _, singular_values, rows = np.linalg.svd(reduced, full_matrices=True)
    values = np.zeros(dimension)
    values[: singular_values.size] = singular_values**2 / count
    got = "samples that are all equal" if center else "samples that are all zero"
    check(bool(varies) and values[0] > 0, option, got, "samples with some variance")
    return _decomposed(values, rows.T, RANK_THRESHOLD)


def _decomposed(values: np.ndarray, vectors: np.ndarray, noise: float) -> Target:
    """A target from descending eigenvalues with rounding errors, and eigenvectors of any sign."""
    kept = np.where(values > noise * values[0], values, 0.0)
    sizes = np.abs(vectors)
    # The first of equally large components, whichever of them rounding made the largest.
    position = np.argmax(sizes >= (1 - 1e-8) * sizes.max(axis=0), axis=0)
    signs = np.where(vectors[position, np.arange(values.size)] < 0, -1.0, 1.0)
    return Target(jnp.asarray(kept), jnp.asarray(vectors * signs))


def _rounding(array: np.ndarray) -> float:
    """The relative rounding error the entries of an array may carry: that of its type."""
    kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
    return max(float(np.finfo(kind).eps), float(np.finfo(np.float64).eps))


# Targets from data.


@TARGETS.register("digits")
def digits() -> Target:
    """The covariance of scikit-learn's digits: n = 64, of rank 61. Raises `InvalidOption`."""
    return from_samples(data.digits().values)


@TARGETS.register("faces")
def faces() -> Target:
    """The covariance of 100 faces: n = 625, of rank 99, singular. Raises `InvalidOption`."""
    return from_samples(data.faces().values)


@TARGETS.register("image_patches")
def image_patches(*, image: Photograph = "camera", side: int = 8, count: int = 5000, seed: int = 0) -> Target:
    """The covariance of patches of a photograph: n = side², of rank n - 1 at most.

    Raises `InvalidOption`.
    """
    return from_samples(data.image_patches(image=image, side=side, count=count, seed=seed).values)


@TARGETS.register("file")
def file(*, path: str, kind: FileKind = "samples", array: str | None = None, center: bool = True) -> Target:
    """A target from a user's `.npy`, `.npz` or `.csv` file.

    With `kind` samples the file holds one sample a row, shape (count, n), or a stack of images,
    shape (count, height, width); with `kind` covariance a matrix, shape (n, n). `array` names the
    array in an `.npz` file, and may be left out if there is one only. A CSV file has numbers only,
    separated by commas; what follows a # is skipped.

    Raises `InvalidOption` for a file that cannot be read, and for what `from_samples` and
    `from_covariance` refuse. Nothing is ever unpickled.
    """
    loaded = data.file(path=path, kind=kind, array=array, center=center)
    if loaded is not None:
        with blamed_on(path):
            return from_samples(loaded.values, center=center)
    check(center, "center", center, "true for a covariance: there is nothing to center")
    covariance = read_array(path, array)
    with blamed_on(path):
        return from_covariance(covariance)
