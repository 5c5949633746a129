"""Figures at the width of a column; they compute nothing and show what the analysis found.

The only part that uses matplotlib. It makes `Figure` objects and touches no global state of pyplot,
so it works without a display and beside a user's own figures.
"""

from bwdln.figures import descent_to_flow as descent_to_flow
from bwdln.figures.parts import COLUMN as COLUMN
from bwdln.figures.parts import STYLE as STYLE
from bwdln.figures.run import FIGURES as FIGURES
from bwdln.figures.run import save_all as save_all
