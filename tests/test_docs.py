"""What the documents say is true: their examples run, their commands compose, their names exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from registries import REGISTRIES

import bwdln
from bwdln import results, simulate
from bwdln.studies import landscape
from experiments import command_line

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
THEORY = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
DOCUMENTS = [
    "README.md",
    "CHANGELOG.md",
    "outputs/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md")),
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


class Block(NamedTuple):
    """A fenced block: its language, the file its first comment names or None, and its text."""

    language: str
    file: str | None
    text: str


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a Markdown text."""
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        named = re.match(r"(?:# @package \w+\n)?# ([\w/]+\.\w+)\n", body)
        yield Block(language, named[1] if named else None, body)


def table(text: str, header: str) -> list[list[str]]:
    """The cells of the table whose first header cell is `header`, without its head."""
    lines = text[text.index(f"\n| {header} |") + 1 :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    """The words in backticks."""
    return re.findall(r"`([^`]+)`", cell)


EXAMPLES = [block for block in blocks(README) if block.language == "python" and block.file is None]
FILES = [block for block in blocks(README) if block.file is not None]
SHELL = [
    line
    for document in ("README.md", "docs/index.md", "docs/gallery.md", "docs/cluster.md")
    for block in blocks((ROOT / document).read_text(encoding="utf-8"))
    if block.language == "bash"
    for line in block.text.splitlines()
]
COMMANDS = [
    shlex.split(line, comments=True)[3:]
    for line in dict.fromkeys(SHELL)
    if line.startswith("python -m experiments.train")
]

# --- examples -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_python_example_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(EXAMPLES[number].text, f"README.md, example {number}", "exec"), {"__name__": "example"})


def test_example_with_plugins_reaches_the_optimum_it_claims(tmp_path: Path) -> None:
    for block in FILES:
        assert block.file is not None
        path = tmp_path / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
    (arguments,) = [each for each in COMMANDS if "target=two_levels" in each]
    command = [sys.executable, "-m", "experiments.train", *arguments, "hydra.run.dir=out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = results.load(tmp_path / "out")
    assert result.config.target.name == "two_levels"
    assert np.allclose(result.dataset["relative_gap"].isel(record=-1), 0, atol=1e-9)


# --- commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", dict.fromkeys(line for line in SHELL if line.startswith("python -m experiments.landscape"))
)
def test_landscape_command_is_valid(line: str) -> None:
    given = shlex.split(line, comments=True)[3:]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        options = OmegaConf.to_container(compose("landscape", given), resolve=True, throw_on_missing=True)
    landscape.prepare(command_line.landscape(options))  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [each for each in COMMANDS if "--config-dir" not in each], ids=" ".join)
def test_command_is_valid(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = np.random.default_rng(0).normal(size=(50, 8))
    np.save("samples.npy", samples)
    np.savetxt("covariance.csv", samples.T @ samples, delimiter=",")
    given = OverridesParser.create().parse_overrides([each for each in arguments if "=" in each])
    overrides = [
        f"{each.get_key_element()}={next(each.sweep_string_iterator())}"
        if each.is_sweep_override()
        else str(each.input_line)
        for each in given
    ]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        options = OmegaConf.to_container(compose("config", overrides), resolve=True, throw_on_missing=True)
    problem = simulate.prepare(command_line.training(options).config)  # type: ignore[arg-type]
    if any(each.startswith("initialization=") for each in arguments):
        simulate.starts([problem])


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in DOCUMENTS:
        for name in re.findall(r"[`\n]make ([a-z]+)", (ROOT / document).read_text(encoding="utf-8")):
            assert f"\n{name}:" in makefile, name


# --- tables ---------------------------------------------------------------------------------------


def test_choices_are_those_there_are() -> None:
    groups = {quoted(group)[0]: set(quoted(choices)) for group, choices in table(README, "group")}
    for group, choices in groups.items():
        assert choices == {path.stem for path in (CONFIGS / group).glob("*.yaml")}, group
        assert choices == set(REGISTRIES.get(group, choices)), group
    assert set(REGISTRIES) <= set(groups)


def test_options_exist() -> None:
    """In the default job, or in one with another dynamics."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        choices = ("gradient_descent", "gradient_flow", "end_to_end_flow")
        jobs = [OmegaConf.to_container(compose("config", [f"dynamics={each}"])) for each in choices]

    def has(job: object, option: str) -> bool:
        for part in option.split("."):
            if not (isinstance(job, dict) and part in job):
                return False
            job = job[part]
        return True

    for cell, _ in table(README, "option"):
        for option in quoted(cell):
            assert option.startswith("hydra.") or any(has(job, option) for job in jobs), option


def test_variables_of_a_result_are_all_described() -> None:
    said = {name for row in table(README, "dimensions") for cell in row for name in quoted(cell)}
    outcomes = {"converged", "reached_end", "diverged", "stalled", "running"}
    assert said - outcomes - {"weights_1", "weights_2"} == set(results.VARIABLES)


# --- links, citations, versions -------------------------------------------------------------------


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in link:
            name, _, anchor = link.partition("#")
            other = path.parent / name if name else path
            assert other.exists(), link
            assert not anchor or anchor in anchors(other), link


def anchors(path: Path) -> set[str]:
    """What links may lead to in a document."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}


def test_gallery_shows_every_image() -> None:
    gallery = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = {ROOT / "docs" / path for path in re.findall(r"!\[[^]]+\]\(([^)]+)\)", gallery)}
    assert shown == {path for path in (ROOT / "docs" / "images").glob("*") if path.is_file()}


def test_theory_has_the_sections_that_docstrings_cite() -> None:
    sections = set(re.findall(r"^## (\d+)\.", THEORY, flags=re.MULTILINE))
    assert sections == {str(number) for number in range(1, 10)}
    for path in sorted(ROOT.glob("bwdln/**/*.py")):
        assert set(re.findall(r"§(\d+)", path.read_text(encoding="utf-8"))) <= sections, path


def test_theory_names_modules_that_exist() -> None:
    for _, cell in table(THEORY, "section"):
        for name in quoted(cell):
            path = ROOT / "bwdln" / name.replace(".", "/")
            assert path.with_suffix(".py").exists() or path.is_dir(), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_formulas_survive_markdown(document: str) -> None:
    """Inside dollars Markdown still sees emphasis, escapes, cells and tags: none may be there."""
    text = (ROOT / document).read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    for paragraph in re.split(r"\n\s*\n|\n(?=[|-])", prose):
        pieces = paragraph.split("$")
        assert len(pieces) % 2 == 1, paragraph
        for formula in pieces[1::2]:
            assert not re.search(r"[})\]]_|\\[^A-Za-z]|[|*\n]|<\S|^\s|\s$", formula), formula


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {bwdln.__version__}\n" in citation
    assert f"\n## {bwdln.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_fulfill_what_the_project_requires() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    extras = PROJECT["optional-dependencies"]
    required = [*PROJECT["dependencies"], *extras["data"], *extras["test"], *extras["dev"], *extras["docs"]]
    for requirement in map(Requirement, required):
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pinned[requirement.name]), requirement
