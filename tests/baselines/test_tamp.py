"""TAMP: diversity against all pairs, budgets in closed form, picked tokens against a naive second version."""

from __future__ import annotations

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from prunebench_baselines import amia, diversity
from prunebench_baselines.amia import representative_tokens
from prunebench_baselines.diversity import DiversityScout, diversity_terms
from prunebench_baselines.tamp import TAMP, weights_to_keep
from prunebench_baselines.wanda import Wanda

from prunebench import Budget, PlanContext
from prunebench.bits import unpack
from prunebench.errors import BadParameter, BudgetError, CalibrationError
from prunebench.layerwise.contract import Call, LayerView, LinearView
from prunebench.layerwise.together import plan_together
from prunebench.ops import Mask
from prunebench.plugins import get_plugins
from prunebench.probing import Probe
from prunebench.testing.tiny import TinyLlama, TinyMedia

LLAMA_3_8B = {
    "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}  # fmt: skip
MIXES = {
    "text": {"text": 17},
    "image and text": {"visual": 12, "text": 9},
    "image, sound and text": {"visual": 12, "audio": 5, "text": 9},
    "one image token": {"visual": 1, "text": 6},
    "a token each": {"visual": 1, "audio": 1},
}


def tokens(mix, width=24, seed=0, offset=0.3):
    """Random outputs whose groups lie in different directions, and the groups, with tokens of all kinds interleaved."""
    rng = torch.Generator().manual_seed(seed)
    total = sum(mix.values())
    kinds = torch.cat([torch.full((count,), i) for i, count in enumerate(mix.values())])
    kinds = kinds[torch.randperm(total, generator=rng)]
    outputs = torch.randn(total, width, generator=rng, dtype=torch.float64)
    outputs += offset * torch.randn(len(mix), width, generator=rng, dtype=torch.float64)[kinds]
    return outputs, {name: kinds == i for i, name in enumerate(mix)}


def call_of(outputs, groups, *, attention=None, layer=0, module="mlp.up_proj", sample=0):
    inputs = torch.zeros(len(outputs), 4)
    return Call(layer, module, sample, inputs, outputs, groups, attention)


def diversity_of(outputs, groups, variant="paper"):
    total, number = diversity_terms(outputs, groups, variant)
    return float(total / number)


def by_all_pairs(outputs, groups, positive_only=False):
    """Mean over terms of 1 − the mean of every pair's cosine, pair by pair."""
    rows = outputs.double().numpy()
    cosine = lambda i, j: rows[i] @ rows[j] / math.sqrt((rows[i] @ rows[i]) * (rows[j] @ rows[j]))  # noqa: E731
    members = [[i for i in range(len(rows)) if mask[i]] for mask in groups.values()]
    terms = []
    for place, own in enumerate(members):
        inner = [cosine(i, j) for i, j in itertools.combinations(own, 2)]
        if inner:
            counted = [value for value in inner if value > 0] if positive_only else inner
            terms.append(1 - np.mean(counted))
        terms += [
            1 - np.mean([cosine(i, j) for i in own for j in other]) for other in members[place + 1 :] if own and other
        ]
    return float(np.mean(terms))


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_diversity_is_the_mean_over_all_pairs(mix, monkeypatch):
    outputs, groups = tokens(mix)
    expected = by_all_pairs(outputs, groups)
    assert diversity_of(outputs, groups) == pytest.approx(expected, rel=1e-12)
    scaled = outputs * torch.linspace(0.01, 50, len(outputs), dtype=torch.float64)[:, None]
    assert diversity_of(scaled, groups) == pytest.approx(expected, rel=1e-12)
    assert diversity_of(outputs.float(), groups) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(diversity, "CHUNK", 40)  # one token at a time
    assert diversity_of(outputs, groups) == pytest.approx(expected, rel=1e-12)


def test_diversity_of_image_and_text_is_a_third_of_the_released_sum():
    outputs, groups = tokens({"visual": 12, "text": 9})
    units = outputs / outputs.norm(dim=1, keepdim=True)
    seen, read = units[groups["visual"]], units[groups["text"]]

    def inner(rows):
        return float((rows @ rows.T).triu(1).sum() / (len(rows) * (len(rows) - 1) / 2))

    expected = (1 - inner(seen)) + (1 - inner(read)) + (1 - float((seen @ read.T).mean()))
    assert 3 * diversity_of(outputs, groups) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("mix", [MIXES[name] for name in ("text", "image and text", "image, sound and text")])
def test_released_code_leaves_negative_cosines_of_a_group_out(mix, monkeypatch):
    outputs, groups = tokens(mix)
    expected = by_all_pairs(outputs, groups, positive_only=True)
    assert diversity_of(outputs, groups, "released_code") == pytest.approx(expected, rel=1e-6)
    assert expected < diversity_of(outputs, groups) - 0.01
    monkeypatch.setattr(diversity, "CHUNK", 40)
    assert diversity_of(outputs, groups, "released_code") == pytest.approx(expected, rel=1e-6)


def test_released_code_takes_all_tokens_but_media_for_text():
    outputs, groups = tokens({"visual": 12, "text": 9, "other": 4}, offset=3.0)
    rest = {"visual": groups["visual"], "rest": ~groups["visual"]}
    assert diversity_of(outputs, groups, "released_code") == diversity_of(outputs, rest, "released_code")
    assert diversity_of(outputs, groups) != pytest.approx(diversity_of(outputs, rest), abs=1e-3)


def test_equal_and_opposite_tokens():
    one = torch.tensor([[3.0, 4.0]])
    text = {"text": torch.ones(4, dtype=torch.bool)}
    assert diversity_of(one.repeat(4, 1), text) == pytest.approx(0, abs=1e-12)
    opposite = torch.cat([one, -one])
    assert diversity_of(opposite, {"text": torch.ones(2, dtype=torch.bool)}) == pytest.approx(2)
    nothing_positive = diversity_of(opposite, {"text": torch.ones(2, dtype=torch.bool)}, "released_code")
    assert nothing_positive == pytest.approx(1)
    zero = torch.cat([one, 0 * one])  # at right angles to everything
    assert diversity_of(zero, {"text": torch.ones(2, dtype=torch.bool)}) == pytest.approx(1)


def scouted(calls, shapes=None, variant="paper"):
    scout = DiversityScout(variant)
    for call in calls:
        scout.count(call)
    names = dict.fromkeys(call.module for call in calls)
    shapes = shapes or {name: (8, 4) for name in names}
    view = LayerView(calls[0].layer, {name: LinearView(name, torch.zeros(shapes[name])) for name in shapes})
    assert scout.thin(view) == {}
    return scout


def test_a_scout_averages_samples_and_knows_nothing_of_the_budget():
    mixes = [MIXES["text"], MIXES["image and text"], MIXES["image, sound and text"]]
    calls, expected = [], []
    for sample, mix in enumerate(mixes):
        outputs, groups = tokens(mix, seed=sample)
        calls.append(call_of(outputs, groups, sample=sample))
        expected.append(by_all_pairs(outputs, groups))
    single, group = tokens({"text": 1})
    scout = scouted([*calls, call_of(single, group, sample=3)])  # one token has no pair: nothing is learned from it
    assert scout.scores[0, "mlp.up_proj"] == pytest.approx(np.mean(expected))
    assert scout.shapes[0, "mlp.up_proj"] == (8, 4)
    context = SimpleNamespace(share=0.5)
    assert TAMP().scout(context) == TAMP(max_extra=0.2, token_selection="naive").scout(SimpleNamespace(share=0.3))
    assert TAMP().scout(context) != TAMP(samples=64).scout(context)
    assert TAMP().scout(context) != TAMP(variant="released_code").scout(context)
    assert scout == DiversityScout() and not (scout.sequential or scout.needs)


def test_a_scout_refuses_outputs_that_are_not_finite():
    outputs, groups = tokens({"text": 5})
    outputs[2, 1] = torch.inf
    with pytest.raises(CalibrationError, match=r"layer 4 mlp.up_proj: outputs that are not finite"):
        scouted([call_of(outputs, groups, layer=4)])


def test_a_module_without_tokens_has_the_mean_score():
    outputs, groups = tokens({"text": 5})
    scout = scouted([call_of(outputs, groups, layer=4)], {"mlp.up_proj": (8, 4), "mlp.down_proj": (4, 8)})
    assert list(scout.scores) == [(4, "mlp.up_proj")] and len(scout.shapes) == 2
    context = SimpleNamespace(share=0.5, notes={}, warnings=[])
    thinner = TAMP().thinner(context, scout)
    assert len(set(thinner.zeros.values())) == 2 and context.notes["sparsity"] == dict.fromkeys(
        ("mlp.up_proj", "mlp.down_proj"), 0.5
    )
    (line,) = context.warnings
    assert line.startswith("tamp: layer 4 mlp.down_proj was given no two calibration tokens")
    with pytest.raises(CalibrationError, match="no calibration sample has two tokens"):
        TAMP().thinner(context, scouted([call_of(outputs[:1], {"text": torch.ones(1, dtype=torch.bool)})]))


def test_equal_scores_spare_the_small_modules_of_llama_3_8b():
    sizes = [math.prod(shape) for shape in LLAMA_3_8B.values()] * 32
    expected = dict.fromkeys(LLAMA_3_8B, 0.543) | {
        "self_attn.q_proj": 0.4, "self_attn.o_proj": 0.4, "self_attn.k_proj": 0.0, "self_attn.v_proj": 0.0
    }  # fmt: skip
    for variant in ("paper", "released_code"):
        kept = weights_to_keep([0.7] * len(sizes), sizes, 0.5, variant=variant)
        sparsity = [max(0.0, 1 - k / n) for k, n in zip(kept, sizes, strict=True)]
        assert [round(value, 3) for value in sparsity] == list(expected.values()) * 32
    assert sum(weights_to_keep([0.7] * len(sizes), sizes, 0.5)) == sum(sizes) // 2


@pytest.mark.parametrize("share", [0.0, 0.07, 0.2, 0.5, 0.73, 0.95])
@pytest.mark.parametrize("max_extra", [0.0, 0.1, 1.0])
def test_budgets_are_met_exactly_and_in_proportion(share, max_extra):
    rng = np.random.default_rng(0)
    sizes, scores = rng.integers(50, 5000, 40).tolist(), rng.uniform(0.01, 1.2, 40).tolist()
    kept = weights_to_keep(scores, sizes, share, max_extra=max_extra)
    assert sum(kept) == sum(sizes) - round(share * sum(sizes))
    floors = [n * (1 - min(1, share + max_extra)) for n in sizes]
    assert all(floor - 1 < k <= n for k, floor, n in zip(kept, floors, sizes, strict=True))
    # What the modules that are not full got beyond their floor is one multiple of their scores, up to the rounding.
    free = [i for i in range(40) if kept[i] < sizes[i]]
    slope = sum(kept[i] - floors[i] for i in free) / sum(scores[i] for i in free) if free else math.inf
    assert all(abs(kept[i] - floors[i] - slope * scores[i]) <= 1.01 for i in free)
    assert all(slope * scores[i] >= sizes[i] - floors[i] - 1.01 for i in range(40) if i not in free)


def test_full_modules_pass_their_rest_on():
    assert weights_to_keep([1.0, 1.0, 1.0], [10, 100, 100], 0.5, max_extra=0.1) == [10, 48, 47]
    assert weights_to_keep([100.0, 1.0, 0.0], [10, 50, 40], 0.5, max_extra=0.5) == [10, 40, 0]
    assert weights_to_keep([1.0, 0.0, 0.0], [10, 50, 50], 0.5, max_extra=0.5) == [10, 23, 22]  # 45 among equals
    assert weights_to_keep([0.3, 0.7], [10, 20], 0.0) == [10, 20]


def test_released_rounding_adds_what_is_too_much_once_more():
    sizes, scores = [100, 300, 500], [1.0, 1.1, 1.3]
    target, kept = 450, weights_to_keep(scores, sizes, 0.5, variant="released_code")
    floors = [40, 120, 200]
    parts = [math.ceil(score / 3.4 * (target - sum(floors))) for score in scores]
    whole = [floor + part for floor, part in zip(floors, parts, strict=True)]
    excess = sum(whole) - target
    assert excess == 2 and kept == [whole[0], whole[1], whole[2] + excess]
    assert sum(weights_to_keep(scores, sizes, 0.5)) == target
    full = weights_to_keep([9.0, 1.0], [10, 90], 0.5, variant="released_code")
    assert full[0] == 10 and 40 <= full[1] <= 43


@pytest.mark.parametrize(("share", "max_extra"), [(0.5, -0.1), (1.2, 0.1)])
def test_a_budget_out_of_reach(share, max_extra):
    with pytest.raises(BudgetError, match=r"no module may lose more than \d+% of its weights, and \d+% of all are to"):
        weights_to_keep([1.0, 1.0], [10, 10], share, max_extra=max_extra)


def naive_amia(outputs, attention, diversity):
    """The tokens in the order they are picked: the formulas with whole matrices and lists, in float64."""
    units = outputs.double().numpy() / np.linalg.norm(outputs.double().numpy(), axis=1, keepdims=True)
    n = len(units)
    distance = 1 - units @ units.T
    near = [sorted((j for j in range(n) if j != i), key=lambda j: distance[i, j])[:3] for i in range(n)]
    a = attention.double().numpy()
    score = {i: a[i] + sum(math.exp(-distance[i, j]) * a[j] for j in near[i]) for i in range(n)}
    kernel = np.exp(-((units[:, None] - units[None]) ** 2).sum(-1) / 2)
    picked = []
    while len(picked) < n:
        best = max(score, key=score.get)
        top = max(score.pop(best), 0.0)
        for j in near[best]:
            if j in score:
                score[j] -= math.exp(-0.2 * distance[best, j]) * top
        picked.append(best)
        own = kernel[np.ix_(picked, picked)].mean()
        if kernel.mean() + own - 2 * kernel[:, picked].mean() < 0.1 * math.sqrt(diversity):
            break
    return picked


@pytest.mark.parametrize("n_tokens", [2, 3, 5, 40, 150])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_picked_tokens_are_those_of_the_formulas(n_tokens, offset, monkeypatch):
    for seed in range(3):
        mix = {"visual": n_tokens // 2, "text": n_tokens - n_tokens // 2}
        outputs, groups = tokens(mix, seed=seed, offset=offset)
        rng = torch.Generator().manual_seed(100 + seed)
        attention = torch.rand(n_tokens, generator=rng).pow(4)
        attention /= attention.sum()
        for scale in (1.0, 0.02):  # from few tokens to most of them
            spread = diversity_of(outputs, groups) * scale
            expected = sorted(naive_amia(outputs, attention, spread))
            assert representative_tokens(outputs, attention, spread).nonzero()[:, 0].tolist() == expected
            with monkeypatch.context() as patch:  # rows of the kernel on demand, in chunks
                patch.setattr(amia, "STORED", 0)
                patch.setattr(amia, "CHUNK", 64)
                assert representative_tokens(outputs, attention, spread).nonzero()[:, 0].tolist() == expected


def test_the_share_of_picked_tokens_varies_with_the_tolerance():
    """The case above is not one where a block or all tokens are taken, whatever the rule."""
    outputs, groups = tokens({"visual": 75, "text": 75}, offset=3.0)
    attention = torch.full((150,), 1 / 150)
    spread = diversity_of(outputs, groups)
    counts = [int(representative_tokens(outputs, attention, spread * s).sum()) for s in (4.0, 1.0, 0.1, 0.01, 0.0)]
    assert counts == sorted(counts) and 1 <= counts[0] < counts[1] < counts[2] < counts[3] < 150
    assert counts[4] == 150  # only all tokens are distributed as all tokens


def test_one_of_equal_tokens_is_picked_and_one_token_is_enough():
    equal = torch.tensor([[0.3, -0.7, 0.1]]).repeat(30, 1)
    attention = torch.rand(30, generator=torch.Generator().manual_seed(0))
    text = {"text": torch.ones(30, dtype=torch.bool)}
    assert representative_tokens(equal, attention, diversity_of(equal, text)).sum() == 1
    assert representative_tokens(equal[:1], attention[:1], 0.0).tolist() == [True]
    half = torch.cat([equal[:15], -equal[:15]])
    chosen = representative_tokens(half, attention, diversity_of(half, text))
    assert chosen[:15].any() and chosen[15:].any() and chosen.sum() < 15
    silent = 0 * equal  # tokens of zeros are equal too
    assert representative_tokens(silent, attention, 0.0).sum() == 1


def planned(strategy, shapes, share=0.5, scores=None):
    """A thinner with a scout that saw layer 0 with these scores, and the notes."""
    scout = strategy.scout(SimpleNamespace(share=share))
    for name, shape in shapes.items():
        scout.scores[0, name] = scores[name] if scores else 1.0
        scout.shapes[0, name] = shape
    context = SimpleNamespace(share=share, notes={}, warnings=[])
    return strategy.thinner(context, scout), context.notes


def test_masks_are_the_lowest_of_every_row_with_the_modules_own_sparsity():
    shapes = {"k": (6, 24), "up": (20, 24), "down": (24, 40)}
    thinner, notes = planned(TAMP(), shapes, scores={"k": 1.9, "up": 0.6, "down": 0.9})
    assert thinner.sequential and thinner.watches and thinner.needs == {"squares", "attention"}
    rng = torch.Generator().manual_seed(1)
    view = LayerView(0)
    for name, shape in shapes.items():
        squares = torch.rand(shape[1], generator=rng, dtype=torch.float64)
        view.linears[name] = LinearView(name, torch.randn(shape, generator=rng), squares, total=3.0)
    sizes = [math.prod(shape) for shape in shapes.values()]
    kept = weights_to_keep([1.9, 0.6, 0.9], sizes, 0.5)
    made = thinner.thin(view)
    zeros = 0
    for (name, shape), keep, n in zip(shapes.items(), kept, sizes, strict=True):
        linear, count = view.linears[name], int(shape[1] * (1 - keep / n))
        keeps = made[name].keep if name in made else torch.ones(shape, dtype=torch.bool)
        for row, own in zip(linear.weight, keeps, strict=True):
            lowest = sorted(range(shape[1]), key=lambda j: abs(row[j].item()) * math.sqrt(linear.squares[j]))[:count]
            assert (~own).nonzero()[:, 0].tolist() == sorted(lowest)
        zeros += count * shape[0]
    assert made.keys() == {"up", "down"} and all(thinned.weight is None for thinned in made.values())
    lost = round(0.5 * sum(sizes)) - zeros
    assert notes["zeros_below_budget"] == lost and 0 <= lost < sum(shape[0] for shape in shapes.values())
    assert notes["diversity"] == {"k": 1.9, "up": 0.6, "down": 0.9} and notes["sparsity"]["k"] == 0.0


def test_the_norms_are_those_of_the_picked_tokens():
    thinner, notes = planned(TAMP(), {"up": (4, 8)})
    outputs, groups = tokens(MIXES["image, sound and text"], offset=3.0)
    attention = torch.linspace(0, 1, len(outputs))
    weights = thinner.count(call_of(outputs, groups, attention=attention, module="up"))
    expected = representative_tokens(outputs, attention, diversity_of(outputs, groups))
    assert torch.equal(weights, expected.float()) and 0 < expected.sum() < len(outputs)
    assert notes["tokens_picked"] == pytest.approx(float(expected.float().mean()), abs=1e-4)
    with pytest.raises(CalibrationError, match="layer 2 up: no attention to pick tokens by: choose -P token_selection"):
        thinner.count(call_of(outputs, groups, layer=2, module="up"))
    outputs[0, 0] = torch.nan
    with pytest.raises(CalibrationError, match="layer 0 up: outputs that are not finite"):
        thinner.count(call_of(outputs, groups, attention=attention, module="up"))


def test_which_tokens_a_variant_uses():
    assert TAMP().selects_tokens and TAMP(token_selection="amia").selects_tokens
    assert not TAMP(token_selection="naive").selects_tokens and not TAMP(variant="released_code").selects_tokens
    for strategy in (TAMP(token_selection="naive"), TAMP(variant="released_code", token_selection="naive")):
        thinner, _ = planned(strategy, {"up": (4, 8)})
        assert thinner.needs == {"squares"} and not thinner.watches and thinner.sequential
    with pytest.raises(BadParameter, match="the released code cannot run token_selection=amia"):
        TAMP.from_params({"variant": "released_code", "token_selection": "amia"})
    with pytest.raises(BadParameter, match="pattern=2:4 fixes the sparsity that tamp is there to choose"):
        TAMP.from_params({"pattern": "2:4"})
    with pytest.raises(BadParameter, match="max_extra"):
        TAMP.from_params({"max_extra": "-0.1"})


def test_it_is_registered():
    assert get_plugins().get("strategies", "tamp") is TAMP
    assert [f.name for f in dataclasses.fields(TAMP)][:2] == ["samples", "pattern"]
    assert TAMP().samples == 128 and TAMP().plan_kind == "weights"


@pytest.fixture(scope="module")
def llama():
    return TinyLlama().load()


SAMPLES = TinyMedia().samples("calibration", 8)  # text, image, video, sound in turn, and one with image and sound
SAMPLES[5] = dataclasses.replace(SAMPLES[5], audio=SAMPLES[3].audio, sampling_rate=SAMPLES[3].sampling_rate)


def context_of(loaded, share=0.5, samples=SAMPLES):
    return PlanContext(loaded.info, Budget(value=share), probe=Probe(loaded, samples, batch_size=3))


def masks_of(plan):
    """Layer and module → keep."""
    found = {}
    for op in plan.ops:
        assert isinstance(op, Mask)
        for key in plan.tensors:
            if key.startswith(f"{op.tensors}."):
                module = key.removeprefix(f"{op.tensors}.").removesuffix(".weight")
                found[op.layer, module] = plan.tensors.torch(key)
    return found


def seen_by(loaded, layer):
    """Sample → inputs, outputs and token groups of the layer's linear modules, and attention; one sample at a time."""
    linears = {name: m for name, m in loaded.layers[layer].named_modules() if isinstance(m, torch.nn.Linear)}
    found = []
    for sample in SAMPLES:
        (batch,) = Probe(loaded, [sample]).batches()
        given = {name: [] for name in (*linears, "self_attn")}
        hooks = []
        for name in given:
            module = loaded.layers[layer].get_submodule(name)
            hooks.append(module.register_forward_hook(lambda _m, args, out, own=given[name]: own.extend((args, out))))
        with torch.inference_mode():
            loaded.adapter.forward(loaded, batch.inputs)
        for hook in hooks:
            hook.remove()
        media = {name: batch.inputs.groups[name][0].bool() for name in ("visual", "audio")}
        groups = {**media, "text": ~(media["visual"] | media["audio"])}
        attention = given.pop("self_attn")[1][1][0, :, -1].mean(0)
        found.append(({name: (args[0][0], out[0]) for name, (args, out) in given.items()}, groups, attention))
    return linears, found


def naive_tamp(share):
    """Masks and diversities of the whole method: a model of its own, thinned on the way, sample after sample."""
    loaded = TinyLlama().load()
    loaded.model.set_attn_implementation("eager")
    scores, sizes = {}, {}
    for layer in range(loaded.info.n_layers):
        linears, found = seen_by(loaded, layer)
        for name, module in linears.items():
            scores[layer, name] = np.mean([by_all_pairs(given[name][1], groups) for given, groups, _ in found])
            sizes[layer, name] = module.weight.numel()
    kept = dict(zip(scores, weights_to_keep(list(scores.values()), list(sizes.values()), share), strict=True))
    masks, picked = {}, []
    for layer in range(loaded.info.n_layers):
        linears, found = seen_by(loaded, layer)
        for name, module in linears.items():
            squares = 0
            for given, groups, attention in found:
                inputs, outputs = given[name]
                chosen = naive_amia(outputs, attention, by_all_pairs(outputs, groups))
                squares = squares + inputs[chosen].double().square().sum(0)
                picked.append(len(chosen))
            importance = module.weight.detach().abs() * squares.sqrt()
            count = int(module.in_features * (1 - kept[layer, name] / sizes[layer, name]) + 1e-6)
            gone = importance.argsort(dim=1)[:, :count]
            masks[layer, name] = torch.ones_like(importance, dtype=torch.bool).scatter(1, gone, False)
            module.weight.data[~masks[layer, name]] = 0
    return masks, scores, picked


def test_the_plan_is_that_of_the_whole_method_written_down_naively(llama):
    """Padding and what a sample is made of included: the naive version has no batches."""
    context = context_of(llama)
    plan = TAMP(samples=8).plan(context)
    masks, scores, picked = naive_tamp(0.5)
    batches = list(context.probe.batches())
    assert any(not batch.inputs.attention_mask.all() for batch in batches)  # there is padding to get wrong
    found = masks_of(plan)
    for module, keep in masks.items():
        stays = unpack(found[module], keep.shape[1]) if module in found else torch.ones_like(keep)
        assert torch.equal(stays, keep), module
    for name, value in context.notes["diversity"].items():
        expected = np.mean([score for (_, own), score in scores.items() if own == name])
        assert value == pytest.approx(expected, abs=2e-6)
    tokens_seen = sum(int(batch.inputs.attention_mask.sum()) for batch in batches)
    assert context.notes["tokens_picked"] == pytest.approx(sum(picked) / (tokens_seen * len(masks)), abs=1e-4)
    zeros = sum(int((~keep).sum()) for keep in masks.values())
    total = sum(keep.numel() for keep in masks.values())
    assert plan.budget.achieved.params_zeroed == zeros == total // 2 - context.notes["zeros_below_budget"]


def test_plans_made_together_are_those_made_alone_and_the_same_every_time(llama, monkeypatch):
    scouted, count = [], DiversityScout.count
    monkeypatch.setattr(DiversityScout, "count", lambda self, call: scouted.append(self) or count(self, call))
    strategies = [TAMP(samples=8), TAMP(samples=8, token_selection="naive"), TAMP(samples=8, variant="released_code")]
    pairs = [(strategy, context_of(llama, share)) for strategy in strategies for share in (0.3, 0.6)]
    together = plan_together(pairs)
    calls = len(SAMPLES) * sum(isinstance(m, torch.nn.Linear) for m in llama.layers.modules())
    assert len(scouted) == 2 * calls  # once for both budgets and both selections of the paper, once as released
    for (strategy, context), plan in zip(pairs, together, strict=True):
        alone = masks_of(strategy.plan(context_of(llama, context.share)))
        assert masks_of(plan).keys() == alone.keys()
        assert all(torch.equal(keep, alone[module]) for module, keep in masks_of(plan).items())
    zeros = [plan.budget.achieved.params_zeroed for plan in together]
    assert zeros[0] < zeros[1] and len({plan.tensors.digest for plan in together}) == 6


def test_without_room_and_selection_it_is_wanda(llama):
    """Every module has the budget's own sparsity, and every token counts."""
    plan = TAMP(samples=8, max_extra=0.0, token_selection="naive").plan(context_of(llama, 0.4))
    wanda, own = masks_of(Wanda(samples=8).plan(context_of(llama, 0.4))), masks_of(plan)
    assert own.keys() == wanda.keys() and all(torch.equal(own[module], wanda[module]) for module in wanda)
    weights = sum(m.weight.numel() for m in llama.layers.modules() if isinstance(m, torch.nn.Linear))
    lost = plan.provenance.notes["zeros_below_budget"]
    assert lost > 0 and plan.budget.achieved.params_zeroed + lost == round(0.4 * weights)
