"""``st-dimreduce``: a thin face on the package's functions."""

from st_dimreduce.cli import models, show, vectors  # noqa: F401, each adds its commands
from st_dimreduce.cli.options import app

__all__ = ["app"]
