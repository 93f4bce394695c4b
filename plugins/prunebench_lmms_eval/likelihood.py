"""The loss of a given continuation, for tasks that compare options instead of asking for words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prunebench.errors import EvaluationError

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel
    from prunebench.calibration.samples import Sample
    from prunebench.encoded import EncoderCache

__all__ = ["continuation_loss"]


def continuation_loss(
    loaded: LoadedModel, encoder: EncoderCache, sample: Sample, continuation: str
) -> tuple[float, bool]:
    """Mean negative log-likelihood, in nats per token, of `continuation` as the answer to `sample`::

        -1/m Σ_t log p(a_t | prompt, a_1 ... a_{t-1})        t = 1 ... m, without the token that ends the turn

    The mean over tokens, and not their sum, is what lmms-eval's own adapters return.

    Returns:
        The loss, and whether every one of its tokens is the model's most likely one.

    Raises:
        EvaluationError: a continuation without any token.
        CalibrationError: an adapter that cannot put tokens behind such a prompt.
    """
    import torch

    adapter = loaded.adapter
    answer = replace(sample, answer=continuation.strip())
    ids = [int(token) for token in adapter.answer_ids(loaded, answer)]
    ends = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    ends = ends if isinstance(ends, (list, tuple)) else [ends]
    if ids and ids[-1] in ends:
        ids = ids[:-1]
    if not ids:
        raise EvaluationError(f"question {sample.id!r}: the option {continuation!r} has no tokens")
    with torch.inference_mode():
        inputs = encoder.encode(loaded, [sample])
        tokens = torch.tensor([ids], device=inputs.embeds.device)
        longer = adapter.append_tokens(loaded, inputs, tokens, torch.ones_like(tokens))
        logits = adapter.forward(loaded, longer, logits_to_keep=len(ids) + 1)
        logits = logits[0, -len(ids) - 1 : -1].float()
        target = tokens[0].to(logits.device)
        losses = logits.logsumexp(-1) - logits.gather(-1, target[:, None])[:, 0]
        greedy = bool((logits.argmax(-1) == target).all())
    return float(losses.double().mean()), greedy
