"""Engram's import name: `engram.models` is the folder `models/` beside this file, and so on for every room.

The folders stay at the top of the repository; this module becomes a package by stating where its parts lie
(`__path__`). `python main.py`, `pip install -e .` and `pip install .` import the same names. An installed
copy has its rooms in a folder `engram/` beside this file, where nobody else's `utils` or `datasets` lives.
"""

from pathlib import Path

_here = Path(__file__).resolve().parent
__path__ = [str(_here / "engram") if (_here / "engram").is_dir() else str(_here)]
