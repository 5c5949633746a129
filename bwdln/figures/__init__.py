"""Figures at the width of a column; they compute nothing and show what the analysis found.

The only part that uses matplotlib. It makes `Figure` objects and touches no global state of pyplot,
so it works without a display and beside a user's own figures.
"""

from bwdln.figures import certificate_tightness as certificate_tightness
from bwdln.figures import convergence_rate as convergence_rate
from bwdln.figures import descent_to_flow as descent_to_flow
from bwdln.figures import landscape as landscape
from bwdln.figures import optimizers as optimizers
from bwdln.figures import principal_components as principal_components
from bwdln.figures import rank_deficient_rate as rank_deficient_rate
from bwdln.figures import saddle_to_saddle as saddle_to_saddle
from bwdln.figures import step_size as step_size
from bwdln.figures.parts import COLUMN as COLUMN
from bwdln.figures.parts import STYLE as STYLE
from bwdln.figures.run import FIGURES as FIGURES
from bwdln.figures.run import save_all as save_all
from bwdln.figures.sweep import sweep as sweep
