"""An extension of Griffe, which reads the docstrings for the site.

It takes `#:` comments as the docstrings of what they stand above, and makes links of names of ours in
single backticks and of the sections of docs/theory.md, which the strict build then checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from code_names import Names, Scope
from griffe import (
    Class,
    Docstring,
    Extension,
    Function,
    GriffeLoader,
    Module,
    Object,
    Parameter,
    ParameterKind,
    Parameters,
)
from markdown.extensions.toc import slugify

ROOT = Path(__file__).resolve().parent.parent.parent
#: A name in single backticks that is no link yet.
NAME = re.compile(r"(?<![`\[\w])`([A-Za-z]\w*(?:\.[A-Za-z]\w*)*)`(?![`\w])")


class Links(Extension):
    """Puts links into every docstring of the package, once it is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.names = Names(ROOT)
        theory = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
        headings = re.findall(r"^## ((\d+)\. .*)$", theory, flags=re.MULTILINE)
        self.sections = {number: slugify(heading, "-") for heading, number in headings}

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        """Rewrite the docstrings of a package that was loaded."""
        self.shown = set(shown(pkg))
        self.visit_object(pkg)

    def visit_object(self, thing: Object) -> None:
        """Rewrite the docstrings of an object and of all it contains."""
        if thing.docstring is not None:
            thing.docstring.value = self.linked(thing.docstring.value, thing)
        for member in thing.members.values():
            if not member.is_alias:
                self.visit_object(member)
        if isinstance(thing, Class) and [str(base) for base in thing.bases] == ["NamedTuple"]:
            thing.set_member("__init__", constructor(thing))

    def linked(self, text: str, thing: Object) -> str:
        """The docstring of an object, with links."""
        parent = thing.parent if thing.parent and thing.parent.is_class else None
        owner = thing.path if thing.is_class else parent.path if parent else None
        parameters = thing.parameters if isinstance(thing, Function) else ()
        annotated = {each.name: str(each.annotation or "") for each in parameters}
        scope = Scope(thing.module.path, owner, annotated)

        def link(found: re.Match[str]) -> str:
            place = self.names.resolve(found[1], scope) or ""
            if place not in self.shown:  # a field of a class: the class
                place = place.rpartition(".")[0]
            near = (thing.path, owner, thing.module.path)
            return f"[{found[0]}][{place}]" if place in self.shown and place not in near else found[0]

        def section(found: re.Match[str]) -> str:
            anchor = self.sections.get(found[1], "no such section")
            return f"[{found[0]}][{anchor}]"

        return re.sub(r"§(\d+)", section, NAME.sub(link, text))


def shown(thing: Object) -> Iterator[str]:
    """The paths of what the site shows of a public object: what is public and documented."""
    if thing.docstring is None and thing.is_attribute:
        thing.docstring = comment(thing)
    if thing.docstring is not None:
        yield thing.path
    for member in thing.members.values():
        if not member.is_alias and not member.is_private:
            yield from shown(member)


def comment(thing: Object) -> Docstring | None:
    """The `#:` comment above an attribute, as its docstring."""
    if not thing.lineno or not isinstance(thing.filepath, Path):
        return None
    above = thing.lines_collection[thing.filepath][: thing.lineno - 1]
    lines: list[str] = []
    while above and (line := above.pop().strip()).startswith("#:"):
        lines.insert(0, line.removeprefix("#:").strip())
    return Docstring("\n".join(lines), parent=thing) if lines else None


def constructor(thing: Class) -> Function:
    """What the fields of a named tuple make, so that its signature shows them with their types."""
    kind = ParameterKind.positional_or_keyword
    fields = [
        Parameter(name, annotation=field.annotation, kind=kind, default=field.value)
        for name, field in thing.attributes.items()
        if field.annotation is not None
    ]
    own = Parameter("self", kind=kind)
    return Function("__init__", parameters=Parameters(own, *fields), parent=thing, lineno=thing.lineno)
