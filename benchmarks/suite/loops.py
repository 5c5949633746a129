"""Gradient descent of deep linear networks as a plain loop of NumPy or PyTorch.

A loop takes its layers (one lane, or for PyTorch also a batch of lanes along the first axis) in the
eigenbasis of the target, its eigenvalues and the step size. `step()` does one step; `layers` is where it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


class NumPyLoop:
    """The closed-form gradient by singular vectors of R W; at a bottleneck of its k × k factor."""

    def __init__(
        self, layers: Sequence[np.ndarray], eigenvalues: np.ndarray, step_size: float, factored: bool = False
    ) -> None:
        self.layers = [np.array(layer) for layer in layers]
        self._root, self._step_size, self._factored = np.sqrt(eigenvalues)[:, None], step_size, factored

    def step(self) -> None:
        """One step."""
        gradients = self._factored_gradients() if self._factored else self._gradients()
        for layer, gradient in zip(self.layers, gradients, strict=True):
            layer -= self._step_size * gradient

    def _gradients(self) -> list[np.ndarray]:
        prefixes = _prefixes(self.layers)
        left, _, right = np.linalg.svd(self._root * prefixes[-1], full_matrices=False)
        return _back(self.layers, prefixes, 2 * (prefixes[-1] - self._root * (left @ right)))

    def _factored_gradients(self) -> list[np.ndarray]:
        """W = A B is never formed: R A = Q₁ T₁, Bᵀ = Q₂ T₂, and the polar factor is Q₁ polar(T₁ T₂ᵀ) Q₂ᵀ."""
        sizes = [self.layers[0].shape[1], *(len(layer) for layer in self.layers)]
        cut = int(np.argmin(sizes))
        lower, upper = self.layers[:cut], self.layers[cut:]
        below, above = _prefixes(lower), _prefixes(upper)
        if not lower or not upper:  # the bottleneck is at an end
            return self._gradients()
        first, second = above[-1], below[-1]
        left_basis, left = np.linalg.qr(self._root * first)
        right_basis, right = np.linalg.qr(second.T)
        outer, _, inner = np.linalg.svd(left @ right.T)
        polar = outer @ inner
        up = 2 * (first @ (second @ second.T) - self._root * (left_basis @ (polar @ right)))
        down = 2 * ((first.T @ first) @ second - (left.T @ polar) @ right_basis.T)
        return [*_back(lower, below, down), *_back(upper, above, up)]


def _prefixes(layers: Sequence[Any]) -> list[Any]:
    """The products W_j ⋯ W_1 of the first layers."""
    products = list(layers[:1])
    for layer in layers[1:]:
        products.append(layer @ products[-1])
    return products


def _back(layers: Sequence[Any], prefixes: Sequence[Any], cotangent: Any) -> list[Any]:
    """The gradient in each layer from that in the product."""
    gradients = []
    for index in reversed(range(len(layers))):
        gradients.append(cotangent @ prefixes[index - 1].mT if index else cotangent)
        cotangent = layers[index].mT @ cotangent if index else cotangent
    return gradients[::-1]


class TorchAutograd:
    """`loss.backward()` and `torch.optim.SGD`, through singular values, or eigenvalues of AᵀA."""

    def __init__(self, layers: Sequence[Any], eigenvalues: Any, step_size: float, svd: bool) -> None:
        import torch

        self.layers = [torch.nn.Parameter(torch.tensor(layer)) for layer in layers]
        self._root = torch.tensor(np.sqrt(eigenvalues)[:, None])
        self._trace, self._svd = float(np.sum(eigenvalues)), svd
        self._optimizer = torch.optim.SGD(self.layers, lr=step_size)

    def step(self) -> None:
        """One step."""
        import torch

        generator = functools.reduce(lambda product, layer: layer @ product, self.layers)
        overlap = self._root * generator
        if self._svd:
            nuclear = torch.linalg.svdvals(overlap).sum()
        else:
            nuclear = torch.linalg.eigvalsh(_smaller_gram(overlap)).sqrt().sum()
        self._optimizer.zero_grad()
        ((generator**2).sum() + self._trace - 2 * nuclear).backward()
        self._optimizer.step()


class TorchClosed:
    """The closed-form gradient; lanes, if any, by batched products and decompositions."""

    def __init__(self, layers: Sequence[Any], eigenvalues: Any, step_size: float, svd: bool) -> None:
        import torch

        self.layers = [torch.tensor(layer) for layer in layers]
        self._root = torch.tensor(np.sqrt(eigenvalues)[:, None])
        self._step_size, self._svd = step_size, svd

    def step(self) -> None:
        """One step."""
        prefixes = _prefixes(self.layers)
        factor = polar(self._root * prefixes[-1], self._svd)
        gradients = _back(self.layers, prefixes, 2 * (prefixes[-1] - self._root * factor))
        for layer, gradient in zip(self.layers, gradients, strict=True):
            layer.sub_(gradient, alpha=self._step_size)


def _smaller_gram(matrix: Any) -> Any:
    return matrix @ matrix.mT if matrix.shape[-2] < matrix.shape[-1] else matrix.mT @ matrix


def polar(matrix: Any, svd: bool) -> Any:
    """The polar factor of PyTorch matrices of full rank, by singular vectors or eigenvectors of AᵀA."""
    import torch

    if svd:
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        return left @ right
    if matrix.shape[-2] < matrix.shape[-1]:
        return polar(matrix.mT, svd).mT
    squares, vectors = torch.linalg.eigh(matrix.mT @ matrix)
    return ((matrix @ vectors) / squares.sqrt()[..., None, :]) @ vectors.mT


def end_to_end(layers: Sequence[Any]) -> np.ndarray:
    """The product of the layers, as an array."""
    arrays = [np.asarray(getattr(layer, "detach", lambda each=layer: each)()) for layer in layers]
    return functools.reduce(lambda product, layer: layer @ product, arrays)


Loop = NumPyLoop | TorchAutograd | TorchClosed
Build = Callable[[Sequence[np.ndarray], np.ndarray, float], Loop]
