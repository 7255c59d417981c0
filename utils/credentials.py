"""Credentials in URIs: what is stored, printed or sent on is without them, and they come back on use.

A tracking URI may hold a password (`postgresql://me:secret@host/db`). The run's files, MLflow's parameters
and artifacts and every printed line have `***` instead. Whoever opens the store again takes the password
from MLFLOW_TRACKING_URI, or from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD.
"""

import os
import re
from typing import Any
from urllib.parse import quote

from engram.utils.errors import UserError

HIDDEN = "***"
# A server's URI ends its user part at the first slash; a database's password may hold slashes and @.
# A database's user without a password is no secret: postgresql://me@host stays.
OF_SERVER = re.compile(r"(https?://)[^/\s]+@")
OF_DATABASE = re.compile(r"(\b(?!https?:)[\w+.-]+://)[^/\s:@]*:[^\s?]*@")
IN_QUERY = re.compile(r"(?i)([?&](?:password|passwd|pwd|sslpassword|token|odbc_connect)=)[^&\s]+")


def redact(text: str) -> str:
    """Replace by *** the user name and password of any URI in the text."""
    for pattern, last in ((OF_SERVER, "@"), (OF_DATABASE, "@"), (IN_QUERY, "")):
        text = pattern.sub(rf"\g<1>{HIDDEN}{last}", text)
    return text


def completed(uri: str) -> str:
    """The URI with the credentials that the environment holds, where it was stored without its own.

    Raises `UserError` when it needs them and the environment has none.
    """
    if f"{HIDDEN}@" not in uri and f"={HIDDEN}" not in uri:
        return uri
    in_environment = os.environ.get("MLFLOW_TRACKING_URI", "")
    if in_environment != uri and redact(in_environment) == uri:
        return in_environment
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD"))
    has_token = bool(os.environ.get("MLFLOW_TRACKING_TOKEN"))
    if uri.startswith(("http://", "https://")) and (has_token or (user and password)):
        return uri.replace(f"{HIDDEN}@", "")  # MLflow's client reads these variables itself
    if user and password and f"{HIDDEN}@" in uri:
        return uri.replace(f"{HIDDEN}@", f"{quote(user, safe='')}:{quote(password, safe='')}@")
    raise UserError(
        f"--tracking_uri {uri}: passwords are not stored; give --tracking_uri again, or set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or go on without MLflow: --disable_log"
    )


def moved_to_environment(value: Any) -> Any:
    """Take credentials out of text, or lists, tuples and dicts of it; they go to MLFLOW_TRACKING_URI.

    For arguments that are written to a file and read by a process that inherits this environment.
    """
    if isinstance(value, str):
        stored = redact(value)
        if stored != value:
            os.environ["MLFLOW_TRACKING_URI"] = value
        return stored
    if isinstance(value, dict):
        return {key: moved_to_environment(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(moved_to_environment(item) for item in value)
    return value
