"""The start in other coordinates: the same generator and imbalances, and what is known of it."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from starts import KEY, imbalances, product, shapes, start, target_for

from bwdln import simulate
from bwdln.config import from_mapping
from bwdln.errors import InvalidOption
from bwdln.initializations import STARTS, balanced_by_construction
from bwdln.initializations.rotated import ROTATIONS, rotations
from bwdln.registry import Choice
from experiments import command_line

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
NORMAL = Choice("normal", (("scale", 1.0),))
UNEVEN = (4, 3, 5, 5, 2, 2, 3)


@pytest.mark.parametrize("widths", [(4, 3, 2), UNEVEN])
@given(seed=st.integers(0, 2**31))
@settings(max_examples=10)
def test_generator_and_imbalances_stay(widths: tuple[int, ...], seed: int) -> None:
    key = jax.random.key(seed)
    plain, turned = start("normal", widths, key, scale=1.0), start("rotated", widths, key, start=NORMAL)
    assert [layer.shape for layer in turned] == shapes(widths)
    size = float(np.prod([np.linalg.norm(layer) for layer in plain]))
    np.testing.assert_allclose(product(turned), product(plain), rtol=0, atol=1e-14 * size)
    np.testing.assert_allclose(imbalances(turned), imbalances(plain), rtol=1e-12, atol=1e-13)
    for one, other in zip(plain, turned, strict=True):
        values = [np.linalg.svd(layer, compute_uv=False) for layer in (one, other)]
        np.testing.assert_allclose(values[1], values[0], atol=1e-14 * np.linalg.norm(one))


@pytest.mark.parametrize("widths", [(4, 3), (4, 3, 2), UNEVEN, (3, *[4] * 20, 2)])
def test_layers_are_turned_on_both_sides(widths: tuple[int, ...]) -> None:
    plain, turned = start("normal", widths, scale=1.0), start("rotated", widths, start=NORMAL)
    drawn = [np.asarray(each) for each in rotations(jax.random.fold_in(KEY, ROTATIONS), widths)]
    assert [each.shape for each in drawn] == [(width, width) for width in widths[1:-1]]
    for each in drawn:
        np.testing.assert_allclose(each @ each.T, np.eye(len(each)), atol=1e-14)
    between = [np.eye(widths[0]), *drawn, np.eye(widths[-1])]
    for found, layer, (below, above) in zip(turned, plain, pairwise(between), strict=True):
        np.testing.assert_allclose(found, above @ layer @ below.T, atol=1e-14)
    assert all(not np.allclose(*pair) for pair in pairwise(drawn) if pair[0].shape == pair[1].shape)


def test_rotations_have_no_preferred_direction() -> None:
    keys = jax.random.split(KEY, 2000)
    (batch,) = jax.jit(lambda keys: jax.lax.map(lambda key: rotations(key, (1, 3, 1)), keys))(keys)
    np.testing.assert_allclose(np.mean(batch, axis=0), 0, atol=6 / (3 * 2000) ** 0.5)
    assert {1, -1} == set(np.sign(np.linalg.det(batch)))


def test_rotations_are_no_draws_of_the_other_start() -> None:
    """`fold_in` and `split` give the same keys for small numbers: a start splits one for each layer."""
    own = jax.random.key_data(jax.random.fold_in(KEY, ROTATIONS))
    layers = jax.random.key_data(jax.random.split(KEY, 10_000))
    assert not (np.asarray(layers) == np.asarray(own)).all(axis=1).any()


def test_the_program_does_not_grow_with_depth() -> None:
    def operations(depth: int) -> tuple[int, int]:
        begin = partial(STARTS["rotated"], widths=(4,) * (depth + 1), target=target_for((4, 4)))
        jaxpr = str(jax.make_jaxpr(begin)(KEY))
        return jaxpr.count("dot_general"), jaxpr.count("qr[")

    assert operations(100) == operations(40)
    assert min(operations(40)) > 0


# --- what is known before it is drawn -------------------------------------------------------------


def nested(*options: tuple[str, Any], name: str = "normal") -> Choice:
    return Choice("rotated", (("start", Choice(name, options)),))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice("rotated"), False),
        (nested(), False),
        (nested(("balanced", True)), True),
        (nested(name="aligned"), True),
        (nested(("path", "start.npy"), name="file"), None),
        (nested(("start", Choice("aligned")), name="rotated"), True),
    ],
)
def test_balanced_by_construction_as_the_other_start(choice: Choice, expected: bool | None) -> None:
    assert balanced_by_construction(choice) is expected


def test_an_end_to_end_flow_starts_with_the_same_generator() -> None:
    def begin(choice: Any) -> np.ndarray:
        options = {"target": {"name": "zipf", "dimension": 4}, "network": {"depth": 3, "bottleneck": 2}}
        motion = {"name": "end_to_end_flow", "end_time": 1.0}
        config = from_mapping(
            options | {"initialization": choice, "loss": "bures_wasserstein", "dynamics": motion, "seeds": 2}
        )
        return np.asarray(simulate.starts([simulate.prepare(config)]).end_to_end)

    expected = begin({"name": "small", "balanced": True})
    found = begin({"name": "rotated", "start": {"name": "small", "balanced": True}})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)
    with pytest.raises(InvalidOption, match=r"initialization\.balanced: got False; takes true with end_to"):
        begin("rotated")


def test_the_other_start_is_chosen_in_the_configuration() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        own = compose("config", ["initialization=rotated", "initialization.start.scale=0.2"])
        other = compose("config", ["initialization=rotated", "initialization@initialization.start=identity"])
    chosen = [command_line.training(command_line.plain(each)).config.initialization for each in (own, other)]
    assert chosen == [
        nested(("balanced", False), ("scale", 0.2), name="small"),
        nested(("balanced", False), ("scale", 1.0), name="identity"),
    ]


BAD = [
    ({"scale": 0.1}, "initialization.scale: got 0.1; takes one of start"),
    ({"start": 3}, "initialization.start: got 3; takes a name with options"),
    ({"start": Choice("nromal")}, "initialization.start: got nromal; takes one of aligned, "),
    (
        {"start": Choice("normal", (("sdt", 1.0),))},
        "initialization.start.sdt: got 1.0; takes one of balanced",
    ),
    ({"start": Choice("normal", (("scale", -1.0),))}, "initialization.start.scale: got -1.0; takes a finite"),
    ({"start": Choice("file")}, "initialization.start.path: got nothing; takes a text"),
    ({"start": nested(("scale", 0.0))}, "initialization.start.start.scale: got 0.0; takes a finite number"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_options_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    choice = Choice("rotated", tuple(options.items()))
    with pytest.raises(InvalidOption, match=f"^{re.escape(message)}") as error:
        STARTS.build(choice, KEY, (4, 3, 4), target_for((4, 3, 4)))
    assert "\n" not in str(error.value)
