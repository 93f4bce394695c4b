"""Importance of head groups and channels: against gradients of single samples in float64 and loops over rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.hf.families import ALIASES

from prunebench import LoadedModel, Plan, prune
from prunebench.errors import CalibrationError, PlanError
from prunebench.measure.cost import describe
from prunebench.ops import DropLayer
from prunebench.plan import PlanCost
from prunebench.probing import Probe, Remembered
from prunebench.testing.tiny import TinyLlama, TinyMedia
from tests.models.family_configs import BY_NAME

SAMPLES = TinyMedia().samples("calibration", 6)
TAYLOR = ("taylor_first", "taylor_second", "taylor_mix", "taylor_vectorize")
ALL = (*TAYLOR, "l1", "l2")
LAYERS = (1, 4)


@pytest.fixture(scope="module")
def llama():
    return TinyLlama().load()


def gradients_by_hand(loaded, samples, layers):
    """(layer, module) → weight and its gradients by sample, float64; one at a time, no padding, answers by hand."""
    adapter = loaded.adapter
    encoded = [adapter.append_tokens(loaded, loaded.encode([s]), *answer(loaded, s)) for s in samples]
    model = loaded.model.double()
    try:
        found = {}
        for sample, inputs in zip(samples, encoded, strict=True):
            ids = answer(loaded, sample)[0][0]
            inputs = dataclasses.replace(inputs, embeds=inputs.embeds.detach().double())
            logits = adapter.forward(loaded, inputs)[0, -len(ids) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(logits, ids)
            weights = {
                (layer, name): module.weight
                for layer in layers
                for name, module in loaded.layers[layer].named_modules()
                if isinstance(module, torch.nn.Linear)
            }
            for (key, weight), g in zip(
                weights.items(), torch.autograd.grad(loss, list(weights.values())), strict=True
            ):
                found.setdefault(key, (weight.detach().numpy().copy(), []))[1].append(g.numpy())
        return found
    finally:
        model.float()


def answer(loaded, sample):
    ids = torch.tensor([loaded.adapter.answer_ids(loaded, sample)])
    return ids, torch.ones_like(ids)


def rows_by_hand(importance, weight, gradients):
    """One number per row of a matrix, in loops."""
    out = np.zeros(len(weight))
    for row, w in enumerate(weight):
        g = sum(each[row] for each in gradients) / len(gradients)
        a = sum(each[row] ** 2 for each in gradients) / len(gradients)
        terms = {
            "taylor_first": abs(w * g),
            "taylor_second": abs(w * a * w),
            "taylor_mix": abs(w * g - 0.5 * w * a * w),
            "l1": abs(w),
            "l2": w**2,
        }
        out[row] = abs((w * g).sum()) if importance == "taylor_vectorize" else terms[importance].sum()
    return out


def groups_by_hand(importance, found, layer, config):
    """Sums over a key-value head with its query heads, and over a channel, by the meaning of the rows."""
    size, kv = config.head_dim, config.num_key_value_heads
    ratio = config.num_attention_heads // kv
    rows = {}
    for name in ("q", "k", "v", "o"):
        weight, gradients = found[layer, f"self_attn.{name}_proj"]
        turn = np.transpose if name == "o" else np.asarray
        rows[name] = rows_by_hand(importance, turn(weight), [turn(g) for g in gradients])
    heads = np.zeros(kv)
    for query in range(config.num_attention_heads):
        here = slice(query * size, (query + 1) * size)
        heads[query // ratio] += rows["q"][here].sum() + rows["o"][here].sum()
    for head in range(kv):
        here = slice(head * size, (head + 1) * size)
        heads[head] += rows["k"][here].sum() + rows["v"][here].sum()
    channels = 0
    for name in ("gate", "up", "down"):
        weight, gradients = found[layer, f"mlp.{name}_proj"]
        turn = np.transpose if name == "down" else np.asarray
        channels = channels + rows_by_hand(importance, turn(weight), [turn(g) for g in gradients])
    return heads, channels


@pytest.fixture(scope="module")
def reference(llama):
    return gradients_by_hand(llama, SAMPLES, LAYERS)


@pytest.mark.parametrize("importance", ALL)
def test_all_importances_against_gradients_by_hand(llama, reference, importance):
    """Prompts of many lengths, with an image, a clip, a sound or nothing; batches are padded."""
    found = Probe(llama, SAMPLES, batch_size=4).group_importance(importance, LAYERS)
    assert list(found) == [1, 4]
    for layer in LAYERS:
        heads, channels = groups_by_hand(importance, reference, layer, llama.model.config)
        assert heads.shape == (2,) and channels.shape == (48,)
        np.testing.assert_allclose(found[layer]["heads"], heads, rtol=2e-4)
        np.testing.assert_allclose(found[layer]["channels"], channels, rtol=2e-3)


def test_signs_are_kept_until_both_terms_are_there(llama, reference):
    """|first| − ½ |second| and |first| + ½ |second| are other numbers than |first − ½ second|."""
    probe = Probe(llama, SAMPLES)
    first, second, mix = (probe.group_importance(name, [1])[1]["channels"] for name in TAYLOR[:3])
    assert (np.abs(mix - np.abs(first - 0.5 * second)) > 1e-6 * mix).all()
    assert (mix < first + 0.5 * second).all() and (mix > first - 0.5 * second).all()


def test_l2_in_closed_form(llama):
    """The sum over all groups is the squared norm of all matrices, by torch's own norm."""
    found = Probe(llama, []).group_importance("l2", [2])
    part = llama.layers[2].self_attn
    total = sum(
        torch.linalg.matrix_norm(m.weight).item() ** 2 for m in (part.q_proj, part.k_proj, part.v_proj, part.o_proj)
    )
    assert found[2]["heads"].sum() == pytest.approx(total, rel=1e-5)
    mlp = llama.layers[2].mlp
    one = sum(
        torch.linalg.vector_norm(v).item() ** 2
        for v in (mlp.gate_proj.weight[7], mlp.up_proj.weight[7], mlp.down_proj.weight[:, 7])
    )
    assert found[2]["channels"][7] == pytest.approx(one, rel=1e-5)


def test_query_heads_as_published(llama, reference):
    """4 query heads on 2 key-value heads: 0 and 1 read the first; the published sums give 0 and 2 to it."""
    found = Probe(llama, SAMPLES).group_importance("taylor_first", [1], interleaved=True)[1]
    size, rows = 8, {}
    for name in ("q", "k", "v", "o"):
        weight, gradients = reference[1, f"self_attn.{name}_proj"]
        turn = np.transpose if name == "o" else np.asarray
        rows[name] = rows_by_hand("taylor_first", turn(weight), [turn(g) for g in gradients])
    expected = [
        sum(rows[name].reshape(-1, size)[[head, head + 2]].sum() for name in ("q", "o"))
        + sum(rows[name].reshape(-1, size)[head].sum() for name in ("k", "v"))
        for head in range(2)
    ]
    np.testing.assert_allclose(found["heads"], expected, rtol=2e-4)
    right = Probe(llama, SAMPLES).group_importance("taylor_first", [1])[1]
    assert not np.allclose(found["heads"], right["heads"], rtol=1e-2)
    np.testing.assert_array_equal(found["channels"], right["channels"])


def state(loaded):
    return [(p.data_ptr(), p.requires_grad, p.grad is None, p.detach().clone()) for p in loaded.model.parameters()]


def same(before, after):
    return all(a[:3] == b[:3] and torch.equal(a[3], b[3]) for a, b in zip(before, after, strict=True))


def test_the_model_is_as_before_also_after_an_interruption():
    loaded = TinyLlama().load()
    loaded.layers[1].mlp.up_proj.weight.requires_grad_(False)
    before = state(loaded)
    for importance in ALL:
        Probe(loaded, SAMPLES).group_importance(importance, LAYERS)
        assert same(before, state(loaded)), importance

    def stop(*_args):
        raise KeyboardInterrupt

    handle = loaded.layers[3].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        Probe(loaded, SAMPLES).group_importance("taylor_mix", LAYERS)
    handle.remove()
    assert same(before, state(loaded))


def test_passes_are_counted_and_remembered(llama):
    """Larger budgets of a run ask again: nothing runs, and each plan is charged what it took."""
    remembered, probes = Remembered(), []
    ran = []
    handle = llama.layers[0].register_forward_hook(lambda *_: ran.append(1))
    try:
        for _ in range(2):
            probe = Probe(llama, SAMPLES, batch_size=4, remembered=remembered)
            values = [probe.take(5).group_importance(name, LAYERS) for name in (*TAYLOR, *TAYLOR)]
            probes.append((probe.counts, values))
    finally:
        handle.remove()
    assert len(ran) == 2 + 5, "two batches of at most 4, and one pass per sample for squares"
    (first, values), (second, again) = probes
    assert first.backward_passes == second.backward_passes == 10
    assert first.forward_passes == second.forward_passes == 10.0 and first.tokens == second.tokens > 0
    assert first.recalled_seconds == 0.0 < second.recalled_seconds
    for one, two in zip(values, again, strict=True):
        np.testing.assert_array_equal(one[4]["channels"], two[4]["channels"])
    weights = 2 * (32 * (32 + 16 + 16 + 32) + 3 * 48 * 32)
    assert first.peak_memory == second.peak_memory == weights * (4 + 4 + 4), "sums, squares, one pass's own"
    assert first.added_to(PlanCost()).peak_memory == first.peak_memory
    other = Probe(llama, SAMPLES, remembered=remembered)
    other.take(5).group_importance("taylor_first", [2])
    assert other.counts.recalled_seconds == 0.0, "other layers are another question"
    assert other.counts.peak_memory == weights // 2 * (4 + 4)


def test_only_the_layers_in_range_take_gradients(llama, monkeypatch):
    asked = []
    grad = torch.autograd.grad
    monkeypatch.setattr(
        torch.autograd, "grad", lambda loss, of, **more: asked.append(len(of)) or grad(loss, of, **more)
    )
    Probe(llama, SAMPLES, batch_size=8).group_importance("taylor_first", LAYERS)
    assert asked == [2 * 7]


@pytest.mark.parametrize("name", ["LlavaNext", "Qwen2.5VL", "Qwen2VL-video", "Qwen2Audio", "Gemma3"])
def test_image_and_sound_families(name):
    """M-RoPE, spliced images and sounds, sliding windows: the gradient is that of the library's own loss."""
    family = BY_NAME[name]
    model, adapter = family.model(), TransformersModel()
    adapter.use(ALIASES[family.row])
    loaded = LoadedModel(
        model, adapter, describe(model, adapter, name=name, revision="0" * 64, dtype="float32"), torch.device("cpu")
    )
    batch = family.inputs(model, 1)
    adapter.text_ids = lambda loaded, sample: None
    adapter.answer_ids = lambda loaded, sample: [11, 12, 2][: 1 + len(sample.id) % 3]
    samples = [dataclasses.replace(SAMPLES[0], id="x" * n, answer="a") for n in (1, 2)]
    adapter.batching = False
    probe = Probe(loaded, samples, encode=lambda part: adapter.encode_batch(loaded, batch, part[0].id))
    found = probe.group_importance("taylor_first", [2])[2]
    layer, total = loaded.layers[2], {}
    weights = {n: m.weight for n, m in layer.named_modules() if isinstance(m, torch.nn.Linear)}
    for sample in samples:
        ids = adapter.answer_ids(loaded, sample)
        longer = dict(batch)
        longer["input_ids"] = torch.cat([batch["input_ids"], torch.tensor([ids])], 1)
        for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
            if key in longer:
                more = torch.full((1, len(ids)), value, dtype=longer[key].dtype)
                longer[key] = torch.cat([longer[key], more], 1)
        logits = model(**longer, use_cache=False).logits[0, -len(ids) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(ids)) / len(samples)
        for (key, _), g in zip(weights.items(), torch.autograd.grad(loss, list(weights.values())), strict=True):
            total[key] = total.get(key, 0) + g
    salience = {key: (weights[key] * g).abs().detach().double() for key, g in total.items()}
    channels = sum(v.sum(0 if "down" in key else 1) for key, v in salience.items() if "mlp" in key)
    np.testing.assert_allclose(found["channels"], channels, rtol=1e-3, atol=1e-9)
    attention = sum(v.sum() for key, v in salience.items() if "attn" in key)
    assert found["heads"].sum() == pytest.approx(float(attention), rel=1e-3)


def test_bad_input_is_said_in_a_line(llama):
    with pytest.raises(CalibrationError, match="no calibration samples"):
        Probe(llama, []).group_importance("taylor_first", LAYERS)
    half = TinyLlama().load()
    half.model.half()
    with pytest.raises(CalibrationError, match="float16"):
        Probe(half, SAMPLES).group_importance("taylor_first", LAYERS)
    broken = TinyLlama().load()
    broken.layers[5].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(CalibrationError, match="not finite"):
        Probe(broken, SAMPLES).group_importance("taylor_mix", LAYERS)
    fused = TinyLlama().load()
    fused.layers[1].mlp.up_proj = torch.nn.Identity()
    with pytest.raises(PlanError, match="layer 1") as caught:
        Probe(fused, SAMPLES).group_importance("l2", LAYERS)
    assert "\n" not in str(caught.value)
    with pytest.raises(PlanError, match="load the dense one"):
        Probe(prune(TinyLlama().load(), Plan.of(llama.info, [DropLayer(layer=0)])), SAMPLES)
