"""The record of a run: the content of results.json as one typed object that reads and writes itself.

Nothing else in the project opens that file. Accuracies are fractions in [0, 1] and NaN where nothing was
measured; the file has `null` there. This module needs no torch, so that a report need not wait for it.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram.utils import files
from engram.utils.config.config import up_to_date
from engram.utils.config.outside import label
from engram.utils.errors import UserError
from engram.utils.metrics import accuracy_matrix
from engram.utils.metrics.measurements import VIEWS, CurvePoint, MemoryCounts
from engram.utils.runs.json_checks import (
    NAN,
    list_of,
    mapping,
    number,
    optional_number,
    optional_text,
    square_matrix,
    text,
)
from engram.utils.training.training_curve import TrainingPoint

FILE_NAME = "results.json"
SCHEMA_VERSION = 1  # the layout of the file; files from before this key was written have it too
VIEW_NAMES = {"class_il": "class-IL", "task_il": "task-IL"}


@dataclass(frozen=True, eq=False)
class ViewResult:
    """One evaluation view: the accuracy matrix R (T, T) and the metrics made of it, by name.

    A metric that could not be computed is NaN; one that was not asked for is not in `metrics`.
    """

    R: NDArray[np.float64]
    metrics: dict[str, float]

    def metric(self, name: str) -> float:
        """The metric of this name, NaN where the run does not have it."""
        return self.metrics.get(name, NAN)

    def to_json(self) -> dict[str, Any]:
        """The view as it stands in results.json, but with NaN."""
        return {"R": self.R.tolist(), **self.metrics}

    @classmethod
    def from_json(
        cls, value: Any, name: str, forgetting: Callable[[ArrayLike], float] = accuracy_matrix.forgetting
    ) -> "ViewResult":
        """The checked view; `name` says in errors which one it is.

        `forgetting` is made of R again: files from before its maximum was over all rows hold another value.
        """
        view = mapping(value, name)
        metrics = {key: number(item, f"{name}.{key}") for key, item in view.items() if key != "R"}
        R = square_matrix(view.get("R"), f"{name}.R")
        if not math.isnan(metrics.get("forgetting", NAN)):
            metrics["forgetting"] = forgetting(R)
        return cls(R, metrics)


@dataclass(frozen=True)
class Seconds:
    """Where the time of a run went, in seconds; None where it was not measured."""

    total: float | None = None
    train: float | None = None
    eval: float | None = None
    data: float | None = None


@dataclass(frozen=True, eq=False)
class RunRecord:
    """What a run was told, what it measured and where it ran. Field names are the keys of results.json."""

    config: dict[str, Any]  # every flag of the run
    status: str  # running, finished, interrupted, stopped or failed
    views: dict[str, ViewResult]  # class_il and task_il
    seed: int = 0
    scenario: str = "class-il"
    evaluated_on: str = "test"  # or validation
    fwt: float = NAN
    # view → (T, T) standard errors of R from the choice of test samples; empty where all were evaluated
    standard_errors: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    b: list[float] = field(default_factory=list)  # (T,) accuracy of the untrained network
    curve: list[CurvePoint] = field(default_factory=list)
    memory: list[MemoryCounts] = field(default_factory=list)
    training: list[TrainingPoint] = field(default_factory=list)  # loss, rate and speed on the way
    # group of training samples by memorization → view → R and forgetting
    groups: dict[str, dict[str, ViewResult]] = field(default_factory=dict)
    seconds: Seconds = Seconds()
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    device: str | None = None
    precision: str | None = None  # fp32, tf32 or bf16; None in files from before it was noted
    versions: dict[str, str | None] = field(default_factory=dict)
    git_commit: str | None = None
    git_dirty: bool | None = None  # whether the code had changes since; None where nobody looked
    class_order: list[int] | None = None
    transforms: dict[str, list[Any]] = field(default_factory=dict)  # what was drawn for the tasks' transforms
    split_hash: str | None = None  # of a split into training and test images that is the user's own
    imported_run: str | None = None  # id of the old MLflow run that this record was made from
    ended: float | None = None  # when that run ended, in seconds since 1970
    schema_version: int = SCHEMA_VERSION

    @property
    def class_il(self) -> ViewResult:
        """The view in which all classes seen so far compete."""
        return self.views["class_il"]

    @property
    def task_il(self) -> ViewResult:
        """The view in which only the classes of the sample's own task compete."""
        return self.views["task_il"]

    @property
    def n_tasks(self) -> int:
        """T, the number of tasks in the stream."""
        return len(self.class_il.R)

    @property
    def finished(self) -> bool:
        """Whether training came to its end."""
        return self.status == "finished"

    @property
    def used_precision(self) -> str | None:
        """The precision that the run computed in; before that was noted, the flag named it. None: unknown."""
        precision = self.precision or self.config.get("precision")
        return None if precision == "auto" else precision

    def current_flags(self) -> dict[str, Any]:
        """The flags as today's code resolves them, with the precision that was used for `auto`."""
        flags = up_to_date(self.config)
        return flags | ({"precision": self.used_precision} if self.used_precision else {})

    @property
    def view_names(self) -> dict[str, str]:
        """View → the name to show; one view in domain-IL, where both hold the same numbers."""
        return {"class_il": "domain-IL"} if self.scenario == "domain-il" else VIEW_NAMES

    @property
    def title(self) -> str:
        """`er on seq-digits, seed 0`."""
        model, dataset = (label(str(self.config.get(flag))) for flag in ("model", "dataset"))
        return f"{model} on {dataset}, seed {self.seed}"

    @classmethod
    def read(cls, path: Path | str) -> "RunRecord":
        """The record at `path`, a run's folder or its results.json; raises `UserError` if it is unusable."""
        path = Path(path)
        file = path / FILE_NAME if path.name != FILE_NAME else path
        try:
            return cls.from_json(json.loads(file.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path}: holds no {FILE_NAME}; give the folder of a run") from None
        except (OSError, ValueError, UserError) as error:
            raise UserError(f"{file}: damaged ({error}); remove it or run the run again") from None

    def write(self, path: Path) -> None:
        """Write the file so that a crash leaves either the old one or the new one, complete."""
        # compact where it is long (matrices, orders), one line for each key at the top level
        document = self.to_json()
        document |= {files.CHECKSUM: files.checksum(document)}
        lines = [f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in document.items()]
        files.write_text("{\n" + ",\n".join(lines) + "\n}\n", path)

    def to_json(self) -> dict[str, Any]:
        """The content of results.json; NaN is None."""
        document: dict[str, Any] = {
            "schema_version": self.schema_version,
            "config": self.config,
            "seed": self.seed,
            "status": self.status,
            "scenario": self.scenario,
            "evaluated_on": self.evaluated_on,
            **{view: self.views[view].to_json() for view in VIEWS},
            "fwt": self.fwt,
            "b": self.b,
            "curve": [point.to_json() for point in self.curve],
            "memory": [counts.to_json() for counts in self.memory],
            "training": [point.to_json() for point in self.training],
            "groups": {
                group: {view: result.to_json() for view, result in views.items()}
                for group, views in self.groups.items()
            },
            "seconds": asdict(self.seconds),
            "images_per_second": self.images_per_second,
            "peak_memory_bytes": self.peak_memory_bytes,
            "device": self.device,
            "precision": self.precision,
            "versions": self.versions,
            "git_commit": self.git_commit,
            "git_dirty": self.git_dirty,
            "class_order": self.class_order,
            "transforms": self.transforms,
        }
        errors = {view: E.tolist() for view, E in self.standard_errors.items()}
        optional = {"standard_errors": errors, "split_hash": self.split_hash}
        document |= {name: value for name, value in optional.items() if value}
        imported = {"imported_run": self.imported_run, "ended": self.ended}
        return dict(_nan_to_none(document | (imported if self.imported_run else {})))

    @classmethod
    def from_json(cls, document: Any) -> "RunRecord":
        """The record in a parsed file; raises `UserError` that names the key at fault."""
        content = mapping(document, "the file")
        version = content.get("schema_version", 1)
        if not isinstance(version, int) or not 1 <= version <= SCHEMA_VERSION:
            raise UserError(
                f"schema_version {version!r}, known up to {SCHEMA_VERSION}: another version of this program "
                "wrote it"
            )
        if files.has_changed(content):
            raise UserError("its content has changed since it was written: its checksum is another")
        config = mapping(content.get("config"), "config")
        return cls(
            config=config,
            status=text(content.get("status"), "status"),
            views={view: ViewResult.from_json(content.get(view), view) for view in VIEWS},
            seed=int(number(content.get("seed", config.get("seed", 0)), "seed")),
            scenario=text(content.get("scenario", "class-il"), "scenario"),
            evaluated_on=text(content.get("evaluated_on", "test"), "evaluated_on"),
            fwt=number(content.get("fwt"), "fwt"),
            standard_errors={
                view: square_matrix(errors, f"standard_errors.{view}")
                for view, errors in mapping(content.get("standard_errors", {}), "standard_errors").items()
            },
            b=list_of(content.get("b", []), "b", lambda value: number(value, "b")),
            curve=list_of(content.get("curve", []), "curve", CurvePoint.from_json),
            memory=list_of(content.get("memory", []), "memory", MemoryCounts.from_json),
            training=list_of(content.get("training", []), "training", TrainingPoint.from_json),
            groups={
                group: {
                    view: ViewResult.from_json(
                        result, f"groups.{group}.{view}", accuracy_matrix.mean_known_forgetting
                    )
                    for view, result in mapping(views, f"groups.{group}").items()
                }
                for group, views in mapping(content.get("groups", {}), "groups").items()
            },
            seconds=_seconds(content.get("seconds", {})),
            images_per_second=optional_number(content.get("images_per_second"), "images_per_second"),
            peak_memory_bytes=content.get("peak_memory_bytes"),
            device=content.get("device"),
            precision=optional_text(content.get("precision"), "precision"),
            versions=mapping(content.get("versions", {}), "versions"),
            git_commit=content.get("git_commit"),
            git_dirty=content.get("git_dirty"),
            class_order=content.get("class_order"),
            transforms=mapping(content.get("transforms", {}), "transforms"),
            split_hash=optional_text(content.get("split_hash"), "split_hash"),
            imported_run=content.get("imported_run"),
            ended=optional_number(content.get("ended"), "ended"),
            schema_version=version,
        )


def read_all(paths: Iterable[Path]) -> Iterator[tuple[Path, RunRecord]]:
    """The records in these files; damaged ones are left out, named and counted on stderr."""
    n_damaged = 0
    for path in paths:
        try:
            record = RunRecord.read(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            n_damaged += 1
        else:
            yield path, record
    if n_damaged:
        print(f"left out: {n_damaged} damaged {FILE_NAME} in all", file=sys.stderr)


def _seconds(value: Any) -> Seconds:
    measured = mapping(value, "seconds")
    names = Seconds.__dataclass_fields__
    return Seconds(**{name: optional_number(measured.get(name), f"seconds.{name}") for name in names})


def _nan_to_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _nan_to_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_nan_to_none(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
