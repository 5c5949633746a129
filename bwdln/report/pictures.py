"""Figures that lie beside a result: what each shows in words, and its picture, small enough to embed."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

#: No embedded picture is wider, in pixels.
WIDEST = 1400
#: So many colors are enough for lines and maps; photographs are compressed otherwise.
COLORS = 96

#: What the figures of this project show, by the name of their file.
CAPTIONS = {
    "gap": "Relative gap to the optimum on the way, log axis",
    "final": "Final objective by the swept options",
    "spectrum": "Learned eigenvalues against the optimal ones, before the target's whole spectrum",
    "alignment": "How the singular vectors turn to the target's eigenvectors on the way, and where they end",
    "samples": "Real samples beside those of the untrained and the trained generator",
    "sharpness": "Both ends of the Hessian's spectrum on the way",
    "certificates": "Loss on the way below what theory promises of it, log axis",
    "rates": "Rate of the loss against depth, log axis: measured late, and as the certificates say",
    "rate_contour": "Fitted rate over depth and smallest singular value, a panel for each loss and tau",
    "rate_by_depth": "Fitted rate against depth, with regression lines",
    "rate_by_smallest": "Fitted rate against the smallest singular value, with regression lines",
    "rate_theory": "Fitted rate against the closed form, and against what the certificates promise",
    "distance": "Distance between the trajectories of descent and flow against the step size",
    "imbalance": "How far a step of descent moves the imbalance, against the step size",
    "curvature": "Extreme eigenvalues and condition numbers of the Hessian at the critical points",
    "paths_bures_wasserstein": "Bures-Wasserstein loss on the straight paths to the minimizer",
    "paths_frobenius": "Frobenius loss on the straight paths to the minimizer",
    "blow_up": "Negative curvature along which a missing mode is learned, against tau, log-log",
    "rank": "Effective rank against the part of the gap that is closed",
    "deviation": "Distance of generators that start alike in other coordinates, against the step",
    "eigengaps": "Fitted rate against the eigengap, a color for each depth; theory as lines",
    "depths": "Fitted rate against the depth, a color for each ratio of eigenvalues",
    "modes": "Strengths of the modes in one seed of each run; predicted times as diamonds",
    "loss": "Loss from saddle to saddle, with the values of the critical points passed",
    "times": "Measured against predicted times of every mode",
    "depth": "Largest stable step size against depth, and measured against its limit",
    "smallest_eigenvalue": "Largest stable step size against the smallest eigenvalue of the target",
}


class Figure(NamedTuple):
    """A figure: `picture` is its PNG file, None where there is none; `files` are all of it."""

    name: str
    caption: str
    picture: Path | None
    files: tuple[Path, ...]


class Picture(NamedTuple):
    """An embedded picture: its address, and its size in pixels."""

    address: str
    width: int
    height: int


def figures(files: Iterable[Path]) -> list[Figure]:
    """The figures that those files are, a PNG or a PDF each, in the order of `CAPTIONS`, then by name."""
    stems = {each.with_suffix("") for each in files if each.suffix in (".png", ".pdf")}
    order = {name: place for place, name in enumerate(CAPTIONS)}
    return [
        _figure(stem) for stem in sorted(stems, key=lambda stem: (order.get(stem.name, len(order)), stem))
    ]


def _figure(stem: Path) -> Figure:
    endings = (".png", ".pdf", ".data.csv", ".csv")
    files = tuple(path for path in (stem.with_name(stem.name + end) for end in endings) if path.is_file())
    words = stem.name.replace("_", " ")
    caption = CAPTIONS.get(stem.name, words[:1].upper() + words[1:])
    return Figure(stem.name, caption, next((each for each in files if each.suffix == ".png"), None), files)


def embedded(path: Path) -> Picture | None:
    """A picture as an address that holds it, in the smaller of two formats; None if it cannot be read."""
    try:
        with Image.open(path) as image:
            picture = _on_white(image)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError):
        return None
    if picture.width > WIDEST:
        size = (WIDEST, max(1, round(picture.height * WIDEST / picture.width)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    few = picture.quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    drawn = [("png", _written(few, "PNG", optimize=True)), ("webp", _written(picture, "WEBP", quality=80))]
    kind, content = min(drawn, key=_cost)
    address = f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return Picture(address, picture.width, picture.height)


def _cost(drawn: tuple[str, bytes]) -> float:
    """Bytes; those of a lossy picture, which blurs lines a little, count twice."""
    kind, content = drawn
    return len(content) * (2 if kind == "webp" else 1)


def _on_white(image: Image.Image) -> Image.Image:
    """Without transparency, in three colors."""
    shown = image.convert("RGBA")
    white = Image.new("RGBA", shown.size, "white")
    return Image.alpha_composite(white, shown).convert("RGB")


def _written(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def unshown(figures: Sequence[Figure], files: Iterable[Path]) -> list[Path]:
    """The files that belong to no figure."""
    shown = {file for figure in figures for file in figure.files}
    return [file for file in files if file not in shown]
