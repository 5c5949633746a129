"""The site: the tutorial prints what it says, no module is missing, and names in docstrings exist."""

from __future__ import annotations

import ast
import importlib
import math
import os
import pkgutil
import pydoc
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_docs import CONFIGS, ROOT, blocks

import bwdln
from bwdln import results

sys.path.insert(0, str(ROOT / "docs" / "hooks"))

import code_names
import options
import reference

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
NAMES = code_names.Names(ROOT)
MODULES = reference.public_modules(ROOT)

# --- the tutorial ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_tutorial_prints_what_it_says(tmp_path: Path) -> None:
    """Files are written, programs and commands run in order, and `text` is what the last one printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    printed, compared = "", 0
    for block in blocks(TUTORIAL):
        if block.file is not None:
            path = tmp_path / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        elif block.language == "text":
            assert not unlike(block.text, printed), f"{unlike(block.text, printed)} in\n{printed}"
            compared += 1
        else:
            bash = block.language == "bash"
            program = block.text.replace("\\\n", "") if bash else f"python -c {shlex.quote(block.text)}"
            printed = "".join(
                output(line, tmp_path, environment) for line in (program.splitlines() if bash else [program])
            )
    assert compared >= 6
    assert results.load(tmp_path / "outputs" / "my_loss").config.loss.name == "log_likelihood"


def output(line: str, folder: Path, environment: dict[str, str]) -> str:
    """What a command line in that folder prints."""
    assert line.startswith("python "), line
    command = [sys.executable, *shlex.split(line, comments=True)[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert "Traceback" not in printed, printed
    return printed


def unlike(said: str, printed: str) -> list[str]:
    """The lines that are said and not printed, in this order; … stands for anything that is left out."""
    rest = iter([each for each in printed.splitlines() if each.strip()])
    wanted = [line for line in said.splitlines() if line.strip() not in ("", "…")]
    return [line for line in wanted if not any(same(line, each) for each in rest)]


def same(said: str, printed: str) -> bool:
    """Whether two lines are the same up to blanks and rounding; what follows … may be anything."""
    wanted, got = said.split(), printed.split()
    if "…" in wanted:
        wanted = wanted[: wanted.index("…")]
        got = got[: len(wanted)]
    return len(wanted) == len(got) and all(map(close, wanted, got))


def close(said: str, printed: str) -> bool:
    """Whether two words are the same, or numbers within 5 %."""
    one, other = (re.findall(r"-?[\d.]*\d(?:e-?\d+)?", word) for word in (said, printed))
    shape = [re.sub(r"-?[\d.]*\d(?:e-?\d+)?", "0", word) for word in (said, printed)]
    near = all(math.isclose(float(a), float(b), rel_tol=0.05) for a, b in zip(one, other, strict=False))
    return said == printed or (shape[0] == shape[1] and len(one) == len(other) and near)


def test_lines_are_compared_up_to_rounding() -> None:
    printed = "seed  gap\n   0  1.02e-10\n\ntime  3.1 s\n4 of 4 done\n"
    assert not unlike("seed gap\n 0 1.00e-10\ntime …\n", printed)
    assert not unlike("seed  gap\n…\n4 of 4 done", printed)
    assert unlike("0 1.3e-10", printed)
    assert unlike("3 of 4 done", printed)
    assert unlike("4 of 4 done\nseed gap", printed) == ["seed gap"]


# --- the reference --------------------------------------------------------------------------------


def test_every_public_module_has_a_page_that_the_navigation_leads_to() -> None:
    found = {each.name for each in pkgutil.walk_packages(bwdln.__path__, "bwdln.")}
    public = {name for name in found if not reference.any_private(name.split("."))}
    assert set(MODULES) == public
    made = reference.pages(ROOT)
    for module in public:
        importlib.import_module(module)
        if ast.parse(MODULES[module].read_text(encoding="utf-8")).body[1:] or len(MODULES) == 0:
            assert f"::: {module}\n" in made[reference.page_of(module, MODULES)]
    assert sorted(made) == sorted(leaves(reference.navigation(ROOT)))


def leaves(entry: object) -> Iterator[str]:
    """The pages of a navigation."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for inside in entry.values():
            yield from leaves(inside)
    elif isinstance(entry, list):
        for inside in entry:
            yield from leaves(inside)


def test_a_new_module_appears_by_itself(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "## Inside\n\n| part | modules | task |\n|---|---|---|\n| One | `a` | b |\n\n"
    )
    (tmp_path / "bwdln" / "late").mkdir(parents=True)
    for name in ("__init__", "a", "late/__init__", "late/new", "late/_hidden"):
        (tmp_path / "bwdln" / f"{name}.py").write_text('"""What it does. And more."""\n', encoding="utf-8")
    made = reference.pages(tmp_path)
    assert set(made) == {"api/index.md", "api/a.md", "api/late/index.md", "api/late/new.md"}
    assert "| [`late.new`][bwdln.late.new] | What it does. |" in made["api/index.md"]
    assert sorted(leaves(reference.navigation(tmp_path))) == sorted(made)


def test_groups_of_modules_name_every_part_once() -> None:
    parts = [part for group in reference.groups(ROOT) for part in group.parts]
    assert len(parts) == len(set(parts))
    assert set(parts) == {name.split(".")[1] for name in MODULES}


# --- names in docstrings --------------------------------------------------------------------------

#: A dotted name in single backticks: all of it, not a part of a formula or of a call.
DOTTED = re.compile(r"(?<!`)`([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+)`")
#: Names of options or coordinates that stand for any: of the start within another, of a swept option.
STANDING_FOR_ANY = {"start.scale", "option.loss"}


def option_names() -> set[str]:
    """Every option of the command line, as it is typed."""
    names = set()
    for path in CONFIGS.glob("**/*.yaml"):
        group = ".".join(path.relative_to(CONFIGS).parent.parts)
        _, found = options.read(path.read_text(encoding="utf-8"))
        names |= {each.path if group in ("", "experiment") else f"{group}.{each.path}" for each in found}
    return names


def written(names: code_names.Names) -> str:
    """The texts in the code that are no docstrings: the names of files are among them."""
    texts: list[str] = []
    for path in names.modules.values():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
        constants = {node for node in nodes if isinstance(node, ast.Constant)}
        texts += [str(node.value) for node in constants - docstrings]
    return "\n".join(texts)


def unknown_names(names: code_names.Names) -> list[str]:
    """The dotted names in docstrings that mean nothing: no code of ours, library, option or file."""
    known_options, files, unknown = option_names(), written(names), []
    for docstring in names.docstrings():
        for name in DOTTED.findall(docstring.text):
            library = names.foreign(name, docstring.scope)
            known = (
                names.resolve(name, docstring.scope) is not None
                or (library is not None and pydoc.locate(library) is not None)
                or name in known_options | STANDING_FOR_ANY
                or (name.endswith((".csv", ".html", ".json", ".nc")) and name in files)
                or (ROOT / name.replace(".", "/")).with_suffix(".py").exists()
            )
            if not known:
                unknown.append(f"{docstring.scope.module}:{docstring.line}: {name}")
    return unknown


def test_names_in_docstrings_lead_somewhere() -> None:
    assert unknown_names(NAMES) == []


def test_names_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "bwdln").mkdir()
    (tmp_path / "bwdln" / "__init__.py").touch()
    text = '"""`b.there`, `b.gone`, `Kind.field`, `Kind.other`, `numpy.sum`, `numpy.sums`, `seen.csv`."""\n'
    text += "import numpy\n\n\nclass Kind:\n    field: int\n"
    (tmp_path / "bwdln" / "a.py").write_text(text, encoding="utf-8")
    text = '"""`Kind.field`, `there.field`, `there.other`."""\nfrom bwdln.a import Kind as there\n'
    (tmp_path / "bwdln" / "b.py").write_text(text, encoding="utf-8")
    found = unknown_names(code_names.Names(tmp_path))
    assert [line.split()[1] for line in found] == [
        "b.gone",
        "Kind.other",
        "numpy.sums",
        "seen.csv",
        "there.other",
    ]


def test_names_mean_what_they_mean_in_the_code() -> None:
    """Everything that resolves is there when it is imported."""
    for docstring in NAMES.docstrings():
        for name in DOTTED.findall(docstring.text):
            place = NAMES.resolve(name, docstring.scope)
            if place is not None and pydoc.locate(place) is None:
                owner = pydoc.locate(place.rpartition(".")[0])
                fields = getattr(owner, "__annotations__", {}) | getattr(owner, "__dataclass_fields__", {})
                assert place.rpartition(".")[2] in fields, (docstring.scope.module, docstring.line, name)


# --- the page of options --------------------------------------------------------------------------


def test_options_are_read_with_their_comments() -> None:
    text = "# What it is,\n# at length.\ndefaults:\n  - a: b\n\nname: x\nsize: 2.0  # how large\n"
    text += "inner:  # a group\n  list: [1, 2]  # of numbers,\n               # at least one\n  plain: a#b\n"
    head, found = options.read(text)
    assert head == "What it is, at length."
    assert found == [
        ("name", "x", ""),
        ("size", "2.0", "how large"),
        ("inner", "", "a group"),
        ("inner.list", "[1, 2]", "of numbers, at least one"),
        ("inner.plain", "a#b", ""),
    ]


def test_page_of_options_has_every_choice_and_every_comment() -> None:
    page = options.page(ROOT)
    for group in options.GROUPS:
        for path in (CONFIGS / group).glob("*.yaml"):
            text = path.read_text(encoding="utf-8")
            assert f"{group}={path.stem}`\n" in page, path
            comments = len(re.findall(r"^ *[\w.]+:.* # ", text, flags=re.MULTILINE))
            assert sum(bool(each.meaning) for each in options.read(text)[1]) >= comments, path
    groups = {str(path.parent.relative_to(CONFIGS)) for path in CONFIGS.glob("**/*.yaml")}
    assert {each for each in groups if not re.match(r"hydra|experiment/|\.$", each)} == set(options.GROUPS)
