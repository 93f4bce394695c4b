"""Phase 0: towers and projectors learn to see and hear single cells and time steps, then they are frozen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..data import audio
from ..data.draw import BLANK, GLYPHS, GRID, render_cells
from ..data.words import COLORS, DURATIONS, INSTRUMENTS, PITCHES
from ..modeling import TestbedForConditionalGeneration
from ..processing import TestbedProcessor, normalize_images

__all__ = ["freeze_towers", "train_towers"]

CELL_CLASSES = {"glyph": GLYPHS, "color": len(COLORS) + 1, "row": GRID, "column": GRID}
STEP_CLASSES = {
    "pitch": len(PITCHES) + 1,
    "instrument": len(INSTRUMENTS) + 1,
    "duration": len(DURATIONS) + 1,
    "ordinal": 5,
    "from_end": 5,
}


def train_towers(
    model: TestbedForConditionalGeneration,
    processor: TestbedProcessor,
    steps: dict[str, int],
    seed: int,
    report: Callable[[str, int, float, dict[str, float]], None],
) -> dict[str, dict[str, float]]:
    """Pretrain both towers on the attributes of what lies under each media token.

    Args:
        model: trained in place.
        processor: for the log-mel features.
        steps: optimisation steps for ``"image"`` and ``"audio"``.
        seed: of the scenes.
        report: called now and then with (name, step, loss, accuracy by attribute).

    Returns:
        Accuracy of a linear read-out by tower and attribute, on the last batches.
    """
    found = {}
    rng = np.random.default_rng([0, 100, seed])
    for name, classes, encode, batches in (
        ("image", CELL_CLASSES, model.encode_images, _cells(rng, steps["image"])),
        ("audio", STEP_CLASSES, model.encode_audio, _sounds(rng, steps["audio"], processor)),
    ):
        parts = (
            (model.vision_tower, model.vision_projector)
            if name == "image"
            else (model.audio_tower, model.audio_projector)
        )
        found[name] = _train(name, classes, encode, batches, parts, steps[name], model, report)
    return found


def freeze_towers(model: TestbedForConditionalGeneration) -> None:
    """No gradients for towers and projectors from here on."""
    for part in (model.vision_tower, model.vision_projector, model.audio_tower, model.audio_projector):
        part.requires_grad_(False)


def _train(name, classes, encode, batches, parts, steps, model, report) -> dict[str, float]:
    device = model.device
    width = model.config.text_config.hidden_size
    heads = nn.ModuleDict({key: nn.Linear(width, count) for key, count in classes.items()}).to(device)
    params = [p for part in (*parts, heads) for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.1)
    accuracy: dict[str, float] = {}
    started = time.monotonic()
    for step, (media, targets) in enumerate(batches):
        tokens = encode(media.to(device))
        loss = torch.zeros((), device=device)
        for key, head in heads.items():
            logits, target = head(tokens).flatten(0, 1), targets[key].to(device).flatten()
            loss = loss + nn.functional.cross_entropy(logits, target)
            hit = (logits.argmax(-1) == target).float().mean().item()
            accuracy[key] = 0.95 * accuracy.get(key, hit) + 0.05 * hit
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99 or step == steps - 1:
            report(f"towers/{name}", step + 1, loss.item(), {**accuracy, "seconds": time.monotonic() - started})
    return accuracy


def _cells(rng: np.random.Generator, steps: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    row, column = np.divmod(np.arange(GRID * GRID), GRID)
    for _ in range(steps):
        glyph = rng.integers(1, GLYPHS, (64, GRID * GRID))
        glyph[rng.random(glyph.shape) < rng.uniform(0.1, 0.9, (64, 1))] = BLANK
        color = rng.integers(0, len(COLORS), glyph.shape)
        images = render_cells(glyph, color, rng)
        seen = np.where(glyph == BLANK, len(COLORS), color)
        places = {"row": np.tile(row, (64, 1)), "column": np.tile(column, (64, 1))}
        yield (
            normalize_images(images),
            {k: torch.from_numpy(v) for k, v in {"glyph": glyph, "color": seen, **places}.items()},
        )


def _sounds(
    rng: np.random.Generator, steps: int, processor: TestbedProcessor
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    for _ in range(steps):
        scenes = [audio.scene(rng) for _ in range(64)]
        target = {key: np.zeros((64, audio.STEPS), dtype=np.int64) for key in STEP_CLASSES}  # 0 is silence
        for index, item in enumerate(scenes):
            for order, onset in enumerate(item.onset):
                span = slice(onset, onset + audio.DURATION_STEPS[item.duration[order]])
                target["pitch"][index, span] = item.pitch[order] + 1
                target["instrument"][index, span] = item.instrument[order] + 1
                target["duration"][index, span] = item.duration[order] + 1
                target["ordinal"][index, span] = order + 1
                target["from_end"][index, span] = len(item.onset) - order
        waves = audio.render(scenes, rng)
        features = processor.encode_waveforms(list(waves), audio.SAMPLING_RATE)
        yield features, {key: torch.from_numpy(value) for key, value in target.items()}
