"""Jobs of more than one run: importing the package registers every study in `base.STUDIES`."""

from bwdln.studies import certificate_tightness as certificate_tightness
from bwdln.studies import convergence_rate as convergence_rate
from bwdln.studies import descent_to_flow as descent_to_flow
from bwdln.studies import optimizers as optimizers
from bwdln.studies import principal_components as principal_components
from bwdln.studies import rank_deficient_rate as rank_deficient_rate
from bwdln.studies import saddle_to_saddle as saddle_to_saddle
from bwdln.studies import step_size as step_size
from bwdln.studies.base import STUDIES as STUDIES
from bwdln.studies.base import SWEEP_STUDIES as SWEEP_STUDIES
from bwdln.studies.base import Claim as Claim
from bwdln.studies.base import Findings as Findings
from bwdln.studies.base import check_sweep_study as check_sweep_study
from bwdln.studies.base import conduct as conduct
from bwdln.studies.base import conduct_on_sweep as conduct_on_sweep
from bwdln.studies.base import write_findings as write_findings
