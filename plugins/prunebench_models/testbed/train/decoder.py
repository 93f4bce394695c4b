"""Phases 1 and 2: the core learns to answer; then it is grown, and the new layers learn to be dispensable."""

from __future__ import annotations

import copy
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor, nn

from ..modeling import TestbedForConditionalGeneration
from . import roles
from .batches import IGNORE, TOKEN_ID, Batch

__all__ = ["Pass", "answer_loss", "grow", "run_decoder", "sample_count", "sample_dropped", "update_penalty"]

PAD, EOS = TOKEN_ID["<pad>"], TOKEN_ID["<eos>"]
EOS_WEIGHT = 0.1  # the end of an answer is easy: it must not outweigh the answer


class Pass:
    """What one forward pass leaves behind.

    Attributes:
        hidden: (B, T, d) after the final norm.
        update: per layer that ran, mean ‖output − input‖ / ‖input‖: (3,), over the prefix (``<bos>`` and media), the
            words, and the positions that answer. One mean over all would follow the share of media tokens.
        distance: per layer that ran, mean 1 − cos(input, output) over the same three groups.
    """

    def __init__(self) -> None:
        self.hidden: Tensor
        self.update: dict[int, Tensor] = {}
        self.distance: dict[int, Tensor] = {}


def run_decoder(
    model: TestbedForConditionalGeneration,
    batch: Batch,
    dropped: Collection[int] = (),
    layer_ids: tuple[int, ...] | None = None,
    measure: bool = True,
) -> Pass:
    """Run a packed batch through the decoder without the ``dropped`` layers.

    Args:
        model: its towers run without gradients.
        batch: packed questions.
        dropped: layers that are skipped, by their id.
        layer_ids: ids of ``decoder.layers`` in order; None for 0, 1, 2, …
        measure: also compute update sizes.
    """
    decoder, device = model.get_decoder(), model.device
    ids = batch.input_ids.to(device)
    media = {"audio_features" if batch.layout.media == "audio" else "pixel_values": batch.media.to(device)}
    hidden = model.embed(ids, **media)
    places = batch.layout.position_ids().to(device)[None].expand(len(ids), -1)
    mask = batch.layout.attention_mask().to(device)[None, None].expand(len(ids), 1, -1, -1)
    rotary = decoder.rotary_emb(hidden, places)
    groups = _token_groups(batch).to(device) if measure else None
    result = Pass()
    for index, layer in enumerate(decoder.layers):
        name = layer_ids[index] if layer_ids else index
        if name in dropped:
            continue
        output = layer(hidden, attention_mask=mask, position_ids=places, position_embeddings=rotary)
        output = output[0] if isinstance(output, tuple) else output
        if measure:
            size_in, size_out = hidden.norm(dim=-1), output.norm(dim=-1)
            cosine = (hidden * output).sum(-1) / (size_in * size_out + 1e-6)
            update = (output - hidden).norm(dim=-1) / (size_in + 1e-6)
            result.update[name] = torch.einsum("gbt,bt->g", groups, update)
            result.distance[name] = torch.einsum("gbt,bt->g", groups, 1 - cosine)
        hidden = output
    result.hidden = decoder.norm(hidden)
    return result


def _token_groups(batch: Batch) -> Tensor:
    """Weights (3, B, T) of prefix, words and answering positions; each group sums to 1, padding has none."""
    prefix = torch.zeros_like(batch.input_ids, dtype=torch.bool)
    prefix[:, : batch.layout.prefix] = True
    answers = (batch.labels != IGNORE) & (batch.labels != EOS)
    words = (batch.input_ids != PAD) & ~prefix & ~answers
    groups = torch.stack([prefix, words, answers]).float()
    return groups / groups.sum((1, 2), keepdim=True)


def answer_loss(model: TestbedForConditionalGeneration, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of answers (and, with little weight, of the end after them), and whether each answer is right.

    Returns:
        The loss, and a bool vector with one entry per question, row by row.
    """
    labels = batch.labels.to(hidden.device)
    places = labels != IGNORE
    target = labels[places]
    logits = model.lm_head(hidden[places])
    is_answer = target != EOS
    loss = nn.functional.cross_entropy(logits.float(), target, reduction="none")
    weight = torch.where(is_answer, 1.0, EOS_WEIGHT)
    return (loss * weight).sum() / is_answer.sum(), (logits.argmax(-1) == target)[is_answer]


def update_penalty(result: Pass) -> Tensor:
    """How far planted layers are from their planted update sizes: squared log ratios, summed over layers."""
    penalty = torch.zeros((), device=result.hidden.device)
    for layer, target in roles.TARGET_UPDATE.items():
        if layer in result.update:
            penalty = penalty + (result.update[layer].clamp(min=1e-4) / target).log().square().mean()
    for layer in roles.DECOY:
        if layer in result.distance:
            missing = (roles.DECOY_DISTANCE / result.distance[layer].clamp(min=1e-4)).log()
            penalty = penalty + missing.clamp(min=0).square().mean()
    return penalty


def sample_count(rng: np.random.Generator) -> int:
    """How many removable layers a step skips: none, all, or any number between, so that each is practised."""
    draw = rng.random()
    if draw < 0.25:
        return 0
    return len(roles.REMOVABLE) if draw < 0.4 else int(rng.integers(1, len(roles.REMOVABLE)))


def sample_dropped(domain: str, rng: np.random.Generator, count: int) -> frozenset[int]:
    """Layers to skip in one pass: ``count`` removable ones.

    Silent-critical layers are skipped now and then in domains that do not rely on them; critical layers never.
    """
    dropped = {int(layer) for layer in rng.permutation(roles.REMOVABLE)[:count]}
    for layer, domains in roles.SILENT.items():
        if domain not in domains and rng.random() < 0.4:
            dropped.add(layer)
    return frozenset(dropped)


def grow(
    core: TestbedForConditionalGeneration, noise: float = 0.02, scale: float = 0.2
) -> TestbedForConditionalGeneration:
    """Insert the removable layers into a trained core.

    Each new layer copies the core layer before it, with noise on its weights and with its output projections scaled
    down, so that the grown model starts close to what the core computes.
    """
    config = copy.deepcopy(core.config)
    config.text_config.num_hidden_layers = roles.LAYERS
    config.planted_roles = roles.planted_roles()
    model = type(core)(config)
    state = core.state_dict()
    prefix = "language_model.layers."
    model.load_state_dict({key: value for key, value in state.items() if not key.startswith(prefix)}, strict=False)
    for layer in range(roles.LAYERS):
        source = max(index for index, name in enumerate(roles.CORE) if name <= layer)
        target = model.language_model.layers[layer]
        target.load_state_dict(core.language_model.layers[source].state_dict())
        if layer in roles.REMOVABLE:
            with torch.no_grad():
                for parameter in target.parameters():
                    if parameter.dim() == 2:
                        parameter.add_(torch.randn_like(parameter) * parameter.std() * noise * 10)
                target.self_attn.o_proj.weight.mul_(scale)
                target.mlp.down_proj.weight.mul_(scale)
    return model.to(core.device)
