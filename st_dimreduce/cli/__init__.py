"""The command line, ``st-dimreduce``: each command calls one function of the package and prints what it did."""

from st_dimreduce.cli import models, vectors, databases, index, evaluation  # noqa: F401, I001, each adds its commands, in this order
from st_dimreduce.cli.main import app

__all__ = ["app"]
