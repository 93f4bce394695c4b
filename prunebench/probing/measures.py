"""What is measured on a model's output: losses of tokens, and distances between two outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.adapter import DecoderInputs
    from prunebench.probing.passage import Passage

__all__ = ["METRICS", "Metric", "cosine_of_rows", "final_states", "mean_by_row", "nll"]

Metric = Literal["kl", "cosine", "norm"]

CHUNK_BYTES = 1 << 26
"""Of float32 logits that are worked on at once: bounds what half-precision models need beside their own logits."""


def nll(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood in nats of every target that counts, float64, and the row that each belongs to.

    Args:
        logits: (batch, keep, vocabulary) in any float type.
        targets: (batch, keep), negative where nothing counts.
    """
    import torch

    targets = targets.to(logits.device)
    rows, columns = (targets >= 0).nonzero(as_tuple=True)
    step = max(1, CHUNK_BYTES // (4 * logits.shape[-1]))
    losses = []
    for start in range(0, len(rows), step):
        here = slice(start, start + step)
        part = logits[rows[here], columns[here]].float()
        wanted = targets[rows[here], columns[here]].unsqueeze(-1)
        losses.append((part.logsumexp(-1) - part.gather(-1, wanted).squeeze(-1)).double())
    return torch.cat(losses), rows


def mean_by_row(values: Tensor, rows: Tensor, n_rows: int) -> Tensor:
    """Mean of the values of each row, (n_rows,), float64."""
    values = values.double()
    sums = values.new_zeros(n_rows).index_add(0, rows, values)
    return sums / values.new_zeros(n_rows).index_add(0, rows, values.new_ones(len(values)))


def _kl(dense: Tensor, other: Tensor) -> Tensor:
    p, q = dense.float().log_softmax(-1), other.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0.0)


def _cosine(dense: Tensor, other: Tensor) -> Tensor:
    import torch

    return 1.0 - torch.nn.functional.cosine_similarity(dense.float(), other.float(), dim=-1)


def _norm(dense: Tensor, other: Tensor) -> Tensor:
    dense = dense.float()
    return (other.float() - dense).norm(dim=-1) / dense.norm(dim=-1)


METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": _kl, "cosine": _cosine, "norm": _norm}
"""Distances of logits (columns, vocabulary) from dense ones, (columns,)."""


def cosine_of_rows(first: Tensor, second: Tensor, mask: Tensor) -> Tensor:
    """Cosine of two states (batch, tokens, hidden), each row flattened, padding left out; (batch,), float64."""
    weight = mask.to(first.device).unsqueeze(-1).double()
    first, second = first.double() * weight, second.to(first.device).double() * weight
    product = (first * second).sum((1, 2))
    return product / (first.norm(dim=(1, 2)) * second.norm(dim=(1, 2)))


def final_states(passage: Passage, inputs: DecoderInputs, start: int, state: Tensor | None) -> Tensor:
    """(batch, tokens, hidden) what the decoder hands to the head, after the final norm."""
    found: list[Tensor] = []

    def note(_module: Any, _args: tuple, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    handle = passage.loaded.decoder.register_forward_hook(note)
    try:
        passage.logits(inputs, 1, start=start, state=state)
    finally:
        handle.remove()
    return found[-1]
