"""From a summary to a head."""

from st_dimreduce.fitting.subspace import fit_head

__all__ = ["fit_head"]
