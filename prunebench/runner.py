"""A run, top to bottom: load, calibrate once, and for each cell plan, prune, evaluate, measure, record.

The grid is small (strategies × budgets × seeds on one model and one suite) and lives in one process: one loaded model,
one Trace, encoder outputs shared by all plans. Finished cells are skipped, so running the same command again finishes
what is missing and touches nothing else.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prunebench.adapter import LoadedModel, LoadOptions, ModelAdapter
from prunebench.calibration.samples import Sample, fingerprint
from prunebench.calibration.trace import Trace, trace_key
from prunebench.comparison import DENSE
from prunebench.config import Spec
from prunebench.dataset import Dataset, open_dataset
from prunebench.encoded import EncoderCache
from prunebench.environment import describe_environment
from prunebench.errors import BadParameter, PlanError, PruneBenchError, StoreError, first_line, typed_line
from prunebench.grid import Job, build_cells, build_strategies, calibration_spec, reads_samples
from prunebench.layerwise import LayerwiseStrategy
from prunebench.layerwise.waiting import Waiting
from prunebench.plan import Plan, Provenance
from prunebench.plugins import Plugins, get_plugins
from prunebench.probing import Remembered
from prunebench.recovery.cell import recover_cell
from prunebench.reporter import Reporter
from prunebench.store import Record, Store, now
from prunebench.strategy import PlanContext, Strategy
from prunebench.suite_run import SuiteRun
from prunebench.suites import Suite

if TYPE_CHECKING:
    from prunebench.evaluator import TaskResult
    from prunebench.measure.model import Measured
    from prunebench.probing import Probe

__all__ = ["Session", "run"]

SMALL_MODEL = 20_000_000
"""Parameters below which a model runs on one CPU thread unless ``--threads`` says otherwise."""


def run(spec: Spec, reporter: Reporter | None = None) -> list[Record]:
    """Run a grid and return its records, dense first.

    Raises:
        PruneBenchError: the grid cannot be started (unknown names, unreadable model, unwritable folder).
            A cell that fails afterwards is a failed record instead.
    """
    session = Session(spec, reporter or Reporter.silent())
    return session.run()


class Session:
    """One loaded model, one suite, one calibration, and the cells over them."""

    def __init__(self, spec: Spec, reporter: Reporter) -> None:
        self.spec = spec
        self.reporter = reporter
        self.plugins: Plugins = get_plugins()
        self.store = Store(spec.out)
        # All names are looked up before anything slow happens.
        adapter = self._adapter()
        self.strategies = build_strategies(spec, self.plugins)
        recovers = any(spec.recoveries())
        self.encoder = EncoderCache(self.store.root / "encoded", disk_bytes=spec.encode_cache, warn=self.reporter.warn)
        questions = self._questions(spec.suite or adapter.default_suite)
        dataset = self._dataset(spec.calibration or adapter.default_calibration)
        self.executor = self.plugins.get("executors", spec.executor)()
        self.loaded: LoadedModel = self._load(adapter)
        # Some adapters know what fits their model only now.
        questions = questions or self._questions(adapter.default_suite)
        if questions is None:
            raise BadParameter(f"model {spec.model!r} has no default suite: name one with --suite")
        self.questions: SuiteRun = questions
        self.questions.check_modalities(self.loaded.info)
        self.dataset = dataset or self._dataset(adapter.default_calibration)
        if self.dataset is None and (recovers or any(reads_samples(s) for s in self.strategies.values())):
            raise BadParameter(
                f"model {spec.model!r} has no default calibration data: name a dataset with --calibration"
            )
        self._samples: list[Sample] | None = None
        self._trace: Trace | None = None
        self._remembered, self._waiting = Remembered(), Waiting()
        self._evaluated: dict[str, tuple[str, tuple[TaskResult, ...]]] = {}
        self._timing_samples: list[Sample] | None = None
        self.after_dense: Callable[[Record], Any] | None = None

    # -- setting up --------------------------------------------------------------------------------------------------

    def _adapter(self) -> ModelAdapter:
        word, colon, reference = self.spec.model.partition(":")
        adapter_class = self.plugins.get("models", word)
        if colon and not adapter_class.takes_reference:
            raise BadParameter(f"model {word!r} takes nothing after a colon, got {reference!r}")
        return adapter_class()

    @property
    def suite(self) -> Suite:
        """The tasks that are run."""
        return self.questions.suite

    def _questions(self, name: str | None) -> SuiteRun | None:
        if name is None:
            return None
        return SuiteRun(name, self.spec, self.plugins, self.store, self.encoder, self.reporter)

    def _dataset(self, name: str | None) -> Dataset | None:
        return open_dataset(self.plugins, name) if name else None

    def _load(self, adapter: ModelAdapter) -> LoadedModel:
        spec = self.spec
        word, colon, reference = spec.model.partition(":")
        options = LoadOptions(
            name=word,
            reference=reference if colon else None,
            path=spec.model_path,
            device=spec.device,
            dtype=spec.dtype,
            device_map=spec.device_map,
            offload_folder=spec.offload_folder,
            attn_implementation=spec.attn_implementation,
            trust_remote_code=spec.trust_remote_code,
            revision=spec.model_revision,
        )
        with self.reporter.step(f"load {spec.model}"):
            loaded = adapter.load(options)
        self._set_threads(loaded)
        return loaded

    def _set_threads(self, loaded: LoadedModel) -> None:
        import torch

        if self.spec.threads is not None:
            torch.set_num_threads(self.spec.threads)
        elif loaded.device.type == "cpu" and loaded.info.model_params < SMALL_MODEL:
            # Threads wait for each other after every small product: on a busy machine that was measured to cost a
            # hundredfold, and on a quiet one a second thread gains next to nothing.
            torch.set_num_threads(1)

    def cells(self) -> list[Job]:
        """The grid: dense, then every strategy at every budget and seed."""
        return build_cells(
            self.spec,
            self.plugins,
            self.strategies,
            self.loaded.info,
            self.suite,
            self.dataset,
            self.questions.revisions,
            self.questions.left_out,
        )

    # -- stages ------------------------------------------------------------------------------------------------------

    def samples(self) -> list[Sample]:
        """The calibration samples, made once."""
        if self._samples is None:
            assert self.dataset is not None
            spec = calibration_spec(self.spec, self.dataset)
            try:
                self._samples = self.dataset.samples(spec.split, spec.n, seed=spec.seed, domain=spec.domain)
            except ValueError as error:
                raise BadParameter(f"calibration data {spec.dataset!r}: {error}") from error
            if len(self._samples) < spec.n:
                self.reporter.warn(f"calibration data {spec.dataset!r}: {len(self._samples)} samples, {spec.n} asked")
        return self._samples

    def recalibrated(self, *, seed: int | None = None, domain: str | None = None) -> Session:
        """This session with other calibration samples; model, encoder outputs and folders are shared."""
        given = {"calibration_seed": seed, "calibration_domain": domain}
        other = copy.copy(self)
        other.spec = self.spec.model_copy(update={key: value for key, value in given.items() if value is not None})
        other._samples = other._trace = None
        other._remembered, other._waiting = Remembered(), Waiting()
        return other

    def hold(self, samples: Sequence[Sample], trace: Trace) -> None:
        """Take these samples and their trace for calibration, whatever the spec says."""
        self._samples, self._trace = list(samples), trace
        self._remembered, self._waiting = Remembered(), Waiting()

    def trace(self) -> Trace:
        """The one Trace of this run, with all that any of its strategies reads; from disk where it is there already."""
        if self._trace is not None:
            return self._trace
        from prunebench.calibration.collect import calibrate

        needed = frozenset().union(*(strategy.requires() for strategy in self.strategies.values()))
        samples, info = self.samples(), self.loaded.info
        mark = fingerprint(samples)
        path = self.store.traces / f"{trace_key(info.name, info.revision, info.dtype, mark)}.safetensors"
        if path.exists():
            try:
                found = Trace.load(path)
                if found.has(needed):
                    self.reporter.note(f"calibration: {path.name} reused ({found.meta.n_samples} samples)")
                    self._trace = found
                    return found
                # A trace grows, it never loses what others rely on.
                needed |= {*found.meta.statistics, *found.meta.unavailable}
            except StoreError as error:
                moved = self.store.quarantine(path)
                self.reporter.warn(f"{error}; moved to {moved} and made anew")
        with self.reporter.bar("calibrate", len(samples)) as advance:
            self._trace = calibrate(
                self.loaded,
                samples,
                needed,
                batch_size=self.spec.batch_size,
                progress=advance,
                encode=lambda batch: self.encoder.encode(self.loaded, batch, keep=False),
                mark=mark,
            )
        self._trace.save(self.store.traces)
        return self._trace

    def probe(self, strategy: Strategy) -> Probe:
        """The dense model on the calibration samples, as far as `strategy` looks at any, to be asked what it loses.

        Answers are shared by the plans of a run, and what each took counts for every plan that asked.
        """
        from prunebench.probing import Probe

        return Probe(
            self.loaded,
            self.samples() if reads_samples(strategy) else [],
            encode=lambda batch: self.encoder.encode(self.loaded, batch),
            batch_size=self.spec.batch_size,
            remembered=self._remembered,
        )

    def context(self, job: Job) -> PlanContext:
        """What the strategy of a job is given."""
        trace = self.trace() if job.strategy.requires() else None
        probe = self.probe(job.strategy) if job.strategy.needs_model else None
        return PlanContext(self.loaded.info, job.cell.budget, trace, job.cell.seed, probe=probe)

    def expect(self, jobs: Sequence[Job]) -> None:
        """Announce jobs that `plan` will be called for: methods that thin weights layer by layer share their walks."""
        self._waiting.expect(jobs)

    def plan(self, job: Job) -> tuple[Plan, PlanContext]:
        """Score and select; nothing is pruned.

        The plans of methods that thin weights layer by layer are made together with all such that are expected.
        """
        if isinstance(job.strategy, LayerwiseStrategy):
            if self._waiting.has(job):
                plan, context = self._waiting.take(job, self.context)
            else:
                with self.reporter.bar("  thin layer by layer", self.loaded.info.n_layers) as advance:
                    plan, context = self._waiting.take(job, self.context, advance)
            return self._signed(job, plan, context, plan.cost.search_seconds), context
        context = self.context(job)
        started = time.perf_counter()
        with self.reporter.step("  score and select"):
            plan = job.strategy.plan(context)
        seconds = time.perf_counter() - started + (context.probe.counts.recalled_seconds if context.probe else 0.0)
        return self._signed(job, plan, context, seconds), context

    def _signed(self, job: Job, plan: Plan, context: PlanContext, seconds: float) -> Plan:
        """The plan with what it took, who made it, and what the strategy wants to be known.

        Raises:
            PlanError: no plan, or one that JSON cannot hold.
        """
        if not isinstance(plan, Plan):
            raise PlanError(f"strategy {job.strategy.name!r} returned {type(plan).__name__}, it has to return a Plan")
        probe = context.probe
        provenance = plan.provenance or Provenance(
            strategy=job.strategy.name, params=job.strategy.params(), seed=job.cell.seed
        )
        owner = self.plugins.registry("strategies")[job.strategy.name].plugin
        plan = plan.model_copy(
            update={
                "cost": (probe.counts.added_to(plan.cost) if probe else plan.cost).model_copy(
                    update={"search_seconds": seconds}
                ),
                "provenance": provenance.model_copy(
                    update={
                        "plugin": owner,
                        "version": job.cell.strategy_version,
                        "warnings": tuple(context.warnings),
                    }
                ),
            }
        )
        try:  # a plan that cannot be read back would make a record that nobody can read
            Plan.from_json(plan.to_json())
        except (PlanError, ValueError) as error:
            raise PlanError(
                f"strategy {job.strategy.name!r} made a plan that cannot be kept as JSON: {_describe(error)}"
            ) from error
        return plan

    def evaluate(self, plan: Plan) -> list[TaskResult]:
        """All tasks of the suite on the pruned model, which is whole again afterwards.

        Each finished task is kept in the store at once, and none is asked that an earlier run finished there.
        """
        return self.questions.evaluate(self.loaded, plan)

    def measure(self, plan: Plan) -> Measured:
        """Latency and memory of the pruned model beside the dense one."""
        from prunebench.measure.model import measure_model

        spec = self.spec.latency
        rounds = spec.warmup + spec.rounds if spec.enabled else 0
        with self.reporter.bar("  latency and memory", rounds) as advance:
            return measure_model(self.loaded, plan, self._timing(), spec, advance)

    def _timing(self) -> Sequence[Sample]:
        """Fixed questions for timing: the first ones of the first task that has a dataset, else calibration samples."""
        if self._timing_samples is None:
            count = self.spec.latency.batch_size
            first = next((task for task in self.suite.tasks if task.dataset), None)
            if first is None and self.dataset is None:
                self._timing_samples = []  # nothing is timed: `run` saw to that
            elif first is None:
                self._timing_samples = self.samples()[:count]
            else:
                dataset = open_dataset(self.plugins, first.dataset)
                self._timing_samples = dataset.samples(first.split, count, seed=first.seed, domain=first.domain)
        return self._timing_samples

    # -- cells -------------------------------------------------------------------------------------------------------

    def run(self) -> list[Record]:
        """Run what is missing of the grid; records in grid order.

        Raises:
            BadParameter: there is nothing to time.
        """
        if self.dataset is None and self.spec.latency.enabled and not any(task.dataset for task in self.suite.tasks):
            raise BadParameter(
                f"suite {self.suite.name!r} has no questions that can be timed, model {self.spec.model!r} no default "
                "calibration data: name a dataset with --calibration, or give --no-latency"
            )
        jobs = {job.cell.id: job for job in self.cells()}
        self.store.check_writable()
        done: dict[str, Record] = {}
        for cell_id, job in jobs.items():
            found = None if self.spec.force else self.store.finished(job.cell, self.reporter.warn)
            if found is not None:
                done[cell_id] = self._remeasured(found) if self.spec.remeasure else found
                self._note(found)
        if done:
            self.reporter.note(f"{len(done)} of {len(jobs)} cells are finished already and skipped")
        todo = [job.cell for cell_id, job in jobs.items() if cell_id not in done]
        self.expect([jobs[cell.id] for cell in todo])
        for record in done.values():
            self._look_at_dense(record)
        for number, record in enumerate(self.executor.run(todo, lambda cell: self.run_cell(jobs[cell.id])), start=1):
            done[record.id] = record
            self.reporter.cell(number, len(todo), record)
            self._look_at_dense(record)
            for _ in self.plugins.each("prunebench_cell_finished", record=record):
                pass
        return [done[cell_id] for cell_id in jobs if cell_id in done]

    def _look_at_dense(self, record: Record) -> None:
        """Show the dense model's record to whoever wants to stop the run over it; records so far are kept."""
        cell = record.cell
        if self.after_dense is not None and cell.strategy == DENSE and cell.recovery is None and record.complete:
            self.after_dense(record)

    def run_cell(self, job: Job) -> Record:
        """One cell, whatever happens in it: a failure is a record, and the next cell runs."""
        self.reporter.begin(job.cell.label)
        self.questions.asking = None
        started, clock = now(), time.perf_counter()
        # A cell that fails before it has a plan is a row among plans of the kind that it would have made.
        parts: dict[str, Any] = {"status": "ok", "error": None, "kind": job.strategy.plan_kind}
        seconds: dict[str, float] = {}

        def lap(stage: str) -> None:
            nonlocal clock
            seconds[stage] = round(time.perf_counter() - clock, 3)
            clock = time.perf_counter()

        try:
            with warnings.catch_warnings():
                plan, context = self.plan(job)
                lap("plan")
                for line in context.warnings:
                    self.reporter.warn(line)
                parts |= {"plan": plan, "kind": plan.kind, "warnings": tuple(context.warnings)}
                if job.cell.recovery is not None:
                    plan = recover_cell(self, job, plan)
                    parts |= {"plan": plan, "warnings": plan.provenance.warnings if plan.provenance else ()}
                    lap("recover")
                if plan.digest in self._evaluated:
                    # Methods often agree: the same operations give the same answers, which need no second asking.
                    parts["evaluated_in"], parts["tasks"] = self._evaluated[plan.digest]
                else:
                    parts["tasks"] = tuple(self.evaluate(plan))
                lap("evaluate")
                parts |= self.measure(plan)._asdict()
                lap("measure")
        except KeyboardInterrupt:
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, StoreError):
                raise  # a store that cannot be written to cannot hold the failure either
            parts["status"] = "oom" if _is_out_of_memory(error) else "failed"
            parts["error"] = self._where(_describe(error))
            if self.reporter.debug and not isinstance(error, PruneBenchError):
                raise
        parts["warnings"] = (*parts.get("warnings", ()), *self.questions.warnings)
        record = Record(
            id=job.cell.id,
            cell=job.cell,
            model=self.loaded.info,
            seconds=seconds,
            environment=describe_environment(str(self.loaded.device)),
            started=started,
            finished=now(),
            **parts,
        )
        self.store.write(record)
        self._note(record)
        if record.complete and record.plan is not None:
            self.questions.forget(self.loaded, record.plan)
        return record

    def _where(self, error: str) -> str:
        """The error with the task that it happened in, where it did in one."""
        task, self.questions.asking = self.questions.asking, None
        return error if task is None or f"task {task!r}" in error else f"task {task!r}: {error}"

    def _remeasured(self, record: Record) -> Record:
        """The record with latency and memory as they are now; written, with all else as it was."""
        if record.plan is None or not self.spec.latency.enabled:
            return record
        self.reporter.begin(record.cell.label)
        clock = time.perf_counter()
        measured = self.measure(self.store.whole_plan(record.plan))._asdict()
        seconds = {**record.seconds, "measure": round(time.perf_counter() - clock, 3)}
        record = record.model_copy(update={**measured, "seconds": seconds})
        self.store.write(record)
        return record

    def _note(self, record: Record) -> None:
        """Keep a finished record's answers for further plans of the same operations."""
        if record.complete and record.plan is not None:
            self._evaluated.setdefault(record.plan.digest, (record.evaluated_in or record.id, record.tasks))


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _describe(error: BaseException) -> str:
    ours = isinstance(error, PruneBenchError) and str(error).strip()
    return first_line(error) if ours else typed_line(error)
