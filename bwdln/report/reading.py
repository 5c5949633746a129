"""What a page shows, read from the folders that runs, sweeps and studies leave behind."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from bwdln import results
from bwdln.errors import InvalidOption, check
from bwdln.report import pictures, view
from bwdln.report.pictures import Figure
from bwdln.report.view import View

#: The layout of `findings.json` that this version reads.
SCHEMA = 1
FINDINGS = "findings.json"
#: What makes a folder one that a page can show.
FILES = ("sweep.nc", "result.nc", FINDINGS)
#: Folders are looked for so far below the one that is given.
DEEPEST = 3
#: The modules that Hydra's jobs of these names are.
MODULES = {"train": "experiments.train", "landscape": "experiments.landscape"}


class Findings(NamedTuple):
    """What a study came to (`findings.json`): a table of texts, sentences, and the files it wrote."""

    kind: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]
    files: list[Path]
    interrupted: bool
    seconds: float | None


class Section(NamedTuple):
    """All of one folder. `facts`: what is worth knowing at first sight, by name.

    `swept`: the options that jobs differ in, with their values. `folders`: those of the jobs, by number.
    `provenance`: versions, device and the like. `command`: what to type to get the same again.
    """

    kind: str
    title: str
    folder: Path
    facts: dict[str, str]
    swept: dict[str, str]
    findings: Findings | None
    view: View | None
    folders: dict[int, Path]
    figures: list[Figure]
    files: list[Path]
    configuration: dict[str, Any]
    provenance: dict[str, str]
    command: str | None


def sections(path: Path) -> list[Section]:
    """What the folder holds: itself, or every folder with results in it, at most two levels below.

    Raises `InvalidOption` for what is not there, is damaged, is not ours or is newer than this version.
    """
    check(path.exists(), "path", f"{path}, where there is nothing", "a folder with results")
    folder = path.parent if path.is_file() and path.name in FILES else path
    check(folder.is_dir(), "path", path, f"a folder with results, or a file {', '.join(FILES)}")
    found = [_section(each) for each in _folders(folder, DEEPEST)]
    takes = f"a folder with a {' or '.join(FILES)}, in it or at most {DEEPEST} levels below"
    unfinished = (folder / "multirun.yaml").is_file() and next(folder.glob("*/result.nc"), None) is not None
    takes += "; this sweep has not ended: its command goes on from there" if unfinished and not found else ""
    check(bool(found), "path", folder, takes)
    return found


def _folders(folder: Path, levels: int) -> list[Path]:
    """The folders to show: this one, or those in it."""
    findings = folder / FINDINGS
    claims = findings.is_file() and read_findings(findings).kind == "claims"
    if not claims and any((folder / name).is_file() for name in FILES):
        studies = folder.glob(f"*/{FINDINGS}") if (folder / "sweep.nc").is_file() else ()
        return [folder, *sorted((each.parent for each in studies), key=_natural)]
    inner: list[Path] = []
    if levels:
        for each in sorted(folder.iterdir(), key=_natural):
            if each.is_dir() and not each.name.startswith(".") and each.name != "store":
                inner += _folders(each, levels - 1)
    if (folder / "multirun.yaml").is_file():  # jobs of a sweep that has not ended are no sections
        inner = [each for each in inner if (each / FINDINGS).is_file()]
    return [folder, *inner] if claims else inner


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sorts names as people do: 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _section(folder: Path) -> Section:
    findings = read_findings(folder / FINDINGS) if (folder / FINDINGS).is_file() else None
    if findings is not None and findings.kind == "claims":
        return _bare("claims", findings.title, folder)._replace(findings=findings, figures=_drawn(findings))
    if (folder / "sweep.nc").is_file():
        return _sweep(folder, findings)
    if findings is not None:
        return _study(folder, findings)
    return _run(folder)


def _bare(kind: str, title: str, folder: Path) -> Section:
    return Section(kind, title, folder, {}, {}, None, None, {}, [], [], {}, {}, None)


def _drawn(findings: Findings) -> list[Figure]:
    return pictures.figures(findings.files)


# --- the kinds of folders -------------------------------------------------------------------------


def _run(folder: Path) -> Section:
    """A single run."""
    result = results.load(folder)
    attributes, seen = result.dataset.attrs, view.of_run(result)
    configuration = json.loads(attributes["configuration"])
    interrupted = (
        {"Interrupted": "yes: what was recorded until then"} if attributes.get("interrupted") else {}
    )
    files = _files(folder)
    figures = pictures.figures(files)
    return _bare("run", _title(configuration, folder), folder)._replace(
        facts=_described(configuration)
        | {"Seeds": _count(len(seen.numbers)), "Outcomes": _counted(seen.outcomes)}
        | {"Best": _best(seen)}
        | ({"Time": duration(float(attributes["wall_seconds"]))} if "wall_seconds" in attributes else {})
        | interrupted,
        view=seen,
        figures=figures,
        files=pictures.unshown(figures, files),
        configuration=configuration,
        provenance=_provenance(attributes),
        command=command(folder),
    )


def _sweep(folder: Path, findings: Findings | None) -> Section:
    """A sweep, and what it was held against."""
    dataset = results.load_sweep(folder)
    seen = view.of_sweep(dataset, _typed(folder / "sweep.csv"))
    base = _yaml(folder / "multirun.yaml")
    choices = base.pop("hydra", {})
    seeds = int((dataset["outcome"].values != "").sum())
    failed = sum(message is not None for message in seen.messages)
    outcomes = [str(each).replace("_", " ") for each in dataset["outcome"].values.flat if each]
    figures = pictures.figures([*_files(folder), *(findings.files if findings else [])])
    files = [*_files(folder), *(findings.files if findings else [])]
    return _bare("sweep", _title(base, folder, choices), folder)._replace(
        facts={name: each for name, each in _described(base).items() if name.lower() not in seen.options}
        | {"Jobs": _count(len(seen.numbers)), "Failed": _count(failed)}
        | {"Seeds in all": _count(seeds), "Outcomes": _counted(outcomes), "Best": _best(seen)}
        | _time(folder, findings),
        swept={name: _values(column) for name, column in seen.options.items()},
        findings=findings,
        view=seen,
        folders={each: folder / str(each) for each in seen.numbers if (folder / str(each)).is_dir()},
        figures=figures,
        files=list(dict.fromkeys(pictures.unshown(figures, files))),
        configuration=base,
        provenance=_provenance(dataset.attrs)
        | ({"precision": str(base["precision"])} if "precision" in base else {}),
        command=command(folder),
    )


def _study(folder: Path, findings: Findings) -> Section:
    """A study or a look at a landscape."""
    configuration = _yaml(folder / ".hydra" / "config.yaml")
    first = next((each for each in findings.files if each.suffix == ".nc"), None)
    attributes = results.load(first).dataset.attrs if first is not None else {}
    files = list(dict.fromkeys([*findings.files, *_files(folder)]))
    figures = pictures.figures(files)
    return _bare(findings.kind, findings.title, folder)._replace(
        facts=_described(configuration) | {"Rows": _count(len(findings.rows))} | _time(folder, findings),
        findings=findings,
        figures=figures,
        files=pictures.unshown(figures, files),
        configuration=configuration,
        provenance=_provenance(attributes) or _logged(folder),
        command=command(folder),
    )


def read_findings(path: Path) -> Findings:
    """Read what a study came to. Raises `InvalidOption` for a file that is damaged, not ours or newer."""
    takes = "a findings.json of bwdln; it is damaged or something else"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidOption("path", path, takes) from error
    check(isinstance(schema, int), "path", path, takes)
    newer = f"findings of layout up to {SCHEMA}; these are {schema}, of a newer version of bwdln"
    check(schema <= SCHEMA, "path", path, newer)
    try:
        names = [name for key in ("results", "tables", "figures") for name in content[key]]
        files = [path.parent / str(name) for name in names]
        seconds = content.get("seconds")
        found = Findings(
            kind=str(content["kind"]),
            title=str(content["title"]),
            columns=[str(name) for name in content["columns"]],
            rows=[[str(cell) for cell in row] for row in content["rows"]],
            notes=[str(note) for note in content["notes"]],
            files=[file for file in files if file.is_file()],
            interrupted=bool(content.get("interrupted", False)),
            seconds=None if seconds is None else float(seconds),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidOption("path", path, takes) from error
    root = path.parent.resolve()
    check(all(file.resolve().is_relative_to(root) for file in found.files), "path", path, takes)
    check(all(len(row) == len(found.columns) for row in found.rows), "path", path, takes)
    return found


# --- what to type ---------------------------------------------------------------------------------


def command(folder: Path) -> str | None:
    """The command that a run, a study or a sweep came from, quoted for a shell; None if Hydra did not run it.

    Without the folder of a run: a new one gets its own.
    """
    several = folder / "multirun.yaml"
    hydra = _yaml(several if several.is_file() else folder / ".hydra" / "hydra.yaml").get("hydra")
    if not isinstance(hydra, dict):
        return None
    given = hydra.get("overrides") or {}
    module = MODULES.get(str((hydra.get("job") or {}).get("name")), "experiments.train")
    own = ("hydra.mode=",) if several.is_file() else ("hydra.mode=", "hydra.run.dir=")
    task = given.get("task") or []
    settings = [each for each in given.get("hydra") or [] if not str(each).startswith(own)]
    flags = ["-m"] if several.is_file() else []
    return shlex.join(["python", "-m", module, *flags, *map(str, [*task, *settings])])


# --- files ----------------------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    """The files in a folder that tell of its results."""
    endings = (".nc", ".csv", ".png", ".pdf", ".log", ".yaml")
    own = sorted(each for each in folder.iterdir() if each.suffix in endings and each.is_file())
    hydra = folder / ".hydra" / "config.yaml"
    return [each for each in own if not each.name.startswith(".")] + ([hydra] if hydra.is_file() else [])


def _yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file; nothing where there is none."""
    if not path.is_file():
        return {}
    takes = "a YAML file of Hydra; it is damaged"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InvalidOption("path", path, takes) from error
    check(isinstance(content, dict), "path", path, takes)
    checked: dict[str, Any] = content
    return checked


def _typed(path: Path) -> dict[int, dict[str, str]]:
    """The rows of `sweep.csv` by job, as texts; nothing where it is missing or something else."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [row for row in csv.DictReader(file) if str(row.get("job") or "").isdigit()]
    return {int(row["job"]): {str(k): str(v) for k, v in row.items()} for row in rows}


# --- words ----------------------------------------------------------------------------------------


def _title(configuration: Mapping[str, Any], folder: Path, hydra: Mapping[str, Any] | None = None) -> str:
    """What was trained how; the name of the experiment if it has one."""
    choices = (hydra if hydra is not None else _yaml(folder / ".hydra" / "hydra.yaml").get("hydra", {})) or {}
    experiment = ((choices.get("runtime") or {}).get("choices") or {}).get("experiment")
    names = [experiment] if experiment else [_name(configuration.get(key)) for key in ("target", "dynamics")]
    said = ", ".join(str(name).replace("_", " ") for name in names if name) or folder.resolve().name
    return said[:1].upper() + said[1:]


def _name(choice: Any) -> str:
    return str(choice.get("name", "")) if isinstance(choice, Mapping) else str(choice or "")


def _described(configuration: Mapping[str, Any]) -> dict[str, str]:
    """The choices that matter most, in words."""
    network = configuration.get("network")
    shown = {key.capitalize(): _name(configuration.get(key)) for key in ("target", "loss", "dynamics")}
    if isinstance(network, Mapping):
        sizes = {"depth": network.get("depth"), "bottleneck": network.get("bottleneck")}
        shown["Network"] = ", ".join(f"{name} {size}" for name, size in sizes.items() if size is not None)
    return {key: value.replace("_", " ") for key, value in shown.items() if value}


def _provenance(attributes: Mapping[str, Any]) -> dict[str, str]:
    """What the attributes of a result say of where it comes from (`results.provenance`)."""
    try:
        versions = json.loads(attributes.get("versions", "{}"))
    except ValueError:
        versions = {}
    names = ("device", "precision", "created", "command")
    said = {name: str(attributes[name]) for name in names if name in attributes}
    return {str(name): str(version) for name, version in versions.items()} | said


def _logged(folder: Path) -> dict[str, str]:
    """The same from the log, of what has no result of its own, as a landscape."""
    log = next(iter(sorted(folder.glob("*.log"))), None)
    if log is None:
        return {}
    text = log.read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"INFO \S+: (versions|device|created|command): (.*)", text)
    return _provenance(dict(found))


def _time(folder: Path, findings: Findings | None) -> dict[str, str]:
    """How long it took: a study as a whole, a sweep in its last call."""
    if findings is not None and findings.seconds is not None and not (folder / "sweep.nc").is_file():
        return {"Time": duration(findings.seconds)}
    try:
        seconds = json.loads((folder / "progress.json").read_text(encoding="utf-8"))["seconds"]
        return {"Time of the last call": duration(float(seconds))}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def duration(seconds: float) -> str:
    """A time in units that suit it."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _best(seen: View) -> str:
    """The smallest objective, and whose it is."""
    if seen.best is None:
        return "none: every one diverged"
    value = seen.quantity(seen.objective).values[seen.best]
    return f"{value:.3g} {seen.objective.replace('_', ' ')}, {seen.noun} {seen.numbers[seen.best]}"


def _counted(outcomes: Sequence[str]) -> str:
    return ", ".join(f"{_count(count)} {outcome}" for outcome, count in Counter(outcomes).most_common())


def _count(number: int) -> str:
    return f"{number:,}"


def _values(column: Sequence[Any]) -> str:
    """The values of an option; of many the first and the last."""
    present = [value for value in dict.fromkeys(column) if value is not None]
    if present and not any(isinstance(value, str) for value in present):
        present = sorted(present)
    said = [number(value) for value in present]
    few = said if len(said) <= 24 else [*said[:8], "…", *said[-4:]]
    return ", ".join(few) + (f" ({len(said)} values)" if len(said) > 8 else "")


def number(value: Any) -> str:
    """A number as short as it can be told from others nearby."""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
