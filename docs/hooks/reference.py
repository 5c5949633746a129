"""The pages of the API reference: one for every public module, in the groups of README.md, "Inside"."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

from code_names import module_files

#: The group of modules that README.md does not name.
REST = "More"


class Group(NamedTuple):
    """A row of the table "Inside" of README.md: modules or packages of one task."""

    title: str
    parts: tuple[str, ...]
    task: str


def groups(root: Path) -> list[Group]:
    """The groups that README.md names, from the bottom up."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    rows = readme.partition("\n| part | modules | task |\n")[2].partition("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return [Group(title, tuple(re.findall(r"`(\w+)`", parts)), task) for title, parts, task in cells]


def public_modules(root: Path) -> dict[str, Path]:
    """Every module without a leading underscore in its name -> its file; the package itself aside."""
    files = module_files(root)
    return {
        name: path for name, path in files.items() if "." in name and not any_private(name.split(".")[1:])
    }


def any_private(pieces: list[str]) -> bool:
    """Whether a piece of a dotted name begins with an underscore."""
    return any(piece.startswith("_") for piece in pieces)


def page_of(module: str, modules: dict[str, Path]) -> str:
    """The page of a module; that of a package is the index of a folder."""
    path = module.split(".", 1)[1].replace(".", "/")
    return f"api/{path}/index.md" if modules[module].name == "__init__.py" else f"api/{path}.md"


def pages(root: Path) -> dict[str, str]:
    """Every page of the reference -> its Markdown."""
    modules = public_modules(root)
    made = {"api/index.md": _index(root, modules)}
    for module, path in modules.items():
        below = [each for each in modules if each.rpartition(".")[0] == module]
        text = f"# `{module}`\n\n::: {module}\n"
        if below:
            rows = [f"| [`{each}`][{each}] | {summary(modules[each])} |" for each in below]
            text += "\n## Modules\n\n| module | task |\n|---|---|\n" + "\n".join(rows) + "\n"
        elif not _has_content(path):
            continue
        made[page_of(module, modules)] = text
    return made


def navigation(root: Path) -> list[object]:
    """The reference in the navigation of MkDocs."""
    modules, made = public_modules(root), pages(root)
    named = groups(root)
    grouped = {part for group in named for part in group.parts}
    rest = tuple(name.split(".")[1] for name in modules if name.count(".") == 1)
    rest = tuple(part for part in rest if part not in grouped)
    every = [*named, Group(REST, rest, "")] if rest else named

    def entry(module: str) -> list[dict[str, object]]:
        page, short = page_of(module, modules), module.rpartition(".")[2]
        if modules[module].name != "__init__.py":
            return [{short: page}]
        below = [each for each in modules if each.rpartition(".")[0] == module]
        return [{short: [page, *(inner for each in below for inner in entry(each))]}] if page in made else []

    sections: list[object] = ["api/index.md"]
    for group in every:
        entries = [each for part in group.parts for each in entry(f"bwdln.{part}")]
        only = next(iter(entries[0].values())) if len(entries) == 1 else None
        sections.append({group.title: only if isinstance(only, list) else entries})
    return sections


def summary(path: Path) -> str:
    """The first sentence of the docstring of a module, fit for the cell of a table."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split())
    first = re.match(r".*?[.](?= [A-Z`]|$)", text)
    return (first[0] if first else text).replace("|", "\\|")


def _has_content(path: Path) -> bool:
    return bool(ast.parse(path.read_text(encoding="utf-8")).body)


def _index(root: Path, modules: dict[str, Path]) -> str:
    lines = [
        "# API reference",
        "",
        "Every public module, in the groups of the [guide](../guide.md#inside). Names in docstrings lead",
        "to what they name, and § to the [mathematics](../theory.md).",
    ]
    named = groups(root)
    grouped = {part for group in named for part in group.parts}
    rest = [name for name in modules if name.split(".")[1] not in grouped]
    for group in named:
        inside = [name for part in group.parts for name in modules if _belongs(name, part)]
        lines += ["", f"## {group.title}", "", f"{group.task[0].upper()}{group.task[1:]}.", ""]
        lines += _rows(inside, modules)
    if rest:
        lines += ["", f"## {REST}", "", *_rows(rest, modules)]
    return "\n".join(lines) + "\n"


def _belongs(module: str, part: str) -> bool:
    return module.split(".")[1] == part


def _rows(names: list[str], modules: dict[str, Path]) -> list[str]:
    rows = [f"| [`{name.split('.', 1)[1]}`][{name}] | {summary(modules[name])} |" for name in names]
    return ["| module | task |", "|---|---|", *rows]
