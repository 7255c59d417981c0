"""The rehearsal tables: what counts as one setting, what stands beside it, in which order."""

from engram.scripts.analysis.papers import rehearsal


def run(model: str, accuracy: float, seed: int = 0, dataset: str = "rot-mnist", **config) -> dict:
    scenario = "class-il" if dataset == "seq-mnist" else "domain-il"
    view = {"average_accuracy": accuracy, "forgetting": 0.1}
    return {
        "config": {"model": model, "dataset": dataset, **config},
        "seed": seed, "scenario": scenario, "class_il": view, "task_il": view | {"average_accuracy": 0.99},
        "seconds": {"total": 12.4 + seed}, "peak_memory_bytes": 700 * 2**20, "device": "cpu",
        "versions": {"torch": "2"}, "git_commit": "abc", "path": f"{model}-{seed}",
    }  # fmt: skip


def rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines() if line[:2] == "| "
    ]


def test_domain_tables_stand_beside_the_papers_numbers_by_buffer_size():
    documents = [
        run("derpp", 0.9241, buffer_size=500), run("er", 0.89, buffer_size=500),
        run("er", 0.91, 1, buffer_size=500), run("er", 0.85, buffer_size=200),
        run("gss", 0.8, buffer_size=200), run("sgd", 0.67),
    ]  # fmt: skip
    head, _, *found = rows(rehearsal.markdown(documents))
    assert head[:4] == ["method", "buffer", "accuracy", "published"]
    assert [row[:4] for row in found] == [
        ["sgd", "–", "67.00", "~67.7"],
        ["gss", "200", "80.00", "–"],
        ["er", "200", "85.00", "85.01 ± 1.90"],
        ["er", "500", "90.00 ± 1.41", "88.91 ± 1.44"],
        ["derpp", "500", "92.41", "92.77 ± 1.05"],
    ]
    assert found[3][-3:] == ["13", "700", "2"]


def test_variants_of_a_method_are_settings_of_their_own():
    flags = {"dataset": "seq-mnist", "buffer_size": 500}
    documents = [
        run("er", 0.87, memory="reservoir", **flags), run("er", 0.8, memory="fifo", **flags),
        run("full_buffer", 0.9, dataset="seq-mnist", order="grasp"),
    ]  # fmt: skip
    text = rehearsal.markdown(documents)
    assert text.startswith("**seq-mnist**, buffer 500\n")
    assert [row[:3] for row in rows(text)[2:]] == [
        ["er fifo", "80.00", "99.00"], ["er", "87.00", "99.00"], ["full_buffer grasp", "90.00", "99.00"],
    ]  # fmt: skip
