"""What the names in docstrings mean, read off the sources: nothing is imported.

The site turns `losses.bures_wasserstein` in a docstring into a link, and the tests hold that every dotted
name that looks like a reference leads somewhere.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

PACKAGE = "bwdln"


class Scope(NamedTuple):
    """Where a docstring stands: its module, its class or None, and the parameters with their annotations."""

    module: str
    owner: str | None
    parameters: Mapping[str, str]


class Docstring(NamedTuple):
    """A docstring or a `#:` comment of the product, and where it stands."""

    scope: Scope
    line: int
    text: str


class Names:
    """The names that modules define and import, and the members of classes."""

    def __init__(self, root: Path) -> None:
        #: Module -> its file.
        self.modules = module_files(root)
        #: Module -> names that it defines -> their annotation, or an empty text.
        self.defined: dict[str, dict[str, str]] = {}
        #: Module -> names that it imports -> what they stand for.
        self.imported: dict[str, dict[str, str]] = {}
        #: Class -> its members -> their annotation, or an empty text.
        self.members: dict[str, dict[str, str]] = {}
        for module, path in self.modules.items():
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.defined[module] = _bound(tree.body)
            self.imported[module] = _imports(tree)
            for node in tree.body:
                if isinstance(node, ast.ClassDef):
                    methods = [each for each in ast.walk(node) if isinstance(each, ast.FunctionDef)]
                    assigned = {name: "" for each in methods for name in _assigned_to_self(each)}
                    self.members[f"{module}.{node.name}"] = assigned | _bound(node.body)

    def find(self, path: str) -> str | None:
        """The place where what this absolute path means is defined; None if it is not ours."""
        if path in self.modules:
            return path
        parent, _, name = path.rpartition(".")
        place = self.find(parent) if parent else None
        if place is None:
            return None
        if place in self.modules:
            if name in self.defined[place]:
                return f"{place}.{name}"
            return self.find(self.imported[place].get(name, ""))
        if place not in self.members:  # a value: its members are those of its class
            place = self._class_of(place)
        return f"{place}.{name}" if place and name in self.members[place] else None

    def resolve(self, name: str, scope: Scope) -> str | None:
        """The place a name in a docstring means, looked for as a reader would: near first."""
        first, _, rest = name.partition(".")
        if first in scope.parameters:
            place = self._annotated(scope.parameters[first], scope.module)
            found = self.find(f"{place}.{rest}") if place and rest else None
            if found or not rest:
                return found
        near = [scope.owner] if scope.owner else []
        package = scope.module.rpartition(".")[0]
        for where in (*near, scope.module, package, PACKAGE):
            found = self.find(f"{where}.{name}") if where else None
            if found:
                return found
        named = [place for place in self.members if place.rpartition(".")[2] == first]
        if len(named) == 1:  # a class that has its name alone needs no module
            return self.find(f"{named[0]}.{rest}".rstrip("."))
        return self.find(name)

    def foreign(self, name: str, scope: Scope) -> str | None:
        """The absolute name of a library's object that a name means; None if it means none."""
        first, _, rest = name.partition(".")
        libraries = {target.partition(".")[0] for each in self.imported.values() for target in each.values()}
        libraries -= {PACKAGE}
        if first in libraries:
            return name
        target = self.imported[scope.module].get(first, PACKAGE)
        return None if target.partition(".")[0] == PACKAGE else f"{target}.{rest}".rstrip(".")

    def docstrings(self) -> Iterator[Docstring]:
        """Every docstring and every `#:` comment."""
        for module, path in self.modules.items():
            text = path.read_text(encoding="utf-8")
            yield from _docstrings(ast.parse(text), Scope(module, None, {}))
            for number, line in enumerate(text.splitlines(), start=1):
                if line.lstrip().startswith("#: "):
                    yield Docstring(Scope(module, None, {}), number, line.lstrip()[3:])

    def _class_of(self, place: str) -> str | None:
        """The class of a value, from its annotation."""
        parent, _, name = place.rpartition(".")
        where = self.defined.get(parent) or self.members.get(parent) or {}
        module = parent if parent in self.modules else parent.rpartition(".")[0]
        return self._annotated(where.get(name, ""), module)

    def _annotated(self, annotation: str, module: str) -> str | None:
        """The class of ours that an annotation in a module names, alone or `| None`."""
        place = self.find(f"{module}.{annotation.removesuffix(' | None')}") if annotation else None
        return place if place in self.members else None


def module_files(root: Path) -> dict[str, Path]:
    """Every module of the package -> its file, in the order of their names.

    What lies in a folder that is no package is none: Hydra's plugins, scripts.
    """
    files = {}
    for path in (root / PACKAGE).glob("**/*.py"):
        inside = path.relative_to(root)
        if all((root / folder / "__init__.py").exists() for folder in inside.parents[:-1]):
            files[".".join(inside.with_suffix("").parts).removesuffix(".__init__")] = path
    return dict(sorted(files.items()))


def _bound(body: list[ast.stmt]) -> dict[str, str]:
    """The names that statements bind -> their annotation; imports aside."""
    names: dict[str, str] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names[node.name] = ""
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names[node.target.id] = ast.unparse(node.annotation)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                names |= {each.id: "" for each in ast.walk(target) if isinstance(each, ast.Name)}
        elif isinstance(node, ast.If | ast.Try):
            names |= _bound(node.body) | _bound(node.orelse)
    return names


def _imports(tree: ast.Module) -> dict[str, str]:
    """The names that a module imports -> what they stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                names[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and node.module and node.module != "__future__":
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _assigned_to_self(method: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(method):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


def _docstrings(node: ast.AST, scope: Scope) -> Iterator[Docstring]:
    text = ast.get_docstring(node) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) else None
    if text:
        yield Docstring(scope, getattr(node, "lineno", 1), text)
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            inner = scope._replace(owner=f"{scope.module}.{child.name}")
        elif isinstance(child, ast.FunctionDef):
            inner = scope._replace(parameters=dict(scope.parameters) | _parameters(child))
        else:
            inner = scope
        yield from _docstrings(child, inner)


def _parameters(function: ast.FunctionDef) -> dict[str, str]:
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    every += [each for each in (given.vararg, given.kwarg) if each]
    return {each.arg: ast.unparse(each.annotation) if each.annotation else "" for each in every}
