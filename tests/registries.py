"""The registry behind each group of the configuration."""

from bwdln.dynamics.base import DYNAMICS
from bwdln.dynamics.gradient_descent import OPTIMIZERS, SCHEDULES
from bwdln.initializations import STARTS
from bwdln.losses import LOSSES
from bwdln.targets import TARGETS

REGISTRIES = {
    "target": TARGETS,
    "initialization": STARTS,
    "loss": LOSSES,
    "dynamics": DYNAMICS,
    "dynamics/optimizer": OPTIMIZERS,
    "dynamics/schedule": SCHEDULES,
}
