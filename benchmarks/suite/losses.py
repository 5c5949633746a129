"""The Bures-Wasserstein loss and its gradient in W, for batches of pairs of a generator and a target."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from benchmarks.suite import measure, peers
from benchmarks.suite.measure import Row, Settings
from benchmarks.suite.peers import Call, Pairs
from bwdln import losses
from bwdln.targets import Target


class Case(NamedTuple):
    """What all contestants of a case get."""

    n: int
    k: int
    batch: int
    precision: str = "float64"
    # Of the target, and the ratio of the largest to the smallest singular value of W.
    condition: float = 10.0
    generator: float = 2.0
    tau: float = 0.0

    def __str__(self) -> str:
        tau = f", τ = {self.tau:g}" if self.tau else ""
        return f"n = {self.n}, k = {self.k}, batch {self.batch}, {self.precision}{tau}, {self.conditioning}"

    @property
    def conditioning(self) -> str:
        return f"condition {self.condition:.0e} (target), {self.generator:.0e} (W)"


SHORT = (Case(6, 6, 3), Case(6, 2, 3, tau=0.1))


def cases() -> Iterator[Case]:
    """Sizes, batches, bottlenecks, precisions and condition numbers."""
    for n, batches in {20: (1, 16, 128, 1024), 100: (1, 16, 64), 300: (1, 8), 500: (1, 4)}.items():
        yield from (Case(n, n, batch) for batch in batches)
    for k in (4, 16, 64):
        yield Case(500, k, 4)
    yield Case(100, 10, 64)
    for n, batch in ((20, 128), (100, 64)):
        yield Case(n, n, batch, condition=1e6, generator=1e3)
        yield Case(n, n, batch, tau=0.1)
        yield Case(n, n, batch, precision="float32")
    yield Case(100, 10, 64, tau=0.1)
    yield Case(20, 20, 128, precision="float32", condition=1e6, generator=1e3)


def measured(settings: Settings) -> Iterator[Row]:
    """The lines of this section."""
    for case in SHORT if settings.short else cases():
        yield from _of_case(case, settings)


def _of_case(case: Case, settings: Settings) -> Iterator[Row]:
    pairs = drawn(case)
    expected = reference(pairs)
    rows, works = [], []
    for contestant in [*_ours(), *peers.available()]:
        row = _row(case, contestant.name, contestant.package == "bwdln", contestant.given)
        rows.append(row)
        if case.n**3 * case.batch > contestant.most:
            row.note += "; not run: it takes minutes"
            works.append([])
            continue
        try:
            call = contestant.build(pairs)
            row.error, row.agrees = _errors(call, pairs, expected)
        except Exception as error:  # a peer that fails is a line of the table, too
            if row.ours:
                raise
            row.agrees, row.note = False, f"{row.note}; failed: {type(error).__name__}"
            works.append([])
            continue
        timed = getattr(call, "timed", call)
        works.append([measure.repeated(timed, count) for count in contestant.threads])
    flat = [work for each in works for work in each]
    times = iter([] if settings.short else measure.timings(flat, settings))
    for row, each in zip(rows, works, strict=True):
        if settings.short or not each:
            yield row
            continue
        for work in each:
            timing = next(times)
            threads = f", {work.threads} thread{'s' if work.threads > 1 else ''}" if len(each) > 1 else ""
            seconds = [value / case.batch for value in timing[:2]]
            floor = 2 * measure.product_seconds(case.n, case.k, case.precision, case.batch)
            yield Row(
                **{
                    **vars(row),
                    "contestant": row.contestant + threads,
                    "seconds": seconds[0],
                    "minimum": seconds[1],
                    "spread": timing.spread,
                    "ceiling": floor / seconds[0],
                }
            )


def _row(case: Case, name: str, ours: bool, given: str) -> Row:
    note = f"given: {given}"
    if jax.default_backend() != "cpu" and any(word in name for word in ("NumPy", "torch", "PyTorch")):
        note += "; on the CPU"
    sizes = case.n, 1, case.k, case.batch
    return Row("losses", str(case), name, *sizes, case.precision, case.conditioning, ours, note=note)


# --- inputs and the reference ---------------------------------------------------------------------


def drawn(case: Case) -> Pairs:
    """Geometric spectra from 1 on, drawn bases; W with a geometric spectrum, too, of the size of Σ₀."""
    rng = np.random.default_rng(0)

    def orthonormal(rows: int, columns: int) -> np.ndarray:
        return np.linalg.qr(rng.normal(size=(case.batch, rows, columns)))[0]

    eigenvalues = np.broadcast_to(np.geomspace(1, 1 / case.condition, case.n), (case.batch, case.n))
    bases = orthonormal(case.n, case.n)
    scale = np.geomspace(1, 1 / case.generator, case.k)
    generators = (orthonormal(case.n, case.k) * scale) @ orthonormal(case.k, case.k).transpose(0, 2, 1)
    covariances = (bases * eigenvalues[:, None, :]) @ bases.transpose(0, 2, 1)
    roots = (bases * np.sqrt(eigenvalues)[:, None, :]) @ bases.transpose(0, 2, 1)
    arrays = (generators, eigenvalues, bases, covariances, roots)
    return Pairs(*(np.ascontiguousarray(each, case.precision) for each in arrays), case.tau)


def reference(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Values and gradients in float64, pair by pair, by the QR algorithm for singular values."""
    values, gradients = [], []
    each = zip(*(np.asarray(array, float) for array in pairs[:3]), strict=True)
    for generator, eigenvalues, basis in each:
        root = (basis * np.sqrt(eigenvalues)) @ basis.T
        whole = np.hstack([generator, math.sqrt(pairs.tau) * np.eye(len(root))]) if pairs.tau else generator
        left, singular, right = scipy.linalg.svd(root @ whole, full_matrices=False, lapack_driver="gesvd")
        values.append(np.sum(whole**2) + eigenvalues.sum() - 2 * singular.sum())
        gradients.append(2 * (generator - root @ (left @ right[:, : generator.shape[1]])))
    return np.array(values), np.array(gradients)


def _errors(call: Call, pairs: Pairs, expected: tuple[np.ndarray, np.ndarray]) -> tuple[float, bool]:
    values, gradients = (np.asarray(each, float) for each in call())
    errors = measure.relative(values, expected[0]), measure.relative(gradients, expected[1])
    precision = str(pairs.generators.dtype)
    fine = errors[0] <= measure.VALUE[precision] and errors[1] <= measure.GRADIENT[precision]
    return max(errors), fine


# --- ours -----------------------------------------------------------------------------------------


def _ours() -> Iterator[peers.Peer]:
    for kernel in ("exact", "products"):
        for inside in (True, False):
            where = "eigenbasis" if inside else "data coordinates"
            given = "eigenvalues; W in the eigenbasis" if inside else "eigenvalues and eigenvectors"
            name = f"bwdln, {kernel}, {where}"
            yield peers.Peer(name, "bwdln", lambda pairs, k=kernel, i=inside: _call(pairs, k, i), given)


def _call(pairs: Pairs, kernel: Any, inside: bool) -> Call:
    """Ours, in the eigenbasis as in a run, or with the eigenvectors of the target."""
    loss = losses.bures_wasserstein(pairs.tau, kernel=kernel)
    if not inside:
        both = jax.vmap(lambda w, values, basis: loss.value_and_gradient(w, Target(values, basis)))
        return peers.jitted(both, pairs.generators, pairs.eigenvalues, pairs.bases)
    both = jax.vmap(lambda w, values: loss.value_and_gradient(w, Target(values, None)))
    run = jax.jit(both)
    modes = jnp.asarray(pairs.bases.transpose(0, 2, 1) @ pairs.generators)
    eigenvalues = jnp.asarray(pairs.eigenvalues)
    return _InEigenbasis(lambda: jax.block_until_ready(run(modes, eigenvalues)), pairs.bases)


class _InEigenbasis:
    """A call whose gradients are rotated back only where they are compared."""

    def __init__(self, call: Call, bases: np.ndarray) -> None:
        self.timed, self._bases = call, bases

    def __call__(self) -> tuple[Any, Any]:
        values, gradients = self.timed()
        return values, self._bases @ np.asarray(gradients)
