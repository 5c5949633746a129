"""The landscape: its statistics against loops of independent formulas, its files, figures and command."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from readable import check_readable

from bwdln import losses
from bwdln.config import MOST_POINTS, Landscape, from_mapping
from bwdln.errors import InvalidOption
from bwdln.figures import landscape as drawing
from bwdln.registry import Choice
from bwdln.studies import landscape as study
from bwdln.targets import Target
from bwdln.theory import critical_points, hessians, landscape, measured, paths
from experiments import command_line
from experiments import landscape as command_module

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
BW, FROBENIUS = "bures_wasserstein", "frobenius"
#: Three targets; above 0.3 they have 4, 3 and 2 eigenvalues.
SPECTRA = np.array([[3.0, 2.0, 1.2, 0.5], [2.5, 1.0, 0.4, 0.1], [4.0, 0.9, 0.2, 0.05]])
CASES = [(BW, 0.0, 3.0), (BW, 0.3, 2.5), (BW, 0.3, 1.0), (FROBENIUS, 0.0, 1.0), (FROBENIUS, 0.0, 4.0)]
OPTIONS = {
    "target": {"name": "random", "dimension": 4},
    "loss": {"name": BW, "tau": 0.05},
    "rank": 2,
    "depth": 2,
    "targets": 3,
}


def configuration(**changes):
    config: Landscape = from_mapping(OPTIONS | changes, Landscape)
    return config


# --- oracles --------------------------------------------------------------------------------------


def oracle_spectrum(values, index_set, rank, depth, tau, loss):
    """The table of docs/theory.md §4 by loops, without its zeros."""
    found = []
    squares = {j: values[j] - (0 if loss == FROBENIUS else tau) for j in index_set}
    for a, b in itertools.combinations_with_replacement(sorted(index_set), 2):
        x, y = squares[a], squares[b]
        kernel = depth * x ** (1 - 1 / depth)
        if a != b:
            kernel = (x - y) / (x ** (1 / depth) - y ** (1 / depth))
        total = values[a] + values[b]
        found.append(kernel * (4 * total if loss == FROBENIUS else 2 * (total - 2 * tau) / total))
    outside = [a for a in range(len(values)) if a not in index_set]
    for a, b in itertools.product(outside, index_set):
        kernel, difference = squares[b] ** (1 - 1 / depth), values[b] - values[a]
        scale = 4 if loss == FROBENIUS else 2 / (values[b] + np.sqrt(values[a] * tau))
        found.append(kernel * difference * scale)
    if depth == 1:
        for a in outside:
            raising = (
                -4 * values[a] if loss == FROBENIUS else 2 * (1 - np.sqrt(values[a] / tau)) if tau else 0
            )
            found += [raising] * (rank - len(index_set))
    return np.array(found)


def oracle_value(values, index_set, tau, loss):
    outside = np.delete(values, list(index_set))
    return np.sum(outside**2 if loss == FROBENIUS else (np.sqrt(outside) - np.sqrt(tau)) ** 2)


def is_critical(values, index_set, rank, tau, loss):
    modes = int(np.sum(values > tau))
    largest = min(rank, modes)
    fits_rank = len(index_set) == largest if loss == BW and tau == 0 else len(index_set) <= largest
    return fits_rank and all(each < modes for each in index_set)


def all_sets(count, rank):
    sizes = range(rank, -1, -1)
    return [each for size in sizes for each in itertools.combinations(range(count), size)]


# --- statistics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [2**20, 30])
@pytest.mark.parametrize(("loss", "tau", "depth"), CASES)
def test_survey_is_a_loop_over_targets_and_points(monkeypatch, loss, tau, depth, block):
    monkeypatch.setattr(landscape, "BLOCK", block)
    sets, told = all_sets(4, 2), []
    found = landscape.survey(
        SPECTRA, sets, 2, depth=depth, tau=tau, loss=loss, on_block=lambda *at: told.append(at)
    )
    critical = 0
    for lane, values in enumerate(SPECTRA):
        for place, index_set in enumerate(sets):
            seen = [field[lane, place] for field in found]
            if not is_critical(values, index_set, 2, tau, loss):
                assert np.all(np.isnan(seen))
                continue
            critical += 1
            spectrum = oracle_spectrum(values, index_set, 2, depth, tau, loss)
            negative = np.sum(spectrum < 0)
            np.testing.assert_allclose(
                seen[:2], [oracle_value(values, index_set, tau, loss), negative], 1e-12
            )
            if not len(spectrum):
                assert np.all(np.isnan(seen[2:]))
                continue
            largest, smallest, absolute = spectrum.max(), spectrum.min(), np.abs(spectrum).min()
            expected = [largest, smallest, absolute, largest / smallest, largest / absolute]
            np.testing.assert_allclose(seen[2:], expected, rtol=1e-11)
    assert told[-1] == (critical, critical)
    assert (len(told) > 3) == (block == 30)


def test_spread_leaves_out_what_is_missing():
    values = np.array([[1.0, np.nan, np.nan], [2.0, 5.0, np.nan], [6.0, np.nan, np.inf]])
    mean, deviation, count = landscape.over_targets(values)
    np.testing.assert_array_equal(mean, [3.0, 5.0, np.nan])
    np.testing.assert_allclose(deviation, [np.std([1, 2, 6], ddof=1), np.nan, np.nan])
    np.testing.assert_array_equal(count, [3, 1, 0])


@pytest.mark.parametrize(("loss", "tau"), [(BW, 0.0), (BW, 0.3), (FROBENIUS, 0.0)])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_all_points_are_those_of_any_target(loss, tau, rank):
    found = landscape.points(SPECTRA, rank, tau=tau, loss=loss, most=None, seed=0)
    every = {
        each
        for each in all_sets(4, rank)
        if any(is_critical(values, each, rank, tau, loss) for values in SPECTRA)
    }
    assert set(found.sets) == every and len(found.sets) == found.total == len(every)
    assert found.sets[0] == tuple(range(rank)) and not found.spread


def test_points_of_targets_with_fewer_modes_than_the_rank_are_found():
    spectra = np.array([[3.0, 2.0, 1.0, 0.5], [3.0, 2.0, 0.0, 0.0]])
    found = landscape.points(spectra, 3, tau=0.0, loss=BW, most=None, seed=0)
    assert set(found.sets) == {*itertools.combinations(range(4), 3), (0, 1)}


def test_a_sample_is_spread_over_saddle_indices():
    spectra = np.stack([np.linspace(2, 1, 60), np.linspace(3, 0.2, 60)])
    found = landscape.points(spectra, 25, tau=0.21, loss=BW, most=80, seed=3)
    assert found.spread and len(set(found.sets)) == len(found.sets) == 80
    assert found.sets[0] == tuple(range(25))
    assert found.total == critical_points.count(spectra[0], 25, tau=0.21)
    assert found == landscape.points(spectra, 25, tau=0.21, loss=BW, most=80, seed=3)
    assert found != landscape.points(spectra, 25, tau=0.21, loss=BW, most=80, seed=4)
    for each in found.sets:
        assert len(each) == len(set(each)) == 25 and list(each) == sorted(each)
        assert max(each) < 59  # the second target cannot learn its last mode
    indices = [int(critical_points.index(spectra[0], each, tau=0.21)) for each in found.sets]
    most = 25 * 34
    assert max(np.diff(sorted(indices))) < most / 6 and max(indices) > 0.7 * most


@pytest.mark.parametrize(
    ("available", "size", "number"), [(6, 3, 12), (6, 3, 10), (6, 3, 5), (5, 1, 4), (7, 6, 3)]
)
def test_exchanged_sets_are_different(available, size, number):
    found = landscape.exchanged(0, available, size, number)
    assert len(set(found)) == number and found[0] == tuple(range(size))
    assert set(found) <= set(itertools.combinations(range(available), size))


def test_all_of_too_many_points_are_refused():
    spectrum = np.linspace(2, 1, 40)[None]
    with pytest.raises(InvalidOption, match=r"points: got null; .*about 1e11 critical points") as caught:
        landscape.points(spectrum, 20, tau=0.0, loss=BW, most=None, seed=0)
    assert "\n" not in str(caught.value)


def test_labels_and_numbers_are_short():
    assert landscape.label((0, 1, 3)) == "124" and landscape.label(()) == "none"
    assert landscape.label((0, 1, 2, 4, 10, 11)) == "1–3,5,11–12"
    assert landscape.about(184_756) == "184,756" and landscape.about(10**400) == "about 1e400"


# --- paths ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("loss", "tau", "depth"), CASES)
def test_paths_are_those_of_each_target_above_its_minimum(loss, tau, depth):
    places, starts = np.linspace(0, 1, 7), [(0, 2), (1, 2), (0, 1)]
    found = landscape.to_minimizer(SPECTRA, starts, places, depth=depth, tau=tau, loss=loss)
    usable = [each for each in SPECTRA if each[2] > tau]
    assert found.targets == len(usable) == (2 if tau else 3)
    for row, start in enumerate(starts):
        for spread, layers in ((found.function_space, 1.0), (found.parameter_space, depth)):
            heights = []
            for values in usable:
                along = paths.along(values, start, (0, 1), places, depth=layers, tau=tau, loss=loss)
                low, zero = (oracle_value(values, each, tau, loss) for each in ((0, 1), ()))
                heights.append((np.asarray(along) - low) / (zero - low))
            np.testing.assert_allclose(spread.mean[row], np.mean(heights, axis=0), atol=1e-13)
            np.testing.assert_allclose(spread.deviation[row], np.std(heights, axis=0, ddof=1), atol=1e-13)
    np.testing.assert_allclose(found.function_space.mean[:, -1], 0, atol=1e-14)
    assert not found.rises[:, :, 2].any()  # a path of no length


def test_a_rise_is_seen():
    """From mode 2 to mode 1 of a Frobenius loss: the path loses what it had before it gains."""
    values = np.array([[1.0, 0.99]])
    found = landscape.to_minimizer(values, [(1,)], np.linspace(0, 1, 21), depth=3, tau=0.0, loss=FROBENIUS)
    tops = [each.mean[0].max() > each.mean[0, 0] for each in (found.function_space, found.parameter_space)]
    assert found.rises[:, 0, 0].tolist() == tops and any(tops)


# --- derivatives ----------------------------------------------------------------------------------


def test_curvature_blows_up_and_second_differences_agree():
    found = measured.blow_up(SPECTRA, 2, taus=9)
    assert found.index_set == (0,) and found.modes == (1, 2, 3)
    assert found.deviation < 1e-9
    for law in found.law:
        assert law.exponent == pytest.approx(-0.5, abs=0.01)
    for row, mode in enumerate(found.modes):
        np.testing.assert_allclose(
            found.closed[row], 2 * (1 - np.sqrt(SPECTRA[:, mode, None] / found.tau)), rtol=1e-9, atol=1e-9
        )
    # The loss itself at a moderate τ, by second differences.
    lane, place, step = 0, -1, 1e-4
    tau = float(found.tau[place])
    loss, target = losses.bures_wasserstein(tau), Target(jnp.asarray(SPECTRA[lane]))
    point = np.zeros((4, 2))
    point[0, 0] = np.sqrt(SPECTRA[lane, 0] - tau)
    for row, mode in enumerate(found.modes):
        direction = np.zeros((4, 2))
        direction[mode, 1] = step
        high, middle, low = (float(loss.value(point + sign * direction, target)) for sign in (1, 0, -1))
        assert (high - 2 * middle + low) / step**2 == pytest.approx(
            found.measured[row, lane, place], abs=1e-5
        )


@pytest.mark.parametrize(("rank", "index_set", "modes"), [(1, (), (0, 1, 3)), (4, (0, 1, 2), (3,))])
def test_curvature_blows_up_at_every_rank(rank, index_set, modes):
    found = measured.blow_up(SPECTRA, rank, taus=5)
    assert (found.index_set, found.modes) == (index_set, modes)
    for closed, mode in zip(found.closed, modes, strict=True):
        expected = 2 * (1 - np.sqrt(SPECTRA[:, mode, None] / found.tau))
        np.testing.assert_allclose(closed, expected, rtol=1e-9, atol=1e-9)
    assert found.deviation < 1e-9


@pytest.mark.parametrize(
    ("loss", "tau", "widths"), [(BW, 0.0, (2, 3, 4)), (BW, 0.2, (2, 4)), (FROBENIUS, 0.0, (2, 4))]
)
def test_spectra_agree_with_differentiation_and_a_wrong_one_is_seen(monkeypatch, loss, tau, widths):
    sets = [(0, 1), (1, 3)] if tau == 0 and loss == BW else [(0, 1), (1, 3), (2,), ()]

    def deviation():
        pairs = measured.pairs_of_spectra(SPECTRA[0], sets, widths, tau=tau, loss=loss)
        return max(each.deviation for each in pairs)

    assert deviation() < 1e-12
    right = hessians.spectrum
    monkeypatch.setattr(hessians, "spectrum", lambda *a, **k: 1.01 * right(*a, **k))
    assert deviation() > 1e-3


# --- the study ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def conducted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("landscape")
    return folder, study.conduct(configuration(), folder)


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_everything_is_written_and_said(conducted):
    folder, found = conducted
    tables = ["critical_points", "targets", "paths", "blow_up", "differentiation"]
    drawn = ["curvature", f"paths_{BW}", f"paths_{FROBENIUS}", "blow_up", "differentiation"]
    assert [each.name for each in found.tables] == [f"{name}.csv" for name in tables]
    assert [each.name for each in found.figures] == [
        f"{name}.{kind}" for name in drawn for kind in ("pdf", "png", "data.csv")
    ]
    assert set(folder.iterdir()) == {*found.tables, *found.figures}
    assert {len(row) for row in found.rows} == {len(found.columns)}
    assert found.notes[0] == "all 11 critical points: n = 4, rank 2, depth 2, 3 targets"
    said = "\n".join(found.notes)
    assert f"paths to the minimizer, {BW}: of 15" in said
    assert "theory: tau^-0.5" in said and "measured second derivatives differ" in said
    deviations = [float(each) for each in re.findall(r"closed form by at most (\S+) of", said)]
    assert len(deviations) == 2 and max(deviations) < 1e-12
    assert not found.interrupted and 0 < found.score < 1e6
    assert len(found.claims) == 4 and all(claim.held for claim in found.claims)


def test_closed_forms_and_differentiation_are_side_by_side(conducted):
    folder, _ = conducted
    rows = read(folder / "differentiation.csv")
    assert {row["loss"] for row in rows} == {BW, FROBENIUS}
    assert len({row["target_seed"] for row in rows}) == 3
    names = ("largest", "smallest", "relative_condition", "absolute_condition", "negative", "zeros")
    for row in rows:
        for name in names:
            closed, built = (float(row[f"{name}_{way}"] or "nan") for way in ("closed", "differentiated"))
            assert built == pytest.approx(closed, rel=1e-9, nan_ok=True), (row, name)
        assert float(row["deviation"]) < 1e-12
    # The saddle index is that of the table of points.
    index = {
        (row["loss"], row["point"]): float(row["index_mean"]) for row in read(folder / "critical_points.csv")
    }
    assert all(float(row["negative_closed"]) == index[row["loss"], row["point"]] for row in rows)


def test_wrong_closed_forms_make_claims_that_do_not_hold(conducted, monkeypatch, tmp_path):
    true = hessians.spectrum
    monkeypatch.setattr(hessians, "spectrum", lambda *given, **options: 1.01 * true(*given, **options))
    found = study.conduct(configuration(), tmp_path)
    failed = [claim.statement for claim in found.claims if not claim.held]
    assert failed == ["the Hessian at critical points has the spectrum of the closed form, zeros included"]


def test_the_tables_agree_with_the_closed_forms(conducted):
    folder, found = conducted
    summary, every = read(folder / "critical_points.csv"), read(folder / "targets.csv")
    assert len(summary) == 22 and len(every) == 66
    assert [float(row["value_mean"]) for row in summary[:11]] == sorted(
        float(row["value_mean"]) for row in summary[:11]
    )
    spectra = study.prepare(configuration()).eigenvalues
    for row in summary:
        index_set = tuple(int(each) - 1 for each in row["positions"].split())
        tau = 0.05 if row["loss"] == BW else 0.0
        mine = [each for each in every if (each["loss"], each["point"]) == (row["loss"], row["point"])]
        assert [each["target_seed"] for each in mine] == ["0", "1", "2"] and row["targets"] == "3"
        for values, each in zip(spectra, mine, strict=True):
            assert float(each["value"]) == pytest.approx(oracle_value(values, index_set, tau, row["loss"]))
            spectrum = oracle_spectrum(values, index_set, 2, 2, tau, row["loss"])
            assert float(each["index"]) == np.sum(spectrum < 0)
            if len(spectrum):
                assert float(each["smallest"]) == pytest.approx(spectrum.min())
        for name in ("value", "largest", "absolute_condition"):
            numbers = [float(each[name]) for each in mine if each[name]]
            if numbers:
                assert float(row[f"{name}_mean"]) == pytest.approx(np.mean(numbers))
                assert float(row[f"{name}_deviation"]) == pytest.approx(np.std(numbers, ddof=1))
            else:
                assert index_set == () and row[f"{name}_mean"] == ""
    cells = [cell for path in found.tables for row in read(path) for cell in row.values()]
    assert not {"nan", "inf", "-inf"} & set(cells)


def test_paths_name_points_and_end_at_the_minimizer(conducted):
    folder, _ = conducted
    points = {row["point"]: row["positions"] for row in read(folder / "critical_points.csv")}
    rows = read(folder / "paths.csv")
    assert {row["space"] for row in rows} == {"function", "parameter"}
    assert {points[row["start"]] for row in rows} == {"1 3", "1 4", "2 3", "2 4", "3 4"}
    assert max(abs(float(row["height_mean"])) for row in rows if row["place"] == "1.0") < 1e-12


def test_losses_are_compared_over_the_same_targets(tmp_path):
    """A mode that only one target can learn: its points count for that target under both losses."""
    config = configuration(loss={"name": BW, "tau": 0.5}, depth=2.5, paths=0)
    study.conduct(config, tmp_path)
    problem = study.prepare(config)
    modes = landscape.learnable(problem.eigenvalues, 0.5)
    assert modes.min() < modes.max()
    rows = read(tmp_path / "critical_points.csv")
    for row in rows:
        last = max((int(each) for each in row["positions"].split()), default=0)
        assert int(row["targets"]) == np.sum(modes >= last)
    assert not (tmp_path / "paths.csv").exists()


def test_what_is_ill_posed_is_said():
    def said(**changes):
        return study.said_of_points(study.prepare(configuration(**changes)))

    explicit = {"name": "explicit", "eigenvalues": [2.0, 2.0, 1.0, 0.1]}
    notes = said(target=explicit, loss={"name": BW, "tau": 0.5}, rank=4)
    assert notes[1] == "3 of 4 eigenvalues are above tau = 0.5: the others are never learnt"
    assert notes[2] == "3 of 3 targets have fewer of them than the rank: their minimizer, too"
    assert notes[3].startswith("3 of 3 targets have repeated eigenvalues")
    assert notes[4] == "all targets have the same eigenvalues: every deviation is 0"
    assert len(said()) == 1


def test_repeated_eigenvalues_leave_out_their_zeros(tmp_path):
    explicit = {"name": "explicit", "eigenvalues": [2.0, 1.0, 1.0]}
    found = study.conduct(configuration(target=explicit, targets=1, loss=FROBENIUS, paths=0), tmp_path)
    rows = {row["positions"]: row for row in read(tmp_path / "critical_points.csv")}
    assert rows["1 2"]["value_mean"] == rows["1 3"]["value_mean"]
    assert float(rows["1 2"]["smallest_absolute_mean"]) > 0.1
    assert rows["1 2"]["value_deviation"] == ""  # of one target
    assert {row[0] for row in found.rows} == {"F"} and not (tmp_path / "blow_up.csv").exists()


def test_a_singular_target_with_less_rank_than_asked_for(tmp_path):
    explicit = {"name": "explicit", "eigenvalues": [2.0, 1.0, 0.0, 0.0]}
    found = study.conduct(configuration(target=explicit, targets=1, loss=BW, rank=3, depth=1), tmp_path)
    (row,) = [each for each in read(tmp_path / "critical_points.csv") if each["loss"] == BW]
    assert row["positions"] == "1 2" and row["index_mean"] == "0.0" and float(row["value_mean"]) == 0
    assert any("kink" in note for note in found.notes)
    assert np.isfinite(found.score)


class InterruptedAt:
    """Ctrl-C at the n-th time that somebody looks whether it was pressed."""

    def __init__(self, monkeypatch, time):
        self.left = time
        monkeypatch.setattr(study.Interruption, "check", lambda _: self.look())

    def look(self):
        self.left -= 1
        if self.left <= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("time", "kept"), [(1, []), (7, ["critical_points", "targets"])])
def test_ctrl_c_keeps_what_is_finished(tmp_path, monkeypatch, time, kept):
    monkeypatch.setattr(measured, "blow_up", None)  # never reached
    InterruptedAt(monkeypatch, time)
    found = study.conduct(configuration(), tmp_path)
    assert found.interrupted and found.notes[-1] == "interrupted: what was finished until now is kept"
    assert [each.stem for each in found.tables] == kept
    assert bool(found.figures) == bool(found.rows) == bool(kept)


# --- figures --------------------------------------------------------------------------------------


def overviews(spectra, sets, rank, tau=0.05):
    order = list(range(len(sets)))
    return [
        landscape.overview(
            sets,
            landscape.survey(spectra, sets, rank, depth=3, tau=level, loss=loss),
            order,
            tau=level,
            loss=loss,
        )
        for loss, level in ((BW, tau), (FROBENIUS, 0.0))
    ]


@pytest.fixture(scope="module")
def seen():
    rng = np.random.default_rng(0)
    large = -np.sort(-rng.exponential(size=(3, 30)), axis=1) + 0.1
    many = landscape.exchanged(0, 30, 12, 60)
    few = list(itertools.combinations(range(4), 2))
    places = np.linspace(0, 1, 21)
    return {
        "few": overviews(SPECTRA, few, 2, tau=0.0),
        "one target": overviews(SPECTRA[:1], all_sets(4, 2), 2),
        "many": overviews(large, many, 12),
        "paths": landscape.to_minimizer(SPECTRA, few[1:], places, depth=3, tau=0.0, loss=BW),
        "long paths": landscape.to_minimizer(large, many[1:13], places, depth=3, tau=0.0, loss=FROBENIUS),
        "blow_up": measured.blow_up(SPECTRA, 2, taus=9),
    }


@pytest.mark.parametrize("case", ["few", "one target", "many"])
def test_curvature_shows_every_point_of_both_losses(seen, case):
    shown = seen[case]
    figure = drawing.curvature(shown)
    check_readable(figure)
    assert len(figure.axes) == 4
    for axes, (field, _, signed) in zip(figure.axes, drawing.PANELS, strict=True):
        assert axes.get_yscale() == ("symlog" if signed else "log") and axes.get_ylabel()
        assert len(axes.containers) == 2
        low, high = axes.get_ylim()
        for each, bars in zip(shown, axes.containers, strict=True):
            mean = each.over[field].mean
            np.testing.assert_array_equal(bars[0].get_ydata(), mean)
            if case == "many":
                np.testing.assert_array_equal(bars[0].get_xdata(), each.over["index"].mean)
            inside = mean[np.isfinite(mean)]
            assert low <= inside.min() and inside.max() <= high
            assert len(bars[2]) == (0 if case == "one target" else 1)
    bottom = figure.axes[-1]
    names = [each.get_text() for each in bottom.get_xticklabels()]
    if case == "many":
        assert bottom.get_xlabel() == "saddle index"
    else:
        assert names == [landscape.label(each) for each in shown[0].sets]
    title = "" if case == "one target" else "mean ± deviation of 3 targets"
    assert figure.axes[0].get_title(loc="left") == title


@pytest.mark.parametrize(("case", "depth"), [("paths", 3), ("paths", 1), ("long paths", 3)])
def test_paths_are_drawn_in_both_spaces(seen, case, depth):
    shown = seen[case]
    figure = drawing.along_paths(shown, depth)
    check_readable(figure)
    spreads = [shown.function_space, shown.parameter_space][: 1 if depth == 1 else 2]
    for axes, spread in zip(figure.axes, spreads, strict=True):
        assert len(axes.lines) == len(shown.starts)
        for line, mean in zip(axes.lines, spread.mean, strict=True):
            np.testing.assert_array_equal(line.get_data(), (shown.places, mean))
    named = [each.get_text() for legend in figure.legends for each in legend.get_texts()]
    assert named == (["13", "14", "23", "24", "34"] if case == "paths" else [])


def test_few_paths_have_a_band(seen):
    shown = landscape.to_minimizer(SPECTRA, [(0, 2)], np.linspace(0, 1, 5), depth=2, tau=0.0, loss=BW)
    (axes, _) = drawing.along_paths(shown, 2).axes
    assert len(axes.collections) == 1
    assert not drawing.along_paths(seen["paths"], 2).axes[0].collections


def test_blow_up_shows_closed_form_and_measurement_with_the_slope(seen):
    shown = seen["blow_up"]
    figure = drawing.blow_up(shown)
    check_readable(figure)
    (axes,) = figure.axes
    assert axes.get_xscale() == axes.get_yscale() == "log"
    names = axes.get_legend_handles_labels()[1]
    assert names[0] == f"mode 2: fitted slope −{-shown.law[0].exponent:.3f}"
    assert names[-1] == "slope −1/2"
    for row in range(3):
        line, dots = axes.lines[2 * row : 2 * row + 2]
        for drawn, values in ((line, shown.closed[row]), (dots, shown.measured[row])):
            mean = -values.mean(axis=0)
            np.testing.assert_array_equal(drawn.get_ydata(), np.where(mean > 0, mean, np.nan))
    x, y = np.log(axes.lines[-1].get_data())
    np.testing.assert_allclose(np.diff(y) / np.diff(x), -0.5)


# --- the configuration ----------------------------------------------------------------------------


def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return command_line.plain(compose("landscape", list(overrides)))


def test_defaults_are_those_of_the_dataclass_and_can_be_looked_at():
    options = composed()
    for each in dataclasses.fields(Landscape):
        if each.default is not dataclasses.MISSING:
            given = options[each.name]
            assert (tuple(given) if isinstance(given, list) else given) == each.default, each.name
    assert set(options) == {each.name for each in dataclasses.fields(Landscape)}
    config = command_line.landscape(options)
    assert from_mapping(json.loads(json.dumps(config.mapping())), Landscape) == config


def test_every_option_has_a_comment():
    lines = (CONFIGS / "landscape.yaml").read_text(encoding="utf-8").splitlines()
    options = [line for line in lines if re.match(r" *\w+: *[^#\s]", line)]
    assert len(options) > 8 and all(" # " in line for line in options)


def test_frobenius_is_not_compared_with_itself():
    config = command_line.landscape(composed("loss=frobenius", "target.dimension=4"))
    assert config.loss == Choice(FROBENIUS)
    assert [each.name for each in study.prepare(config).kinds] == [FROBENIUS]
    both = study.prepare(configuration(against=FROBENIUS)).kinds
    assert both == ((BW, 0.05), (FROBENIUS, 0.0))
    assert study.prepare(configuration(against=None)).kinds == both[:1]


def test_a_loss_without_closed_forms_is_refused(monkeypatch):
    monkeypatch.setattr(losses.LOSSES, "_functions", dict(losses.LOSSES._functions))
    losses.LOSSES.register("mine")(losses.frobenius)
    with pytest.raises(InvalidOption, match="loss: got mine; takes bures_wasserstein or frobenius: the"):
        study.prepare(configuration(loss="mine"))


def test_targets_have_the_seeds_that_follow():
    problem = study.prepare(configuration(target={"name": "random", "dimension": 4, "seed": 7}))
    assert problem.seeds == [7, 8, 9]
    alone = study.prepare(configuration(target={"name": "random", "dimension": 4, "seed": 8}, targets=1))
    np.testing.assert_array_equal(problem.eigenvalues[1], alone.eigenvalues[0])


def test_a_rank_that_is_not_given_is_half_of_the_dimension():
    assert study.prepare(configuration(rank=None)).rank == 2
    one = {"name": "explicit", "eigenvalues": [1.0]}
    assert study.prepare(configuration(rank=None, target=one)).rank == 1


# --- the command ----------------------------------------------------------------------------------

TINY = ("target=random", "target.dimension=3", "targets=2", "rank=1", "paths=1", "depth=1")


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """The command line, run here in an empty folder: gives exit status, output, errors."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.setattr(logging, "_handlerList", [])
    monkeypatch.chdir(tmp_path)
    for name in ("save_points", "save_paths", "save_blow_up"):
        monkeypatch.setattr(drawing, name, lambda *given: [])

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["landscape.py", *arguments])
        try:
            command_module.main()
            status = 0
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    yield run
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:], root.level = handlers, level


def test_a_look_prints_table_and_files_and_is_never_overwritten(command, tmp_path):
    status, out, err = command(*TINY, "hydra.run.dir=here")
    lines = out.splitlines()
    assert (status, err) == (0, "")
    assert lines[0].split()[:4] == ["loss", "point", "value", "index"]
    assert [line.split()[:2] for line in lines[1:7]] == [[x, y] for x in ("BW", "F") for y in "123"]
    assert lines[7] == "all 3 critical points: n = 3, rank 1, depth 1, 2 targets"
    assert "table    here/critical_points.csv" in lines and lines[-1] == "log      here/landscape.log"
    log = Path("here/landscape.log").read_text()
    assert lines[1] in log and '"targets": 2' in log and "jax" in log
    assert Path("here/.hydra/config.yaml").exists()

    kept = Path("here/critical_points.csv").read_bytes()
    status, out, err = command(*TINY, "hydra.run.dir=here", "targets=1")
    assert (status, out) == (1, "")
    assert err == f"hydra.run.dir: got {tmp_path}/here; takes a folder without a result; this one has one\n"
    assert Path("here/critical_points.csv").read_bytes() == kept


def test_a_sweep_over_losses_looks_at_each(command):
    status, _, err = command(
        "-m", *TINY, "loss=frobenius,bures_wasserstein", "loss.tau=0", "hydra.sweep.dir=here"
    )
    assert (status, err) == (0, "")
    losses_seen = [{row["loss"] for row in read(Path(f"here/{job}/critical_points.csv"))} for job in (0, 1)]
    assert losses_seen == [{FROBENIUS}, {BW, FROBENIUS}]

    status, _, err = command("-m", *TINY, "rank=1,9", "hydra.sweep.dir=there")
    assert status == 1 and err.startswith("job 1: rank: got 9; takes an integer from 1 to the dimension 3")
    assert Path("there/0/critical_points.csv").exists()


def test_ctrl_c_ends_with_130(command, monkeypatch):
    InterruptedAt(monkeypatch, 1)
    status, out, _ = command(*TINY, "hydra.run.dir=here")
    assert status == 130 and "interrupted: what was finished until now is kept" in out.splitlines()


REFUSALS = [
    ("rnk=3", "rnk: got 3; takes .*did you mean rank"),
    ("rank=0", "rank: got 0; takes an integer from 1 to the dimension 20, or null"),
    ("rank=21", "rank: got 21; takes an integer from 1 to the dimension 20, or null"),
    ("rank=1.5", "rank: got 1.5; takes an integer or null"),
    ("depth=0.5", "depth: got 0.5; takes a finite number from 1"),
    ("depth=many", "depth: got 'many'; takes an integer or a number"),
    ("targets=0", "targets: got 0; takes an integer from 1"),
    ("seed=-1", "seed: got -1; takes an integer from 0"),
    ("points=0", f"points: got 0; takes an integer from 1 to {MOST_POINTS}, or null"),
    ("points=null", "points: got null; takes an integer up to 20000, for a sample: there are 184,756"),
    ("paths=-1", "paths: got -1; takes an integer from 0"),
    ("against=bures", "against: got 'bures'; takes frobenius or null"),
    ("target=digits", "targets: got 16; takes 1 with digits: it has no seed"),
    ("target.seed=4294967290", "target.seed: got 4294967296"),
    ("target.dimension=0", "target.dimension: got 0"),
    ("loss.tau=-1", "loss.tau: got -1"),
    ("loss.tau=100", "loss.tau: got 100.0; takes a number below the largest eigenvalue of every target"),
    ("loss=frobenius loss.tau=1", "loss.tau: got 1; takes only 0 with frobenius"),
    ("loss.name=other", "loss: got other; takes one of bures_wasserstein, frobenius"),
    ("network.depth=3", "network.depth: got 3; takes .*one of"),
    ("target=zip", "target: got zip; takes .*did you mean zipf"),
    ("loss.tau=0,1", "loss.tau: got 0,1; takes one value; several need -m"),
    ("plugins=[no_such_module]", "plugins: got no_such_module; takes modules that can be imported"),
    ("hydra.run.dir=/dev/null/x", "hydra.run.dir: got /dev/null/x; takes"),
]


@pytest.mark.parametrize(("line", "message"), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_bad_input_gets_one_line_before_anything_is_computed(command, monkeypatch, tmp_path, line, message):
    monkeypatch.setattr(landscape, "survey", None)
    status, out, err = command(*line.split())
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1 and re.match(message, err), err
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert set(left) <= {"landscape.log"}


QUICK = """
import sys
from experiments import landscape
for flags in (["--help"], ["--cfg", "job"], ["rank=1.5", "depth=0"]):
    sys.argv = ["landscape.py", *flags]
    try:
        landscape.main()
    except SystemExit as end:
        print("status", end.code)
    print("<<<>>>")
assert "jax" not in sys.modules and "matplotlib" not in sys.modules
"""


def test_looking_around_is_quick_because_jax_is_imported_late(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", QUICK],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    shown_help, shown_job, refused, _ = done.stdout.split("<<<>>>\n")
    for name in (*(each.name for each in dataclasses.fields(Landscape)), "loss.tau", '"$(python'):
        assert name in shown_help
    assert OmegaConf.create(shown_job) == OmegaConf.create(composed())
    assert refused == "status 1\n"


def test_examples_of_the_help_compose():
    text = (CONFIGS / "hydra/help/landscape.yaml").read_text(encoding="utf-8")
    lines = [line.split()[3:] for line in text.splitlines() if line.startswith("    python -m")]
    assert len(lines) >= 5
    for line in lines:
        first = [each.partition(",")[0] for each in line if "=" in each]
        command_line.landscape(composed(*first))


@pytest.mark.slow
def test_dimensions_in_the_hundreds_in_a_process_of_its_own(tmp_path):
    arguments = ["target.dimension=500", "rank=250", "targets=2", "points=40", "depth=50", "paths=4"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.landscape", *arguments, f"hydra.run.dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "a sample of 40 of about 1e149 critical points: n = 500, rank 250, depth 50, 2 targets" in done.stdout
    )
    rows = read(tmp_path / "critical_points.csv")
    assert len(rows) == 80 and rows[0]["index_mean"] == "0.0"
    values = study.prepare(
        configuration(target={"name": "zipf", "dimension": 500}, targets=1, rank=250)
    ).eigenvalues
    first = next(row for row in read(tmp_path / "targets.csv") if row["loss"] == BW)
    assert float(first["value"]) == pytest.approx(values[0, 250:].sum(), rel=1e-12)
    assert (tmp_path / "curvature.png").stat().st_size > 0
