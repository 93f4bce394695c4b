"""The probe: what the dense model's answers cost with layers, or parts of layers, left out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from prunebench.calibration.samples import fingerprint
from prunebench.errors import CalibrationError, PlanError
from prunebench.layer_config import config_changes
from prunebench.ops import layers_touched
from prunebench.probing.counts import Counts
from prunebench.probing.groups import (
    SAMPLE_WISE,
    WHOLE,
    Importance,
    couplings,
    gradient_rows,
    grouped,
    members_of,
    weight_rows,
)
from prunebench.probing.measures import METRICS, Metric, cosine_of_rows, final_states, mean_by_row, nll
from prunebench.probing.passage import Passage
from prunebench.probing.questions import Batch, Question, balanced, batches, questions
from prunebench.probing.remembered import Answer, Remembered
from prunebench.probing.states import MEMORY_BYTES, States
from prunebench.probing.units import Left, Unit, first_difference, join, left_out, prefix, several
from prunebench.probing.weights import gradient_sums, weight_sums
from prunebench.surgery import pruned

if TYPE_CHECKING:
    from torch import Tensor

    from prunebench.adapter import DecoderInputs, LoadedModel
    from prunebench.calibration.samples import Sample
    from prunebench.coupled import Width
    from prunebench.plan import Plan
    from prunebench.probing.groups import Couplings

__all__ = ["Probe"]


class Probe:
    """Losses, output changes and gradients of a dense model on a few samples.

    The loss is the negative log-likelihood, in nats, of the expected answer's tokens given prompt and media (of every
    token but the first where a sample is running text). Leaving a layer out runs only the layers from there on, from
    hidden states that are kept: of one batch always as many as a question needs next, and across questions up to
    `memory` bytes. What does not fit is computed once per question on the way, never twice.

    A layer that is left out is an identity, exactly as the surgery removes it. The model is bit for bit as before
    after every call, also after one that was interrupted.

    Args:
        loaded: the dense model.
        samples: questions with answers, or running text; taken in an order in which domains take turns.
        encode: gives a batch's decoder inputs; ``loaded.encode`` by default, a cache where there is one.
        batch_size: samples per forward pass.
        memory: bytes of hidden states that are kept.
        remembered: answers of earlier probes of this model on these samples; they are not computed again.

    Raises:
        PlanError: the model is pruned at the moment.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        samples: Sequence[Sample],
        *,
        encode: Callable[[Sequence[Sample]], DecoderInputs] | None = None,
        batch_size: int = 16,
        memory: int = MEMORY_BYTES,
        counts: Counts | None = None,
        remembered: Remembered | None = None,
    ) -> None:
        if len(loaded.layers) != loaded.info.n_layers:
            raise PlanError(f"the model has {len(loaded.layers)} of {loaded.info.n_layers} layers: load the dense one")
        self.loaded = loaded
        self.samples = balanced(samples)
        self.counts = counts or Counts(loaded.info.n_layers)
        self._remembered = Remembered() if remembered is None else remembered
        self._encode, self._batch_size, self._memory = encode or loaded.encode, batch_size, memory
        self._passage = Passage(loaded)
        self._states = States(self._passage, self.counts, memory)
        self._asked: list[Question] | None = None
        self._parts: dict[tuple[int | None, bool], Probe] = {}
        self._changed: dict[int, Tensor] = {}
        self._charged: set[Hashable] = set()

    # -- what is asked -----------------------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        return self.loaded.info.n_layers

    @property
    def n_samples(self) -> int:
        return len(self.samples)

    @property
    def passage(self) -> Passage:
        """Runs single layers of the model."""
        return self._passage

    @property
    def memory(self) -> int:
        """Bytes of hidden states that are kept."""
        return self._memory

    @property
    def remembered(self) -> Remembered:
        """Answers of earlier probes of these samples."""
        return self._remembered

    def batches(self) -> Iterator[Batch]:
        """Prompts with their answers, or running text, ready for the decoder; made anew at every call.

        Raises:
            CalibrationError: no samples, or one that has neither an answer nor text to be read on.
        """
        self._check_model()
        return batches(self.loaded, self._questions(), self._batch_size, self._encode)

    def same_as(self, other: Probe) -> bool:
        """Whether it asks the same model about the same samples, in the same batches."""
        mine, theirs = ((p.loaded, p._batch_size, p._memory) for p in (self, other))
        same = mine[0] is theirs[0] and mine[1:] == theirs[1:] and self.n_samples == other.n_samples
        alike = all(a is b for a, b in zip(self.samples, other.samples, strict=same))
        return same and (alike or fingerprint(self.samples) == fingerprint(other.samples))

    @property
    def passes(self) -> float:
        """Full passes over these samples that are worth as many layers as have run so far."""
        return self.counts.forward_passes / self.n_samples if self.samples else 0.0

    @property
    def layer_forwards(self) -> float:
        """Decoder layers run so far, each counted once per sample."""
        return self.counts.layer_forwards

    def take(self, n: int | None, *, held_out: bool = False) -> Probe:
        """The probe of the first `n` samples, or of the last `n`; the same one for the same arguments.

        Its work is counted here too.
        """
        if (n, held_out) not in self._parts:
            count = self.n_samples if n is None else min(n, self.n_samples)
            chosen = self.samples[self.n_samples - count :] if held_out else self.samples[:count]
            self._parts[n, held_out] = Probe(
                self.loaded,
                chosen,
                encode=self._encode,
                batch_size=self._batch_size,
                memory=self._memory,
                counts=self.counts,
                remembered=self._remembered.part((n, held_out)),
            )
        return self._parts[n, held_out]

    @property
    def counted_tokens(self) -> np.ndarray:
        """Tokens that count in each sample, (samples,)."""
        return np.array([question.counted for question in self._questions()], dtype=np.int64)

    def mean(self, losses: np.ndarray, average: Literal["tokens", "samples"] = "tokens") -> np.ndarray:
        """Mean over the last axis of losses by sample: of all tokens, or of the samples' means."""
        weights = self.counted_tokens if average == "tokens" else None
        return np.average(losses, axis=-1, weights=weights)

    # -- losses ------------------------------------------------------------------------------------------------------

    def loss(self, removed: Sequence[Unit] = ()) -> np.ndarray:
        """Mean loss of each sample's tokens with `removed` left out, (samples,), float64."""
        return self.losses([tuple(removed)])[0]

    def losses(self, candidates: Sequence[Unit | Sequence[Unit]], removed: Sequence[Unit] = ()) -> np.ndarray:
        """Mean losses by sample with each candidate left out beside `removed`, (candidates, samples), float64.

        Args:
            candidates: a layer, a part of a layer, or several of them.
            removed: what is left out whatever else is.

        Raises:
            CalibrationError: no samples, a sample without answer, a loss that is not finite.
            PlanError: a unit that does not exist, or nothing would stay.
        """

        def measure(batch: Batch, logits: Tensor) -> Tensor:
            return mean_by_row(*nll(logits, batch.targets), len(batch.rows))

        return self._sweep(candidates, removed, measure, "losses")

    def token_losses(self, removed: Sequence[Unit] = ()) -> list[np.ndarray]:
        """The loss of every single token that counts with `removed` left out, one array per sample."""
        found: list[np.ndarray] = []

        def measure(batch: Batch, logits: Tensor) -> Tensor:
            values, rows = nll(logits, batch.targets)
            found.extend(values[rows == row].cpu().numpy() for row in range(len(batch.rows)))
            return values.new_zeros(len(batch.rows))

        self._sweep([tuple(removed)], (), measure)
        return found

    def changes(
        self, candidates: Sequence[Unit | Sequence[Unit]], removed: Sequence[Unit] = (), metric: Metric = "kl"
    ) -> np.ndarray:
        """How far the dense model's output moves, (candidates, samples): the mean over the columns that count.

        Args:
            candidates, removed: as in `losses`.
            metric: ``kl``, KL(dense ‖ pruned) of the next token; ``cosine``, 1 − cosine of the logits; ``norm``, length
                of the difference of the logits by the dense ones' length.
        """

        def measure(batch: Batch, logits: Tensor) -> Tensor:
            counted = (batch.targets >= 0).to(logits.device)  # a head may stand elsewhere than the embeddings
            values = METRICS[metric](self._dense(batch)[counted], logits[counted])
            return mean_by_row(values, counted.nonzero()[:, 0], len(batch.rows))

        return self._sweep(candidates, removed, measure, metric)

    def _sweep(
        self,
        candidates: Sequence[Unit | Sequence[Unit]],
        removed: Sequence[Unit],
        measure: Callable[[Batch, Tensor], Tensor],
        what: str | None = None,
    ) -> np.ndarray:
        """`measure` by sample for each candidate; remembered as `what`, where that is given."""
        base = left_out(removed, self.n_layers)
        lefts = [left_out(join(removed, several(each)), self.n_layers) for each in candidates]
        self._check_model()
        self._questions()  # without any samples nothing may be asked, whatever is remembered
        known = self._remembered.answers if what is not None else {}
        keys = [(what, prefix(left, self.n_layers)) for left in lefts]
        for key in set(keys) - self._charged:
            if key in known:
                self.counts.recall(known[key])
        self._charged |= set(keys)
        if new := {key: index for index, key in enumerate(keys) if key not in known}:
            answers = self._ask(list(new.values()), lefts, base, measure)
            known |= {keys[index]: answer for index, answer in answers.items()}
        out = np.array([known[key].values for key in keys]).reshape(len(candidates), self.n_samples)
        if not np.isfinite(out).all():
            index, row = np.argwhere(~np.isfinite(out))[0]
            raise CalibrationError(
                f"the loss of sample {self.samples[row].id!r} is not finite without {candidates[index]!r}: "
                "try --dtype float32, or look at the weights"
            )
        return out

    def _ask(
        self, new: Sequence[int], lefts: Sequence[Left], base: Left, measure: Callable[[Batch, Tensor], Tensor]
    ) -> dict[int, Answer]:
        """Run the model without `lefts` of the numbers `new`, by number."""
        import torch

        answers = {index: Answer(np.full(self.n_samples, np.nan)) for index in new}
        starts = {index: first_difference(base, lefts[index]) for index in new}
        order = sorted(new, key=starts.__getitem__)
        self._states.keep_only(base)
        with torch.inference_mode():
            for batch in self.batches():
                walk = self._states.walk(batch, base, [starts[index] for index in order])
                for index in order:
                    start, left = starts[index], lefts[index]
                    with self.counts.taken_by(answers[index]):
                        logits = self._passage.logits(
                            batch.inputs, batch.keep, start=start, state=walk(start), left=left
                        )
                        self._count(batch, self._passage.cost(start, self.n_layers, left))
                        values = measure(batch, logits).cpu().numpy()
                    answers[index].values[batch.rows.start : batch.rows.stop] = values
        return answers

    def _dense(self, batch: Batch) -> Tensor:
        """The dense model's logits of a batch, kept while they fit."""
        found = self._changed.get(batch.number)
        if found is None:
            found = self._passage.logits(batch.inputs, batch.keep)
            self._count(batch, self.n_layers)
            if self._states.reserve(found):
                self._changed[batch.number] = found
        return found

    # -- whole plans -------------------------------------------------------------------------------------------------

    def similarity(self, plan: Plan) -> np.ndarray:
        """Cosine of the flattened final hidden states (after the final norm) under `plan` and dense, (samples,).

        Layers in front of the first one that the plan touches are not run again, but for one where the plan ends the
        model there. What this gives is not remembered. NaN where a state is not finite.

        Raises:
            PlanError: as `prunebench.surgery.pruned`.
        """
        import torch

        touched = [layer for op in plan.ops for layer in layers_touched(op)]
        # Where nothing stays from there on, the last layer that stays has to run, to have an output.
        start = min([*touched, len(plan.kept_layers) - 1]) if touched else 0
        out = np.full(self.n_samples, np.nan)
        self._check_model()
        self._states.keep_only({})
        with torch.inference_mode():
            for batch in self.batches():
                dense = self._final(batch)
                # What some families add between layers has its place counted anew when layers go.
                skip = 0 if set(batch.inputs.extra) - {"position_ids", "attention_mask"} else start
                state = self._states.walk(batch, {}, [skip])(skip)
                with pruned(self.loaded, plan):
                    states = final_states(self._passage, batch.inputs, skip, state)
                    self._count(batch, len(self.loaded.layers) - skip)
                values = cosine_of_rows(dense, states, batch.inputs.attention_mask)
                out[batch.rows.start : batch.rows.stop] = values.cpu().numpy()
        return out

    def _final(self, batch: Batch) -> Tensor:
        key = -1 - batch.number  # beside the logits
        found = self._changed.get(key)
        if found is None:
            found = final_states(self._passage, batch.inputs, 0, None)
            self._count(batch, self.n_layers)
            if self._states.reserve(found):
                self._changed[key] = found
        return found

    # -- weights -----------------------------------------------------------------------------------------------------

    def gradients(self) -> dict[str, np.ndarray]:
        """Σ_w |w · g| over the weights w of each layer, (layers,), where g is the gradient of the mean loss.

        g is added up over all samples before the absolute value is taken. One forward and one backward pass; weights
        and ``requires_grad`` flags are as before afterwards.

        Returns:
            ``layer``, and ``attention`` and ``mlp`` without their norms, NaN where a layer's parts have other names.

        Raises:
            CalibrationError: weights that are offloaded, quantised or in float16: gradients need more range.
        """
        self._check_model()
        made = batches(self.loaded, self._questions(), self._batch_size, self._encode, for_gradients=True)
        return gradient_sums(self.loaded, made, self.n_samples, self.counts)

    def weights(self) -> dict[str, np.ndarray]:
        """Σ_w |w| over the weights of each layer, as `gradients` returns its sums. No sample is needed."""
        return weight_sums(self.loaded)

    def couplings(self, layers: Sequence[int]) -> Couplings:
        """Head groups and MLP channels of some layers (`prunebench.coupled`). No sample is needed.

        Raises:
            PlanError: a layer where they cannot be told apart, with the reason.
        """
        self._check_model()
        return couplings(self.loaded, layers)

    def group_importance(
        self, importance: Importance, layers: Sequence[int], *, interleaved: bool = False
    ) -> dict[int, dict[Width, np.ndarray]]:
        """What each head group and each MLP channel of some layers weighs (`prunebench.probing.groups`), float64.

        Of gradients, one forward and one backward pass of each sample; they are remembered as losses are. Weights and
        ``requires_grad`` flags are as before afterwards. ``l1`` and ``l2`` look at no sample.

        Args:
            importance: which term is summed.
            layers: original ids.
            interleaved: add query heads up as LLM-Pruner's published code does.

        Returns:
            layer → ``heads`` → (key-value heads,), ``channels`` → (channels,).

        Raises:
            PlanError: a layer where groups cannot be told apart, with the reason.
            CalibrationError: weights that are offloaded, quantised or (for gradients) in float16.
        """
        groups = self.couplings(layers)
        if importance in ("l1", "l2"):
            return grouped(weight_rows(self.loaded, groups, importance), groups, interleaved=interleaved)
        together = SAMPLE_WISE if importance in SAMPLE_WISE else WHOLE
        answer = self._gradient_rows(together, groups)
        ends = np.cumsum([groups[layer][width].groups * member.width for layer, width, member in members_of(groups)])
        rows = np.split(answer.values.reshape(len(together), -1)[together.index(importance)], ends[:-1])
        return grouped(rows, groups, interleaved=interleaved)

    def _gradient_rows(self, importances: Sequence[Importance], groups: Couplings) -> Answer:
        """All rows of all `importances`, one after the other; computed once."""
        key, known, asked = ("groups", *importances, *groups), self._remembered.answers, self._questions()
        if key not in known:
            answer = Answer(np.zeros(0))
            size = 1 if importances == SAMPLE_WISE else self._batch_size
            made = batches(self.loaded, asked, size, self._encode, for_gradients=True)
            with self.counts.taken_by(answer):
                rows = gradient_rows(self.loaded, groups, importances, made, self.n_samples, self.counts)
            answer.values = np.concatenate([values for name in importances for values in rows[name]])
            known[key] = answer
        elif key not in self._charged:
            self.counts.recall(known[key])
        self._charged.add(key)
        return known[key]

    def parameter_names(self, layer: int) -> tuple[str, ...]:
        """Names of a layer's parameters in the layer."""
        return tuple(name for name, _ in self.loaded.layers[layer].named_parameters())

    # -- inside ------------------------------------------------------------------------------------------------------

    def _questions(self) -> list[Question]:
        if self._asked is None:
            if not self.samples:
                raise CalibrationError("no calibration samples to ask about: give a dataset with at least one")
            self._asked = questions(self.loaded, self.samples)
        return self._asked

    def _count(self, batch: Batch, layers: float) -> None:
        self.counts.add(layers, len(batch.rows), batch.inputs.n_tokens)

    def _check_model(self) -> None:
        """Refuse, as the surgery does, a model whose layers cannot be told apart from their places."""
        config_changes(self.loaded.adapter.text_config(self.loaded.model), range(self.n_layers), self.n_layers)
