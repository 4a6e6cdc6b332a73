"""The portable form: a reduced model in the file layout that every consumer reads."""

from st_dimreduce.portable.checker import Problem, check
from st_dimreduce.portable.rewrite import fix
from st_dimreduce.portable.save import RECORD, fit_record, save_portable, unportable, write_json

__all__ = ["RECORD", "Problem", "check", "fit_record", "fix", "save_portable", "unportable", "write_json"]
