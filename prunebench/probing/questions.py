"""What a probe asks: batches of prompts with the tokens that ought to follow.

Of a question the answer counts, its end included, given prompt and media; of running text every token but the first.
Answers stand behind the prompts' last tokens, so a batch is padded on both sides; nothing sees what is behind it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.errors import CalibrationError

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.adapter import DecoderInputs, LoadedModel
    from prunebench.calibration.samples import Sample

__all__ = ["IGNORE", "Batch", "Question", "balanced", "batches", "outside_inference", "questions"]

IGNORE = -100

LOGIT_BYTES = 1 << 29
"""Questions go through the model together as long as their logits, in float32, stay below this (one always does)."""


@dataclass(frozen=True)
class Question:
    """A sample with the tokens that count: those of its answer, or all of a running text."""

    sample: Sample
    tokens: tuple[int, ...]
    is_text: bool

    @property
    def counted(self) -> int:
        return len(self.tokens) - self.is_text


@dataclass(frozen=True)
class Batch:
    """Questions ready for the decoder.

    Attributes:
        number: of the batch.
        rows: places of its questions among all.
        inputs: prompts and answers.
        targets: (batch, keep) token that each of the last `keep` columns has to foresee, -100 where none counts.
    """

    number: int
    rows: range
    inputs: DecoderInputs
    targets: Tensor

    @property
    def keep(self) -> int:
        """Columns whose logits are wanted."""
        return int(self.targets.shape[1])


def balanced(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their domains taking turns; the order within a domain stays."""
    by_domain: dict[str, list[Sample]] = {}
    for sample in samples:
        by_domain.setdefault(sample.domain, []).append(sample)
    longest = max(map(len, by_domain.values()), default=0)
    return [found[turn] for turn in range(longest) for found in by_domain.values() if turn < len(found)]


def questions(loaded: LoadedModel, samples: Sequence[Sample]) -> list[Question]:
    """What counts of each sample.

    Raises:
        CalibrationError: a sample with neither an answer nor text to be read on.
    """
    found = []
    for sample in samples:
        text = loaded.adapter.text_ids(loaded, sample)
        if text is not None:
            question = Question(sample, tuple(text), True)
        elif sample.answer is None:
            raise CalibrationError(
                f"sample {sample.id!r} has no answer, and a loss is that of answers: "
                "calibrate on a dataset with answers, or on running text"
            )
        else:
            question = Question(sample, tuple(loaded.adapter.answer_ids(loaded, sample)), False)
        if question.counted < 1:
            raise CalibrationError(f"sample {sample.id!r} has no token to foresee: its answer or text is too short")
        found.append(question)
    return found


def batches(
    loaded: LoadedModel,
    asked: Sequence[Question],
    size: int,
    encode: Callable[[Sequence[Sample]], DecoderInputs],
    *,
    for_gradients: bool = False,
) -> Iterator[Batch]:
    """All questions in their order, prompts encoded when their turn comes."""
    for number, rows in enumerate(_rows(loaded, asked, size)):
        part = [asked[row] for row in rows]
        inputs = encode([question.sample for question in part])
        if for_gradients:
            inputs = outside_inference(inputs)
        yield Batch(number, rows, *_with_targets(loaded, inputs, part))


def outside_inference(inputs: DecoderInputs) -> DecoderInputs:
    """The same inputs in tensors that autograd accepts: those made in inference mode are copied."""
    parts = {part.name: _copied(getattr(inputs, part.name)) for part in dataclasses.fields(inputs)}
    return type(inputs)(**parts)


def _copied(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return value


def _rows(loaded: LoadedModel, asked: Sequence[Question], size: int) -> Iterator[range]:
    """Neighbouring questions of one kind, as many as fit."""
    size = size if loaded.adapter.batching else 1
    vocabulary = getattr(loaded.adapter.text_config(loaded.model), "vocab_size", 1)
    start = 0
    for stop in range(1, len(asked) + 1):
        if stop < len(asked):
            part = asked[start : stop + 1]
            logits = 4 * vocabulary * len(part) * (1 + max(len(question.tokens) for question in part))
            if len(part) <= size and asked[stop].is_text == asked[start].is_text and logits <= LOGIT_BYTES:
                continue
        yield range(start, stop)
        start = stop


def _with_targets(loaded: LoadedModel, inputs: DecoderInputs, part: list[Question]) -> tuple[DecoderInputs, Tensor]:
    return _as_text(loaded, inputs, part) if part[0].is_text else _as_answers(loaded, inputs, part)


def _as_answers(loaded: LoadedModel, inputs: DecoderInputs, part: list[Question]) -> tuple[DecoderInputs, Tensor]:
    """Answers behind the prompts; the first column that counts is the prompts' last token."""
    import torch

    device, width = inputs.embeds.device, max(len(question.tokens) for question in part)
    ids = torch.zeros(len(part), width, dtype=torch.long, device=device)
    mask, targets = torch.zeros_like(ids), torch.full((len(part), width + 1), IGNORE, device=device)
    for row, question in enumerate(part):
        count = len(question.tokens)
        ids[row, :count] = targets[row, :count] = torch.tensor(question.tokens, device=device)
        mask[row, :count] = 1
    return loaded.adapter.append_tokens(loaded, inputs, ids, mask), targets


def _as_text(loaded: LoadedModel, inputs: DecoderInputs, part: list[Question]) -> tuple[DecoderInputs, Tensor]:
    """Texts end in the last column; each column foresees the next token, and nothing foresees the first one."""
    import torch

    device, width = inputs.embeds.device, max(len(question.tokens) for question in part)
    targets = torch.full((len(part), width), IGNORE, device=device)
    for row, question in enumerate(part):
        tokens = torch.tensor(question.tokens, device=device)
        _check_text(loaded, inputs, row, question, tokens)
        targets[row, width - len(tokens) : width - 1] = tokens[1:]
    return inputs, targets


def _check_text(loaded: LoadedModel, inputs: DecoderInputs, row: int, question: Question, tokens: Tensor) -> None:
    """The prompt has to be the text and nothing else."""
    import torch

    real = inputs.embeds[row][inputs.attention_mask[row].bool()]
    words = loaded.model.get_input_embeddings()(tokens).to(real)
    if real.shape != words.shape or not torch.equal(real, words):
        raise CalibrationError(
            f"sample {question.sample.id!r}: {loaded.info.name} puts more around a text than the text itself: "
            "its adapter has to define text_ids"
        )
