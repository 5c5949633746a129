"""Where the batches of a sweep run when not here: in other processes, in jobs of Slurm, in tasks of Ray.

A sweep is planned as always; its batches become tasks (`tasks`), which an engine (`base`) runs somewhere, by
the very code that runs them inline, into the same store. `driver` hands them out and gathers what they leave
on disk, and `ledger` remembers what was handed out, for whoever comes back.
"""

from bwdln.engines.base import all_processes, check_there, prepared
from bwdln.engines.driver import begin, check_free, execute, plan
from bwdln.engines.ledger import Ledger
from bwdln.engines.status import cancel, look
from bwdln.engines.tasks import dealt

__all__ = [
    "Ledger",
    "all_processes",
    "begin",
    "cancel",
    "check_free",
    "check_there",
    "dealt",
    "execute",
    "look",
    "plan",
    "prepared",
]
