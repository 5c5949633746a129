"""One evaluation of a flow's right-hand side for a batch: of the end-to-end matrix, and of all layers.

The end-to-end velocity costs the same at every depth, which enters as a number; that of the layers is
what a step of descent computes, too.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from benchmarks.suite import loops, measure, peers
from benchmarks.suite.measure import Row, Settings
from bwdln import losses, networks
from bwdln.dynamics.end_to_end_flow import velocity
from bwdln.targets import Target


class Case(NamedTuple):
    """A batch of generators, or of networks with their layers; in the eigenbasis of the target."""

    n: int
    depth: int
    batch: int
    precision: str = "float64"
    layers: bool = False

    def __str__(self) -> str:
        what = "all layers" if self.layers else "end to end"
        return f"{what}, n = {self.n}, depth {self.depth}, batch {self.batch}, {self.precision}"


SHORT = (Case(5, 3, 2), Case(5, 3, 2, layers=True))
CONDITION = 10.0
AGREES = {"float64": 1e-9, "float32": 1e-3}


def cases() -> Iterator[Case]:
    """Sizes, depths, batches, precisions."""
    for n, batches in {20: (1, 128, 1024), 100: (1, 64), 300: (8,)}.items():
        yield from (Case(n, 10, batch) for batch in batches)
    yield from (Case(20, 100, 128), Case(20, 10, 128, "float32"))
    for depth in (3, 10, 100):
        yield Case(20, depth, 128, layers=True)
    yield Case(100, 3, 16, layers=True)


def measured(settings: Settings) -> Iterator[Row]:
    """The lines of this section."""
    for case in SHORT if settings.short else cases():
        yield from _of_case(case, settings)


class Drawn(NamedTuple):
    """Layers (each (batch, n, n)) and eigenvalues (batch, n)."""

    layers: tuple[np.ndarray, ...]
    eigenvalues: np.ndarray


def drawn(case: Case) -> Drawn:
    """A generator of condition number 2 with random singular vectors, or balanced layers of one."""
    rng = np.random.default_rng(0)
    shape = case.batch, case.n, case.n

    def rotations() -> np.ndarray:
        return np.linalg.qr(rng.normal(size=shape))[0]

    depth = case.depth if case.layers else 1
    scale = np.geomspace(1, 0.5, case.n) ** (1 / depth)
    between = [rotations() for _ in range(depth + 1)]
    layers = [(up * scale) @ down.transpose(0, 2, 1) for down, up in itertools.pairwise(between)]
    eigenvalues = np.broadcast_to(np.geomspace(1, 1 / CONDITION, case.n), (case.batch, case.n))
    contiguous = [np.ascontiguousarray(each, case.precision) for each in (*layers, eigenvalues)]
    return Drawn(tuple(contiguous[:-1]), contiguous[-1])


class Contestant(NamedTuple):
    """One way to the velocities: (batch, n, n), or (depth, batch, n, n)."""

    name: str
    call: Callable[[], Any]
    ours: bool = False
    threads: tuple[int, ...] = (1,)


def _of_case(case: Case, settings: Settings) -> Iterator[Row]:
    given = drawn(case)
    expected = reference(case, given)
    rows: list[Row] = []
    works = []
    for contestant in _contestants(case, given):
        found = np.stack([np.asarray(each, float) for each in contestant.call()])
        error = measure.relative(found.reshape(expected.shape), expected)
        for count in (1,) if settings.short else contestant.threads:
            many = len(contestant.threads) > 1
            name = contestant.name + (f", {count} thread{'s' if count > 1 else ''}" if many else "")
            on_cpu = jax.default_backend() != "cpu" and not contestant.ours
            sizes = case.n, case.depth, case.n, case.batch
            row = Row("flow", str(case), name, *sizes, case.precision, f"condition {CONDITION:.0e} (target)")
            row.ours, row.error, row.note = contestant.ours, error, "on the CPU" if on_cpu else ""
            row.agrees = error <= AGREES[case.precision]
            rows.append(row)
            works.append(measure.repeated(contestant.call, count))
    if not settings.short:
        # The polar factor, the inner product in bases and back; of layers as a step of descent.
        products = 3 * (case.depth - 1) if case.layers else 6
        floor = products * measure.product_seconds(case.n, case.n, case.precision, case.batch)
        for row, timing in zip(rows, measure.timings(works, settings), strict=True):
            row.seconds, row.minimum = timing.median / case.batch, timing.minimum / case.batch
            row.spread, row.ceiling = timing.spread, floor / row.seconds
    yield from rows


def reference(case: Case, given: Drawn) -> np.ndarray:
    """In float64: the sum over layers of fractional powers as it is defined, or layer by layer."""
    layers = [np.asarray(each, float) for each in given.layers]
    root = np.sqrt(np.asarray(given.eigenvalues, float))[:, :, None]
    if case.layers:
        return -np.stack(_layers_numpy(layers, root))
    (generator,) = layers
    gradient = _gradient_numpy(generator, root)
    total = np.zeros_like(generator)
    for j in range(1, case.depth + 1):
        left = _power(generator @ generator.transpose(0, 2, 1), (case.depth - j) / case.depth)
        right = _power(generator.transpose(0, 2, 1) @ generator, (j - 1) / case.depth)
        total -= left @ gradient @ right
    return total


def _power(matrices: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * values[:, None, :] ** exponent) @ vectors.transpose(0, 2, 1)


# --- contestants ----------------------------------------------------------------------------------


def _contestants(case: Case, given: Drawn) -> Iterator[Contestant]:
    some = measure.thread_counts()
    yield from _ours(case, given)
    root = np.sqrt(given.eigenvalues)[:, :, None]
    if case.layers:
        yield Contestant("NumPy, SVD", lambda: _negative(_layers_numpy(given.layers, root)), threads=some)
    else:
        of_numpy = functools.partial(_velocity_numpy, given.layers[0], root, case.depth)
        yield Contestant("NumPy, SVD", of_numpy, threads=some)
    if measure.installed("torch"):
        yield from _torch(case, given, some)


def _ours(case: Case, given: Drawn) -> Iterator[Contestant]:
    for kernel in ("exact", "products"):
        loss = losses.bures_wasserstein(kernel=kernel)

        def end_to_end(generator: Any, eigenvalues: Any, loss: losses.Loss = loss) -> Any:
            gradient = loss.gradient(generator, Target(eigenvalues, None))
            return velocity(generator, gradient, float(case.depth))

        def of_layers(layers: Any, eigenvalues: Any, loss: losses.Loss = loss) -> Any:
            gradients = losses.layer_gradients(loss, networks.pack(layers), Target(eigenvalues, None))
            return tuple(-each for each in networks.unpack(gradients))

        function: Callable[..., Any] = of_layers if case.layers else end_to_end
        argument: Any = given.layers if case.layers else given.layers[0]
        together = peers.jitted(jax.vmap(function), argument, given.eigenvalues)
        yield Contestant(f"bwdln, {kernel}, all lanes at a time", together, ours=True)
        if kernel == "exact" and case.batch > 1 and jax.default_backend() == "cpu":

            def mapped(*batch: Any, function: Callable[..., Any] = function) -> Any:
                return lax.map(lambda lane: function(*lane), batch)

            alone = peers.jitted(mapped, argument, given.eigenvalues)
            yield Contestant(f"bwdln, {kernel}, lane after lane on one core", alone, ours=True)


def _negative(arrays: list[Any]) -> list[Any]:
    return [-each for each in arrays]


def _gradient_numpy(generator: np.ndarray, root: np.ndarray) -> np.ndarray:
    left, _, right = np.linalg.svd(root * generator, full_matrices=False)
    return 2 * (generator - root * (left @ right))


def _layers_numpy(layers: Any, root: np.ndarray) -> list[np.ndarray]:
    prefixes = loops._prefixes(layers)
    return loops._back(layers, prefixes, _gradient_numpy(prefixes[-1], root))


def _velocity_numpy(generator: np.ndarray, root: np.ndarray, depth: int) -> np.ndarray:
    """−U (K ∘ (Uᵀ ∇L V)) Vᵀ in singular bases of W."""
    gradient = _gradient_numpy(generator, root)
    left, singular, right = np.linalg.svd(generator, full_matrices=False)
    inner = left.transpose(0, 2, 1) @ gradient @ right.transpose(0, 2, 1)
    return -left @ (_kernel(np, singular, depth) * inner) @ right


def _kernel(library: Any, singular: Any, depth: int) -> Any:
    """K of positive singular values, without cancellation where two are close."""
    one, other = singular[..., :, None], singular[..., None, :]
    larger = library.maximum(one, other)
    u = 2 * abs(library.log(one) - library.log(other))
    apart = u > 0
    u = library.where(apart, u, library.ones_like(u))
    ratio = library.expm1(-u) / library.expm1(-u / depth)
    ratio = library.where(apart, ratio, library.full_like(u, depth))
    return larger ** (2 * (depth - 1) / depth) * ratio


def _torch(case: Case, given: Drawn, some: tuple[int, ...]) -> Iterator[Contestant]:
    import torch

    layers = [torch.tensor(each) for each in given.layers]
    root = torch.tensor(np.sqrt(given.eigenvalues)[:, :, None])
    kinds = ((True, "SVD"), (False, "eigh of Gram"))

    def gradient(generator: Any, svd: bool) -> Any:
        return 2 * (generator - root * loops.polar(root * generator, svd))

    def end_to_end(svd: bool) -> Any:
        (generator,) = layers
        if svd:
            left, singular, right = torch.linalg.svd(generator, full_matrices=False)
        else:
            squares, vectors = torch.linalg.eigh(generator.mT @ generator)
            singular, right = squares.sqrt(), vectors.mT
            left = (generator @ vectors) / singular[:, None, :]
        inner = left.mT @ gradient(generator, svd) @ right.mT
        return -left @ (_kernel(torch, singular, case.depth) * inner) @ right

    def of_layers(svd: bool) -> Any:
        prefixes = loops._prefixes(layers)
        return _negative(loops._back(layers, prefixes, gradient(prefixes[-1], svd)))

    function = of_layers if case.layers else end_to_end
    for svd, name in kinds:
        yield Contestant(f"PyTorch batched, {name}", functools.partial(function, svd), threads=some)
    if case.layers:
        own = [each.clone().requires_grad_(True) for each in layers]

        def autograd() -> Any:
            generator = functools.reduce(lambda product, layer: layer @ product, own)
            nuclear = torch.linalg.svdvals(root * generator).sum()
            return _negative(list(torch.autograd.grad((generator**2).sum() - 2 * nuclear, own)))

        yield Contestant("PyTorch batched, svdvals, autograd", autograd, threads=some)
