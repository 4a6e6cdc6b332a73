"""The portable form: a reduced model in the file layout that every consumer reads."""

from st_dimreduce.portable.save import RECORD, fit_record, save_portable, unportable, write_json

__all__ = ["RECORD", "fit_record", "save_portable", "unportable", "write_json"]
