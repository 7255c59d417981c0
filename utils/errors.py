"""Errors that the user can correct: shown as one clear line with a non-zero exit code, no traceback."""

DIVERGED = "the loss became"  # how the reason of a run that diverged begins


class UserError(ValueError):
    """A wrong input; the message says what was given, what is valid and what to do."""


class DataError(UserError):
    """A data set is missing, incomplete or damaged; the message names the file and what to do."""


class DiskError(UserError, OSError):
    """A file that cannot be written, e.g. on a full disk; the message says which, why and what it takes."""
