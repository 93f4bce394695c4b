"""Wanda, SparseGPT, magnitude and OWL on whole models: the plans of loops written here, and shares that are met."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from prunebench_baselines.magnitude import Magnitude, MagnitudeThinner
from prunebench_baselines.owl import OWL
from prunebench_baselines.sparsegpt import SparseGPT, SparseGPTThinner
from prunebench_baselines.wanda import Wanda, WandaThinner

import prunebench
from prunebench import Budget, Plan, PlanContext, pruned
from prunebench.bits import unpack
from prunebench.errors import BudgetError
from prunebench.layerwise import LayerView, LayerwiseStrategy, Thinned, Thinner
from prunebench.probing import Probe
from prunebench.testing.tiny import TinyLlama, TinyMedia, TinyText

TEXT, MEDIA = TinyText().samples("calibration", 6), TinyMedia().samples("calibration", 6)


@pytest.fixture(scope="module")
def llama():
    return TinyLlama().load()


@pytest.fixture(scope="module")
def testbed():
    return prunebench.load("testbed")


@pytest.fixture(scope="module")
def shapes(testbed):
    from prunebench.dataset import open_dataset
    from prunebench.plugins import get_plugins

    return open_dataset(get_plugins(), testbed.adapter.default_calibration).samples("calibration", 24, seed=0)


def context(loaded, share=0.5, samples=MEDIA, batch_size=4):
    return PlanContext(
        model=loaded.info, budget=Budget(value=share), probe=Probe(loaded, samples, batch_size=batch_size)
    )


def linears(layer):
    return {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}


def kept(plan, loaded):
    """(layer, module) → (out, in) bool, from the plan alone."""
    found = {}
    for op in plan.ops:
        for name, module in linears(loaded.layers[op.layer]).items() if op.op == "mask" else ():
            if (packed := plan.tensors.get(f"{op.tensors}.{name}.weight")) is not None:
                found[op.layer, name] = unpack(packed, module.in_features)
    return found


def inputs_of(loaded, layer, samples):
    """Module → what it was given, (tokens, in) float64, one sample per forward pass: there is no padding to tell."""
    seen = {name: [] for name in linears(loaded.layers[layer])}
    handles = [
        module.register_forward_hook(lambda m, args, out, name=name: seen[name].append(args[0][0].double()))
        for name, module in linears(loaded.layers[layer]).items()
    ]
    probe = Probe(loaded, samples, batch_size=1)
    try:
        with torch.no_grad():
            for batch in probe.batches():
                loaded.adapter.forward(loaded, batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def wanda_by_hand(loaded, share, samples, sequential, average="tokens"):
    """Every layer asked through whole forward passes of a model whose layers before it are pruned, or of the dense one.

    Weights are set to zero in place, and put back at the end.
    """
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    found = {}
    try:
        for number, layer in enumerate(loaded.layers):
            given = inputs_of(loaded, number, samples)
            for name, module in linears(layer).items():
                mean = [x.square().mean(0) if average == "samples" else x.square().sum(0) for x in given[name]]
                scores = module.weight.detach().double().abs() * sum(mean).sqrt()
                order = scores.argsort(dim=1, stable=True)[:, : int(module.in_features * share)]
                found[number, name] = torch.ones_like(scores, dtype=torch.bool).scatter_(1, order, False)
            if sequential:
                for name, module in linears(layer).items():
                    module.weight.data.mul_(found[number, name])
    finally:
        for name, parameter in loaded.model.named_parameters():
            parameter.data.copy_(before[name])
    return found


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("average", ["tokens", "samples"])
def test_wanda_is_the_loop_over_whole_forward_passes(llama, sequential, average):
    method = Wanda(samples=6, sequential=sequential, average=average)
    found = kept(method.plan(context(llama)), llama)
    expected = wanda_by_hand(llama, 0.5, MEDIA, sequential, average)
    assert found.keys() == expected.keys()
    different = sum(int((found[key] != expected[key]).sum()) for key in expected)
    # Passes of other batches round otherwise: a few scores that are all but equal may change places.
    assert different <= 1e-4 * sum(keep.numel() for keep in expected.values())
    if sequential:
        one_shot = kept(Wanda(samples=6, sequential=False, average=average).plan(context(llama)), llama)
        assert any(not torch.equal(one_shot[key], found[key]) for key in found)


METHODS = [
    Wanda(samples=6),
    Wanda(samples=6, row_threshold="alpha"),
    SparseGPT(samples=6),
    Magnitude(),
    Magnitude(scope="model"),
    OWL(samples=6),
    OWL(samples=6, prune="sparsegpt"),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{list(m.params().values())[-1]}")
@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_share_that_goes_is_the_one_asked_for(llama, method, share):
    asked = context(llama, share)
    plan = method.plan(asked)
    sizes = {(n, name): m.weight.numel() for n, layer in enumerate(llama.layers) for name, m in linears(layer).items()}
    zeros = {key: int((~keep).sum()) for key, keep in kept(plan, llama).items()}
    total = sum(zeros.values()) / sum(sizes.values())
    rows = 1 / min(m.in_features for m in linears(llama.layers[0]).values())  # a row's number is rounded down
    assert share - rows <= total <= share + 1e-3
    assert plan.kind == "weights" and plan.budget.achieved.params_zeroed == sum(zeros.values())
    with pruned(llama, plan):
        for (number, name), count in zeros.items():
            assert int((linears(llama.layers[number])[name].weight == 0).sum()) >= count
    again = method.plan(context(llama, share))
    assert again.digest == plan.digest
    if isinstance(method, Magnitude):
        assert plan.cost.forward_passes == 0


@pytest.mark.parametrize("pattern", ["2:4", "4:8"])
@pytest.mark.parametrize("kind", [Wanda, SparseGPT, Magnitude])
def test_patterns_hold_in_the_pruned_model(llama, kind, pattern):
    stay, of = map(int, pattern.split(":"))
    plan = kind(samples=6, pattern=pattern).plan(context(llama, 0.5))
    assert plan.kind == pattern
    with pruned(llama, plan):
        for layer in llama.layers:
            for module in linears(layer).values():
                assert int((module.weight.reshape(-1, of) != 0).sum(1).max()) <= stay
    with pytest.raises(BudgetError, match=r"0\.5"):
        kind(samples=6, pattern=pattern).plan(context(llama, 0.4))


def test_magnitude_needs_no_sample(llama):
    blind = PlanContext(model=llama.info, budget=Budget(value=0.5), probe=Probe(llama, []))
    plan = Magnitude().plan(blind)
    assert plan.digest == Magnitude().plan(context(llama)).digest
    for (number, name), keep in kept(plan, llama).items():
        size = linears(llama.layers[number])[name].weight.detach().abs()
        assert size[keep].min() >= size[~keep].max() and int(keep.sum()) == size.numel() // 2


@dataclass
class Compare(Thinner):
    """Thins nothing: notes tr(ΔW H ΔWᵀ) of three methods on every module of the dense model."""

    found: dict
    sequential = False
    needs = frozenset({"squares", "hessian"})

    def thin(self, layer: LayerView) -> Mapping[str, Thinned]:
        shares = {layer.number: 0.5}
        makers = {"sparsegpt": SparseGPTThinner, "wanda": WandaThinner, "magnitude": MagnitudeThinner}
        thinned = {name: make(shares).thin(layer) for name, make in makers.items()}
        for name, view in layer.linears.items():
            weight, hessian = view.weight.double(), view.hessian.double()
            for method, answers in thinned.items():
                answer = answers[name]
                new = weight * answer.keep if answer.weight is None else answer.weight.double()
                self.found[layer.number, name, method] = float(((new - weight) @ hessian * (new - weight)).sum())
        return {}


@dataclass(frozen=True)
class Comparison(LayerwiseStrategy):
    """Carries `Compare` through the sweep."""

    name = "comparison"

    def thinner(self, context, scout):
        context.artefacts["losses"] = {}
        return Compare(context.artefacts["losses"])


def test_on_real_inputs_sparsegpt_is_nearest_in_every_module(testbed, shapes):
    asked = context(testbed, samples=shapes, batch_size=12)
    Comparison(samples=24).plan(asked)
    losses = asked.artefacts["losses"]
    modules = {key[:2] for key in losses}
    assert len(modules) == sum(len(linears(layer)) for layer in testbed.layers)
    for number, name in modules:
        ours = losses[number, name, "sparsegpt"]
        assert ours <= losses[number, name, "wanda"], (number, name)
        assert ours <= losses[number, name, "magnitude"], (number, name)


def test_owl_spreads_densities_over_the_testbed(testbed, shapes):
    asked = context(testbed, samples=shapes, batch_size=12)
    plan = OWL(samples=24).plan(asked)
    densities = list(asked.notes["layer_densities"].values())
    assert max(densities) - min(densities) == pytest.approx(0.16, abs=1e-5)
    assert sum(densities) / len(densities) == pytest.approx(0.5, abs=1e-5)
    keep, ratios = kept(plan, testbed), list(asked.notes["outlier_ratios"].values())
    stays = [sum(int(m.sum()) for (n, _), m in keep.items() if n == layer) for layer in range(testbed.info.n_layers)]
    assert stays.index(max(stays)) == ratios.index(max(ratios)) and stays.index(min(stays)) == ratios.index(min(ratios))


def test_text_alone_does_as_well(llama):
    plan = Plan.model_validate_json(Wanda(samples=3).plan(context(llama, samples=TEXT)).model_dump_json())
    assert plan.kind == "weights"
