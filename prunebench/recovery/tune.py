"""Training of layers that stay, by what the calibration samples expect as answers.

INTERLACE trains the neighbours of what it removes and keeps the rest as it is; healing in general trains any of them.
The pruned model runs as a whole, so what is trained is the loss that counts: the mean negative log-likelihood of the
answer tokens given prompt and media.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench import surgery
from prunebench.bits import unpack
from prunebench.errors import RecoveryError
from prunebench.ops import Fold, Mask, Op, SetWeights, tensor_names
from prunebench.plan import Plan
from prunebench.probing.measures import mean_by_row, nll
from prunebench.probing.questions import Question, batches, questions
from prunebench.recovery.checkpoint import Checkpoint
from prunebench.recovery.copies import all_names, trainable_copies
from prunebench.recovery.material import Material, Recovered, check_weights, removed_runs
from prunebench.recovery.spec import Lora, Tune
from prunebench.recovery.training import Loss, Progress, State, split_samples, train

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunebench.adapter import LoadedModel

__all__ = ["Trained", "answer_losses", "layers_to_tune", "recovered", "train_on_answers", "tune_layers"]


def tune_layers(
    plan: Plan,
    material: Material,
    recovery: Tune,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Recovered:
    """Train the layers that `recovery` names, in the pruned model; what the plan makes zero stays zero.

    Raises:
        RecoveryError: a layer that cannot be trained, samples without answers, or training that diverges.
    """
    loaded = material.loaded
    layers = layers_to_tune(plan, loaded, recovery)
    with surgery.pruned(loaded, plan):
        modules = {str(layer): loaded.layers[plan.kept_layers.index(layer)] for layer in layers}
        for layer, module in modules.items():
            check_weights(module, f"layer {layer}", trained=True)
        with trainable_copies(loaded.model, modules) as groups:
            _keep_zeros(plan, groups)
            done = train_on_answers(material, recovery, groups, checkpoint=checkpoint, progress=progress)
        # Outside the copies again: a parameter that is tied within its layer shows by all of its names.
        values = {int(layer): all_names(modules[layer], members) for layer, members in done.values.items()}
    return recovered(plan, done, values, {"tuned_layers": list(layers)})


@dataclass(frozen=True)
class Trained:
    """Where a training on answers ended.

    Attributes:
        state: of the loop.
        values: group → parameter name → value.
        held_out: samples that were never trained on.
    """

    state: State
    values: dict[str, dict[str, Tensor]]
    held_out: int


def train_on_answers(
    material: Material,
    recovery: Tune | Lora,
    groups: Mapping[str, Mapping[str, nn.Parameter]],
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    mode: Callable[[bool], object] = lambda training: None,
) -> Trained:
    """Train parameters of the model as it stands, by the mean loss of the answers' tokens.

    Args:
        material: model, samples, encoder.
        recovery: rates, budget, seeds.
        groups: group → name → parameter.
        checkpoint, progress: as for `train`.
        mode: told True before a batch that is trained on and False after it.
    """
    import torch

    trained, held = split_samples(len(material.samples), recovery.held_out, recovery.seed)
    size = material.batch_size(recovery.batch_size)
    asked = questions(material.loaded, material.samples)

    def losses_of(rows: Sequence[int]) -> tuple[Tensor, int]:
        return answer_losses(material, [asked[row] for row in rows])

    def loss_of(rows: Sequence[int]) -> Loss:
        mode(True)
        try:
            losses, tokens = losses_of(rows)
        finally:
            mode(False)
        total = losses.mean()
        return Loss(total, float(total.detach()), tokens)

    def held_out() -> dict[str, float]:
        found: list[float] = []
        with torch.no_grad():
            for start in range(0, len(held), size):
                found += losses_of(held[start : start + size])[0].tolist()
        return {"answer_loss": math.fsum(found) / len(found)} if found else {}

    state, values = train(
        groups, recovery, trained, loss_of, held_out, batch_size=size, checkpoint=checkpoint, progress=progress
    )
    return Trained(state, values, len(held))


def recovered(
    plan: Plan, done: Trained, values: Mapping[int, Mapping[str, Tensor]], notes: dict[str, Any]
) -> Recovered:
    """What a training on answers came to.

    Args:
        plan: what went in.
        done: where it ended.
        values: layer → parameter → its new value.
        notes: further facts for the plan's provenance.
    """
    state, held = done.state, done.held_out
    ops, tensors = _outcome(plan, values)
    notes = {
        **notes,
        "tuned_parameters": sum(value.numel() for members in done.values.values() for value in members.values()),
        "steps": state.step,
        "train_loss": state.loss,
        "held_out_samples": held,
        "held_out_before": state.before,
        "held_out_after": state.after,
    }
    return Recovered(ops, tensors, notes, [], state.samples + 2 * held, state.samples, state.tokens, state.seconds)


def _keep_zeros(plan: Plan, groups: Mapping[str, Mapping[str, nn.Parameter]]) -> None:
    """No gradient where the plan masks: what is zero and gets none stays zero, whatever the optimiser's decay."""
    tensors = plan.need_tensors()
    for op in plan.ops:
        if isinstance(op, Mask) and str(op.layer) in groups:
            for key in tensor_names(op, tensors):
                parameter = groups[str(op.layer)][key.removeprefix(f"{op.tensors}.")]
                keep = unpack(tensors[key], parameter.shape[-1]).to(parameter.device)
                # What is not a number outside the mask would be one inside it: times zero is not enough.
                parameter.register_hook(lambda grad, keep=keep: grad.masked_fill(~keep, 0.0))


def answer_losses(material: Material, asked: Sequence[Question]) -> tuple[Tensor, int]:
    """Mean negative log-likelihood of each question's tokens that count, (questions,), and the tokens that ran."""
    import torch

    loaded, found, tokens = material.loaded, [], 0
    for batch in batches(loaded, asked, len(asked), material.encode, for_gradients=True):
        logits = loaded.adapter.forward(loaded, batch.inputs, logits_to_keep=batch.keep)
        found.append(mean_by_row(*nll(logits, batch.targets), len(batch.rows)))
        tokens += batch.inputs.n_tokens
    return torch.cat(found), tokens


def layers_to_tune(plan: Plan, loaded: LoadedModel, recovery: Tune) -> tuple[int, ...]:
    """Original ids of the layers to train, ascending.

    Raises:
        RecoveryError: a layer was named that does not exist or is removed.
    """
    n_layers, gone = loaded.info.n_layers, set(plan.removed_layers)
    kept = [layer for layer in range(n_layers) if layer not in gone]
    notes = plan.provenance.notes if plan.provenance is not None else {}
    asked = recovery.chosen()
    whose = "-P recover.layers"
    if asked is None and recovery.layers == "neighbours":
        if notes.get("tune_layers"):
            asked, whose = tuple(int(layer) for layer in notes["tune_layers"]), "the strategy"
        elif runs := removed_runs(plan):
            beside = {layer for a, b in runs for layer in (a - 1, b)}
            asked = tuple(layer for layer in kept if layer in beside)
    if asked is None:  # dense, or all that stay
        return tuple(kept)
    for layer in asked:
        if not 0 <= layer < n_layers:
            raise RecoveryError(f"{whose} names layer {layer}: the model has layers 0..{n_layers - 1}")
        if layer in gone:
            raise RecoveryError(f"{whose} names layer {layer}, which the plan removes: name layers that stay")
    return tuple(sorted(set(asked)))


def _outcome(plan: Plan, values: Mapping[int, Mapping[str, Tensor]]) -> tuple[tuple[Op, ...], dict[str, Any]]:
    """The plan's operations and tensors with the trained values; what they make obsolete is left out."""
    tensors = dict(plan.need_tensors())
    ops: list[Op] = []
    for op in plan.ops:
        # The trained values are those of the folded weights: what was multiplied into them is in there.
        if isinstance(op, (Fold, SetWeights)) and op.layer in values:
            for key in tensor_names(op, tensors):
                del tensors[key]
        else:
            ops.append(op)
    for layer, members in values.items():
        ops.append(SetWeights(layer=layer, tensors=f"tuned.{layer}"))
        tensors |= {f"tuned.{layer}.{key}": value for key, value in members.items()}
    return tuple(ops), tensors
