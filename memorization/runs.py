"""Runs: the finished runs of main.py below a folder, and what tells their settings apart."""

import json
from pathlib import Path
from typing import Any

from engram.utils.errors import UserError


def finished(folder: Path, flag: str) -> list[dict[str, Any]]:
    """The results of every finished run; `flag` named the folder."""
    documents = [json.loads(path.read_text()) for path in sorted(folder.rglob("results.json"))]
    found = [document for document in documents if document["status"] == "finished"]
    if not found:
        raise UserError(f"{flag} {folder}: no finished run there")
    return found


def names(documents: list[dict[str, Any]]) -> list[str]:
    """Each run's setting but for the buffer's size and the seed: `maer min`, `er balanced`.

    A proxy of memorization is named where the runs do not share one.
    """
    proxies = {d["config"]["mem_proxy"] for d in documents if d["config"].get("mem_proxy")}
    return [setting_name(d["config"], len(proxies) > 1) for d in documents]


def setting_name(config: dict[str, Any], with_proxy: bool) -> str:
    """`maer min` for a run's configuration; with its proxy of memorization, if it has one, when asked."""
    parts = [config["model"]]
    if "buffer_policy" in config:
        parts.append(config["buffer_policy"])
    if with_proxy and config.get("mem_proxy"):
        parts.append(config["mem_proxy"])
    if config.get("memory", "reservoir") != "reservoir":
        parts.append(config["memory"])
    return " ".join(parts)
