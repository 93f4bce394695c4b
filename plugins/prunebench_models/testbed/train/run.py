"""The whole training: towers, core, growth, export; every stage resumes at its last checkpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..configuration import TestbedConfig
from ..data.words import VOCABULARY
from ..modeling import MEDIA_RMS, TestbedForConditionalGeneration
from ..processing import TestbedProcessor
from . import roles
from .checkpoint import append_log, latest_state, load_into, save
from .decoder import grow
from .export import export
from .loop import Phase, make_optimizer, train_steps
from .probe import HeldOut
from .towers import freeze_towers, train_towers

__all__ = ["DEFAULT_STEPS", "train"]

DEFAULT_STEPS = {"towers": 500, "core": 2600, "grown": 1300}
PROGRESS_STEPS = 250
HELD_OUT_QUESTIONS = 144
HARD = ("relation", "relation", "before")  # what the core learns last
MIX = {"general": 10, "math": 8, "video": 10, "audio": 4}


def train(out: Path, device: str, workers: int, seed: int, steps: dict[str, int], checkpoint_seconds: float) -> None:
    """Train from nothing, or from the last checkpoint under ``out``, and write the model into ``out / "model"``.

    Args:
        out: working folder; its ``latest.json`` says where a run stands.
        device: ``"auto"`` takes a GPU where there is one.
        workers: processes of one thread each that share a step (1 or 2; 1 on a GPU).
        seed: of weights and data.
        steps: optimisation steps of the phases ``towers``, ``core`` and ``grown``.
        checkpoint_seconds: time between checkpoints inside a phase.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    workers = workers if device == "cpu" else 1
    torch.set_num_threads(max(workers, 1))
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    processor = TestbedProcessor()
    clock = Clock(out, device, workers, seed)
    state = latest_state(out) or {"phase": "towers", "step": 0}
    if "checkpoint" in state:
        print(f"resuming phase {state['phase']} at step {state['step']}", flush=True)
        append_log(out, {"event": "resume", "phase": state["phase"], "step": state["step"], "time": clock.now()})

    model = _new_core(device)
    if state["phase"] == "towers":
        clock.start("towers", state)
        found = train_towers(
            model, processor, {"image": steps["towers"], "audio": steps["towers"]}, seed, _print_towers
        )
        clock.finish({"accuracy": found, "steps": steps["towers"]})
        state = _advance(out, "towers", "core", model)
    held_out = HeldOut(processor, HELD_OUT_QUESTIONS)

    if state["phase"] == "core":
        phase = Phase("core", 101, steps["core"], MIX, easy=0.6, helpers=0.3, learning_rate=1e-3)
        _run_phase(out, model, processor, phase, state, held_out, clock, seed, workers, checkpoint_seconds)
        state = _advance(out, "core", "grown", model)

    load_into(out, "core", model)
    torch.manual_seed(seed + 1)  # growth draws noise: the same whether or not the run was interrupted
    model = grow(model)
    if state["phase"] == "grown":
        phase = Phase(
            "grown", 102, steps["grown"], MIX, helpers=0.05, emphasis=HARD, learning_rate=8e-4, penalty=0.02, failures=3
        )
        _run_phase(out, model, processor, phase, state, held_out, clock, seed, workers, checkpoint_seconds)
        state = _advance(out, "grown", "done", model)
    load_into(out, "grown", model)
    export(model, processor, held_out, out, clock.now())
    print(f"done: {out / 'model'}", flush=True)


def _new_core(device: str) -> TestbedForConditionalGeneration:
    model = TestbedForConditionalGeneration(TestbedConfig.small(len(VOCABULARY), layers=len(roles.CORE)))
    nn.init.normal_(model.get_input_embeddings().weight, std=MEDIA_RMS)
    return model.to(device)


def _advance(out: Path, finished: str, following: str, model: nn.Module) -> dict[str, Any]:
    state = {"phase": following, "step": 0}
    save(out, finished, state, model, None)
    return {**state, "checkpoint": finished}


class Clock:
    """Wall and CPU seconds by phase, carried over interruptions."""

    def __init__(self, out: Path, device: str, workers: int, seed: int) -> None:
        self.out = out
        self.facts = {"device": device, "workers": workers, "seed": seed, "torch": torch.__version__}
        self.phase = ""

    def now(self) -> str:
        """UTC time, ISO 8601."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    def start(self, phase: str, state: dict[str, Any]) -> None:
        """Begin or continue a phase."""
        self.phase = phase
        self.further_cpu = 0.0  # of other processes, in this phase and run
        self.before = (state.get("wall_seconds", 0.0), state.get("cpu_seconds", 0.0))
        self.begun = (time.monotonic(), time.process_time())

    def spent(self) -> dict[str, float]:
        """Seconds spent in the current phase."""
        wall, cpu = time.monotonic() - self.begun[0], time.process_time() - self.begun[1] + self.further_cpu
        return {"wall_seconds": round(self.before[0] + wall, 1), "cpu_seconds": round(self.before[1] + cpu, 1)}

    def finish(self, facts: dict[str, Any]) -> None:
        """Write the phase's line into the log."""
        entry = {"event": "phase", "phase": self.phase, "time": self.now(), **self.spent(), **facts, **self.facts}
        append_log(self.out, entry)
        print(entry, flush=True)


def _run_phase(out, model, processor, phase, state, held_out, clock, seed, workers, checkpoint_seconds) -> None:
    freeze_towers(model)
    optimizer = make_optimizer(model, phase)
    if state["step"] > 0 or phase.name == "core":
        load_into(out, state["checkpoint"], model, optimizer)
    clock.start(phase.name, state)
    saved = time.monotonic()

    def after_step(done: int, means: dict[str, float]) -> None:
        nonlocal saved
        clock.further_cpu = means["further_cpu_seconds"]
        if done % PROGRESS_STEPS == 0 or done == phase.steps:
            accuracy = held_out.accuracy(model, (), phase.layer_ids)
            left = (phase.steps - done) * means["seconds_per_step"]
            numbers = {key: round(value, 3) for key, value in means.items()}
            entry = {
                "event": "progress",
                "phase": phase.name,
                "step": done,
                "held_out": accuracy,
                **numbers,
                **clock.spent(),
            }
            if phase.grown:
                entry["without_removable"] = held_out.accuracy(model, roles.REMOVABLE)
            append_log(out, entry)
            loss = sum(value for key, value in means.items() if key.startswith("loss/")) / len(phase.contexts)
            penalty = sum(value for key, value in means.items() if key.startswith("penalty/")) / len(phase.contexts)
            parts = f"{accuracy} {entry.get('without_removable', '')} penalty {penalty:.3f}"
            print(f"{phase.name} {done}/{phase.steps} loss {loss:.3f} {parts} ETA {left / 60:.1f} min", flush=True)
        if time.monotonic() - saved > checkpoint_seconds and done < phase.steps:
            save(out, f"{phase.name}-running", {"phase": phase.name, "step": done, **clock.spent()}, model, optimizer)
            saved = time.monotonic()

    train_steps(model, processor, phase, optimizer, state["step"], seed, workers, after_step)
    clock.finish({"steps": phase.steps, "held_out": held_out.accuracy(model, (), phase.layer_ids)})


def _print_towers(name: str, step: int, loss: float, numbers: dict[str, float]) -> None:
    shown = " ".join(f"{key} {value:.3f}" for key, value in numbers.items())
    print(f"{name} {step} loss {loss:.4f} {shown}", flush=True)
