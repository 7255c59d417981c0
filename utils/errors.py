"""Errors that are the user's to mend: one clear line and a non-zero exit, no traceback."""


class UserError(ValueError):
    """Says what was given, what is valid and what to do."""


class DataError(UserError):
    """A data set is missing, incomplete or damaged; the message names the file and what to do."""
