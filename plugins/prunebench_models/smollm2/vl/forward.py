"""One pass of packed questions through the decoder, and what it is worth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunebench_models.smollm2.vl.batches import Packed
from prunebench_models.smollm2.vl.modeling import SmolLM2VL
from prunebench_models.smollm2.vl.prompt import TOKENS_PER_IMAGE
from prunebench_models.testbed.train.batches import IGNORE

__all__ = ["answer_loss", "run"]

END_WEIGHT = 0.1  # the end of an answer is easy: it must not outweigh the answer


def run(model: SmolLM2VL, packed: Packed) -> Tensor:
    """States (B, T, hidden) after the final norm."""
    decoder, device = model.get_decoder(), model.device
    hidden = model.get_input_embeddings()(packed.ids.to(device))
    frames = packed.frames.to(device) if packed.frames is not None else None
    tokens = model.embed_media(packed.media.to(device), frames).reshape(len(hidden), -1, hidden.shape[-1])
    media = packed.images * TOKENS_PER_IMAGE
    hidden = torch.cat([hidden[:, :1], tokens.to(hidden.dtype), hidden[:, 1 + media :]], 1)
    places = packed.position_ids().to(device)[None].expand(len(hidden), -1)
    seen = packed.attention_mask().to(device)[None, None].expand(len(hidden), 1, -1, -1)
    mask = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)
    rotary = decoder.rotary_emb(hidden, places)
    for layer in decoder.layers:
        output = layer(hidden, attention_mask=mask, position_ids=places, position_embeddings=rotary)
        hidden = output[0] if isinstance(output, tuple) else output
    return decoder.norm(hidden)


def answer_loss(model: SmolLM2VL, packed: Packed, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of answers (with little weight of their end), and whether each question is answered right.

    An answer is right where every token of it, its end included, is the most likely one: greedy generation gives it.

    Returns:
        The loss, and a bool vector with one entry per question, row by row.
    """
    labels = packed.labels.to(hidden.device)
    places = labels != IGNORE
    target = labels[places]
    logits = model.lm_head(hidden[places]).float()
    loss = nn.functional.cross_entropy(logits, target, reduction="none")
    is_answer = target != model.config.eos_token_id
    weight = torch.where(is_answer, 1.0, END_WEIGHT)
    question = packed.question.to(hidden.device)[places]
    wrong = torch.zeros(int(question.max()) + 1, device=hidden.device)
    wrong.index_add_(0, question, (logits.argmax(-1) != target).float())
    return (loss * weight).sum() / is_answer.sum(), wrong == 0
