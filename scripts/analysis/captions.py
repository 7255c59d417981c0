"""Captions: what the settings of a benchmark have in common."""

from engram.scripts.analysis.run_set import Setting

COMMON = {
    "n_tasks": "{n_tasks} tasks",
    "backbone": "{backbone}",
    "n_epochs": "{n_epochs} epoch(s)",
    "batch_size": "batch {batch_size}",
    "lr": "learning rate {lr}",
}


def caption(settings: list[Setting]) -> str:
    """The flags that say how hard the benchmark was made; and the memory, where all have the same."""
    told = {name for setting in settings for name in setting.told}
    config = settings[0].config
    common = dict(COMMON)
    if config.get("n_iters"):  # steps were counted, not passes
        common["n_epochs"] = "{n_iters} steps per task"
    parts = [text.format(**config) for name, text in common.items() if name in config and name not in told]
    sizes = {s.config["buffer_size"] for s in settings if "buffer_size" in s.config}
    return ", ".join([*parts, *(f"buffer {size}" for size in sizes if len(sizes) == 1)])
