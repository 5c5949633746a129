"""A start from a user's own arrays, and the files that are refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from starts import KEY, assert_balanced, product, shapes, target_for, target_of

from bwdln.errors import InvalidOption
from bwdln.initializations import STARTS
from bwdln.registry import Choice


def from_file(path: Path, widths: tuple[int, ...]) -> list[np.ndarray]:
    choice = Choice("file", (("path", str(path)),))
    return [np.asarray(layer) for layer in STARTS.build(choice, KEY, widths, target_for(widths))]


def random_layers(widths: tuple[int, ...]) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.normal(size=shape) for shape in shapes(widths)]


@pytest.mark.parametrize("widths", [(4, 3), (4, 2, 3), (2, 3, 3, 3)])
def test_layers_from_a_file(tmp_path: Path, widths: tuple[int, ...]) -> None:
    layers = random_layers(widths)
    named = {f"W_{index}": layer for index, layer in enumerate(layers, 1)}
    np.savez(tmp_path / "named.npz", **dict(reversed(named.items())))
    np.savez_compressed(tmp_path / "ordered.npz", *layers)
    for name in ("named.npz", "ordered.npz"):
        found = from_file(tmp_path / name, widths)
        assert all(np.array_equal(a, b) for a, b in zip(found, layers, strict=True))


def test_eleven_layers_in_order(tmp_path: Path) -> None:
    layers = random_layers((3,) * 12)
    np.savez(tmp_path / "start.npz", *layers)
    found = from_file(tmp_path / "start.npz", (3,) * 12)
    assert all(np.array_equal(a, b) for a, b in zip(found, layers, strict=True))


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv"])
@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_an_end_to_end_matrix_from_a_file_is_balanced(tmp_path: Path, suffix: str, dtype: Any) -> None:
    widths, path = (4, 2, 5, 3), tmp_path / f"start.{suffix}"
    matrix = np.outer([1, -2, 3], [2, 0, 1, 1]).astype(dtype)
    if suffix == "csv":
        np.savetxt(path, matrix, delimiter=",")
    else:
        {"npy": np.save, "npz": np.savez}[suffix](path, matrix)
    layers = from_file(path, widths)
    np.testing.assert_allclose(product(layers), matrix, atol=1e-13)
    assert_balanced(layers, float(np.linalg.norm(matrix, 2)))
    assert layers[0].dtype == np.float64


def test_a_file_is_the_same_for_every_key(tmp_path: Path) -> None:
    np.save(tmp_path / "start.npy", np.eye(3))
    begin = partial(STARTS["file"], widths=(3, 3, 3), target=target_of([1.0, 1.0, 1.0]))
    batch = jax.vmap(lambda key: begin(key, path=str(tmp_path / "start.npy")))(jax.random.split(KEY, 4))
    assert [layer.shape for layer in batch] == [(4, 3, 3), (4, 3, 3)]


def test_bad_files_are_refused_in_one_line(tmp_path: Path) -> None:
    widths = (4, 2, 3)
    good = random_layers(widths)
    np.save(tmp_path / "whole.npy", np.ones((3, 4)))
    (tmp_path / "truncated.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:-8])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "whole.npz", *good)
    (tmp_path / "truncated.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-30])
    np.savez(tmp_path / "none.npz")
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", good[0], np.array([[{}, None]]))
    np.save(tmp_path / "complex.npy", np.ones((3, 4), complex))
    np.save(tmp_path / "transposed.npy", np.ones((4, 3)))
    np.save(tmp_path / "vector.npy", np.ones(4))
    np.save(tmp_path / "full.npy", np.random.default_rng(0).normal(size=(3, 4)))
    np.save(tmp_path / "nan.npy", np.array([[1, np.nan, 1, 1]] * 3))
    np.save(tmp_path / "huge.npy", np.full((3, 4), 1e200))
    np.savez(tmp_path / "three.npz", *good, good[0])
    np.savez(tmp_path / "partly.npz", W_1=good[0], second=good[1])
    np.savez(tmp_path / "first.npz", W_1=good[0])
    np.savez(tmp_path / "swapped.npz", W_1=good[1], W_2=good[0])
    np.savez(tmp_path / "infinite.npz", W_1=good[0], W_2=np.full((3, 2), np.inf))
    (tmp_path / "weights.pkl").write_bytes(b"cos\nsystem\n")
    takes_layers = "takes W_1 to W_2, or 2 layers in order, or one end-to-end matrix"
    expected = {
        "missing.npz": "which is not a file; takes a file that ends in .npy, .npz or .csv and exists",
        "weights.pkl": "takes a file that ends in .npy, .npz or .csv",
        "truncated.npy": "a file that cannot be read",
        "empty.npy": "a file that cannot be read",
        "text.npz": "a file that cannot be read",
        "truncated.npz": "a file that cannot be read",
        "none.npz": "no arrays; takes an .npz file with an array",
        "objects.npy": "an array of Python objects, which is never unpickled",
        "objects.npz": "an array of Python objects, which is never unpickled",
        "complex.npy": "an array of complex128; takes an array of real numbers",
        "transposed.npy": "shape (4, 3); takes shape (3, 4), by the widths [4, 2, 3]",
        "vector.npy": "shape (4,); takes shape (3, 4), by the widths [4, 2, 3]",
        "full.npy": "a matrix of rank 3; takes rank at most 2, the bottleneck of the widths [4, 2, 3]",
        "nan.npy": "3 of 12 entries not finite; takes finite numbers only",
        "huge.npy": "entries up to 1e+200; takes entries up to 1e+75 in size",
        "three.npz": f"3 arrays (arr_0, arr_1, arr_2); {takes_layers}",
        "partly.npz": f"2 arrays (W_1, second); {takes_layers}",
        "first.npz": f"1 arrays (W_1); {takes_layers}",
        "swapped.npz": "swapped.npz, W_1: shape (3, 2); takes shape (2, 4), by the widths [4, 2, 3]",
        "infinite.npz": "infinite.npz, W_2: 6 of 6 entries not finite; takes finite numbers only",
    }
    for name, message in expected.items():
        with pytest.raises(InvalidOption) as error:
            from_file(tmp_path / name, widths)
        text = str(error.value)
        assert text.startswith(f"initialization.path: got {tmp_path / name}"), text
        assert message in text
        assert "\n" not in text


def test_a_file_is_refused_inside_a_compiled_program_too(tmp_path: Path) -> None:
    np.save(tmp_path / "full.npy", np.random.default_rng(0).normal(size=(3, 4)))
    begin = partial(STARTS["file"], widths=(4, 2, 3), target=target_of([1.0, 1.0, 1.0]))
    with pytest.raises(InvalidOption, match="rank 3"):
        jax.jit(jax.vmap(lambda key: begin(key, path=str(tmp_path / "full.npy"))))(jax.random.split(KEY, 2))
