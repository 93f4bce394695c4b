"""Atomic checkpoints: tensors in safetensors, everything else in JSON."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

__all__ = ["append_log", "latest_state", "load_into", "save"]

LATEST = "latest.json"


def save(
    out: Path, name: str, state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> None:
    """Write checkpoint ``name`` whole, then point ``latest.json`` at it.

    A killed process leaves the previous checkpoint in force: the pointer moves last, by an atomic rename.
    """
    folder, fresh = out / "checkpoints" / name, out / "checkpoints" / f"{name}.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(
        {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()},
        fresh / "model.safetensors",
    )
    if optimizer is not None:
        moments = {}
        for index, slots in optimizer.state_dict()["state"].items():
            moments.update({f"{index}.{slot}": value.detach().cpu().contiguous() for slot, value in slots.items()})
        save_file(moments, fresh / "optimizer.safetensors")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)
    _write_json(out / LATEST, {**state, "checkpoint": name})


def latest_state(out: Path) -> dict[str, Any] | None:
    """The state of the last whole checkpoint, or None."""
    path = out / LATEST
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def load_into(out: Path, name: str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Load a checkpoint's weights, and the optimizer's moments where they were written."""
    folder = out / "checkpoints" / name
    model.load_state_dict(load_file(folder / "model.safetensors"))
    moments = folder / "optimizer.safetensors"
    if optimizer is None or not moments.exists():
        return
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(moments).items():
        index, slot = key.split(".")
        slots.setdefault(int(index), {})[slot] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


def append_log(out: Path, entry: dict[str, Any]) -> None:
    """Add one line to ``training_log.jsonl``."""
    with open(out / "training_log.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    fresh = path.with_suffix(".partial")
    with open(fresh, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
