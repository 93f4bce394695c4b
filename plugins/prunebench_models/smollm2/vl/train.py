"""Train SmolLM2-VL: ``python -m prunebench_models.smollm2.vl.train --out DIR``; the same command again goes on."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunebench.calibration.samples import Sample
from prunebench_models.smollm2.convert import model_folder, weights_revision
from prunebench_models.smollm2.vl import ADAPTER_FILE, SETTINGS_FILE
from prunebench_models.smollm2.vl.batches import Packed, pack, pack_questions
from prunebench_models.smollm2.vl.folder import new_config
from prunebench_models.smollm2.vl.forward import answer_loss, run
from prunebench_models.smollm2.vl.lora import RANK, SCALE, LowRank, add_low_rank, shipped_state, trained_parameters
from prunebench_models.smollm2.vl.modeling import SmolLM2VL
from prunebench_models.testbed import weights_dir as testbed_weights
from prunebench_models.testbed.configuration import TestbedConfig
from prunebench_models.testbed.data import TestbedDataset
from prunebench_models.testbed.processing import TestbedProcessor, normalize_images
from prunebench_models.testbed.train.batches import make_batch
from prunebench_models.testbed.train.checkpoint import append_log, latest_state, load_into, save
from prunebench_models.testbed.train.run import Clock
from prunebench_models.testbed.train.team import Team

__all__ = ["Settings", "new_model", "train"]

DOMAINS = ("general", "math", "video")
HALVES = 2  # a step's scenes come in two halves, so that one process or two see the same data
REPORTED = ("loss", "train")


@dataclass(frozen=True)
class Settings:
    """What the run is.

    Attributes:
        steps: optimisation steps.
        contexts: scenes per step and half, by domain.
        questions: questions packed per scene.
        learning_rate, warmup: peak of the cosine schedule, and steps until it is reached.
        easy, helpers: shares of easy scenes and helper questions at the start; both fade out.
        fade: fraction of the steps after which easy scenes are gone.
    """

    steps: int = 3200
    general: int = 3
    math: int = 3
    video: int = 1
    questions: int = 8
    learning_rate: float = 1e-3
    warmup: int = 50
    easy: float = 0.6
    helpers: float = 0.4
    fade: float = 0.6

    def contexts(self, domain: str) -> int:
        return getattr(self, domain)


def new_model(seed: int) -> SmolLM2VL:
    """SmolLM2 with the testbed's trained tower, a fresh projector and updates that change nothing yet."""
    from transformers import LlamaConfig

    torch.manual_seed(seed)
    base = model_folder(print)
    tower = TestbedConfig.from_pretrained(testbed_weights())
    model = SmolLM2VL(new_config(LlamaConfig.from_pretrained(base), tower.vision_config.to_dict(), tower.max_frames))
    state = load_file(base / "model.safetensors")
    wrong = set(model.load_state_dict(state, strict=False).unexpected_keys)
    seen = load_file(testbed_weights() / "model.safetensors")
    vision = {key.removeprefix("vision_tower."): value for key, value in seen.items() if key.startswith("vision_tower")}
    model.vision_tower.load_state_dict(vision)
    model.tie_weights()
    assert not wrong, wrong
    rms = model.get_input_embeddings().weight.square().mean().sqrt().item()
    nn.init.constant_(model.vision_projector.norm.weight, rms)  # media tokens as loud as words
    nn.init.normal_(model.frame_embedding.weight, std=rms / 4)
    add_low_rank(model)
    model.set_attn_implementation("eager")  # on a CPU, twice as fast as the fused kernel with this mask
    return model.float()


def has_fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 is faster than float32 there: any recent GPU, and CPUs with tile multiplication (AMX)."""
    return torch.cuda.is_bf16_supported() if device.startswith("cuda") else torch.cpu._is_amx_tile_supported()


def can_compile() -> bool:
    """Whether there is a C++ compiler, which `torch.compile` needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def frozen_to_bfloat16(model: SmolLM2VL) -> None:
    """Keep the decoder's frozen weights as SmolLM2 was published, in bfloat16; nothing trained is touched."""
    for parameter in model.get_decoder().parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.tie_weights()


def precision(model: SmolLM2VL) -> torch.autocast:
    """The arithmetic that fits the frozen matrices."""
    frozen = next(module for module in model.modules() if isinstance(module, LowRank)).base.weight.dtype
    return torch.autocast(model.device.type, torch.bfloat16, enabled=frozen == torch.bfloat16)


class Trained(nn.Module):
    """The trained parameters alone, for checkpoints: SmolLM2's own half a gigabyte never changes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, parameter in trained_parameters(model):
            self.register_parameter(name.replace(".", "/"), parameter)


class StepShare:
    """One process's part of a step: its halves of every domain."""

    def __init__(self, settings: Settings, tokenizer: Any, seed: int, workers: int, compiled: bool) -> None:
        self.settings, self.tokenizer, self.seed, self.workers = settings, tokenizer, seed, workers
        self.processor = TestbedProcessor()
        self.to_compile = compiled

    def __call__(self, model: SmolLM2VL, step: int, worker: int, stats: Tensor) -> None:
        """Accumulate gradients; report loss and accuracy by domain."""
        if self.to_compile:  # here, since compiled code does not travel to another process
            for layer in model.get_decoder().layers:
                layer.forward = torch.compile(layer.forward, dynamic=True)
            self.to_compile = False
        settings = self.settings
        left = max(0.0, 1 - step / (settings.fade * settings.steps))
        whole = HALVES * sum(settings.contexts(domain) for domain in DOMAINS)
        for half in range(worker, HALVES, self.workers):
            for index, domain in enumerate(DOMAINS):
                if not (contexts := settings.contexts(domain)):
                    continue
                rng = np.random.default_rng([0, 300, self.seed, step, half, index])
                helpers = settings.helpers * (0.1 + 0.9 * left)
                batch = make_batch(
                    domain, contexts, settings.questions, rng, self.processor, settings.easy * left, helpers
                )
                packed = pack(batch, self.tokenizer)
                with precision(model):
                    loss, right = answer_loss(model, packed, run(model, packed))
                (loss * contexts / whole).backward()
                stats[half * len(DOMAINS) + index] = torch.stack([loss.detach(), right.float().mean()])


def load_tokenizer() -> Any:
    """SmolLM2's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder())


def held_out(split: str, questions: int, seed: int, tokenizer: Any) -> dict[str, list[Packed]]:
    """Fixed questions of a split by domain, one per sequence."""
    found = {}
    for domain in DOMAINS:
        samples = TestbedDataset().samples(split, questions, seed=seed, domain=domain)
        found[domain] = [_packed(samples[i : i + 50], tokenizer) for i in range(0, len(samples), 50)]
    return found


@torch.no_grad()
def accuracy(model: SmolLM2VL, questions: dict[str, list[Packed]]) -> dict[str, float]:
    """Share of right answers by domain."""
    found = {}
    for domain, batches in questions.items():
        with precision(model):
            right = torch.cat([answer_loss(model, packed, run(model, packed))[1] for packed in batches])
        found[domain] = round(right.float().mean().item(), 4)
    return found


def train(
    out: Path,
    settings: Settings,
    device: str,
    workers: int,
    seed: int,
    checkpoint_seconds: float,
    compiled: bool = False,
) -> None:
    """Train from nothing, or from the last checkpoint under ``out``; the adapter goes into ``out / "model"``.

    Args:
        out: working folder; its ``latest.json`` says where a run stands.
        settings: of the run; a resumed run has to have the same.
        device: ``"auto"`` takes a GPU where there is one.
        workers: processes of one thread each that share a step (1 or 2; 1 on a GPU).
        seed: of fresh weights and data.
        checkpoint_seconds: time between checkpoints.
        compiled: compile the decoder layers: a minute more at the start, a third less per step on a CPU.
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    workers = workers if device == "cpu" else 1
    torch.set_num_threads(workers)
    out.mkdir(parents=True, exist_ok=True)
    model, tokenizer = new_model(seed).to(device).train(), load_tokenizer()
    if has_fast_bfloat16(device):
        frozen_to_bfloat16(model)
    trained = Trained(model)
    parameters = [{"params": list(trained.parameters()), "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, betas=(0.9, 0.98))
    clock, state = Clock(out, device, workers, seed), latest_state(out) or {"step": 0}
    if state.get("settings", asdict(settings)) != asdict(settings):
        sys.exit(f"Error: {out} holds a run with other settings: {state['settings']}; give another --out")
    if "checkpoint" in state:
        load_into(out, state["checkpoint"], trained, optimizer)
        append_log(out, {"event": "resume", "step": state["step"], "time": clock.now()})
        print(f"resuming at step {state['step']}", flush=True)
    probe = held_out("calibration", 60, 1, tokenizer)
    clock.start("smollm2-vl", state)
    saved = begun = time.monotonic()
    share = StepShare(settings, tokenizer, seed, workers, compiled)
    team = Team(model, share, workers, (HALVES * len(DOMAINS), len(REPORTED)))
    means: dict[str, float] = {}
    for step in range(state["step"], settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * schedule(step, settings)
        optimizer.zero_grad()
        stats = team.gradients_of(step).view(HALVES, len(DOMAINS), len(REPORTED)).mean(0).tolist()
        norm = nn.utils.clip_grad_norm_(team.trained, 1.0).item()
        optimizer.step()
        clock.further_cpu = team.further_cpu_seconds
        now = {
            f"{name}/{domain}": stats[row][column]
            for row, domain in enumerate(DOMAINS)
            for column, name in enumerate(REPORTED)
            if settings.contexts(domain)
        }
        means = {key: 0.95 * means.get(key, value) + 0.05 * value for key, value in now.items()}
        done, last = step + 1, step + 1 == settings.steps
        if done % 10 == 0 or last:
            left = (time.monotonic() - begun) / (done - state["step"]) * (settings.steps - done)
            numbers = {key: round(value, 4) for key, value in means.items()}
            entry = {"event": "progress", "step": done, "gradient_norm": round(norm, 3), **numbers, **clock.spent()}
            if done % 100 == 0 or last:
                entry["held_out"] = accuracy(model, probe)
            append_log(out, entry)
            shown = " ".join(f"{key} {value:.3f}" for key, value in numbers.items())
            print(f"{done}/{settings.steps} {shown} {entry.get('held_out', '')} ETA {left / 60:.0f} min", flush=True)
        if time.monotonic() - saved > checkpoint_seconds and not last:
            save(out, "running", {"step": done, "settings": asdict(settings), **clock.spent()}, trained, optimizer)
            saved = time.monotonic()
    team.stop()
    save(out, "final", {"step": settings.steps, "settings": asdict(settings), **clock.spent()}, trained, None)
    clock.finish({"settings": asdict(settings)})
    export(out, model, tokenizer, clock)


def schedule(step: int, settings: Settings) -> float:
    """Share of the peak learning rate: a ramp, then half a cosine down to 2 %."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def export(out: Path, model: SmolLM2VL, tokenizer: Any, clock: Clock) -> None:
    """Write the adapter in bfloat16 and the accuracy of exactly these weights on 500 test questions per domain."""
    folder = out / "model"
    folder.mkdir(exist_ok=True)
    shipped = shipped_state(model.float())
    model.load_state_dict({name: value.float() for name, value in shipped.items()}, strict=False)
    found = accuracy(model.eval(), held_out("test", 500, 0, tokenizer))
    append_log(out, {"event": "test", "n": 500, "accuracy": found, "dtype": "bfloat16", "time": clock.now()})
    settings = {
        "base_revision": weights_revision(),
        "rank": RANK,
        "scale": SCALE,
        "max_frames": model.config.max_frames,
        "vision_config": model.config.vision_config,
        "test_accuracy": found,
    }
    save_file(shipped, folder / ADAPTER_FILE, metadata={"format": "pt"})
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    print(f"done: {folder}, accuracy {found}", flush=True)


def _packed(samples: list[Sample], tokenizer: Any) -> Packed:
    clips = [sample.video if sample.video is not None else np.stack(sample.images) for sample in samples]
    asked = [[(sample.instruction, sample.answer or "")] for sample in samples]
    return pack_questions(asked, normalize_images(np.concatenate(clips)), len(clips[0]), tokenizer)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m prunebench_models.smollm2.vl.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, log and final weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2, help="CPU processes (default: 2)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data (default: 0)")
    parser.add_argument("--minutes-per-checkpoint", type=float, default=5.0, help="default: 5")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="default: where there is a C++ compiler"
    )
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
    given = vars(parser.parse_args(arguments))
    settings = Settings(**{name: given[name] for name in asdict(Settings())})
    seconds = 60 * given["minutes_per_checkpoint"]
    compiled = can_compile() if given["compile"] is None else given["compile"]
    train(given["out"], settings, given["device"], given["workers"], given["seed"], seconds, compiled)
    return 0


if __name__ == "__main__":
    sys.exit(main())
