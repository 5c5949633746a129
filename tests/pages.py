"""Folders as runs, sweeps and studies leave them, made without running anything: for tests of pages."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import sweeps
import synthetic
import yaml
from PIL import Image

from bwdln import results

#: What someone might try to break the page with.
HOSTILE = '</script><b>bold</b><img src=x onerror="document.title=1">'


def run(folder: Path, command: tuple[str, ...] = ("seeds=3", "loss.tau=0.1")) -> Path:
    """A run with a figure and what Hydra writes."""
    results.save(synthetic.gaussian(), folder)
    figure(folder / "gap")
    hydra = {
        "job": {"name": "train"},
        "overrides": {"task": list(command), "hydra": ["hydra.run.dir=x", "hydra.mode=RUN"]},
    }
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": hydra}))
    return folder


def figure(stem: Path, size: tuple[int, int] = (600, 400)) -> None:
    """A figure with all its files; the picture is partly transparent."""
    Image.new("RGBA", size, (10, 60, 120, 128)).save(stem.with_suffix(".png"))
    stem.with_suffix(".pdf").write_bytes(b"%PDF-1.4")
    stem.with_name(f"{stem.name}.data.csv").write_text("x,y\n1,2\n")


def make(options: Mapping[str, Any]) -> Any:
    """The result of a job: with the largest step size it diverges."""
    lost = 2 if options.get("dynamics.step_size") == 0.4 else 0
    return sweeps.result(0.001 * (1 + options.get("network.depth", 1)), seeds=(0, 1), diverged=lost)


GRID = sweeps.product(network__depth=(1, 2, 3), dynamics__step_size=(0.1, 0.2, 0.4), loss__tau=(0, 0.1))


def sweep(
    folder: Path,
    jobs: list[dict[str, Any]] = GRID,
    failed: Mapping[int, tuple[dict[str, Any], str]] | None = None,
    make: Callable[[Mapping[str, Any]], Any] = make,
) -> Path:
    """A sweep with a table, a figure, and the folders of its jobs; `failed`: options and message by job."""
    failed = failed or {}
    folder.mkdir(parents=True, exist_ok=True)
    messages = {job: message for job, (_, message) in failed.items()}
    dataset = sweeps.dataset(jobs, make).assign_attrs(failed=json.dumps(messages), objective="relative_gap")
    results.write_dataset(dataset.assign_attrs(results.provenance()), folder / "sweep.nc")
    rows = dict(enumerate(jobs)) | {job: options for job, (options, _) in failed.items()}
    names = list(jobs[0])
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", *names])
        writer.writerows([job, *(options[name] for name in names)] for job, options in rows.items())
    for job in rows:
        (folder / str(job)).mkdir()
    overrides = {
        "task": ["loss.tau=0,0.1", "sweep.zip=[a,b]"],
        "hydra": ["hydra.sweep.dir=x y", "hydra.mode=M"],
    }
    hydra = {"job": {"name": "train"}, "overrides": overrides}
    base = {"hydra": hydra, "target": {"name": "zipf"}, "precision": "float64"}
    (folder / "multirun.yaml").write_text(yaml.safe_dump(base))
    figure(folder / "final")
    return folder


def findings(folder: Path, **changes: Any) -> Path:
    """What a study found."""
    folder.mkdir(parents=True, exist_ok=True)
    figure(folder / "rates")
    (folder / "table.csv").write_text("a\n1\n")
    content = {
        "schema": 1,
        "kind": "study",
        "name": "rates",
        "title": "Rates of convergence",
        "columns": ["depth", "rate"],
        "rows": [["1", "0.5"], ["2", "0.25"]],
        "notes": ["the rate halves"],
        "results": [],
        "tables": ["table.csv"],
        "figures": ["rates.png", "rates.pdf", "rates.data.csv"],
        "score": None,
        "interrupted": False,
        "seconds": 75.2,
    }
    (folder / "findings.json").write_text(json.dumps(content | changes))
    return folder
