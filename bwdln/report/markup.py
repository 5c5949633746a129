"""HTML that cannot be broken by what is put into it: every text is escaped, unless it is markup already."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

#: Elements without content and without an end.
VOID = {"img", "input", "meta", "link", "br"}


class Markup(str):
    """A text that is HTML."""

    __slots__ = ()


def text(content: object) -> Markup:
    """A content as HTML: nothing in it is markup, unless it is `Markup`."""
    return content if isinstance(content, Markup) else Markup(html.escape(str(content), quote=True))


def element(name: str, /, *contents: object, **attributes: object) -> Markup:
    """An element; contents that are None are left out.

    Underscores in names of attributes stand for hyphens, one at the end for nothing (`class_`). True is an
    attribute without a value; False and None are none.
    """
    opening = name + "".join(_attribute(each, value) for each, value in attributes.items())
    if name in VOID:
        return Markup(f"<{opening}>")
    inside = "".join(text(each) for each in contents if each is not None)
    return Markup(f"<{opening}>{inside}</{name}>")


def join(parts: Any, between: str = "") -> Markup:
    """Several contents as one; None is left out."""
    return Markup(between.join(text(each) for each in parts if each is not None))


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    written = name.rstrip("_").replace("_", "-")
    return f" {written}" if value is True else f' {written}="{text(value)}"'


def data(content: object, identity: str) -> Markup:
    """Data for the scripts of the page, which no text in it can end."""
    written = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = re.sub(r"[<>&\u2028\u2029]", lambda found: f"\\u{ord(found.group()):04x}", written)
    return Markup(f'<script type="application/json" id="{text(identity)}">{safe}</script>')


def address(path: Path, base: Path) -> str:
    """Where a file or folder lies, as seen from the folder of the page."""
    try:
        relative = Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()
    except ValueError:  # on another drive
        return path.resolve().as_uri()
    return quote(f"./{relative}" + ("/" if path.is_dir() else ""))
