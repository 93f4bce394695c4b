"""LLM-Streamline: one module learns to give, from what went into a removed run, what came out of it.

The dense model runs once per batch, as far as the last removed layer, and shows for every run [a, b) the call of layer
a and the output of layer b − 1. The student is called just as layer a was (masks, positions, rotary embeddings), and
its mean square error over the real tokens is minimised. All runs are trained in the same pass; none sees another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prunebench.errors import RecoveryError
from prunebench.ops import DropLayer, Op, ReplaceBlock, canonical_ops, layers_touched
from prunebench.plan import Plan
from prunebench.recovery.boundaries import Call, Passage, run_to
from prunebench.recovery.checkpoint import Checkpoint
from prunebench.recovery.copies import all_names
from prunebench.recovery.fold import continuous
from prunebench.recovery.material import Material, Recovered, check_weights, real_tokens, removed_runs
from prunebench.recovery.spec import LayerReplacement, Module
from prunebench.recovery.training import Loss, Progress, split_samples, train

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunebench.adapter import DecoderInputs, LoadedModel

__all__ = ["Block", "Student", "bidirectional", "replace_runs", "replaceable"]


@dataclass
class Student:
    """The module in training: parameters of its own, and whose forward they go through.

    Attributes:
        body: layer a itself for a decoder layer (it is never changed: its parameters are stood in for call by call), a
            new module else.
        parameters: name → trained parameter.
        takes_call: True where `body` is called like a decoder layer, False where it takes hidden states alone.
    """

    body: nn.Module
    parameters: dict[str, nn.Parameter]
    takes_call: bool

    def __call__(self, call: Call, **changes: Any) -> Tensor:
        from torch.func import functional_call

        from prunebench.recovery.boundaries import first

        if not self.takes_call:
            return functional_call(self.body, self.parameters, (call.hidden,))
        kwargs = {**call.kwargs, **changes}
        return first(functional_call(self.body, self.parameters, (call.hidden, *call.args), kwargs))


@dataclass(frozen=True)
class Block:
    """Layers [start, stop) that one module stands in for, in slot `start`.

    Attributes:
        start, stop: original ids.
        module: what stands there.
        slot_stays: whether layer `start` stayed in the plan, so that no layer comes back.
    """

    start: int
    stop: int
    module: Module
    slot_stays: bool = False

    @property
    def name(self) -> str:
        return f"{self.start}-{self.stop}"


def replaceable(plan: Plan, recovery: LayerReplacement) -> tuple[list[Block], list[str]]:
    """Blocks that one module can stand in for, and a line for each removed layer that stands alone.

    A strategy that kept a slot for the module says so in its plan's note ``replace_block`` = [start, stop, kind], with
    kind ``layer`` or ``ffn``: that block then is one layer longer than what the plan removes.

    Raises:
        RecoveryError: layers are removed, but no run has two or more of them, or the note does not fit the plan.
    """
    runs, blocks = removed_runs(plan), []
    noted = (plan.provenance.notes if plan.provenance is not None else {}).get("replace_block")
    if noted:
        start, stop, kind = noted
        if (start + 1, stop) not in runs or start < 0:
            raise RecoveryError(
                f"the plan's note replace_block = {list(noted)} does not fit: it removes {list(plan.removed_layers)}"
            )
        own = "ffn" if kind == "ffn" and recovery.module == "decoder_layer" else recovery.module
        blocks.append(Block(start, stop, own, slot_stays=True))
        runs.remove((start + 1, stop))
    blocks += [Block(a, b, recovery.module) for a, b in runs if b - a > 1]
    alone = [a for a, b in runs if b - a == 1]
    if alone and not blocks:
        raise RecoveryError(
            f"--recover layer: layers {alone} stand alone, and putting a module in place of one layer removes nothing: "
            "use --recover tune or replaceme, or select=contiguous"
        )
    lines = [f"layer {layer} stands alone: it stays removed, without a replacement" for layer in alone]
    return sorted(blocks, key=lambda block: block.start), lines


def replace_runs(
    plan: Plan,
    material: Material,
    recovery: LayerReplacement,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
) -> Recovered:
    """Train one module for each run of at least two removed layers.

    Raises:
        RecoveryError: no run can be replaced, other operations touch one, or training diverges.
    """
    import torch

    blocks, warnings = replaceable(plan, recovery)
    if not blocks:
        return Recovered(plan.ops, dict(plan.need_tensors()), {}, ["nothing is removed: there is nothing to replace"])
    loaded = material.loaded
    _check(plan, loaded, blocks)
    students = {block: _student(loaded, block, recovery) for block in blocks}
    trained, held = split_samples(len(material.samples), recovery.held_out, recovery.seed)
    size = material.batch_size(recovery.batch_size)
    checked = False

    def passage_of(rows: Sequence[int]) -> tuple[DecoderInputs, Passage]:
        nonlocal checked
        inputs = material.batch(rows)
        within = set() if checked else {layer for block in blocks for layer in range(block.start, block.stop)}
        calls, outputs = within | {block.start for block in blocks}, within | {block.stop - 1 for block in blocks}
        passage = run_to(loaded, inputs, calls, outputs)
        if not checked:
            for block in blocks:
                if problem := continuous(passage, (block.start, block.stop)):
                    raise RecoveryError(
                        f"--recover layer: layers [{block.start}, {block.stop}) cannot be replaced: {problem}"
                    )
            checked = True
        return inputs, passage

    def loss_of(rows: Sequence[int]) -> Loss:
        inputs, passage = passage_of(rows)
        found = []
        for block, student in students.items():
            call = passage.calls[block.start]
            given = student(call, **_changes(loaded, inputs, call, block, recovery))
            found.append(_square_error(inputs, given, passage.outputs[block.stop - 1]).to(loaded.device))
        total = torch.stack(found).sum()
        return Loss(total, float(total.detach()), inputs.n_tokens)

    def held_out() -> dict[str, float]:
        """Mean square errors per run: of the student, causal as it will run, and of dropping the run."""
        sums: dict[str, list[float]] = {}
        with torch.no_grad():
            for start in range(0, len(held), size):
                inputs, passage = passage_of(held[start : start + size])
                for block, student in students.items():
                    call, target = passage.calls[block.start], passage.outputs[block.stop - 1]
                    pairs = {block.name: student(call), f"{block.name} dropped": call.hidden}
                    for key, value in pairs.items():
                        error = float(_square_error(inputs, value, target)) * inputs.n_tokens
                        total = sums.setdefault(key, [0.0, 0.0])
                        total[0], total[1] = total[0] + error, total[1] + inputs.n_tokens
        return {key: total / tokens for key, (total, tokens) in sums.items()}

    state, values = train(
        {block.name: student.parameters for block, student in students.items()},
        recovery,
        trained,
        loss_of,
        held_out,
        batch_size=size,
        checkpoint=checkpoint,
        progress=progress,
    )
    ops, tensors = _outcome(plan, students, values)
    notes = {
        "replaced": {block.name: block.module for block in blocks},
        "causal_in_training": recovery.variant == "paper" or all(block.module != "decoder_layer" for block in blocks),
        "layers_back": sum(not block.slot_stays for block in blocks),
        "steps": state.step,
        "train_loss": state.loss,
        "held_out_samples": len(held),
        "held_out_mse_before": state.before,
        "held_out_mse_after": state.after,
    }
    return Recovered(
        ops, tensors, notes, warnings, state.samples + 2 * len(held), state.samples, state.tokens, state.seconds
    )


def bidirectional(inputs: DecoderInputs, attention: str | None, dtype: torch.dtype) -> Tensor:  # noqa: F821
    """A mask under which every real token sees every other one; padding sees itself and is seen by no one else.

    Args:
        inputs: for the padding.
        attention: the model's attention implementation.
        dtype: of the hidden states.

    Raises:
        RecoveryError: an implementation that takes no such mask.
    """
    import torch

    if attention not in ("sdpa", "eager"):
        raise RecoveryError(
            f"recover.variant=released_code trains without a causal mask, which attention {attention!r} cannot do: "
            "use --attn-implementation sdpa"
        )
    real = inputs.attention_mask.bool()
    seen = real[:, None, None, :] | torch.eye(real.shape[1], dtype=torch.bool, device=real.device)[None, None]
    if attention == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=real.device).masked_fill(~seen, torch.finfo(dtype).min)


def _changes(
    loaded: LoadedModel, inputs: DecoderInputs, call: Call, block: Block, recovery: LayerReplacement
) -> dict[str, Any]:
    """What the student is called with that layer a was not."""
    if recovery.variant == "paper" or block.module != "decoder_layer":
        return {}
    if "attention_mask" not in call.kwargs:
        raise RecoveryError("recover.variant=released_code needs a layer that is given an attention mask")
    attention = getattr(loaded.decoder.config, "_attn_implementation", None)
    return {"attention_mask": bidirectional(inputs, attention, call.hidden.dtype).to(call.hidden.device)}


def _square_error(inputs: DecoderInputs, given: Tensor, target: Tensor) -> Tensor:
    """Mean over real tokens and dimensions, in float32."""
    return (real_tokens(inputs, given).float() - real_tokens(inputs, target).to(given.device).float()).square().mean()


def _check(plan: Plan, loaded: LoadedModel, blocks: Sequence[Block]) -> None:
    others = {layer for op in canonical_ops(plan.ops) if not isinstance(op, DropLayer) for layer in layers_touched(op)}
    if near := sorted({layer for block in blocks for layer in range(block.start - 1, block.stop + 1)} & others):
        raise RecoveryError(
            f"--recover layer: the plan already changes layer {near[0]} beside what it removes; a replacement would "
            "make up for the same loss twice: use --recover tune"
        )
    whole = {layer for block in blocks for layer in range(block.start, block.stop)}
    if taken := sorted(set(loaded.info.protected) & whole):
        raise RecoveryError(f"layer {taken[0]} of {loaded.info.name} cannot be replaced: the architecture needs it")
    for block in blocks:
        check_weights(loaded.layers[block.start], f"layer {block.start}", trained=True)


def _student(loaded: LoadedModel, block: Block, recovery: LayerReplacement) -> Student:
    import torch

    from prunebench.surgery_modules import replacement

    layer = body = loaded.layers[block.start]
    if block.module != "decoder_layer":
        op = ReplaceBlock(start=block.start, stop=block.stop, module=block.module, tensors="replacement")
        body = replacement(op, layer, loaded.adapter.text_config(loaded.model), _initial(loaded, block, recovery))
    own = {name: torch.nn.Parameter(p.detach().clone()) for name, p in body.named_parameters()}
    return Student(body, own, takes_call=body is layer)


def _initial(loaded: LoadedModel, block: Block, recovery: LayerReplacement) -> dict[str, Tensor]:
    """First weights of a new module: the identity for a linear map, else uniform in ±1/√inputs."""
    import torch

    width = loaded.info.hidden_size
    if block.module == "linear":
        return {"weight": torch.eye(width), "bias": torch.zeros(width)}
    config = loaded.adapter.text_config(loaded.model)
    inner = getattr(config, "intermediate_size", None) or 4 * width
    generator = torch.Generator().manual_seed((recovery.seed << 16) + block.start)

    def uniform(*shape: int, inputs: int) -> Tensor:
        return (2.0 * torch.rand(shape, generator=generator) - 1.0) / inputs**0.5

    return {
        "up.weight": uniform(inner, width, inputs=width),
        "up.bias": uniform(inner, inputs=width),
        "down.weight": uniform(width, inner, inputs=inner),
        "down.bias": uniform(width, inputs=inner),
    }


def _outcome(
    plan: Plan, students: Mapping[Block, Student], values: Mapping[str, Mapping[str, Tensor]]
) -> tuple[tuple[Op, ...], dict[str, Any]]:
    """The plan's operations and tensors with the modules in place of what they stand in for."""
    replaced = {layer for block in students for layer in range(block.start, block.stop)}
    ops = [op for op in plan.ops if not layers_touched(op) & replaced]
    tensors = dict(plan.need_tensors())
    for block, student in students.items():
        prefix = f"replacement.{block.start}"
        ops.append(ReplaceBlock(start=block.start, stop=block.stop, module=block.module, tensors=prefix))
        tensors |= {f"{prefix}.{key}": value for key, value in all_names(student.body, values[block.name]).items()}
    return tuple(ops), tensors
