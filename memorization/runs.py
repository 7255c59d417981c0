"""Finished runs of main.py below a folder, and what tells their settings apart."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engram.utils.errors import UserError
from engram.utils.runs.run_record import FILE_NAME, RunRecord, read_all

# Imported logs name every method's buffer by --buffer_policy; ours say the same with --memory.
POLICIES_OF_THE_PAPERS_CODE = {"reservoir": "", "balanced_reservoir": "balanced"}


def finished_runs(folder: Path, flag: str) -> list[RunRecord]:
    """The record of every finished run below `folder`; errors name the flag that it was given by."""
    readable = read_all(sorted(folder.rglob(FILE_NAME)))
    finished = [record for _, record in readable if record.finished]
    if not finished:
        raise UserError(f"{flag} {folder}: no finished run there")
    return finished


def setting_names(configs: list[dict[str, Any]]) -> list[str]:
    """The setting of each configuration but for buffer size and seed: `maer min`, `er balanced`.

    A proxy of memorization is named where the configurations do not share one.
    """
    proxies = {config["mem_proxy"] for config in configs if config.get("mem_proxy")}
    return [setting_name(config, len(proxies) > 1) for config in configs]


def setting_name(config: Mapping[str, Any], with_proxy: bool) -> str:
    """`maer min` for a run's configuration; with its proxy of memorization, if it has one, when asked."""
    words = [config["model"]]
    policy = config.get("buffer_policy")
    if policy:
        words.append(POLICIES_OF_THE_PAPERS_CODE.get(policy, policy))
    if with_proxy and config.get("mem_proxy"):
        words.append(config["mem_proxy"])
    if config.get("memory", "reservoir") != "reservoir":
        words.append(config["memory"])
    return " ".join(filter(None, words))
