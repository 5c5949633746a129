"""The page of all options, from the comments of the YAML files in configs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

#: What the groups choose, in the order of the page.
GROUPS = {
    "target": "The Gaussian to be learned.",
    "network": "Depth and widths of the deep linear generator.",
    "initialization": "Where the layers start.",
    "loss": "What is descended on.",
    "dynamics": "How the layers move.",
    "dynamics/optimizer": "The rule of the steps of gradient descent.",
    "dynamics/schedule": "The step size over the steps of gradient descent.",
    "record": "When, and what, is recorded.",
    "experiment": "Whole jobs and studies, chosen with a plus sign: `+experiment=step_size`.",
}
LINE = re.compile(r"( *)([\w./]+):(?: +(?!#)(\S.*?))?(?: +# (.*))?")

HEAD = """\
# Options

Every option of the command line, with its default; made from the files in `configs/`. A group is chosen by
`group=choice`, an option is changed by `option=value`, a sweep is `-m option=value,value`.

```bash
python -m experiments.train network=linear network.depth=4 dynamics.step_size=0.05
```
"""


class Option(NamedTuple):
    """An option of a YAML file: its path, its default, and the comment beside it."""

    path: str
    value: str
    meaning: str


def read(text: str) -> tuple[str, list[Option]]:
    """The comment a YAML file begins with, and its options."""
    lines = text.splitlines()
    head: list[str] = []
    while lines and lines[0].startswith("#"):
        line = lines.pop(0).removeprefix("#").strip()
        head += [] if line.startswith("@package") else [line]
    found: list[Option] = []
    at: list[tuple[int, str]] = []  # the keys the line lies under, with their indentation
    for line in lines:
        matched = LINE.fullmatch(line.rstrip())
        if not matched:
            if found and (more := re.fullmatch(r"\s+# (.*)", line)):
                found[-1] = found[-1]._replace(meaning=f"{found[-1].meaning} {more[1]}")
            continue
        indent, key = len(matched[1]), matched[2]
        at = [each for each in at if each[0] < indent]
        path = ".".join([*(name for _, name in at), key])
        at.append((indent, key))
        if at[0][1] != "defaults" and (matched[3] or matched[4]):
            found.append(Option(path, matched[3] or "", matched[4] or ""))
    return " ".join(head), found


def page(root: Path) -> str:
    """The Markdown of the page."""
    configs = root / "configs"
    _, own = read((configs / "config.yaml").read_text(encoding="utf-8"))
    parts = [HEAD, "## Of the job itself\n", _table(own, "")]
    for group, task in GROUPS.items():
        parts.append(f"## `{group}`\n\n{task}\n")
        prefix = "" if group == "experiment" else group.replace("/", ".") + "."
        for file in sorted((configs / group).glob("*.yaml")):
            about, found = read(file.read_text(encoding="utf-8"))
            given = [each for each in found if each.path != "name"]
            chosen = f"+{group}" if group == "experiment" else group
            parts.append(f"### `{chosen}={file.stem}`\n\n{_escaped(about)}\n")
            parts.append(_table(given, prefix) if given else "")
    return "\n".join(part for part in parts if part)


def _table(found: list[Option], prefix: str) -> str:
    rows = [f"| `{prefix}{each.path}` | {_code(each.value)} | {_escaped(each.meaning)} |" for each in found]
    return "\n".join(["| option | default | meaning |", "|---|---|---|", *rows]) + "\n"


def _code(value: str) -> str:
    quoted = value.replace("|", "\\|")
    return f"`{quoted}`" if value else ""


def _escaped(text: str) -> str:
    """A comment as Markdown: what would be markup is not."""
    return re.sub(r"([|*_<\[\]`])", r"\\\1", text)
