"""The page: one HTML file that holds all it shows and loads nothing.

A policy in its head forbids every request, and every script but those written here, by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from bwdln.report import explore, pictures, tables
from bwdln.report.markup import Markup, address, data, element, join, text
from bwdln.report.reading import Section

ASSETS = files("bwdln.report")
KINDS = {
    "run": "Run",
    "sweep": "Sweep",
    "study": "Study",
    "sweep study": "Study of a sweep",
    "landscape": "Landscape",
    "claims": "Claims",
}
#: The libraries that only the interactive view needs.
PLOTS = ("vega", "vega-lite", "vega-embed")


def page(sections: Sequence[Section], title: str, folder: Path) -> str:
    """The HTML of all sections; links are as seen from `folder`."""
    alone = len(sections) == 1
    keys = [f"s{number}" for number in range(1, len(sections) + 1)]
    places = {_name(each.folder, folder): key for key, each in zip(keys, sections, strict=True)}
    bodies = [
        _section(each, key, folder, {} if alone else places) for key, each in zip(keys, sections, strict=True)
    ]
    interactive = any(each.view is not None for each in sections)
    early, scripts = _asset("early.js"), list(_scripts(interactive))
    main = element("main", *bodies, id="content", tabindex="-1")
    body = join([_header(sections, title, folder), main, _footer(interactive)], "\n")
    return Template(_asset("template.html")).substitute(
        policy=text(_policy([early, *scripts])),
        title=text(title),
        style=_asset("report.css"),
        early=early,
        body=body,
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


# --- the frame ------------------------------------------------------------------------------------


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _scripts(interactive: bool) -> Iterator[str]:
    """The libraries and then our own script."""
    for name, entry in json.loads(_asset("vendor/versions.json")).items():
        if interactive or name not in PLOTS:
            yield _asset(f"vendor/{entry['file']}")
    yield _asset("report.js")


def _policy(scripts: Iterable[str]) -> str:
    """No request of any kind; no script but these."""
    digests = (base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts)
    ours = " ".join(f"'sha256-{digest}'" for digest in digests)
    rules = ("default-src 'none'", "img-src data:", "style-src 'unsafe-inline'", f"script-src {ours}")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def _header(sections: Sequence[Section], title: str, base: Path) -> Markup:
    toggle = element("button", "Dark", type="button", class_="theme", aria_pressed="false", hidden=True)
    several = len(sections) > 1
    about = f"{len(sections):,} results" if several else KINDS.get(sections[0].kind, sections[0].kind)
    return element(
        "header",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element("div", element("p", about, class_="kind"), element("h1", title), class_="heading"),
        toggle,
        _contents(sections, base) if several else None,
        class_="top",
    )


def _contents(sections: Sequence[Section], base: Path) -> Markup:
    """The table of contents."""
    items = [
        element(
            "li",
            element("a", each.title, href=f"#s{number}"),
            " ",
            element(
                "span", f"{KINDS.get(each.kind, each.kind)} · {_name(each.folder, base)}", class_="quiet"
            ),
        )
        for number, each in enumerate(sections, start=1)
    ]
    return element(
        "nav", element("h2", "Contents"), element("ol", *items), class_="contents", aria_label="Contents"
    )


def _footer(interactive: bool) -> Markup:
    """What made the page, and the licenses of what is in it."""
    entries = {
        name: entry
        for name, entry in json.loads(_asset("vendor/versions.json")).items()
        if interactive or name not in PLOTS
    }
    texts = [
        join(
            [
                element("h3", f"{name} {entry['version']}"),
                element("pre", _asset(f"vendor/{entry['license_file']}")),
            ]
        )
        for name, entry in entries.items()
    ]
    names = ", ".join(entries)
    made = element("p", "Made by bwdln. This page holds all it shows and loads nothing.")
    licenses = element("details", element("summary", f"Licenses of {names}"), *texts, class_="licenses")
    return element("footer", made, licenses)


# --- a section ------------------------------------------------------------------------------------


def _section(section: Section, key: str, base: Path, places: Mapping[str, str]) -> Markup:
    """All of one folder; alone on a page, without other `places`, it needs no heading of its own."""
    alone = not places
    level = "h2" if alone else "h3"
    parts = [
        ("", _summary(section)),
        ("Findings", tables.findings(section, places)),
        ("Explore", None if section.view is None else explore.controls(section.view, key)),
        (tables.heading(section), tables.rows(section, key, base)),
        ("Figures", _figures(section, base)),
        ("Reproduce", _reproduce(section)),
        ("Configuration", _configuration(section)),
        ("Versions and device", _listed(section.provenance)),
        ("Files", _files(section, base)),
    ]
    shown = [(name, content) for name, content in parts if content is not None]
    links = [
        element("a", name, href=f"#{_place(key, name)}")
        for name, _ in shown
        if name and (alone or name not in ("Versions and device", "Files"))
    ]
    bodies = [
        element("section", element(level, name), content, id=_place(key, name), class_="part")
        if name
        else content
        for name, content in shown
    ]
    heading = element("p", KINDS.get(section.kind, section.kind), class_="kind")
    return element(
        "article",
        None if alone else join([heading, element("h2", section.title)]),
        element("p", _link(section.folder, base, _name(section.folder, base)), class_="where"),
        element("nav", *links, class_="places", aria_label=f"Parts of {section.title}")
        if len(links) > 1
        else None,
        *bodies,
        None if section.view is None else data(explore.payload(section, base), f"{key}-data"),
        id=key,
        data_kind=section.kind,
    )


def _name(folder: Path, base: Path) -> str:
    """A folder as seen from that of the page; the page's own by its name."""
    relative = os.path.relpath(folder.resolve(), base.resolve())
    return folder.resolve().name if relative == "." else Path(relative).as_posix()


def _place(key: str, name: str) -> str:
    return f"{key}-{name.lower().replace(' ', '-')}"


def _summary(section: Section) -> Markup | None:
    facts = section.facts | (
        {"Interrupted": "yes"} if section.findings and section.findings.interrupted else {}
    )
    tiles = [element("div", element("dt", name), element("dd", value)) for name, value in facts.items()]
    if not tiles:
        return None
    swept = None
    if section.swept:
        swept = element(
            "div", element("p", "Swept options", class_="small"), _listed(section.swept), class_="part swept"
        )
    return join([element("dl", *tiles, class_="facts"), swept])


def _listed(pairs: dict[str, str]) -> Markup | None:
    if not pairs:
        return None
    items = [element("div", element("dt", name), element("dd", value)) for name, value in pairs.items()]
    return element("dl", *items, class_="list")


def _figures(section: Section, base: Path) -> Markup | None:
    shown = [_figure(each, section, base) for each in section.figures]
    return element("div", *shown, class_="figures") if shown else None


def _figure(figure: pictures.Figure, section: Section, base: Path) -> Markup:
    picture = pictures.embedded(figure.picture) if figure.picture is not None else None
    links = join([_link(each, base, _ending(each, figure.name)) for each in figure.files], " ")
    if picture is None:
        shown = element("p", "This figure has no picture that can be shown.", class_="quiet none")
    else:
        alternative = f"{figure.caption}. Figure {figure.name} of {section.title}."
        size = {"width": picture.width, "height": picture.height}
        shown = element("img", src=picture.address, alt=alternative, **size)
    caption = element("figcaption", element("span", figure.caption), element("span", links, class_="links"))
    return element("figure", shown, caption)


def _ending(file: Path, stem: str) -> str:
    """What of a figure a file is: `PDF`, `PNG`, `data`, `table`."""
    ending = file.name.removeprefix(stem)
    return {".data.csv": "data (CSV)", ".csv": "table (CSV)"}.get(ending, ending.lstrip(".").upper())


def _reproduce(section: Section) -> Markup | None:
    if section.command is None:
        return None
    return element(
        "div",
        element("p", "In the root of the repository, with the versions below:"),
        _copyable(section.command, "the command"),
    )


def _copyable(content: str, what: str) -> Markup:
    button = element("button", "Copy", type="button", class_="copy", aria_label=f"Copy {what}")
    return element("div", element("pre", element("code", content), tabindex="0"), button, class_="copyable")


def _configuration(section: Section) -> Markup | None:
    if not section.configuration:
        return None
    groups = [_group(str(name), value) for name, value in section.configuration.items()]
    written = yaml.safe_dump(section.configuration, sort_keys=False, allow_unicode=True)
    whole = element("details", element("summary", "As YAML"), _copyable(written, "the configuration"))
    return element("div", element("div", *groups, class_="tree"), whole)


def _group(name: str, value: Any) -> Markup:
    """An option, or a group of them that folds."""
    if isinstance(value, dict) and value:
        inner = [_group(str(each), below) for each, below in value.items()]
        first = value.get("name")
        said = None if first is None else element("span", first, class_="value")
        return element("details", element("summary", name, " ", said), *inner)
    shown = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) else value
    return element(
        "div", element("span", name, class_="name"), element("span", shown, class_="value"), class_="leaf"
    )


def _files(section: Section, base: Path) -> Markup | None:
    if not section.files:
        return None
    names = [(file, os.path.relpath(file, section.folder)) for file in section.files]
    return element("ul", *(element("li", _link(file, base, name)) for file, name in names), class_="files")


def _link(path: Path, base: Path, content: object) -> Markup:
    return element("a", content, href=address(path, base))
