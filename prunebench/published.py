"""Figures that papers, repositories and model cards print, as data: read, validated and added up, never ranked.

A file holds one source. Its tables have named columns and rows whose values stand in the order of the columns, as they
were printed: a figure that is missing is null, never zero. No torch here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from prunebench import jsonio
from prunebench.errors import UsageError
from prunebench.evaluator import TaskResult
from prunebench.kinds import is_pattern
from prunebench.plan import first_problem
from prunebench.yaml_files import read_mapping, shipped_dir, yaml_files

__all__ = [
    "Average",
    "Column",
    "Paper",
    "Published",
    "Relative",
    "Removed",
    "Row",
    "Table",
    "load_published",
    "published_dir",
    "same_model",
]

KINDS = frozenset({"dense", "layers", "sublayers", "weights", "width"})
"""Kinds of a row beside N:M patterns; ``dense`` removes nothing."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Column(_Part):
    """One column of a printed table.

    ``what`` is ``score``; ``relative``, percent of the dense model's score; or ``cost``: time, memory, parameters and
    whatever else no relative score is made of.
    """

    id: str
    label: str
    tasks: tuple[str, ...] = Field(
        default=(), description="ids that tasks of suites may have, and their names in their evaluator"
    )
    metric: str | None = Field(default=None, description="the metric of those tasks that the column prints")
    scale: float | None = Field(default=None, gt=0, description="full marks as printed: 100, 800, 1")
    what: Literal["score", "relative", "cost"] = "score"
    lower_is_better: bool = False
    tolerance: float | None = Field(
        default=None, gt=0, description="of the dense gate, in the printed unit; null: the general rule"
    )
    note: str = ""

    @model_validator(mode="after")
    def _whole(self) -> Column:
        if bool(self.tasks) != (self.metric is not None):
            raise ValueError(f"column {self.id!r}: tasks and metric go together")
        if self.what != "cost" and self.scale is None:
            raise ValueError(f"column {self.id!r}: a score needs its scale (full marks)")
        return self

    def measures(self, result: TaskResult) -> bool:
        """Whether a result is of the same task and metric, by the suite's id or by the evaluator's own name."""
        return result.metric == self.metric and not {result.task, result.source.get("task")}.isdisjoint(self.tasks)


class Removed(_Part):
    """How much is gone, in the source's own unit."""

    share: float | None = Field(default=None, gt=0, lt=1)
    unit: str
    count: int | None = Field(default=None, ge=1, description="how many units, where that is printed")
    printed: str = Field(default="", description="in the source's words, where no share is printed")

    @model_validator(mode="after")
    def _said(self) -> Removed:
        if (self.share is None) == (not self.printed):
            raise ValueError("give either the share or, where none is printed, the source's words")
        return self

    @property
    def words(self) -> str:
        """``25 % of layers (9)``."""
        if self.share is None:
            return self.printed
        return f"{100 * self.share:.4g} % of {self.unit}" + (f" ({self.count})" if self.count else "")


class Row(_Part):
    """One printed row; `values` stand in the order of the table's columns, null where nothing is printed."""

    model: str = Field(description="as printed")
    method: str = Field(description="as printed")
    kind: str
    removed: Removed | None = None
    recovery: str = Field(default="", description="training or repair after pruning; empty: none")
    values: tuple[FiniteFloat | None, ...] = ()
    relative: FiniteFloat | None = Field(default=None, description="printed relative score in percent")
    average: FiniteFloat | None = Field(default=None, description="printed average")
    derived: str = Field(default="", description="how the values were found, where they were not read off the source")
    note: str = ""

    @model_validator(mode="after")
    def _kind(self) -> Row:
        if self.kind not in KINDS and not is_pattern(self.kind):
            known = f"{', '.join(sorted(KINDS))} or a pattern such as 2:4"
            raise ValueError(f"row {self.method!r}: kind is {self.kind!r}, not one of {known}")
        if self.kind == "dense" and self.removed is not None:
            raise ValueError(f"row {self.method!r}: nothing is removed from a dense model")
        return self


class Relative(_Part):
    """What printed relative scores refer to: the row of this method with the same model."""

    to: str


class Average(_Part):
    """What the printed average is the mean of, where that is known."""

    over: Literal["score", "relative"] = "score"
    divide: dict[str, float] = Field(default_factory=dict, description="column → number it is divided by before")
    decimals: int = 1


class Table(_Part):
    """One printed table."""

    name: str
    number: str = Field(default="", description="number, or place in the source; empty: not noted")
    via: str = Field(default="", description="the secondary source that the figures were read from")
    repeats: str = Field(default="", description="the file that holds these figures already; they count once")
    columns: tuple[Column, ...]
    relative: Relative | None = None
    average: Average | None = None
    rows: tuple[Row, ...] = Field(min_length=1)
    notes: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _padded(cls, values: object) -> object:
        """A row without values has none in any column."""
        if isinstance(values, dict) and isinstance(values.get("rows"), list):
            width = len(values.get("columns") or ())
            rows = [{"values": [None] * width, **row} if isinstance(row, dict) else row for row in values["rows"]]
            return {**values, "rows": rows}
        return values

    @model_validator(mode="after")
    def _fits(self) -> Table:
        ids = [column.id for column in self.columns]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"table {self.name!r}: column {twice[0]!r} stands twice")
        for row in self.rows:
            where = f"table {self.name!r}, row {row.model} {row.method}"
            if len(row.values) != len(ids):
                raise ValueError(f"{where}: {len(row.values)} values for {len(ids)} columns")
            for column, value in zip(self.columns, row.values, strict=True):
                if column.what == "score" and value is not None and not 0 <= value <= column.scale:  # type: ignore[operator]
                    raise ValueError(f"{where}: {column.id} is {value:g}, full marks are {column.scale:g}")
            if self.relative is not None and row.relative is not None and self.reference(row) is None:
                raise ValueError(f"{where}: relative to {self.relative.to!r}, of which this model has no row")
        if self.average is not None and (unknown := sorted(set(self.average.divide) - set(ids))):
            raise ValueError(f"table {self.name!r}: average divides {unknown[0]!r}, which is no column")
        return self

    @property
    def places(self) -> list[str]:
        """Number or place in the source, and the secondary source, as far as they are noted."""
        return [part for part in (self.number, f"via {self.via}" if self.via else "") if part]

    def reference(self, row: Row) -> Row | None:
        """The row that the relative score of `row` refers to."""
        if self.relative is None:
            return None
        same = (other for other in self.rows if other.model == row.model and other.method == self.relative.to)
        return next(same, None)

    def value(self, row: Row, column: Column) -> float | None:
        return row.values[self.columns.index(column)]


class Paper(_Part):
    """One source."""

    title: str
    id: str = Field(description="arXiv number, DOI, or address with the version that was read")
    url: str
    kind: Literal[
        "paper", "abstract", "project page", "repository README", "repository figure", "model card", "secondary"
    ]
    models: dict[str, tuple[str, ...]] = Field(description="model as printed → names of the same weights here")
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    not_found: tuple[str, ...] = Field(default=(), description="figures of this source that could not be had")

    @model_validator(mode="after")
    def _known(self) -> Paper:
        for table in self.tables:
            for row in table.rows:
                if row.model not in self.models:
                    raise ValueError(f"table {table.name!r}: model {row.model!r} is not listed under `models`")
        return self

    def cite(self, table: Table) -> str:
        """Where a table is from, on one line."""
        return f"{self.title} ({self.id}), {table.name}" + (f" [{', '.join(table.places)}]" if table.places else "")

    def is_of(self, row: Row, model: str) -> bool:
        """Whether a row is of the model that is called so here."""
        return same_model(self.models[row.model], model)


class Published(NamedTuple):
    """All files of a folder, by name.

    Attributes:
        folder: as it was given; None for the folder that ships.
    """

    papers: dict[str, Paper]
    folder: str | None = None

    def tables(self) -> Iterator[tuple[Paper, Table]]:
        """Every table once."""
        for paper in self.papers.values():
            yield from ((paper, table) for table in paper.tables if not table.repeats)

    @property
    def digest(self) -> str:
        """Twelve hex digits that stand for the content."""
        return jsonio.digest({name: paper.model_dump(mode="json") for name, paper in self.papers.items()})[:12]


def same_model(names: Iterable[str], model: str) -> bool:
    """Whether `model` is one of `names`; a folder is known by its last part, upper and lower case are one."""
    return _tail(model) in {_tail(name) for name in names}


def _tail(name: str) -> str:
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1].lower()


def published_dir() -> Path:
    """The folder of figures that ship: inside the installed package, or the repository's in an editable install."""
    return shipped_dir("_published", "baselines/published")


def load_published(folder: str | Path | None = None) -> Published:
    """Read and validate every ``*.yaml`` of a folder (default: the one that ships), in the order of their names.

    Raises:
        UsageError: no such folder, no file in it, or a file that is unreadable or wrong.
    """
    place = Path(folder) if folder is not None else published_dir()
    files = yaml_files(place)
    if not files:
        raise UsageError(
            f"no published figures (*.yaml) in {place}; RECORDS go before --published, its folder after it"
        )
    papers = {file.stem: _read(file) for file in files}
    for name, paper in papers.items():
        for table in paper.tables:
            if table.repeats and table.repeats not in papers:
                raise UsageError(f"{place / name}.yaml: repeats {table.repeats!r}, which is no file beside it")
    return Published(papers, None if folder is None else str(folder))


def _read(file: Path) -> Paper:
    try:
        return Paper.model_validate(read_mapping(file, "`title:`, `id:`, `url:`, `kind:`, `models:` and `tables:`"))
    except ValidationError as error:
        raise UsageError(f"{file}: {first_problem(error)}") from error
