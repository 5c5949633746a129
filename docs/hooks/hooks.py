"""What MkDocs runs while it builds the site: pages made from the sources, and formulas as MathML."""

from __future__ import annotations

import html
import io
import re
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import options
import reference
from code_names import PACKAGE, Names, Scope
from fontTools import subset
from math_core import LatexError, LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = Names(ROOT)
#: Pages that lie outside docs/ -> their name on the site.
OUTSIDE = {"README.md": "guide.md", "CHANGELOG.md": "changelog.md"}
#: A fenced block, or a dotted name in single backticks that is no link yet.
NAME = re.compile(r"^```.*?^```|(?<![`\[\w])`(\w+(?:\.\w+)+)`(?![`\w\]])", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)

#: A power of a large bracket, written as that of its closing sign alone, which Chromium sets too low; no
#: other bracket of a size of its own lies inside.
POWER = re.compile(
    r"(?<=<mrow>)(<mo minsize=[^>]*>[(\[](?:(?!minsize).)*?)"
    r"<msup>(<mo minsize=[^>]*>[)\]]</mo>)((?:(?!minsize).)*?)</msup></mrow>"
)
#: Blocks of Unicode with the signs of formulas: first and last.
SIGNS = [
    (0x20, 0x17F),  # Latin
    (0x370, 0x3FF),  # Greek
    (0x2010, 0x22FF),  # punctuation, letterlike signs, arrows, operators
    (0x2308, 0x23DF),  # brackets
    (0x27E6, 0x27EF),
    (0x1D400, 0x1D7FF),  # alphabets of mathematics
]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the API reference into the navigation."""
    assert config.nav is not None
    config.nav = [*config.nav, {"API reference": reference.navigation(ROOT)}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files."""
    made = reference.pages(ROOT) | {"options.md": options.page(ROOT)}
    for source, name in OUTSIDE.items():
        made[name] = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
    made["guide.md"] = made["guide.md"].replace("# bwdln", "# Guide", 1)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "fonts/mathematics.woff", content=math_font()))
    return files


def on_page_markdown(markdown: str, *, page: Page, **kwargs: Any) -> str:
    """Links between docs/ and the root, which hold where the files lie, lead to the pages of the site."""
    for source, name in OUTSIDE.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(source)}(#[\w-]+)?\)", rf"]({name}\1)", markdown)
    if not page.file.src_uri.startswith("api/"):
        page.meta.setdefault("hide", ["navigation"])
        markdown = NAME.sub(linked, markdown)
    return re.sub(r"\[([^]]+)\]\((?:CITATION\.cff|LICENSE)\)", r"\1", markdown)


def linked(found: re.Match[str]) -> str:
    """A name of ours as a link to the reference; everything else as it is."""
    name = found[1]
    place = NAMES.resolve(name, Scope(PACKAGE, None, {})) if name else None
    return f"[`{name}`][{place}]" if place else found[0]


def on_page_content(content: str, *, page: Page, **kwargs: Any) -> str:
    """Write formulas as MathML, which browsers show by themselves; an unknown command fails the build."""
    converter = LatexToMathML(fancy_error=False)

    def converted(found: re.Match[str]) -> str:
        source = html.unescape(found[2])
        try:
            written = converter.convert_with_local_state(source, displaystyle=found[1] == "div")
            return POWER.sub(r"<msup><mrow>\1\2</mrow>\3</msup></mrow>", written)
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: {error} in {source}") from error

    return FORMULA.sub(converted, content)


def stretched(font: Any) -> tuple[list[str], list[Any]]:
    """The glyphs of a font for formulas that grow in height, and how."""
    variants = font["MATH"].table.MathVariants
    return variants.VertGlyphCoverage.glyphs, variants.VertGlyphConstruction


def math_font() -> bytes:
    """STIX Two Math, less the signs of other scripts: not every system has a font for formulas."""
    chosen = subset.Options(flavor="woff", layout_features=["*"], ignore_missing_unicodes=True)
    file = distribution("ziamath").locate_file("ziamath/fonts/STIXTwoMath-Regular.ttf")
    font = subset.load_font(str(file), chosen)
    for glyph, shapes in zip(*stretched(font), strict=True):  # Chromium keeps room for the widest shape
        if glyph == font.getBestCmap()[ord("√")]:
            del shapes.MathGlyphVariantRecord[2:]
    subsetter = subset.Subsetter(chosen)
    subsetter.populate(unicodes=[code for first, last in SIGNS for code in range(first, last + 1)])
    subsetter.subset(font)
    written = io.BytesIO()
    subset.save_font(font, written, chosen)
    return written.getvalue()
