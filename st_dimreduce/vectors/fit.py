"""Summaries of stored vectors, and heads fitted on them."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from st_dimreduce.enums import Objective, OnBadRow
from st_dimreduce.fitting.budget import Size
from st_dimreduce.fitting.fit import fit_head
from st_dimreduce.fitting.summary import Summary
from st_dimreduce.head import Head

# TODO
