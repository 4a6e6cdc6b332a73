"""From a summary to a head."""

from st_dimreduce.fitting.budget import Choice, choose
from st_dimreduce.fitting.contrast import contrast_head
from st_dimreduce.fitting.distill import distill_head
from st_dimreduce.fitting.pairs import Pairs
from st_dimreduce.fitting.subspace import Objective, fit_head

__all__ = ["Choice", "Objective", "Pairs", "choose", "contrast_head", "distill_head", "fit_head"]
