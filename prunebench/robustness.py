"""How much a method's choice depends on the calibration samples: other draws, other domains, halves of the same ones.

Three kinds of calibration sets, each compared pair by pair: Kendall's τ-b of the scores of all layers, and the Jaccard
overlap of what is removed. Each set costs one forward pass per sample, halves cost none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from prunebench import jsonio
from prunebench.agreement import jaccard, matrix, pairwise, rank_correlation, summary
from prunebench.calibration.samples import input_fingerprint
from prunebench.calibration.trace import Trace
from prunebench.config import CalibrationSpec
from prunebench.environment import describe_environment
from prunebench.errors import BadParameter, PruneBenchError, StoreError, UsageError, first_line
from prunebench.grid import calibration_spec, reads_samples
from prunebench.kinds import removes_layers
from prunebench.plan import first_problem
from prunebench.side_by_side import Planned, collect, planned, removed_units
from prunebench.store import now

if TYPE_CHECKING:
    from prunebench.runner import Session

__all__ = [
    "FOLDER",
    "KINDS",
    "Asked",
    "CalibrationSet",
    "Pair",
    "Robustness",
    "Stability",
    "Stat",
    "half_rows",
    "load_robustness",
    "measure_robustness",
    "part_of_trace",
]

SCHEMA_VERSION = 1
FOLDER = "robustness"
Kind = Literal["draws", "domains", "halves"]
KINDS: dict[str, str] = {
    "draws": "other draws of as many samples from the same data",
    "domains": "each domain of the data alone, as many samples of each",
    "halves": "random halves of one draw, half of each domain",
}
"""Kind of calibration sets → what they are."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CalibrationSet(_Part):
    """One set of samples that every strategy planned from."""

    kind: Kind
    name: str
    n: int
    fingerprint: str
    sample_forwards: int


class Stat(_Part):
    """Mean and least over the pairs for which a value is defined; null without any."""

    mean: float | None
    least: float | None
    n_pairs: int


class Pair(_Part):
    """Two domains."""

    first: str
    second: str
    kendall: float | None
    jaccard: float


class Stability(_Part):
    """One strategy at one budget over all sets of one kind."""

    strategy: str
    label: str
    budget: str
    kind: Kind
    sets: tuple[str, ...]
    removed_layers: tuple[tuple[int, ...], ...]
    kendall: Stat
    jaccard: Stat
    pairs: tuple[Pair, ...] = ()
    further_passes: float = 0.0
    reason: str | None = None


class Robustness(_Part):
    """What came out, whole enough to be read in another year."""

    schema_version: int = SCHEMA_VERSION
    model: str
    model_revision: str
    dtype: str
    n_layers: int
    calibration: CalibrationSpec
    calibration_revision: str
    sets: tuple[CalibrationSet, ...]
    overlap: dict[str, float]
    """Kind → mean Jaccard overlap of the samples of two of its sets: near 1 says little about other samples."""
    rows: tuple[Stability, ...]
    independent: tuple[str, ...]
    """Strategies that read no calibration samples, and so are the same whatever they are."""
    environment: dict[str, Any]
    created: str

    @property
    def id(self) -> str:
        """16 hex digits over what was asked, not over what came out: asking again replaces the file."""
        asked = [self.model, self.model_revision, self.dtype, self.calibration.model_dump(mode="json")]
        sets = [[one.kind, one.name, one.n, one.fingerprint] for one in self.sets]
        rows = sorted({(row.label, row.budget, row.kind) for row in self.rows})
        return jsonio.digest([*asked, self.calibration_revision, sets, [list(row) for row in rows]])[:16]

    def save(self, root: str | Path) -> Path:
        """Write ``robustness/<id>.json`` below a run folder, whole or not at all."""
        path = Path(root) / FOLDER / f"{self.id}.json"
        jsonio.write_text(path, self.model_dump_json(indent=1) + "\n")
        return path


@dataclass(frozen=True)
class Asked:
    """Which kinds of sets, and how many: draws and halves at least 2, or 0 for none."""

    draws: int = 0
    domains: bool = False
    halves: int = 0

    @classmethod
    def checked(cls, draws: int | None, domains: bool, halves: int | None) -> Asked | None:
        """None where nothing is asked.

        Raises:
            UsageError: fewer than two sets.
        """
        for name, count in (("--calibration-draws", draws), ("--resamples", halves)):
            if count is not None and count < 2:
                raise UsageError(f"{name} {count}: agreement needs at least 2")
        return cls(draws or 0, domains, halves or 0) if draws or domains or halves else None


@dataclass(frozen=True)
class _Placed:
    """What every strategy did on one set."""

    set: CalibrationSet
    samples: frozenset[str]
    rows: dict[tuple[str, str], Planned]


def measure_robustness(session: Session, asked: Asked) -> Robustness:
    """Plan all strategies of the session that read calibration samples, on every set that is asked for.

    Raises:
        UsageError: no strategy reads samples and removes layers, or the data have fewer than two domains.
        PruneBenchError: the data cannot be read.
    """
    reading = {name: s for name, s in session.strategies.items() if reads_samples(s)}
    readers = {name: s for name, s in reading.items() if removes_layers(s.plan_kind)}
    for name in reading:
        if name not in readers:
            session.reporter.warn(f"{name}: kind {reading[name].plan_kind} removes no layers to compare, left out")
    if reading and not readers:
        raise UsageError("these strategies remove no layers, and overlap and order of layers is what is compared here")
    if not readers or session.dataset is None:
        raise UsageError("none of these strategies reads calibration samples: their plans are the same for all of them")
    spec = calibration_spec(session.spec, session.dataset)
    found: list[_Placed] = []
    for i in range(asked.draws):
        seed = spec.seed + i
        found.append(_place(session.recalibrated(seed=seed), readers, "draws", f"seed {seed}"))
    if asked.domains:
        names = tuple(session.dataset.domains)
        if len(names) < 2 or spec.domain is not None:
            why = f"--calibration-domain takes {spec.domain!r} alone" if spec.domain else f"it has {len(names)}"
            raise UsageError(f"--across-domains needs at least two domains of {spec.dataset!r}: {why}")
        for name in names:
            try:
                found.append(_place(session.recalibrated(domain=name), readers, "domains", name))
            except BadParameter as error:  # a domain that the data name and have no samples of
                session.reporter.warn(f"domain {name!r} is left out: {first_line(error)}")
    if asked.halves:
        found += _halves(session, readers, asked.halves)
    kinds = [kind for kind in KINDS if sum(one.set.kind == kind for one in found) > 1]
    rows, overlap = [], {}
    for kind in kinds:
        own = [one for one in found if one.set.kind == kind]
        shared = summary(pairwise([one.samples for one in own], jaccard)).mean
        overlap[kind] = round(shared, 4) if shared is not None else 0.0
        keys = dict.fromkeys(key for one in own for key in one.rows)
        rows += [_stability(key, kind, own) for key in keys]
    info = session.loaded.info
    return Robustness(
        model=info.name,
        model_revision=info.revision,
        dtype=info.dtype,
        n_layers=info.n_layers,
        calibration=spec,
        calibration_revision=session.dataset.revision,
        sets=tuple(one.set for one in found),
        overlap=overlap,
        rows=tuple(rows),
        independent=tuple(name for name in session.strategies if name not in reading),
        environment=describe_environment(str(session.loaded.device)),
        created=now(),
    )


def half_rows(domains: Sequence[str], seed: int) -> np.ndarray:
    """Indices, ascending, of a random half of the samples of each domain, drawn without replacement.

    Halves, because the mean over a random half scatters around the mean over all n samples with the variance of a mean
    over n samples: two halves differ as two draws of full size would. A bootstrap with replacement would do that too,
    but would put samples in twice, which methods that look at distances between samples cannot take.

    Source: J. Shao and D. Tu, "The Jackknife and Bootstrap" (1995), section 2.3 (delete-d jackknife).
    """
    random, chosen, spare = np.random.RandomState(seed), [], 0
    for name in sorted(set(domains)):
        rows = np.flatnonzero(np.array(domains) == name)
        take = (len(rows) + spare) // 2  # odd counts round down and up in turn
        spare = (len(rows) + spare) % 2
        chosen += random.permutation(rows)[:take].tolist()
    return np.array(sorted(chosen), dtype=np.int64)


def part_of_trace(trace: Trace, rows: np.ndarray) -> Trace:
    """The trace of some of the samples: what calibration on them alone would have given, at no cost."""
    meta = trace.meta
    count = trace["token_count"][:, 0] if "token_count" in trace.arrays else None
    share = float(count[rows].sum() / count.sum()) if count is not None and count.sum() else len(rows) / meta.n_samples
    mark = jsonio.digest([meta.fingerprint, [int(row) for row in rows]])
    own = meta.model_copy(
        update={
            "key": mark[:24],
            "fingerprint": mark,
            "n_samples": len(rows),
            "domains": tuple(meta.domains[row] for row in rows),
            "sample_ids": tuple(meta.sample_ids[row] for row in rows),
            "tokens": round(meta.tokens * share),
            "seconds": 0.0,
        }
    )
    return Trace(own, {name: array[rows] for name, array in trace.arrays.items()})


def load_robustness(paths: Iterable[str | Path]) -> list[Robustness]:
    """What lies in ``robustness/`` beside the records of run folders, ordered by id.

    Raises:
        StoreError: a file that cannot be read.
    """
    found = {}
    for given in paths:
        path = Path(given)
        folder = (path.parent if path.name == "records" else path) / FOLDER
        for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            try:
                one = Robustness.model_validate_json(file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise StoreError(f"cannot read {file}: {error}") from error
            except ValidationError as error:
                raise StoreError(
                    f"{file} is damaged or of another version: {first_problem(error)}; delete it, or measure it again"
                ) from error
            if one.schema_version != SCHEMA_VERSION:
                raise StoreError(f"{file} has schema {one.schema_version}, this version reads {SCHEMA_VERSION}")
            found[one.id] = one
    return [found[key] for key in sorted(found)]


def _place(session: Session, strategies: dict[str, Any], kind: Kind, name: str) -> _Placed:
    """Every strategy on the samples of this session."""
    session.strategies = strategies
    session.reporter.note(f"calibration set: {kind}, {name}")
    samples = session.samples()
    shared, reasons = collect(session)
    rows: dict[tuple[str, str], Planned] = {}
    for job in session.cells():
        if job.strategy.name in strategies and job.cell.recovery is None:
            row = planned(session, job, reasons.get(job.strategy.name))
            rows.setdefault((row.label, str(job.cell.budget)), row)
    marks = frozenset(input_fingerprint(sample) for sample in samples)
    mark = jsonio.digest(sorted(marks))
    made = CalibrationSet(kind=kind, name=name, n=len(samples), fingerprint=mark, sample_forwards=shared.forwards)
    return _Placed(made, marks, rows)


def _halves(session: Session, strategies: dict[str, Any], count: int) -> list[_Placed]:
    free = {name: strategy for name, strategy in strategies.items() if not strategy.needs_model}
    if not free:
        raise UsageError("--resamples takes parts of collected statistics, and these strategies ask the model instead")
    whole = session.recalibrated()
    whole.strategies = free
    _, reasons = collect(whole)
    whole.strategies = {name: strategy for name, strategy in free.items() if name not in reasons}
    if not whole.strategies:
        raise PruneBenchError(f"no strategy can be calibrated: {next(iter(reasons.values()))}")
    trace, samples = whole.trace(), whole.samples()
    found = []
    for i in range(count):
        rows = half_rows(trace.meta.domains, whole.spec.calibration_seed + i)
        part = whole.recalibrated()
        part.hold([samples[row] for row in rows], part_of_trace(trace, rows))
        found.append(_place(part, whole.strategies, "halves", f"half {i + 1}"))
    return found


def _stability(key: tuple[str, str], kind: str, sets: Sequence[_Placed]) -> Stability:
    """Agreement of one strategy over the sets that it could plan on."""
    rows = [(one.set.name, row) for one in sets if (row := one.rows.get(key)) is not None]
    good = [(name, row, row.plan) for name, row in rows if row.plan is not None]
    failed = [f"{name}: {row.reason}" for name, row in rows if row.plan is None]
    units = [removed_units(plan) for _, _, plan in good]
    scores = [row.scores for _, row, _ in good]
    ranks = matrix(scores, rank_correlation)
    kendall = summary(ranks[i][j] for i in range(len(good)) for j in range(i + 1, len(good)))
    overlap = summary(pairwise(units, jaccard))
    pairs = tuple(
        Pair(first=good[i][0], second=good[j][0], kendall=ranks[i][j], jaccard=jaccard(units[i], units[j]))
        for i in range(len(good))
        for j in range(i + 1, len(good))
        if kind == "domains"
    )
    first = rows[0][1]
    return Stability(
        strategy=first.strategy,
        label=key[0],
        budget=key[1],
        kind=kind,  # type: ignore[arg-type]
        sets=tuple(name for name, _, _ in good),
        removed_layers=tuple(plan.removed_layers for _, _, plan in good),
        kendall=Stat(mean=kendall.mean, least=kendall.least, n_pairs=kendall.n),
        jaccard=Stat(mean=overlap.mean, least=overlap.least, n_pairs=overlap.n),
        pairs=pairs,
        further_passes=round(sum(row.passes for _, row in rows), 3),
        reason="; ".join(failed) or None,
    )
