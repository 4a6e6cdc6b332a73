"""Errors that the user can correct: one line each, what was given, what was expected, what to do."""


class UserError(ValueError):
    """An argument or an input that the user can correct; the command line shows its line and exits with 2."""


class MissingExtraError(ModuleNotFoundError):
    """An optional dependency that is not installed; names the extra that installs it."""
