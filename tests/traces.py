"""Traces made by hand: from hidden states that a test makes up, or from a matrix of cosines. No model is involved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from prunebench.budget import Budget
from prunebench.calibration.collect import GROUPS
from prunebench.calibration.trace import Trace, TraceMeta
from prunebench.strategy import PlanContext
from tests.factories import make_model


def random_states(seed: int, n_layers: int = 8, n_samples: int = 6, hidden: int = 5) -> list[np.ndarray]:
    """Residual streams (L+1, tokens, hidden) of samples of different lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_samples):
        tokens = int(rng.integers(3, 9))
        steps = rng.normal(size=(n_layers + 1, tokens, hidden)) * rng.uniform(0.2, 1.2, (n_layers + 1, 1, 1))
        found.append(np.cumsum(steps, axis=0))
    return found


def token_masks(tokens: int) -> dict[str, np.ndarray]:
    """Which tokens of a sample are of which group: the first half visual, the rest text, none audio."""
    place = np.arange(tokens)
    visual = place < tokens // 2
    return {
        "all": place >= 0,
        "visual": visual,
        "audio": place < 0,
        "text": ~visual,
        "last": place == tokens - 1,
    }


def trace_of(states: Sequence[np.ndarray], domains: Sequence[str] | None = None, **arrays: Any) -> Trace:
    """The trace that calibration would leave behind of these hidden states; `arrays` adds further ones."""
    n_layers, hidden = states[0].shape[0] - 1, states[0].shape[2]
    sums, counts = [], []
    for stream in states:
        norms = np.linalg.norm(stream, axis=-1, keepdims=True)
        units = np.divide(stream, norms, out=np.zeros_like(stream), where=norms > 0)
        cosines = np.einsum("atd,btd->tab", units, units)
        masks = token_masks(stream.shape[1])
        chosen = [masks.get(group, masks["audio"]) for group in GROUPS]  # a group that no token belongs to is empty
        sums.append([cosines[mask].sum(0) for mask in chosen])
        counts.append([mask.sum() for mask in chosen])
    return make_trace(np.array(sums), np.array(counts), n_layers, hidden, domains, **arrays)


def trace_of_cosines(cosines: np.ndarray, domains: Sequence[str] = ("general",), **arrays: Any) -> Trace:
    """One token per sample; `cosines` is (L+1, L+1) for all samples, or (N, L+1, L+1)."""
    cosines = np.asarray(cosines, dtype=np.float64)
    if cosines.ndim == 2:
        cosines = np.broadcast_to(cosines, (len(domains), *cosines.shape))
    counts = np.array([[group != "audio" for group in GROUPS]] * len(cosines)).astype(float)
    sums = cosines[:, None] * counts[:, :, None, None]
    return make_trace(sums, counts, cosines.shape[-1] - 1, 4, domains, **arrays)


def make_trace(
    sums: np.ndarray, counts: np.ndarray, n_layers: int, hidden: int, domains: Sequence[str] | None, **arrays: Any
) -> Trace:
    n = len(sums)
    meta = TraceMeta(
        key="made-by-hand",
        model="toy",
        revision="0123456789abcdef",
        dtype="float32",
        n_layers=n_layers,
        hidden_size=hidden,
        n_samples=n,
        fingerprint="none",
        groups=GROUPS,
        statistics=("token_cosine", *arrays),
        domains=tuple(domains or ["general"] * n),
        sample_ids=tuple(str(i) for i in range(n)),
        tokens=int(counts[:, 0].sum()),
        seconds=0.0,
    )
    made = {"token_cosine": sums.astype(np.float64), "token_count": counts.astype(np.float32), **arrays}
    return Trace(meta, made)


def context_of(
    trace: Trace, n: int | None = None, *, sparsity: float | None = None, protected: Sequence[int] = (), seed: int = 0
) -> PlanContext:
    """What a strategy is given: a model of the trace's depth, and a budget of `n` layers or of a share of them."""
    model = make_model(trace.n_layers).model_copy(update={"protected": tuple(protected)})
    budget = Budget(value=n, unit="layers") if sparsity is None else Budget(value=sparsity)
    return PlanContext(model=model, budget=budget, trace=trace, seed=seed)


def turns(*degrees: float) -> np.ndarray:
    """Cosines (L+1, L+1) of states in a plane, each layer turning the state by so many degrees."""
    place = np.concatenate([[0], np.cumsum(np.asarray(degrees, dtype=float))])
    return np.cos(np.deg2rad(place[:, None] - place[None, :]))
