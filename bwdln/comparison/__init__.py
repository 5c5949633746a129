"""What a study compares: pure functions of results, and of what theory predicts of them."""

from bwdln.comparison import descent_to_flow as descent_to_flow
