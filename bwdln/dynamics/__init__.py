"""How weights move: one protocol, one loop, and the methods behind them.

Importing the package registers every method in `base.DYNAMICS`.
"""

from bwdln.dynamics import end_to_end_flow as end_to_end_flow
from bwdln.dynamics import gradient_descent as gradient_descent
from bwdln.dynamics import gradient_flow as gradient_flow
