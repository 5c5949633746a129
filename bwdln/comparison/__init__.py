"""What a study compares: pure functions of results, and of what theory predicts of them."""

from bwdln.comparison import certificate_tightness as certificate_tightness
from bwdln.comparison import convergence_rate as convergence_rate
from bwdln.comparison import descent_to_flow as descent_to_flow
from bwdln.comparison import optimizers as optimizers
from bwdln.comparison import principal_components as principal_components
from bwdln.comparison import rank_deficient_rate as rank_deficient_rate
from bwdln.comparison import run as run
from bwdln.comparison import saddle_to_saddle as saddle_to_saddle
from bwdln.comparison import step_size as step_size
