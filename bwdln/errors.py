"""Bad input, said in one line: the option, what it got and what it takes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, get_args


class InvalidOption(ValueError):
    """An option has a value it does not take.

    `option` is the option's name as its user types it. A function raises it with the name of its
    own parameter, and `within` puts the name of the configuration group in front: `rank` raised
    by a target becomes `target.rank`.
    """

    def __init__(self, option: str, got: Any, takes: str) -> None:
        self.option, self.got, self.takes = option, got, takes
        super().__init__(f"{option}: got {got}; takes {takes}")


class Failure(Exception):
    """What was raised in another process, or became of it: one line, since the rest is in the log there."""


@contextmanager
def within(group: str) -> Iterator[None]:
    """Name the options of every `InvalidOption` raised inside as members of `group`."""
    try:
        yield
    except InvalidOption as error:
        raise InvalidOption(f"{group}.{error.option}", error.got, error.takes) from error


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid names, and which of them may have been meant, for the end of a message."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"one of {', '.join(names)}{hint}"


def check(condition: bool, option: str, got: Any, takes: str) -> None:
    """Raise `InvalidOption` unless `condition` holds."""
    if not condition:
        raise InvalidOption(option, got, takes)


def check_one_of(option: str, value: Any, choices: Any) -> None:
    """Raise `InvalidOption` unless `value` is one of a `Literal`."""
    if value not in get_args(choices):
        raise InvalidOption(option, value, nearest(str(value), get_args(choices)))
