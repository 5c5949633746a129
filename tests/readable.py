"""Whether a figure can be printed and read: in the column of a paper, nothing cut off, no small print."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from bwdln import figures

#: The smallest print, in points.
SMALLEST = 7


def check_readable(figure: Figure, width: float = figures.COLUMN) -> None:
    """Assert that a figure is that wide, in inches, with everything inside and large enough to read."""
    with matplotlib.rc_context(figures.STYLE):
        figure.draw_without_rendering()
        box = figure.get_tightbbox()
    across, height = figure.get_size_inches()
    assert across == width
    assert box.x0 >= -0.02 and box.y0 >= -0.02 and box.x1 <= across + 0.02 and box.y1 <= height + 0.02
    texts = [each for each in figure.findobj(Text) if each.get_text() and each.get_visible()]
    assert texts and min(each.get_fontsize() for each in texts) >= SMALLEST
