"""What the linear modules of one layer are given on the calibration tokens, summed up while the layer runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prunebench.calibration.attention import watch_attention
from prunebench.errors import CalibrationError, PlanError
from prunebench.layerwise.attention import LastRow
from prunebench.layerwise.contract import Call, LayerView, LinearView
from prunebench.layerwise.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from prunebench.adapter import LoadedModel
    from prunebench.layerwise.walker import Walker
    from prunebench.probing.questions import Batch

__all__ = ["Collector", "Sums"]

CHUNK = 1 << 23
"""Numbers of an input that are worked on at once: 64 MiB in float64."""


@dataclass
class Sums:
    """Sums over the tokens of one input, as `LinearView` has them.

    Args:
        columns: width of the input.
        needs: of ``squares`` and ``hessian`` what is wanted.
        device: where they are kept.
    """

    columns: int
    needs: frozenset[str]
    device: torch.device
    total: float = 0.0
    squares: Tensor | None = field(init=False, default=None)
    hessian: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        import torch

        with torch.inference_mode(False):  # they outlive the pass
            if "squares" in self.needs:
                self.squares = torch.zeros(self.columns, dtype=torch.float64, device=self.device)
            if "hessian" in self.needs:
                self.hessian = torch.zeros(self.columns, self.columns, dtype=torch.float32, device=self.device)

    def add(self, rows: Tensor, weights: Tensor | None, need: str) -> None:
        """Tokens (N, in) with their weights (N,), None for 1 each, in the sums of `need`."""
        step = max(1, CHUNK // self.columns)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            own = None if weights is None else weights[start : start + step]
            if need == "squares":
                squared = part.double().square()
                self.squares += squared.sum(0) if own is None else own.double() @ squared  # type: ignore[operator]
            else:
                part = part.float() if own is None else part.float() * own.float().sqrt().unsqueeze(1)
                self.hessian.addmm_(part.T, part)  # type: ignore[union-attr]

    def nbytes(self, needs: frozenset[str]) -> int:
        """Of some of them."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (getattr(self, need) for need in needs))


class Collector:
    """The statistics of one layer for the thinners of one stream.

    Args:
        number: of the layer.
        linears: its linear modules.
        walkers: who is shown them.
        watch: charged with the time that statistics take.
    """

    def __init__(
        self, number: int, linears: Mapping[str, nn.Linear], walkers: Sequence[Walker], watch: Stopwatch
    ) -> None:
        self.number, self.linears, self.watch = number, linears, watch
        self.watchers = [walker for walker in walkers if walker.thinner.watches]
        self.plain = [walker for walker in walkers if not walker.thinner.watches]
        self.leaders: dict[str, str] = {}  # module → the first one that is given the very same tensor
        self.calls = dict.fromkeys(linears, 0)
        self._shared: dict[tuple[str, str], Sums] = {}  # (average, leader)
        self._own: dict[tuple[int, str], Sums] = {}  # (watcher, module)
        self._seen: list[tuple[weakref.ref, str]] = []
        self._later: list[tuple[str, Tensor, Tensor]] = []
        self._batch: Batch | None = None

    # -- while a batch runs ------------------------------------------------------------------------------------------

    @contextmanager
    def over(self, loaded: LoadedModel, batch: Batch) -> Iterator[None]:
        """See what the layer's modules are given in this ``with`` block."""
        self._batch, self._mask = batch, batch.inputs.attention_mask.bool()
        self._padded = not bool(self._mask.all())
        self._lengths = [int(count) for count in self._mask.sum(1).tolist()]
        asking = [walker for walker in self.watchers if "attention" in walker.thinner.needs]
        rows = LastRow(self._mask) if asking else None
        with ExitStack() as stack:
            for name, module in self.linears.items():
                handle = module.register_forward_hook(self._hook(name), with_kwargs=True)
                stack.callback(handle.remove)
            if rows is not None:
                stack.enter_context(watch_attention(loaded, rows))
            stack.callback(self._seen.clear)
            stack.callback(self._later.clear)
            yield
            if rows is not None:
                self._with_attention(asking, rows.rows())

    def _hook(self, name: str) -> Callable:
        def see(_module: Any, args: tuple, kwargs: dict[str, Any], output: Tensor) -> None:
            self._see(name, args[0] if args else kwargs["input"], output)

        return see

    def _see(self, name: str, given: Tensor, output: Tensor) -> None:
        leader = next((first for ref, first in self._seen if ref() is given), name)
        if leader == name:
            self._seen.append((weakref.ref(given), name))
        if self.leaders.setdefault(name, leader) != leader:
            raise CalibrationError(
                f"layer {self.number}: {name} and {leader} share their input in one batch and not in another: "
                "choose a method for layers"
            )
        self.calls[name] += 1
        if self.plain and leader == name:
            self._add(name, given)
        at_once = [walker for walker in self.watchers if "attention" not in walker.thinner.needs]
        self._show(at_once, name, given, output, None)
        if len(at_once) < len(self.watchers):  # copied, as a layer may go on to work in place
            self._later.append((name, given.clone(), output.clone()))

    def _with_attention(self, asking: list[Walker], rows: list[Tensor] | None) -> None:
        if rows is None:
            error = CalibrationError(
                f"layer {self.number} shows no attention: load the model with --attn-implementation eager or sdpa, "
                "or use a method that needs no attention"
            )
            for walker in asking:
                walker.error = walker.error or error
        for name, given, output in self._later:
            self._show(asking, name, given, output, rows)

    # -- all tokens alike --------------------------------------------------------------------------------------------

    def _add(self, name: str, given: Tensor) -> None:
        rows = self._rows(name, given)
        for average in dict.fromkeys(walker.thinner.average for walker in self.plain):
            users = [walker for walker in self.plain if walker.thinner.average == average]
            needs = frozenset().union(*(walker.statistics for walker in users))
            if not needs:
                continue
            key = (average, name)
            if key not in self._shared:
                self._shared[key] = Sums(rows.shape[1], needs, given.device)
            weights = self._by_sample(rows) if average == "samples" else None
            self._shared[key].total += float(len(rows) if weights is None else self._samples_in(rows, weights))
            for need in sorted(needs):
                with self.watch.on([walker for walker in users if need in walker.statistics]):
                    self._shared[key].add(rows, weights, need)

    def _rows(self, name: str, given: Tensor) -> Tensor:
        """(N, in) without padding, sample after sample."""
        if given.shape[:-1][:2] == self._mask.shape:
            kept = given[self._mask.to(given.device)] if self._padded else given
        elif self._padded:
            raise CalibrationError(
                f"layer {self.number}: the input of {name} cannot be told from padding: use --batch-size 1"
            )
        else:
            kept = given
        return kept.reshape(-1, given.shape[-1])

    def _by_sample(self, rows: Tensor) -> Tensor:
        """(N,) 1 / T of the sample that each row is of."""
        import torch

        lengths = torch.tensor(self._lengths, device=rows.device)
        tokens = (1.0 / lengths.double()).repeat_interleave(lengths)
        if len(rows) % len(tokens):  # some of the tokens, without padding: all samples are of one length
            return tokens[:1].expand(len(rows))
        return tokens.repeat_interleave(len(rows) // len(tokens))

    def _samples_in(self, rows: Tensor, weights: Tensor) -> float:
        """Sum of the weights of `_by_sample`: whole samples as a whole number; an expert is given parts of them."""
        return len(self._lengths) if len(rows) == sum(self._lengths) else float(weights.sum())

    # -- watched -----------------------------------------------------------------------------------------------------

    def _show(
        self, walkers: list[Walker], name: str, given: Tensor, output: Tensor, attention: list[Tensor] | None
    ) -> None:
        if not any(walker.error is None for walker in walkers):
            return
        calls = self._split(name, given, output, attention)
        for walker in walkers:
            with self.watch.on([walker]):
                for call in calls:
                    if walker.error is None:
                        try:
                            self._count(walker, call)
                        except (Exception, SystemExit) as error:  # its own plan fails, the others go on
                            walker.error = error

    def _split(self, name: str, given: Tensor, output: Tensor, attention: list[Tensor] | None) -> list[Call]:
        """One call per sample, padding left out."""
        import torch

        assert self._batch is not None
        shape, inputs = self._mask.shape, self._batch.inputs
        if given.shape[:-1] != shape:
            if shape[0] > 1:
                raise CalibrationError(
                    f"layer {self.number}: the input of {name} cannot be told apart by sample: use --batch-size 1"
                )
            if given.numel() != shape[1] * given.shape[-1]:
                raise CalibrationError(
                    f"layer {self.number}: {name} is given only some of the tokens, and this method has to know which"
                )
            given, output = given.reshape(*shape, -1), output.reshape(*shape, -1)
        named = {key: mask for key, mask in inputs.groups.items() if key != "text"}
        rest = torch.ones_like(self._mask) if not named else ~torch.stack([m.bool() for m in named.values()]).any(0)
        calls = []
        for row, sample in enumerate(self._batch.rows):
            own = self._mask[row]
            groups = {key: mask[row][own].bool().to(given.device) for key, mask in {**named, "text": rest}.items()}
            here = own.to(given.device)
            seen = None if attention is None else attention[row]
            calls.append(Call(self.number, name, sample, given[row][here], output[row][here], groups, seen))
        return calls

    def _count(self, walker: Walker, call: Call) -> None:
        import torch

        weights = walker.thinner.count(call)
        if not walker.statistics:
            return
        n = len(call.inputs)
        if weights is None and walker.thinner.average == "samples":
            weights = torch.full((n,), 1.0 / n, dtype=torch.float64, device=call.inputs.device)
        elif weights is not None:
            weights = weights.to(call.inputs.device)
            if weights.shape != (n,) or not bool((weights >= 0).all() & weights.isfinite().all()):
                raise PlanError(
                    f"layer {self.number} {call.module}: count() has to give one weight >= 0 for each of {n} tokens"
                )
        key = (id(walker), call.module)
        if key not in self._own:
            self._own[key] = Sums(call.inputs.shape[1], walker.statistics, call.inputs.device)
        self._own[key].total += float(n if weights is None else weights.double().sum())
        for need in sorted(walker.statistics):
            self._own[key].add(call.inputs, weights, need)

    # -- afterwards --------------------------------------------------------------------------------------------------

    def view(self, walker: Walker) -> LayerView:
        """What a thinner is shown; modules that no token went through have sums of zero.

        Raises:
            CalibrationError: an input that is not finite.
        """
        view = LayerView(self.number)
        for name, module in self.linears.items():
            sums = self._sums(walker, name) or Sums(module.in_features, walker.statistics, module.weight.device)
            for need in walker.statistics:
                found = getattr(sums, need)
                if not bool((found.diagonal() if need == "hessian" else found).isfinite().all()):
                    raise CalibrationError(
                        f"layer {self.number}: what goes into {name} is not finite: try --dtype float32 or bfloat16"
                    )
            own = {need: getattr(sums, need) for need in walker.statistics}
            view.linears[name] = LinearView(name, module.weight.detach(), total=sums.total, **own)
        return view

    def nbytes(self, walker: Walker) -> int:
        """Of the statistics that a thinner is shown, each once."""
        found = [self._sums(walker, name) for name in self.linears]
        return sum(
            each.nbytes(walker.statistics) for each in {id(sums): sums for sums in found if sums is not None}.values()
        )

    def _sums(self, walker: Walker, name: str) -> Sums | None:
        if walker.thinner.watches:
            return self._own.get((id(walker), name))
        leader = self.leaders.get(name, name)
        if self.calls[name] != self.calls[leader]:
            raise CalibrationError(f"layer {self.number}: {name} and {leader} share only some of their inputs")
        return self._shared.get((walker.thinner.average, leader))
