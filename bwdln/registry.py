"""One table of named functions per choice, open to users.

A function's parameters that are keyword-only or have a default are its options. Their names, types
and defaults are read from its signature, so that a function a user registers is configured and
checked like ours. Where a choice is part of a compiled program (a loss, a dynamics), its floats arrive
there as traced numbers: check their range only where they are plain ones, as `isinstance` tells.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from bwdln.errors import InvalidOption, check, nearest, within

Function = TypeVar("Function", bound=Callable[..., Any])


_signature = functools.cache(inspect.signature)
_hints = functools.cache(get_type_hints)


@dataclass(frozen=True)
class Choice:
    """A name from a registry and the options for its function; hashable.

    `options` are pairs of a name and a value: a number, a text, null, a tuple of these, or another
    `Choice`.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(group: Any) -> Choice:
        """From a mapping such as `{name: zipf, dimension: 20}`, or from the name alone."""
        if isinstance(group, str):
            return Choice(group)
        check(isinstance(group, Mapping) and "name" in group, "name", group, "a name and options")
        check(isinstance(group["name"], str), "name", repr(group["name"]), "a text")
        pairs = ((key, _frozen(value)) for key, value in group.items() if key != "name")
        return Choice(group["name"], tuple(sorted(pairs)))

    def option(self, name: str, default: Any = None) -> Any:
        """The value of an option, or the default where it is not given."""
        return dict(self.options).get(name, default)

    def mapping(self) -> dict[str, Any]:
        """The plain mapping that `of` takes."""
        return {"name": self.name} | {key: _thawed(value) for key, value in self.options}


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Choice.of(value)
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, Choice):
        return value.mapping()
    return list(map(_thawed, value)) if isinstance(value, tuple) else value


class Registry:
    """Named functions for one choice of the configuration, such as `loss`.

    Register with `@LOSSES.register("my_loss")`; call with `LOSSES.build(Choice("my_loss"), …)`.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self._functions: dict[str, Callable[..., Any]] = {}

    def register(self, name: str) -> Callable[[Function], Function]:
        """Decorator: make a function available under `name`. A taken name is refused."""

        def add(function: Function) -> Function:
            taken = self._functions.get(name)
            if taken is not None and (taken.__module__, taken.__qualname__) != (
                function.__module__,
                function.__qualname__,
            ):
                raise ValueError(f"{self.group}: the name {name} is taken by {taken.__module__}")
            self._functions[name] = function
            return function

        return add

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._functions))

    def __contains__(self, name: str) -> bool:
        return name in self._functions

    def __getitem__(self, name: str) -> Callable[..., Any]:
        """The function of that name; raises `InvalidOption` with the nearest names."""
        if name not in self._functions:
            raise InvalidOption(self.group, name, nearest(str(name), self._functions))
        return self._functions[name]

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The options a function takes: its parameters that are keyword-only or have a default."""
        parameters = _signature(self[name]).parameters.values()
        optional = (p for p in parameters if p.kind is p.KEYWORD_ONLY or p.default is not p.empty)
        return {p.name: p for p in optional}

    def checked(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options, each of the type its function declares.

        Raises `InvalidOption` for an option the function does not take, one it lacks, or a value
        of the wrong type. An integer is accepted for a float; nothing else is converted.
        """
        function, taken = self[name], self.options(name)
        hints = _hints(function)
        with within(self.group):
            for option, value in options.items():
                if option not in taken:
                    takes = nearest(option, taken) if taken else f"nothing: {name} has no options"
                    raise InvalidOption(option, value.name if isinstance(value, Choice) else value, takes)
            for option, parameter in taken.items():
                if parameter.default is parameter.empty and option not in options:
                    raise InvalidOption(option, "nothing", _described(hints[option]))
            return {
                option: convert(option, value, hints.get(option, Any)) for option, value in options.items()
            }

    def resolved(self, choice: Choice) -> Choice:
        """The choice with its options checked and in the types its function declares."""
        return Choice(choice.name, tuple(sorted(self.checked(choice.name, dict(choice.options)).items())))

    def build(self, choice: Choice, *arguments: Any) -> Any:
        """Call the chosen function on `arguments` with its checked options."""
        keywords = self.checked(choice.name, dict(choice.options))
        with within(self.group):
            return self[choice.name](*arguments, **keywords)


def convert(option: str, value: Any, hint: Any) -> Any:
    """`value` as an instance of `hint`, or `InvalidOption`."""
    for alternative in _alternatives(hint):
        matched, converted = _matched(value, alternative)
        if matched:
            return converted
    raise InvalidOption(option, repr(value), _described(hint))


def _alternatives(hint: Any) -> Sequence[Any]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _matched(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether `value` fits the single type `hint`, and the value in that type."""
    if hint is None or hint is type(None):
        return value is None, value
    if hint is float:
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return numeric and not math.isnan(value), float(value) if numeric else value
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    if get_origin(hint) is Literal:
        return value in get_args(hint), value
    if get_origin(hint) in (tuple, list, Sequence) or get_origin(hint) is Sequence:
        if not isinstance(value, list | tuple):
            return False, value
        items = [_matched(item, get_args(hint)[0]) for item in value]
        return all(matched for matched, _ in items), tuple(item for _, item in items)
    if hint is Choice and isinstance(value, str):
        return True, Choice(value)
    if isinstance(hint, type):
        return isinstance(value, hint), value
    return True, value


def _described(hint: Any) -> str:
    """A type in the words of a message: `a number`, `an integer or null`."""
    words: dict[Any, str] = {
        float: "a number",
        int: "an integer",
        bool: "true or false",
        str: "a text",
        Choice: "a name with options",
        dict: "names with values",
        type(None): "null",
    }

    def one(alternative: Any) -> str:
        if alternative in words:
            return words[alternative]
        if get_origin(alternative) is Literal:
            return " or ".join(map(str, get_args(alternative)))
        if get_args(alternative):
            return f"a list, each {one(get_args(alternative)[0])}"
        return getattr(alternative, "__name__", str(alternative))

    return " or ".join(one(alternative) for alternative in _alternatives(hint))


def load_plugins(names: Iterable[str]) -> None:
    """Import modules of the user's, so that they can register what they define.

    The current directory joins the folders that modules are searched in, as the last one.
    Raises `InvalidOption` for a module that cannot be imported, with the reason.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module of the user's can raise anything
            takes = f"modules that can be imported ({type(error).__name__}: {error})"
            raise InvalidOption("plugins", name, takes) from error
