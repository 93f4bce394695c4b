"""Any loaded model of PruneBench's, dense or pruned, as the model object that lmms-eval asks its questions."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from prunebench.encoded import EncoderCache
from prunebench.errors import EvaluationError, PruneBenchError
from prunebench_lmms_eval.call import root_cause
from prunebench_lmms_eval.fingerprint import model_fingerprint
from prunebench_lmms_eval.likelihood import continuation_loss
from prunebench_lmms_eval.messages import sample_of
from prunebench_lmms_eval.override import PREFIX

if TYPE_CHECKING:
    from prunebench.adapter import LoadedModel
    from prunebench.calibration.samples import Sample
    from prunebench.evaluator import Progress

__all__ = ["MAX_NEW_TOKENS", "cut_at", "make_lm", "seed_for", "seeded"]

MAX_NEW_TOKENS = 1024
"""Where a task says nothing: what most of lmms-eval's own adapters take."""


class _Request(NamedTuple):
    """One question as lmms-eval puts it."""

    task: str
    doc_id: int
    messages: Callable[[], Any]
    generation: dict[str, Any]
    option: str = ""  # whose loss is asked for

    @property
    def name(self) -> str:
        return f"{self.task.removeprefix(PREFIX)}/{self.doc_id}"


def make_lm(
    loaded: LoadedModel,
    *,
    encoder: EncoderCache | None = None,
    batch_size: int = 1,
    progress: Progress | None = None,
    host: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Any:
    """The model as an ``lmms_eval.api.model.lmms``; imports lmms-eval.

    Its `asked` holds what was asked: (task, doc_id) → fingerprint of words and media; `failure` what it raised last.

    Args:
        loaded: any adapter's; a plan may be applied and undone between evaluations, not within one.
        encoder: keeps what towers and projectors gave.
        batch_size: questions at a time; 1 is used where the adapter says that batches change answers.
        progress: told how many questions are answered, after each batch.
        host: everything of ours (encoding, generating, progress) runs inside it; tasks' code runs outside.
    """
    lm = _class()()
    lm.loaded, lm.encoder, lm.progress = loaded, encoder or EncoderCache(), progress
    lm.batch_size = batch_size if loaded.adapter.batching else 1
    lm.host, lm.warnings, lm.asked, lm.failure = host, {}, {}, None
    return lm


@cache
def _class() -> type:
    import torch
    from lmms_eval.api.instance import GenerationResult, TokenCounts
    from lmms_eval.api.model import lmms

    class PruneBenchModel(lmms):
        """Chat messages in, greedy answers out. Whatever fails raises: an empty answer is an answer that is empty."""

        is_simple = False  # gets doc_to_messages
        accelerator = None  # evaluate() would make one; it serves several processes only

        def __repr__(self) -> str:
            """Stands for the model in caches: its content."""
            return f"prunebench:{model_fingerprint(self.loaded)}"

        @property
        def device(self) -> Any:
            return self.loaded.device

        def clean(self) -> None:
            """Nothing: lmms-eval's own deletes the model after the first task."""

        def generate_until(self, requests: list[Any]) -> list[Any]:
            return self._asked(requests, self._answers)

        def loglikelihood(self, requests: list[Any]) -> list[Any]:
            """Losses, smaller being better, and whether greedy decoding would say the continuation.

            A bare tuple would be turned into text by lmms-eval 0.7.3.
            """
            return self._asked(requests, self._losses)

        def generate_until_multi_round(self, requests: list[Any]) -> list[Any]:
            raise EvaluationError("PruneBench asks in one round, and this task asks in several: leave it out")

        def _asked(self, requests: list[Any], answers: Callable[[list[_Request]], list[Any]]) -> list[Any]:
            distinct = {id(request): request for request in requests}  # repeats are the same object: greedy is greedy
            try:
                found = answers([self._request(request.args) for request in distinct.values()])
            except BaseException as error:
                self.failure = error
                raise
            by_id = dict(zip(distinct, found, strict=True))
            return [by_id[id(request)] for request in requests]

        def _request(self, args: tuple) -> _Request:
            """One request of any of lmms-eval's three forms (its chat form, its simple form, options)."""
            context, second, third, doc_id, task, split = args
            doc = lambda: self.task_dict[task][split][doc_id]  # noqa: E731  (read late: media are large)
            if isinstance(third, dict):  # chat: context, doc_to_messages, generation
                return _Request(task, doc_id, lambda: second(doc()), third)
            messages = lambda: _turn(third(doc()) if third else None, context)  # noqa: E731
            if isinstance(second, dict):  # simple: context, generation, doc_to_visual
                return _Request(task, doc_id, messages, second)
            return _Request(task, doc_id, messages, {}, second)

        # -- answers -------------------------------------------------------------------------------------------------

        def _answers(self, requests: list[_Request]) -> list[Any]:
            found: list[Any] = [None] * len(requests)
            done = 0
            for limit, rows in _batches([self._limit(one) for one in requests], self.batch_size):
                samples = [self._sample(requests[row]) for row in rows]
                with self.host(), torch.inference_mode():
                    inputs = self.encoder.encode(self.loaded, samples)
                    texts = self.loaded.generate(inputs, limit)
                    if len(texts) != len(rows):
                        raise EvaluationError(f"{len(texts)} answers for {len(rows)} questions ({samples[0].id}, ...)")
                    counts = inputs.attention_mask.sum(1).tolist()
                    done += len(rows)
                    self._report(done, len(requests))
                for row, text, tokens in zip(rows, texts, counts, strict=True):
                    if not isinstance(text, str):
                        raise EvaluationError(f"question {requests[row].name!r}: the answer is no text: {text!r}")
                    text = cut_at(text, _ends(requests[row].generation))
                    found[row] = GenerationResult(text, TokenCounts(input_tokens=int(tokens)))
            return found

        def _losses(self, requests: list[_Request]) -> list[Any]:
            found, last = [], len({one.name for one in requests})
            seen: set[str] = set()
            for one in requests:
                sample = self._sample(one)
                with self.host():
                    loss, greedy = continuation_loss(self.loaded, self.encoder, sample, one.option)
                    seen.add(one.name)
                    self._report(len(seen), last)
                if not math.isfinite(loss):
                    raise EvaluationError(f"question {one.name!r}: the model's loss is not finite")
                found.append(GenerationResult((loss, greedy)))
            return found

        def _sample(self, request: _Request) -> Sample:
            try:
                with seeded(request.task, request.doc_id):
                    messages = request.messages()
            except PruneBenchError:
                raise
            except Exception as error:  # whatever a task's code, or what reads its data, runs into
                raise EvaluationError(f"question {request.name!r} cannot be put: {root_cause(error)}") from error
            sample = sample_of(messages, request.name)
            kinds = [("image", bool(sample.images)), ("video", sample.video is not None)]
            kinds += [("audio", sample.audio is not None)]
            takes = self.loaded.adapter.modalities
            if wrong := [kind for kind, there in kinds if there and kind not in takes]:
                raise EvaluationError(
                    f"question {request.name!r} has a medium that {self.loaded.info.name} does not take: {wrong[0]} "
                    f"(it takes {', '.join(takes)})"
                )
            self.asked[request.task, request.doc_id] = self.encoder.mark(sample)
            return sample

        def _limit(self, request: _Request) -> int:
            asked = request.generation
            if _samples(asked) or (asked.get("num_beams") or 1) > 1:
                self.warnings["the task asks for sampling or beams: decoded greedily all the same"] = None
            return int(asked.get("max_new_tokens") or asked.get("max_gen_toks") or MAX_NEW_TOKENS)

        def _report(self, done: int, total: int) -> None:
            if self.progress is not None:
                self.progress(done, total)

    return PruneBenchModel


def _batches(limits: Sequence[int], size: int) -> Iterator[tuple[int, list[int]]]:
    """(tokens at most, rows): rows of one batch share their limit; in the order of the questions within a limit."""
    for limit in dict.fromkeys(limits):
        rows = [row for row, one in enumerate(limits) if one == limit]
        for start in range(0, len(rows), size):
            yield limit, rows[start : start + size]


def _turn(visuals: Any, text: str) -> list[dict[str, Any]]:
    """A chat turn for the tasks that lmms-eval only knows in its simple form."""
    parts = [{"type": _kind(value), "url": value} for value in visuals or ()]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def _kind(visual: Any) -> str:
    if isinstance(visual, dict):
        return "audio"
    return "video" if isinstance(visual, str | list) else "image"


def _samples(asked: Mapping[str, Any]) -> bool:
    """Whether lmms-eval's own adapters would draw the answer; most look at the temperature alone."""
    heat = asked.get("temperature")
    return bool(asked.get("do_sample")) if heat is None else heat > 0 and asked.get("do_sample") is not False


def _ends(asked: Mapping[str, Any]) -> Sequence[str]:
    said = asked.get("until") or ()
    return (said,) if isinstance(said, str) else said


def cut_at(text: str, ends: Sequence[str]) -> str:
    """`text` up to the first of `ends`."""
    for end in ends:
        if end:
            text = text.split(end, 1)[0]
    return text


def seed_for(task: str, doc_id: int) -> int:
    """A number of the question's own: 32 bits."""
    return zlib.crc32(f"{task}/{doc_id}".encode())


class seeded:
    """Random numbers that belong to one question, whatever was drawn for others; as before afterwards.

    Attributes:
        consumed: whether anything was drawn inside.
    """

    def __init__(self, task: str, doc_id: int) -> None:
        self.seed, self.consumed = seed_for(task, doc_id), False

    def __enter__(self) -> seeded:
        self.before = random.getstate(), np.random.get_state()
        random.seed(self.seed)
        np.random.seed(self.seed)
        self.began = random.getstate(), _position()
        return self

    def __exit__(self, *_error: Any) -> None:
        self.consumed = (random.getstate(), _position()) != self.began
        random.setstate(self.before[0])
        np.random.set_state(self.before[1])


def _position() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return (name, keys.tobytes(), *rest)
