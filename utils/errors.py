"""Errors that the user can correct: shown as one clear line with a non-zero exit code, no traceback."""

DIVERGED = "the loss became"  # how the reason of a run that diverged begins


class UserError(ValueError):
    """A wrong input; the message says what was given, what is valid and what to do."""


class DataError(UserError):
    """A data set is missing, incomplete or damaged; the message names the file and what to do."""


class DiskError(UserError, OSError):
    """A file that cannot be written, e.g. on a full disk; the message says which, why and what it takes."""


def numpy_reason(error: Exception) -> str:
    """What numpy says of a file that it cannot read, in one line, without its advice to load pickles."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if "Object arrays" in str(error):
        return "it holds Python objects; save numbers, values.astype(float)"
    return "numpy does not know this format" if "pickle" in str(error) else " ".join(str(error).split())
