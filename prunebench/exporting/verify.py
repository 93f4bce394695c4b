"""The proof of an export: a fresh process loads it the plain way and finds the same weights and the same logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.errors import ModelError
from prunebench.exporting import reload_check

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Expected", "expect", "probe_ids", "verify"]

PROBE_TOKENS = 24


@dataclass(frozen=True)
class Expected:
    """What the model in memory holds and answers.

    Attributes:
        model_class: ``module:Class`` that loads the checkpoint.
        input_ids: (1, tokens) fixed token ids.
        logits: (1, tokens, vocabulary), of the model in memory.
        digests: tensor name → SHA-256.
        device: where both sides compute.
    """

    model_class: str
    input_ids: Tensor
    logits: Tensor
    digests: dict[str, str]
    device: str


def probe_ids(model: nn.Module) -> Tensor:
    """Token ids (1, `PROBE_TOKENS`) that are the same for every call, none of them a placeholder for media."""
    import torch

    size = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator, union-attr]
    taken = _token_ids(model.config.to_dict())  # type: ignore[operator, union-attr]
    free = np.array([token for token in range(size) if token not in taken])
    if not len(free):
        raise ModelError("every token of the vocabulary is a special one: the export cannot be checked")
    return torch.from_numpy(np.random.default_rng(0).choice(free, PROBE_TOKENS))[None]


def _token_ids(config: dict[str, Any]) -> set[int]:
    """All ids that a configuration gives a role, in its parts too."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, dict):
            found |= _token_ids(value)
        elif "token" in str(name):
            found |= {item for item in (value if isinstance(value, list) else [value]) if isinstance(item, int)}
    return found


def expect(model: nn.Module, model_class: str) -> Expected:
    """What a reload has to find, from the pruned model in memory.

    Raises:
        ModelError: the model does not answer to token ids.
    """
    ids = probe_ids(model)
    device = str(model.get_input_embeddings().weight.device)  # type: ignore[operator, union-attr]
    try:
        logits = reload_check.logits(model, ids)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ModelError(f"the pruned model cannot be run on token ids: {_last_line(str(error))}") from error
    return Expected(model_class, ids, logits, reload_check.digests(model), device)


def verify(folder: Path, expected: Expected) -> None:
    """Load `folder` in a fresh process by plain ``from_pretrained`` and compare.

    Raises:
        ModelError: it does not load, a key is missing, left over or of another shape, or weights or logits differ.
    """
    import torch
    from safetensors.torch import load_file, save_file

    with tempfile.TemporaryDirectory(prefix="prunebench-reload-") as name:
        probe = Path(name) / "probe.safetensors"
        save_file({"input_ids": expected.input_ids.contiguous()}, probe)
        source = Path(reload_check.__file__).read_text(encoding="utf-8")
        arguments = [folder.absolute(), expected.model_class, probe, name, expected.device, torch.get_num_threads()]
        environment = {
            **os.environ,
            # What this process can import, the other one can; nothing may come from the network.
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(path for path in sys.path if path)),
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        done = subprocess.run(
            [sys.executable, "-c", source, *map(str, arguments)],
            cwd=name,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise ModelError(f"the export does not load in a fresh process: {_last_line(done.stderr)}")
        found = json.loads((Path(name) / "found.json").read_text(encoding="utf-8"))
        logits = load_file(Path(name) / "logits.safetensors")["logits"]
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[key]:
            raise ModelError(
                f"the export reloads with {key.replace('_', ' ')}: {found[key][0]} ({len(found[key])} in all)"
            )
    if other := sorted(set(found["digests"].items()) ^ set(expected.digests.items())):
        raise ModelError(f"the export reloads with other weights: {other[0][0]} differs")
    if logits.dtype != expected.logits.dtype or not torch.equal(logits, expected.logits):
        away = float((logits.float() - expected.logits.float()).abs().max())
        raise ModelError(f"the export reloads with other logits: they differ by up to {away:.3g}")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason given"
