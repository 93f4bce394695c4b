"""One batch of the streaming pass: its hidden states without padding, and which token is of which group.

Tokens are packed: rows of one sample stand together, inside a sample the tokens of one group do, and padding is gone.
A statistic is then a sum over slices, padding costs nothing, and whatever padding holds cannot reach a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prunebench.adapter import DecoderInputs
from prunebench.calibration.samples import Sample
from prunebench.errors import CalibrationError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GROUPS", "Batch", "NotShown", "append_aggregator"]

GROUPS = ("all", "visual", "audio", "text", "last")
"""Token groups: ``all`` without padding, ``visual``, ``audio``, ``text`` disjoint, ``last`` the prompt's last token."""

_SEGMENTS = ("visual", "audio", "text")  # in packing order; tokens of none of these form a fourth segment


class NotShown(CalibrationError):
    """An architecture does not show something: statistics that `watch` it are left out, and say why when read."""

    def __init__(self, watch: str, message: str) -> None:
        super().__init__(message)
        self.watch = watch


class Batch:
    """Hidden states of one batch and the groups of its tokens; what every statistic is computed from.

    P tokens of B samples; T tokens a row with padding. What the pass fills in while the model runs:

    Attributes:
        states: (L+1, P, d) packed residual stream in the model's dtype: [0] is layer 0's input.
        norms: (L+1, P) float32 norms of the states.
        sublayer: (L, 2, P) float32 cosines of the residual over the attention and over the MLP, where asked for.
        updates: (L, P) norms of what each layer adds, where they have been taken on the way.
        mlp: number of tokens per sample → (L, B, m, d), what each layer's MLP adds at the chosen tokens.
        importance: (P,) float32 importance of each token, mean over the layers, where asked for.
    """

    def __init__(
        self, inputs: DecoderInputs, samples: Sequence[Sample], n_layers: int, room: list[Tensor] | None = None
    ) -> None:
        """`room` holds the memory that the batch before kept its states in; this one takes it over."""
        import torch

        self.samples, self.n_layers = samples, n_layers
        self.size, self.width = inputs.attention_mask.shape
        real = inputs.attention_mask.bool()
        self.device = real.device
        aggregator = inputs.groups.get("aggregator")
        inside = real if aggregator is None else real & ~aggregator  # an added position: no part of the prompt
        segment = torch.full(real.shape, len(_SEGMENTS), device=self.device)
        for place, name in reversed(list(enumerate(_SEGMENTS))):
            if name in inputs.groups:
                segment = torch.where(inputs.groups[name].bool(), place, segment)
        flat = inside.flatten().nonzero().squeeze(1)
        row = torch.arange(self.size, device=self.device)[:, None].expand_as(segment)
        key = (row * 4 + segment).flatten()[flat]
        order = key.argsort(stable=True)
        self.index = flat[order]
        """(P,) place of each packed token in the padded batch, flattened."""
        self.segment_of = key[order]
        """(P,) 4 · sample + segment."""
        counts = torch.bincount(key, minlength=4 * self.size).view(self.size, 4)
        self.counts: list[list[int]] = counts.tolist()
        """Tokens per sample in the segments visual, audio, text, other."""
        self.n_tokens = len(self.index)
        inverse = torch.full((self.size * self.width,), -1, device=self.device)
        inverse[self.index] = torch.arange(self.n_tokens, device=self.device)
        self.packed_at = inverse.view(self.size, self.width)
        """(B, T) packed index of a token, −1 for padding."""
        columns = self.width - 1 - inside.flip(1).float().argmax(1)
        self.last = self.packed_at[torch.arange(self.size, device=self.device), columns]
        """(B,) packed index of each prompt's last token."""
        self._take = self.index
        if aggregator is not None:
            extra = torch.arange(self.size, device=self.device) * self.width + self.width - 1
            self._take = torch.cat([self.index, extra])
        self._room = [] if room is None else room
        self._buffer: Tensor | None = None
        self._norms: Tensor | None = None
        self._chosen: dict[int, np.ndarray] = {}
        self._shared: dict[str, Any] = {}
        self.sublayer: Tensor | None = None
        self.updates: Tensor | None = None
        self.mlp: dict[int, Tensor] = {}
        self.importance: Tensor | None = None

    # -- filled in while the model runs ------------------------------------------------------------------------------

    def pack(self, hidden: Tensor, into: Tensor) -> None:
        """(B, T, d) → `into`, (P, d) in the order of the packed tokens; aggregation tokens come after them."""
        import torch

        rows, take = hidden.flatten(0, 1), self._take.to(hidden.device)
        if rows.dtype == into.dtype and rows.device == into.device:  # straight to its place: nothing is copied twice
            torch.index_select(rows, 0, take, out=into)
        else:
            into.copy_(rows.index_select(0, take))

    def put(self, boundary: int, hidden: Tensor) -> None:
        """Keep the hidden states (B, T, d) at a layer boundary."""
        import torch

        if self._buffer is None:
            shape = (self.n_layers + 1, len(self._take), hidden.shape[-1])
            self._buffer = self._memory(shape, hidden.dtype)
            self._norms = torch.empty(shape[:2], dtype=torch.float32, device=self.device)
        kept = self._buffer[boundary]
        self.pack(hidden, kept)
        # Taken here, while the states are in the processor's cache.
        torch.linalg.vector_norm(kept, dim=-1, dtype=torch.float32, out=self._norms[boundary])

    def _memory(self, shape: tuple[int, int, int], dtype: Any) -> Tensor:
        """Fresh pages of this size cost as much as filling them several times over: each batch uses those it finds."""
        import torch

        size = shape[0] * shape[1] * shape[2]
        held = self._room[0] if self._room else None
        if held is None or held.dtype != dtype or held.device != self.device or len(held) < size:
            held = torch.empty(size, dtype=dtype, device=self.device)
            self._room[:] = [held]
        return held[:size].view(shape)

    def check_finite(self) -> None:
        """Raise CalibrationError with the first layer and sample where a token's state is not finite."""
        import torch

        if torch.isfinite(self._norms.sum()):
            return
        bad = ~torch.isfinite(self._norms)
        if not bad.any():  # finite each, and too large to be summed
            return
        layer, token = (int(i) for i in bad.nonzero()[0])
        sample = self.samples[int(self._take[token]) // self.width]
        where = f"output of layer {layer - 1}" if layer else "input of layer 0"
        raise CalibrationError(
            f"hidden states are not finite ({where}, sample {sample.id!r}): try --dtype float32, or look at the weights"
        )

    @property
    def packed_shape(self) -> tuple[int, int]:
        """(P, d) with the aggregation tokens, once a boundary has been seen."""
        return tuple(self._buffer.shape[1:])

    # -- read by the statistics --------------------------------------------------------------------------------------

    @property
    def states(self) -> Tensor:
        return self._buffer[:, : self.n_tokens]

    @property
    def norms(self) -> Tensor:
        return self._norms[:, : self.n_tokens]

    @property
    def aggregator(self) -> Tensor:
        """(L+1, B, d): states of the appended positions."""
        return self._buffer[:, self.n_tokens :]

    def inverse_norms(self) -> Tensor:
        """(L+1, P): 1 / ‖h‖, and 0 for a zero vector, whose cosine with anything is taken as 0."""
        import torch

        return torch.where(self.norms > 0, 1.0 / self.norms.clamp(min=torch.finfo(torch.float32).tiny), 0.0)

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """What several statistics of this batch read: computed at the first need."""
        if name not in self._shared:
            self._shared[name] = compute()
        return self._shared[name]

    def segments(self) -> list[tuple[int, int, int, int]]:
        """(sample, segment, start, stop) of every filled stretch of packed tokens."""
        found, start = [], 0
        for sample, counts in enumerate(self.counts):
            for segment, count in enumerate(counts):
                if count:
                    found.append((sample, segment, start, start + count))
                    start += count
        return found

    def first_columns(self) -> Tensor:
        """(B,) column of each sample's first token in the padded batch."""
        return (self.packed_at >= 0).float().argmax(1)

    def bounds(self) -> list[tuple[int, int]]:
        """(start, stop) of every sample's packed tokens."""
        ends = np.cumsum([sum(counts) for counts in self.counts]).tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    def group_sums(self, values: Tensor) -> Tensor:
        """Sums over the tokens of each group: (K, P) → (B, G, K)."""
        import torch

        member = torch.zeros(self.n_tokens, 4 * self.size, device=self.device)
        member[torch.arange(self.n_tokens, device=self.device), self.segment_of] = 1.0
        by_segment = (values @ member).view(len(values), self.size, 4).permute(1, 2, 0)  # (B, 4, K)
        return with_groups(by_segment, values[:, self.last].T)

    def token_counts(self) -> Tensor:
        """(B, G) tokens in each group."""
        import torch

        counts = torch.tensor(self.counts, dtype=torch.float32)
        return with_groups(counts[:, :, None], torch.ones(self.size, 1))[:, :, 0]

    def chosen(self, m: int) -> np.ndarray:
        """(B, m) packed indices of m tokens of every sample, in order of position; −1 where it has fewer.

        The last token is always among them. The others are drawn without replacement, half from the media and half
        from the text, and the rest where one kind has too few. The draw hangs on the sample's id and `m` alone.
        """
        if m not in self._chosen:
            places = self.packed_at.cpu().numpy()
            last, kind = self.last.cpu().numpy(), self.segment_of.cpu().numpy() % 4
            rows = [
                _draw(places[i][places[i] >= 0], int(last[i]), kind, m, self.samples[i].id) for i in range(self.size)
            ]
            self._chosen[m] = np.stack(rows)
        return self._chosen[m]


def with_groups(by_segment: Tensor, last: Tensor) -> Tensor:
    """From sums per segment (B, 4, ...) and values at the last token (B, ...) to sums per group (B, G, ...)."""
    import torch

    return torch.cat([by_segment.sum(1, keepdim=True), by_segment[:, :3], last[:, None]], 1)


def append_aggregator(inputs: DecoderInputs) -> DecoderInputs:
    """One more position at the end that attends to the whole prompt; its embedding is the mean of the text embeddings.

    Attention is causal, so no other position sees it and every other statistic stays what it was. Our reading of an
    untrained aggregation token: its embedding is not specified by the paper.
    """
    import torch

    text = inputs.groups["text"].bool() & inputs.attention_mask.bool()
    weights = text.to(inputs.embeds.dtype).unsqueeze(-1)
    mean = (inputs.embeds * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp(min=1)
    if inputs.extra:
        raise NotShown(
            "aggregator",
            "points=aggregator does not fit a model with position ids of its own: use points=last or mean",
        )
    one = torch.ones_like(inputs.attention_mask[:, :1])
    groups = {name: torch.cat([mask, torch.zeros_like(mask[:, :1])], 1) for name, mask in inputs.groups.items()}
    groups["aggregator"] = torch.cat([torch.zeros_like(text), torch.ones_like(text[:, :1])], 1)
    return DecoderInputs(
        torch.cat([inputs.embeds, mean.to(inputs.embeds.dtype)], 1),
        torch.cat([inputs.attention_mask, one], 1),
        groups,
        sample_ids=inputs.sample_ids,
    )


def _draw(tokens: np.ndarray, last: int, kind: np.ndarray, m: int, sample_id: str) -> np.ndarray:
    """Packed indices (m,) of one sample; `tokens` are all of its packed indices in order of position."""
    rng = np.random.default_rng(list(hashlib.sha256(f"{m} {sample_id}".encode()).digest()))
    place = {int(token): i for i, token in enumerate(tokens)}
    pools = [[t for t in place if t != last and (kind[t] < 2) == media] for media in (True, False)]
    wanted = min(m - 1, len(place) - 1)
    quota = min(len(pools[0]), max((wanted + 1) // 2, wanted - len(pools[1])))
    taken = [last]
    for pool, count in zip(pools, (quota, wanted - quota), strict=True):
        taken += rng.permutation(pool)[:count].astype(int).tolist()
    taken.sort(key=place.__getitem__)
    return np.array(taken + [-1] * (m - len(taken)))
