"""Jobs of more than one run: importing the package registers every study in `base.STUDIES`."""

from bwdln.studies import descent_to_flow as descent_to_flow
from bwdln.studies.base import STUDIES as STUDIES
from bwdln.studies.base import Findings as Findings
from bwdln.studies.base import conduct as conduct
