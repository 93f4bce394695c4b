"""What a group of records is: the lines above its tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel

from prunebench.comparison import Group
from prunebench.report.markdown import MISSING, code, figure, one_line, table
from prunebench.store import Record

__all__ = ["content_digest", "facts", "task_table", "titles"]


def titles(groups: Sequence[Group]) -> list[str]:
    """A heading for each group that tells it from the others: model, suite, calibration, and what else differs."""
    parts: list[list[str]] = []
    for group in groups:
        cell, known = group.records[0].cell, group.calibration
        data = f"calibrated on {known['domain'] or known['dataset']}" if known else ""
        how = f"{known['n']} samples, seed {known['seed']}, {group.calibration_revision[:8]}" if known else ""
        questions = f"{cell.limit} questions per task" if cell.limit else "all questions"
        latency = f"batch {cell.latency.batch_size}, {cell.latency.new_tokens} new tokens"
        latency = f"timed at {latency}, {cell.latency.rounds} rounds" if cell.latency.enabled else "not timed"
        ids = [cell.dtype, f"weights {cell.model_revision[:8]}", f"suite digest {cell.suite_digest[:8]}"]
        parts.append([f"{group.model.name} on {cell.suite}", data, how, *ids, questions, latency])
    shown = [i for i in range(len(parts[0])) if i < 2 or len({part[i] for part in parts}) > 1]
    return [", ".join(part[i] for i in shown if part[i]) for part in parts]


def content_digest(*parts: Iterable[BaseModel]) -> str:
    """Twelve hex digits that stand for the content of records, and of what is shown with them, in their order."""
    lines = [one.model_dump_json() for part in parts for one in part]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def task_table(group: Group) -> str:
    """Metric, number of questions, chance and majority level of each task, and its weight where these differ."""
    body, weighted = [], len(set(group.weights.values())) > 1
    for task in group.tasks:
        result = group.reference.get(task)
        if result is None:
            body.append([task, *[MISSING] * (5 if weighted else 4)])
            continue
        factor, digits = group.display(task)
        form = figure if task in group.log_scale else (lambda value, digits=digits: f"{value:.{digits}f}")
        levels = [MISSING if x is None else form(x * factor) for x in (result.chance, result.majority)]
        metric = f"{result.metric} (%)" if factor == 100 else result.metric
        metric += "" if result.higher_is_better else ", lower is better"
        body.append([task, metric, str(result.n), *levels, *([f"{group.weights[task]:g}"] if weighted else [])])
    header = ["Task", "Metric", "Questions", "Chance", "Majority answer", *(["Weight"] if weighted else [])]
    return table(header, body, left=2)


def facts(group: Group) -> str:
    """Model, suite, calibration, software, machine and how time was measured, as a list."""
    first, model = group.records[0], group.model
    cell = first.cell
    limit = f"at most {cell.limit} questions per task" if cell.limit else "all questions"
    lines = [
        f"Model: {code(model.name)}, {model.n_layers} decoder layers, {model.model_params:,} parameters "
        f"({model.lm_params:,} in the language model), revision {code(cell.model_revision[:12])}, {cell.dtype}",
        f"Suite: {code(cell.suite)}, {limit}, digest {code(cell.suite_digest[:16])}",
    ]
    if cell.left_out:
        lines.append(f"**Left out of the suite**: {_left_out(cell.left_out)}")
    if len(set(group.weights.values())) > 1:
        lines.append("Relative scores: means over tasks by the weights in the table below")
    if group.calibration is None:
        lines.append("Calibration: none of these strategies used any")
    else:
        known = group.calibration
        domain = f", domain {known['domain']}" if known["domain"] else ""
        revision = f", revision {code(group.calibration_revision[:12])}" if group.calibration_revision else ""
        lines.append(
            f"Calibration: {code(known['dataset'])}{domain}, {known['n']} samples of split {code(known['split'])}, "
            f"seed {known['seed']}{revision}; strategies that read no statistics used none"
        )
    lines.append(f"Software: {_software(group.records)}")
    lines.append(f"Machine: {_alternatives([_machine(record) for record in group.records])}")
    lines.append(f"Latency: {_alternatives([_latency(record) for record in group.records if record.status == 'ok'])}")
    days = sorted({moment[:10] for record in group.records for moment in (record.started, record.finished)})
    lines.append(f"Measured: {days[0]}{f' to {days[-1]}' if days[-1] != days[0] else ''}")
    if len([record for record in group.dense_records if record.status == "ok"]) > 1:
        chosen = code(group.dense.id) if group.dense else MISSING
        lines.append(f"{len(group.dense_records)} dense records; relative scores refer to {chosen}")
    return "\n".join(f"- {line}" for line in lines)


def _left_out(tasks: Mapping[str, str]) -> str:
    """``a, b (judge openai: no key was set); c (not asked for)``."""
    by_reason: dict[str, list[str]] = {}
    for task, why in tasks.items():
        by_reason.setdefault(f"{why}: no key was set" if why.startswith("judge ") else why, []).append(task)
    return "; ".join(f"{', '.join(map(code, names))} ({one_line(why)})" for why, names in by_reason.items())


def _software(records: Sequence[Record]) -> str:
    parts = []
    for key in ("prunebench", "torch", "transformers", "git_commit"):
        found = sorted({str(record.environment[key]) for record in records if record.environment.get(key)})
        if found:
            shown = [value[:12] for value in found] if key == "git_commit" else found
            parts.append(f"{key.replace('_', ' ')} {' / '.join(shown)}{' (mixed)' if len(found) > 1 else ''}")
    if any(record.environment.get("git_dirty") for record in records):
        parts.append("with changes that were not committed")
    return ", ".join(parts) or "not recorded"


def _machine(record: Record) -> str:
    known = record.environment
    found = [one_line(str(known[key])) for key in ("gpu", "machine") if known.get(key)]
    found += [f"{known[key]} {key}" for key in ("cpus", "threads") if known.get(key)]
    found += [f"device {one_line(str(known['device']))}"] if known.get("device") else []
    return ", ".join(found)


def _latency(record: Record) -> str:
    latency = record.latency
    if latency is None:
        return ""
    return (
        f"{latency.clock} on {latency.device}, batch {latency.batch_size}, prompt of {latency.prompt_tokens} tokens, "
        f"{latency.new_tokens} new tokens, median of {latency.prefill.n} rounds, dense and pruned timed in turn"
    )


def _alternatives(texts: Iterable[str]) -> str:
    found = sorted({text for text in texts if text})
    if len(found) > 1:
        return f"**mixed, so times of different rows may not be comparable**: {'; '.join(found)}"
    return found[0] if found else "not recorded"
