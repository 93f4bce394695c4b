"""A closed form: the MLP in front of each removed run learns, by least squares, to say what the run would have said.

With r = h_a − M what layer a − 1 gives without its MLP, M its MLP's part and h_b what came out of the removed run
[a, b), the T that minimises ‖M T − (h_b − r)‖² + α‖T‖² over all calibration tokens is (MᵀM + αI)⁻¹ Mᵀ (h_b − r); the
last matrix of that MLP becomes Tᵀ W (ReplaceMe, https://arxiv.org/abs/2505.02819). Only MᵀM and Mᵀ(h_b − r) are kept,
in float64: the sums run over every token, and memory is two d × d matrices per run, however many tokens there are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prunebench.errors import RecoveryError
from prunebench.ops import Fold, layers_touched
from prunebench.plan import Plan
from prunebench.recovery.boundaries import Call, Passage, run_to
from prunebench.recovery.material import Material, Recovered, check_weights, real_tokens, removed_runs
from prunebench.recovery.spec import ReplaceMe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from prunebench.adapter import DecoderInputs

__all__ = ["NormalEquations", "continuous", "fold_runs", "last_linear"]

LAST_LINEAR = ("down_proj", "fc2", "w2", "dense_4h_to_h", "c_proj", "fc_out", "proj_out", "output_linear")
"""Names that the last linear map of an MLP goes by."""

ADDED_WITHIN = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""How exactly what an MLP gives has to be found again in what its layer gives."""


class NormalEquations:
    """Sums over tokens from which a run's T follows.

    Args:
        hidden: width of the residual stream.
        device: where the sums are kept.
    """

    def __init__(self, hidden: int, device: torch.device) -> None:  # noqa: F821
        import torch

        self.gram = torch.zeros(hidden, hidden, dtype=torch.float64, device=device)  # MᵀM
        self.cross = torch.zeros_like(self.gram)  # Mᵀ Y
        self.target = 0.0  # tr(YᵀY)
        self.dropped = 0.0  # ‖h_b − h_a‖²
        self.tokens = 0

    def add(self, m: Tensor, h_in: Tensor, h_out: Tensor) -> None:
        """Take in some tokens: `m`, h_a and h_b, each (tokens, hidden)."""
        m, h_in, h_out = (value.to(self.gram.device).double() for value in (m, h_in, h_out))
        y = h_out - (h_in - m)
        self.gram += m.T @ m
        self.cross += m.T @ y
        self.target += float(y.square().sum())
        self.dropped += float((h_out - h_in).square().sum())
        self.tokens += len(m)

    def solve(self, alpha: float = 0.0) -> Tensor:
        """T (hidden, hidden) in float64; of all that fit equally well, the one of smallest norm."""
        import torch

        gram = self.gram + alpha * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        values, vectors = torch.linalg.eigh(gram)
        least = torch.finfo(torch.float64).eps * len(gram) * values.max().clamp(min=0)
        inverse = torch.where(values > least, 1.0 / values.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        return vectors @ (inverse[:, None] * (vectors.T @ self.cross))

    def error(self, solution: Tensor) -> float:
        """Mean square error of M T against its target, per token and dimension."""
        fit = (solution * (self.gram @ solution)).sum() - 2.0 * (solution * self.cross).sum()
        return max(0.0, self.target + float(fit)) / (self.tokens * len(self.gram))

    def error_dropped(self) -> float:
        """The same where the run is dropped and nothing is done."""
        return self.dropped / (self.tokens * len(self.gram))


def fold_runs(
    plan: Plan,
    material: Material,
    recovery: ReplaceMe,
    *,
    batch_size: int = 32,
    progress: Callable[[int, int, str], None] | None = None,
) -> Recovered:
    """A fold in front of every removed run that can have one, from one pass over the samples for all runs together.

    Raises:
        RecoveryError: no run can be compensated; says why.
    """
    import torch

    started = time.perf_counter()
    loaded = material.loaded
    found, problems = _places(plan, material)
    sums = {run: NormalEquations(loaded.info.hidden_size, _float64_device(loaded.layers[run[0] - 1])) for run in found}
    scales: dict[tuple[int, int], float] = {}
    tokens = passes = 0
    batches = material.batches(batch_size) if found else []
    for number, rows in enumerate(batches):
        inputs = material.batch(rows)
        passage = _pass(material, inputs, found, whole=number == 0)
        tokens, passes = tokens + inputs.n_tokens, passes + len(rows)
        for run, (_, module) in list(found.items()):
            a, b = run
            if number == 0:
                problem = continuous(passage, run)
                scale, added = _share_of(passage.calls[a - 1], loaded.layers[a - 1], module, passage)
                if problem is None and not added:
                    problem = f"layer {a - 1} changes what its MLP gives before adding it, so nothing can be folded"
                if problem is not None:
                    problems[run] = problem
                    del found[run]
                    continue
                scales[run] = scale
            m = scales[run] * passage.inner[a - 1].float().view_as(passage.outputs[a - 1])  # some MLPs flatten tokens
            sums[run].add(*(real_tokens(inputs, x) for x in (m, passage.outputs[a - 1], passage.outputs[b - 1])))
        if not found:
            break
        if progress:
            progress(passes, len(material.samples), f"{tokens:,} tokens")
    if not found and problems:
        run, reason = next(iter(problems.items()))
        raise RecoveryError(f"--recover replaceme: layers [{run[0]}, {run[1]}) cannot be compensated: {reason}")
    ops, tensors, errors = list(plan.ops), dict(plan.need_tensors()), {}
    lines = [f"layers [{a}, {b}) stay uncompensated: {reason}" for (a, b), reason in sorted(problems.items())]
    if not found:  # and no problems: those end in an error
        lines.append("nothing is removed: there is nothing to make up for")
    if found and recovery.alpha == 0 and tokens <= (width := loaded.info.hidden_size):
        lines.append(
            f"{tokens} calibration tokens cannot determine maps of {width} dimensions: raise --n-calibration, or give "
            "-P recover.alpha"
        )
    for run, (name, _) in found.items():
        solution = sums[run].solve(recovery.alpha)
        if not torch.isfinite(solution).all():
            raise RecoveryError(f"--recover replaceme: the equations of layers [{run[0]}, {run[1]}) are not finite")
        key = f"replaceme.{run[0] - 1}"
        tensors[key] = solution.T.contiguous().float().cpu()
        ops.append(Fold(layer=run[0] - 1, module=name, side="out", tensor=key))
        errors[f"{run[0]}-{run[1]}"] = {
            "dropped": sums[run].error_dropped(),
            "folded": sums[run].error(solution),
            "tokens": sums[run].tokens,
        }
    return Recovered(
        ops=tuple(ops),
        tensors=tensors,
        notes={"mean_square_error": errors},
        warnings=lines,
        forward_passes=passes,
        tokens=tokens,
        seconds=time.perf_counter() - started,
    )


def last_linear(layer: nn.Module, hidden: int) -> tuple[str, nn.Module] | None:
    """Name and module of the linear map that ends the MLP of a decoder layer; None where there is not exactly one."""
    from torch import nn

    found = [
        (name, module)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
        and name.rpartition(".")[2] in LAST_LINEAR
        and "attn" not in name
        and "attention" not in name
        and module.out_features == hidden
    ]
    return found[0] if len(found) == 1 else None


def continuous(passage: Passage, run: tuple[int, int]) -> str | None:
    """None where each layer of the run reads just what the one before gave, else what is in between.

    Some decoders add visual features between their first layers; what is added inside a removed run has no place in a
    module that stands in for it.
    """
    import torch

    for layer in range(run[0], run[1]):
        before, call = passage.outputs.get(layer - 1), passage.calls.get(layer)
        if before is not None and call is not None and not torch.equal(before, call.hidden.to(before.device)):
            return f"the decoder adds something between layers {layer - 1} and {layer}"
    return None


def _places(
    plan: Plan, material: Material
) -> tuple[dict[tuple[int, int], tuple[str, nn.Module]], dict[tuple[int, int], str]]:
    """Run → name and module to fold into; run → why not."""
    loaded = material.loaded
    taken = {layer for op in plan.ops for layer in layers_touched(op)}
    found: dict[tuple[int, int], tuple[str, nn.Module]] = {}
    problems: dict[tuple[int, int], str] = {}
    for run in removed_runs(plan):
        before = run[0] - 1
        if before < 0:
            problems[run] = "no layer stands in front of them"
        elif before in taken:
            problems[run] = f"the plan already changes layer {before}"
        elif (place := last_linear(loaded.layers[before], loaded.info.hidden_size)) is None:
            problems[run] = f"layer {before} has no MLP that ends in one linear map"
        else:
            check_weights(place[1], f"layer {before}", trained=False)
            found[run] = place
    return found, problems


def _pass(
    material: Material, inputs: DecoderInputs, found: dict[tuple[int, int], tuple[str, nn.Module]], *, whole: bool
) -> Passage:
    """One pass that notes what the equations need; with `whole`, also what the checks of the first batch need."""
    outputs = {layer for a, b in found for layer in (range(a - 1, b) if whole else (a - 1, b - 1))}
    calls = {layer for a, b in found for layer in range(a - 1, b)} if whole else set()
    return run_to(material.loaded, inputs, calls, outputs, {run[0] - 1: module for run, (_, module) in found.items()})


def _share_of(call: Call, layer: nn.Module, module: nn.Module, passage: Passage) -> tuple[float, bool]:
    """By what factor the MLP's output enters the layer's, and whether it enters by a factor alone.

    Seen by running the layer once more with that output set to zero: the difference is what it contributes.
    """
    import torch

    index = next(i for i, known in passage.calls.items() if known is call)
    silent = module.register_forward_hook(lambda _m, _a, output: torch.zeros_like(output))
    try:
        with torch.no_grad():
            rest = call.on(layer)
    finally:
        silent.remove()
    given = passage.inner[index].double().view_as(passage.outputs[index])
    part = passage.outputs[index].double() - rest.double()
    size = float(given.square().sum())
    if size == 0.0:
        return 1.0, True
    scale = float((given * part).sum()) / size
    off = float((part - scale * given).norm()) / max(float(part.norm()), 1e-300)
    dtype = str(passage.outputs[index].dtype).removeprefix("torch.")
    return scale, off < ADDED_WITHIN.get(dtype, 1e-3)


def _float64_device(layer: nn.Module) -> torch.device:  # noqa: F821
    import torch

    device = next(layer.parameters()).device
    return torch.device("cpu") if device.type == "mps" else device  # which has no float64
