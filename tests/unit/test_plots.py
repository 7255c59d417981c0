import csv
import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from engram.utils import figure_files
from engram.utils.metrics.measurements import CurvePoint, MemoryCounts
from engram.utils.runs import figures, matrix_csv
from engram.utils.runs.run_record import RunRecord, ViewResult

NAN = float("nan")
CHECK = [[0.80, NAN, NAN], [0.85, 0.90, NAN], [0.90, 0.60, 0.92]]
CURVE = [
    CurvePoint.from_json(point)
    for point in [
        {"step": 10, "task": 0, "class_il": [0.5], "task_il": [0.6]},
        {"step": 20, "task": 0, "class_il": [0.7], "task_il": [0.8]},
        {"step": 30, "task": 1, "class_il": [0.4, 0.2], "task_il": [0.7, 0.9]},
        {"step": 40, "task": 1, "class_il": [0.6, 0.8], "task_il": [0.75, 1.0]},
    ]
]


def record(T: int = 3, scenario: str = "class-il", **more) -> RunRecord:
    rng = np.random.default_rng(0)
    R = np.where(np.tri(T, dtype=bool), rng.random((T, T)), np.nan) if T != 3 else np.array(CHECK)
    config = {"model": "er", "dataset": "seq-digits", "seed": 0}
    views = more.pop("views", {view: ViewResult(R, {}) for view in ("class_il", "task_il")})
    return RunRecord(config, "finished", views, scenario=scenario, **more)


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def in_view(place: float, interval: tuple[float, float]) -> bool:
    return min(interval) <= place <= max(interval)


def texts_that_overlap(figure) -> list[tuple[str, str]]:
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    ticks = [
        (tick, axis)
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
    ]
    outside = {tick.label1 for tick, axis in ticks if not in_view(tick.get_loc(), axis.get_view_interval())}
    shown = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text() and t not in outside]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in shown]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a[1].overlaps(b[1])]
    return [(a[0], b[0]) for a, b in pairs]


def test_csv_round_trip(tmp_path):
    R = np.array(CHECK)
    R[0, 0] = 1 / 3
    matrix_csv.write_matrix_csv(R, tmp_path / "R.csv")
    with open(tmp_path / "R.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["after_task", "task_0", "task_1", "task_2"]
    assert [row[0] for row in rows] == ["0", "1", "2"]
    assert rows[0][2:] == ["", ""]
    back = [[float(cell) if cell else NAN for cell in row[1:]] for row in rows]
    np.testing.assert_array_equal(back, R)


def test_heat_map_shows_the_numbers(tmp_path):
    figure = figures.heat_map(CHECK, "class-IL accuracy", tmp_path / "R.png")
    axes = figure.axes[0]
    shown = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in axes.texts}
    wanted = {(0, 0): "80.0", (1, 0): "85.0", (1, 1): "90.0", (2, 0): "90.0", (2, 1): "60.0", (2, 2): "92.0"}
    assert shown == wanted
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("accuracy on task", "after task")
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "1", "2"]
    image = axes.images[0].get_array()
    np.testing.assert_array_equal(image.mask, np.isnan(CHECK))
    assert axes.images[0].get_clim() == (0, 100)
    assert not figure.legends, "tasks that are not learned yet need no word"
    later = axes.images[1].get_array()
    np.testing.assert_array_equal(later.mask, np.tri(3, dtype=bool))


@pytest.mark.figures
def test_a_runs_picture_leaves_tasks_blank_that_are_not_learned_yet(tmp_path, monkeypatch):
    R = np.full((3, 3), 0.5)
    drawn = []
    monkeypatch.setattr(figures, "heat_map", lambda shown, title, path: drawn.append(shown))
    monkeypatch.setattr(figures, "curves", lambda *args: None)
    for scenario in ("class-il", "domain-il"):
        views = {view: ViewResult(R, {}) for view in ("class_il", "task_il")}
        figures.write_all(record(scenario=scenario, views=views), tmp_path)
    learned = np.where(np.tri(3, dtype=bool), R, NAN)
    for shown, wanted in zip(drawn, (learned, learned, R), strict=True):
        np.testing.assert_array_equal(shown, wanted)


def test_cells_without_a_number_are_hatched(tmp_path):
    R = np.array(CHECK)
    R[1, 0] = NAN
    figure = figures.heat_map(R, "", tmp_path / "R.png")
    assert figure.axes[0].patch.get_hatch() == "///"
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["not evaluated"]
    full = figures.heat_map(np.full((2, 2), 0.5), "", tmp_path / "full.png")
    assert not full.legends


@pytest.mark.parametrize("T", [1, 2, 5, 10, 20])
def test_texts_do_not_overlap(tmp_path, T):
    data = record(T)
    R = np.array(data.class_il.R.copy(), dtype=float)
    R[-1, 0] = 1.0  # the widest number
    title = "class-IL accuracy: maer on seq-cifar100, seed 42"
    for figure in (
        figures.heat_map(R, title, tmp_path / "R.png"),
        figures.curves(data, tmp_path / "curves.png", title),
    ):
        assert texts_that_overlap(figure) == []
        assert figure.get_size_inches()[0] * figure_files.DPI <= 1280


def test_many_tasks(tmp_path):
    figure = figures.heat_map(record(100).class_il.R, "many", tmp_path / "R.png")
    assert not figure.axes[0].texts
    assert texts_that_overlap(figure) == []
    assert max(png_size(tmp_path / "R.png")) <= 1280


def test_curves_hold_the_metrics(tmp_path):
    figure = figures.curves(record(), tmp_path / "curves.png", "a run")
    accuracy, forgetting = figure.axes
    assert [line.get_label() for line in accuracy.lines] == ["class-IL", "task-IL"]
    np.testing.assert_allclose(accuracy.lines[0].get_ydata(), [80, 87.5, 100 * (0.9 + 0.6 + 0.92) / 3])
    # Chaudhry's F after task 2: ((.85 - .90) + (.90 - .60)) / 2
    np.testing.assert_allclose(forgetting.lines[0].get_ydata(), [NAN, -5.0, 12.5])
    assert png_size(tmp_path / "curves.png") == (1280, 480)


def test_one_training_phase(tmp_path):
    """`joint` is evaluated once, at the end."""
    R = np.array([[NAN] * 3, [NAN] * 3, [0.9, 0.8, 0.7]])
    data = record(views={view: ViewResult(R, {}) for view in ("class_il", "task_il")})
    figure = figures.curves(data, tmp_path / "curves.png")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [NAN, NAN, 80])
    assert [t.get_text() for t in figure.axes[1].texts] == ["no earlier accuracies to compare with"]


def test_stability(tmp_path):
    figure = figures.stability(CURVE, tmp_path / "s.png")
    class_il, task_il = figure.axes
    np.testing.assert_allclose(class_il.lines[0].get_xydata(), [(10, 50), (20, 70), (30, 40), (40, 60)])
    np.testing.assert_allclose(class_il.lines[1].get_xydata(), [(30, 20), (40, 80)])
    np.testing.assert_allclose(task_il.lines[1].get_ydata(), [90, 100])
    assert list(class_il.lines[2].get_xdata()) == [20, 20]  # where task 0 ended
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["task 0", "task 1"]
    assert texts_that_overlap(figure) == []
    assert png_size(tmp_path / "s.png") == (1280, 800)


def test_stability_with_many_tasks(tmp_path):
    curve = [CurvePoint(t, t, {"class_il": [0.5] * (t + 1), "task_il": [0.6] * (t + 1)}) for t in range(20)]
    figure = figures.stability(curve, tmp_path / "s.png")
    assert not figure.legends and figure.axes[-1].get_ylabel() == "task"
    assert texts_that_overlap(figure) == []


def memory_rows(T: int) -> list[MemoryCounts]:
    """A memory of 100 · T samples, shared equally by the tasks so far; two classes a task."""
    rows = []
    for t in range(T):
        share = 100 * T // (t + 1)
        per_task = [share if j <= t else 0 for j in range(T)]
        rows.append(MemoryCounts(t, [n // 2 for n in per_task for _ in "ab"], per_task))
    return rows


@pytest.mark.parametrize("T", [1, 2, 5, 20, 50])
def test_memory_shows_what_was_held(tmp_path, T):
    figure = figures.memory(memory_rows(T), tmp_path / "memory.png", "er on seq-mnist, seed 0")
    by_class, by_task = figure.axes[:2]
    for axes, key in ((by_class, "per_class"), (by_task, "per_task")):
        held = np.array([getattr(row, key) for row in memory_rows(T)])
        np.testing.assert_array_equal(axes.images[0].get_array().filled(0), held)
    assert (by_task.get_xlabel(), by_task.get_ylabel()) == ("task", "after task")
    if T == 2:
        assert [t.get_text() for t in by_task.texts] == ["200", "100", "100"]
    assert texts_that_overlap(figure) == []
    assert png_size(tmp_path / "memory.png")[0] == 1280


@pytest.mark.figures
def test_write_all(tmp_path):
    data = record(curve=CURVE, memory=memory_rows(3))
    names = [path.name for path in figures.write_all(data, tmp_path)]
    assert names == [
        "accuracy_matrix_class_il.png", "accuracy_matrix_task_il.png", "curves.png", "stability.png",
        "memory.png",
    ]  # fmt: skip
    assert all((tmp_path / name).stat().st_size > 0 for name in names)


@pytest.mark.figures
def test_domain_il_has_one_view(tmp_path):
    paths = figures.write_all(record(scenario="domain-il"), tmp_path)
    assert [path.name for path in paths] == ["accuracy_matrix.png", "curves.png"]
    tables = matrix_csv.write_matrix_csvs(record(scenario="domain-il"), tmp_path)
    assert [path.name for path in tables] == ["accuracy_matrix.csv"]
