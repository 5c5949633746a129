"""Results made without the package's own numerics: a short NumPy loop of gradient descent.

Only what is stored matters here; that the numbers are right is the business of other tests.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise

import numpy as np
import xarray

from bwdln.config import Config, Network
from bwdln.registry import Choice
from bwdln.results import SCHEMA, Result, provenance


def digits_samples() -> np.ndarray:
    """The 1797 digits of scikit-learn, (1797, 64)."""
    from sklearn.datasets import load_digits

    return load_digits().data


@cache
def digits(seeds: int = 3, steps: int = 300, rank: int = 10, tau: float = 0.0, records: int = 30) -> Result:
    """Digits, depth 3, as the main job has them; singular: the covariance has rank 61."""
    values = digits_samples()
    centered = values - values.mean(axis=0)
    result = simulate(centered.T @ centered / len(values), (rank, 64, 64, 64), seeds, steps, tau, records)
    dataset = result.dataset.assign(
        sample_mean=("feature", values.mean(axis=0)),
        real_samples=(("example", "feature"), values[:: len(values) // 24][:24]),
    )
    dataset.attrs["image_shape"] = [8, 8]
    return Result(dataset)


@cache
def gaussian(
    seeds: int = 3,
    steps: int = 200,
    rank: int = 3,
    dimension: int = 6,
    depth: int = 2,
    records: int = 20,
    tau: float = 0.0,
) -> Result:
    """A spectrum 1, 1/2, 1/3, … in a random basis."""
    basis = np.linalg.qr(np.random.default_rng(5).standard_normal((dimension, dimension)))[0]
    spectrum = 1 / np.arange(1, dimension + 1)
    widths = (rank, *[dimension] * depth)
    return simulate((basis * spectrum) @ basis.T, widths, seeds, steps, tau, records)


def simulate(
    covariance: np.ndarray, widths: tuple[int, ...], seeds: int, steps: int, tau: float, records: int
) -> Result:
    """Gradient descent on the Bures-Wasserstein loss from Xavier-like starts, half the stable step."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    eigenvalues, vectors = eigenvalues[::-1].copy(), vectors[:, ::-1].copy()
    eigenvalues[eigenvalues < 1e-12 * eigenvalues[0]] = 0
    depth, rank = len(widths) - 1, min(widths)
    step_size = 0.4 / (depth * eigenvalues[0] ** ((depth - 1) / depth))
    when = np.unique(np.linspace(0, steps, records + 1).round().astype(int))
    lanes = [_lane(seed, eigenvalues, widths, tau, step_size, when) for seed in range(seeds)]
    records_of = {name: np.stack([lane[0][name] for lane in lanes]) for name in lanes[0][0]}
    dims = {"imbalance": ("interface",), "singular_values": ("mode",), "alignment": ("mode",)}
    dims["eigenvalue_error"] = ("mode",)
    data = {
        name: (("seed", "record", *dims.get(name, ())), values)
        for name, values in records_of.items()
        if values.size
    }
    weights = {
        f"weights_{j + 1}": (("seed", f"width_{j + 1}", f"width_{j}"), np.stack([x[1][j] for x in lanes]))
        for j in range(depth)
    }
    weights[f"weights_{depth}"] = (
        weights[f"weights_{depth}"][0],
        np.einsum("ij,sjk->sik", vectors, weights[f"weights_{depth}"][1]),
    )
    learned = np.maximum(eigenvalues - tau, 0)[:rank]
    trace = eigenvalues.sum()
    cosines = np.stack([np.abs(lane[3]).T for lane in lanes])
    dataset = xarray.Dataset(
        data
        | weights
        | {
            "outcome": ("seed", np.array(["reached_end"] * seeds)),
            "minimum": float(_minimum(eigenvalues, rank, tau)),
            "target_trace": float(trace),
            "optimal_singular_values": ("mode", np.sqrt(learned)),
            "target_eigenvalues": ("eigenvalue", eigenvalues),
            "target_eigenvectors": (("feature", "eigenvalue"), vectors),
            "final_cosines": (("seed", "mode", "eigenvalue"), cosines),
            "final_end_to_end": (
                ("seed", "feature", "latent"),
                np.stack([vectors @ _product(lane[1]) for lane in lanes]),
            ),
            "initial_end_to_end": (
                ("seed", "feature", "latent"),
                np.stack([vectors @ lane[2] for lane in lanes]),
            ),
        },
        coords={"seed": np.arange(seeds), "record": np.arange(len(when)), "mode": np.arange(rank) + 1},
        attrs=_attributes(widths, seeds, steps, step_size, tau, len(when) - 1),
    )
    return Result(dataset.assign_coords(interface=np.arange(1, depth)) if depth > 1 else dataset)


def _attributes(
    widths: tuple[int, ...], seeds: int, steps: int, step_size: float, tau: float, records: int
) -> dict:
    config = Config(
        target=Choice("zipf", (("dimension", widths[-1]),)),
        network=Network(widths=widths),
        initialization=Choice("xavier_normal"),
        loss=Choice("bures_wasserstein", (("tau", tau),)),
        dynamics=Choice("gradient_descent", (("step_size", step_size), ("steps", steps))),
        seeds=seeds,
    )
    return {
        "configuration": json.dumps(config.mapping()),
        "widths": list(widths),
        "precision": "float64",
        "seed": 0,
        "seeds": seeds,
        "wall_seconds": 1.5,
        "interrupted": 0,
        "schema": SCHEMA,
        **provenance(),
    }


def _lane(seed, eigenvalues, widths, tau, step_size, when):
    """Records, final layers, initial generator and final left singular vectors, in the eigenbasis."""
    random, depth = np.random.default_rng(seed), len(widths) - 1
    scale = eigenvalues.mean() ** (0.5 / depth)
    layers = [
        scale * random.standard_normal((up, down)) * np.sqrt(2 / (up + down)) for down, up in pairwise(widths)
    ]
    initial, rows = _product(layers), []
    for step in range(when[-1] + 1):
        generator = _product(layers)
        loss, gradient = loss_and_gradient(generator, eigenvalues, tau)
        gradients = _pull_back(layers, gradient)
        if step in when:
            rows.append(_row(step, step_size, layers, generator, loss, gradients, eigenvalues, tau))
        if step < when[-1]:
            layers = [w - step_size * g for w, g in zip(layers, gradients, strict=True)]
    records = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    left = np.linalg.svd(generator)[0][:, : min(widths)]
    return records, layers, initial, left


def _product(layers):
    result = layers[0]
    for layer in layers[1:]:
        result = layer @ result
    return result


def loss_and_gradient(generator, eigenvalues, tau):
    root = np.sqrt(eigenvalues)[:, None]
    wide = root * generator
    if tau > 0:
        wide = np.concatenate([wide, np.sqrt(tau) * np.diag(root[:, 0])], axis=1)
    left, singular, right = np.linalg.svd(wide, full_matrices=False)
    left = left * (singular > 1e-12 * singular[0])
    factor = (left @ right)[:, : generator.shape[1]]
    traces = (generator**2).sum() + len(eigenvalues) * tau + eigenvalues.sum()
    return traces - 2 * singular.sum(), 2 * (generator - root * factor)


def _pull_back(layers, gradient):
    gradients = []
    for j in range(len(layers)):
        above = _product(layers[j + 1 :]).T @ gradient if j + 1 < len(layers) else gradient
        gradients.append(above @ _product(layers[:j]).T if j > 0 else above)
    return gradients


def _minimum(eigenvalues, rank, tau):
    learned = (np.arange(len(eigenvalues)) < rank) & (eigenvalues > tau)
    return ((np.sqrt(eigenvalues) - np.sqrt(tau)) ** 2)[~learned].sum()


def _row(step, step_size, layers, generator, loss, gradients, eigenvalues, tau):
    left, singular, _ = np.linalg.svd(generator, full_matrices=False)
    rank = min(min(each.shape) for each in layers)
    gap = max(loss - _minimum(eigenvalues, rank, tau), 0.0)
    share = singular[:rank] / singular[:rank].sum()
    generated = generator @ generator.T
    optimal = np.diag(np.where(np.arange(len(eigenvalues)) < rank, np.maximum(eigenvalues - tau, 0), 0))
    excess = generated + tau * np.eye(len(eigenvalues)) - np.diag(eigenvalues)
    return {
        "time": step * step_size,
        "step": step,
        "loss": loss,
        "gap": gap,
        "relative_gap": gap / eigenvalues.sum(),
        "gradient_norm": np.sqrt(sum((g**2).sum() for g in gradients)),
        "rank": int((singular > 1e-12 * singular[0]).sum()),
        "effective_rank": np.exp(-(share * np.log(share)).sum()),
        "covariance_distance": np.linalg.norm(excess),
        "optimum_distance_bures_wasserstein": np.sqrt(gap),
        "optimum_distance_frobenius": np.linalg.norm(generated - optimal),
        "imbalance": np.array([np.linalg.norm(b.T @ b - a @ a.T) for a, b in pairwise(layers)]),
        "singular_values": singular[:rank],
        "alignment": np.abs(np.diag(left)[:rank]),
        "eigenvalue_error": singular[:rank] ** 2 + tau - eigenvalues[:rank],
    }


def with_diverged(result: Result, lanes: tuple[int, ...], value: float = np.nan) -> Result:
    """The same result, had these lanes diverged in their last records."""
    dataset = result.dataset.copy(deep=True)
    outcomes = dataset["outcome"].values.astype("U16")
    outcomes[list(lanes)] = "diverged"
    dataset["outcome"] = ("seed", outcomes)
    for name in map(str, dataset):
        values = dataset[name].values
        if name in ("loss", "gap", "relative_gap"):
            values[list(lanes), -3:] = np.array([1e3, 1e12, value])
        elif name.startswith(("weights", "final_")):
            values[list(lanes)] = value
        elif name in ("singular_values", "alignment"):
            values[list(lanes), -1] = value
    return Result(dataset)
