"""Perplexity of running text: how well a language model foresees each token from those in front of it.

The samples of a task are joined, turned into tokens without any chat template and cut into windows of `context` tokens.
Every window is scored by itself. Its last `context` − 1 tokens count; the first one is the tokenizer's beginning token
where the tokenizer adds one, and else the last token of the window before, so that each token of the text is
predicted exactly once (but for the very first one, and for what does not fill a window at the end)::

    NLL_w = −1/m Σ_t ln p(token_t | tokens of window w before t)      m = tokens that count, the same in all windows
    perplexity = exp(mean over windows of NLL_w)

A model that knows nothing (the same logit for every token) has the size of the vocabulary as perplexity.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from prunebench.adapter import DecoderInputs
from prunebench.dataset import dataset_need, registered
from prunebench.errors import EvaluationError, UnknownName
from prunebench.evaluator import Evaluator, Need, Progress, TaskResult
from prunebench.stats import mean_interval

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.adapter import LoadedModel
    from prunebench.suites import Task

__all__ = ["PerplexityEvaluator", "Windows", "cut_windows", "token_losses"]

METRIC = "perplexity"
CONTEXT = 512
OPTIONS = {"context": CONTEXT, "join": ""}
"""Options of a task with their defaults: tokens of a window, and what stands between two samples."""

LOGIT_BYTES = 1 << 29
"""Windows go through the model together as long as their logits stay below this (at least one does)."""

CHUNK = 128
"""Positions whose log-softmax is computed at once: bounds the float32 copy for half-precision models."""


class Windows(NamedTuple):
    """Token ids (windows, tokens); the last `scored` of each row count."""

    ids: Tensor
    scored: int


class PerplexityEvaluator(Evaluator):
    """Perplexity of a task's text under the loaded model; 95 % interval by bootstrap over windows.

    ``scores`` are the windows' mean negative log-likelihoods in nats per token, and ``kinds["token"]`` holds the number
    of tokens that count with their mean.
    """

    name = "perplexity"

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size
        self._windows: dict[tuple[Any, ...], Windows] = {}

    def check(self, task: Task) -> None:
        self._check_options(task)
        registered(task, self.name)

    def needs(self, task: Task) -> list[Need]:
        return [dataset_need(task, self.name)]

    def _check_options(self, task: Task) -> None:
        if task.metric != METRIC or task.higher_is_better:
            raise EvaluationError(f"task {task.id!r}: write `metric: {METRIC}` and `higher_is_better: false`")
        for key in task.options:
            if key not in OPTIONS:
                raise EvaluationError(f"task {task.id!r}: {UnknownName('option', key, OPTIONS)}")

    def evaluate(self, loaded: LoadedModel, task: Task, progress: Progress | None = None) -> TaskResult:
        import torch

        self._check_options(task)
        started = time.perf_counter()
        windows = self._cut(loaded, task)
        ids, losses, vocabulary = windows.ids, [], 0
        with torch.inference_mode():
            rows = 1  # the first window tells how large the logits are
            while len(losses) < len(ids):
                batch = ids[len(losses) : len(losses) + rows].to(loaded.device)
                logits = loaded.adapter.forward(loaded, _inputs(loaded, batch))
                vocabulary = logits.shape[-1]
                found = token_losses(logits, batch, windows.scored).mean(1, dtype=torch.float64)
                if not torch.isfinite(found).all():
                    window = len(losses) + int((~torch.isfinite(found)).nonzero()[0])
                    raise EvaluationError(f"task {task.id!r}: the model's logits are not finite (window {window})")
                losses += found.tolist()
                rows = max(1, min(self.batch_size, LOGIT_BYTES // (logits[0].numel() * logits.element_size())))
                if progress:  # a task counts samples, this evaluator windows
                    progress(math.ceil(task.n * len(losses) / len(ids)), task.n)
        return self._result(task, losses, windows.scored, vocabulary, time.perf_counter() - started)

    def _cut(self, loaded: LoadedModel, task: Task) -> Windows:
        dataset = registered(task, self.name)
        options = {**OPTIONS, **task.options}
        key = (
            loaded.info.revision,
            task.dataset,
            task.split,
            task.count,
            task.seed,
            task.domain,
            *map(str, options.items()),
        )
        if key not in self._windows:
            try:
                samples = dataset.samples(task.split, task.count, seed=task.seed, domain=task.domain)
                text = str(options["join"]).join(sample.instruction for sample in samples)
                self._windows[key] = cut_windows(_tokenizer(loaded), text, int(options["context"]))
            except ValueError as error:
                raise EvaluationError(f"task {task.id!r}: dataset {task.dataset!r}: {error}") from error
        return self._windows[key]

    def _result(self, task: Task, losses: list[float], scored: int, vocabulary: int, seconds: float) -> TaskResult:
        mean = math.fsum(losses) / len(losses)
        if max(losses) >= math.log(1e300):
            raise EvaluationError(
                f"task {task.id!r}: perplexity is beyond any number (a window has {max(losses):.0f} nats)"
            )
        low, high, method = mean, mean, "none"
        if len(set(losses)) > 1:
            low, high, method = mean_interval(losses, method="bootstrap")
        return TaskResult(
            task=task.id,
            metric=METRIC,
            n=len(losses),
            score=math.exp(mean),
            ci_low=math.exp(low),
            ci_high=math.exp(high),
            ci_method=method,
            higher_is_better=False,
            chance=float(vocabulary),
            seconds=seconds,
            ids=tuple(f"window-{i}" for i in range(len(losses))),
            scores=tuple(losses),
            kinds={"token": (scored * len(losses), mean)},
        )


def cut_windows(tokenizer: Any, text: str, context: int) -> Windows:
    """Text → windows of `context` tokens that are all equally long; one shorter window where the text fills none.

    Raises:
        ValueError: `context` is below 2, or the text has fewer than two tokens.
    """
    import torch

    if context < 2:
        raise ValueError(f"a window needs at least 2 tokens, got context {context}")
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    prefix = _prefix(tokenizer)
    stream = tokens if prefix else tokens[1:]
    scored = min(context - max(len(prefix), 1), len(stream))
    if scored < 1:
        raise ValueError("the text is too short: it gives no window with a token to predict")
    rows = []
    for start in range(0, len(stream) - scored + 1, scored):
        before = prefix or [tokens[start]]  # without a prefix the stream is one token late
        rows.append([*before, *stream[start : start + scored]])
    return Windows(torch.tensor(rows), scored)


def token_losses(logits: Tensor, ids: Tensor, scored: int) -> Tensor:
    """Negative log-likelihoods (windows, scored) in nats of the last `scored` tokens of each row, in float32.

    Args:
        logits: (windows, tokens, vocabulary) in any float type.
        ids: (windows, tokens).
        scored: tokens that count; at most tokens − 1.
    """
    import torch

    first = ids.shape[1] - scored
    losses = torch.empty(ids.shape[0], scored, device=logits.device)
    for start in range(0, scored, CHUNK):
        end = min(start + CHUNK, scored)
        part = logits[:, first - 1 + start : first - 1 + end].float()
        target = ids[:, first + start : first + end].unsqueeze(-1)
        losses[:, start:end] = part.logsumexp(-1) - part.gather(-1, target).squeeze(-1)
    return losses


def _inputs(loaded: LoadedModel, ids: Tensor) -> DecoderInputs:
    import torch

    mask = torch.ones_like(ids)
    return DecoderInputs(loaded.model.get_input_embeddings()(ids), mask, {"text": mask.bool()})


def _tokenizer(loaded: LoadedModel) -> Any:
    tokenizer = getattr(loaded.processor, "tokenizer", loaded.processor)
    if not callable(tokenizer):
        raise EvaluationError(f"model {loaded.info.name!r} has no tokenizer that turns text into tokens")
    return tokenizer


def _prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts in front of every text (a beginning token), or nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return list(whole[:start])
    return []
