"""The flags that weigh what a method does against forgetting, with high values from which tuning starts.

For EWC, MAS, SI, LwF and EBLL these are the values in the code of De Lange et al. 2021 (arXiv 1909.08383).
IMM's flag is exported with its runs (scripts/interop/export_tasks.py), not tuned.
"""

START_STRENGTHS: dict[str, dict[str, float]] = {
    "ebll": {"lwf_lambda": 10.0, "ebll_alpha": 1.0},
    "ewc": {"e_lambda": 400.0},
    "imm_mean": {"imm_lambda": 1.0},
    "imm_mode": {"imm_lambda": 1.0},
    "lwf": {"lwf_lambda": 10.0},
    "mas": {"mas_lambda": 3.0},
    "rwalk": {"rwalk_lambda": 400.0},
    "si": {"si_c": 400.0},
}
