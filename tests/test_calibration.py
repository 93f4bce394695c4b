"""The one streaming pass: every statistic against a plain double-precision computation on the same hidden states."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset

from prunebench.adapter import LoadOptions
from prunebench.calibration.collect import GROUPS, STATISTICS, calibrate, hidden_states, trace_bytes
from prunebench.calibration.samples import fingerprint
from prunebench.calibration.statistics import canonical
from prunebench.calibration.trace import Trace
from prunebench.errors import BadParameter, CalibrationError, StoreError, UnknownName
from tests.tiny_plugin import TinyGemma, TinyLlama, TinyMedia, TinyText

ALL = frozenset(STATISTICS)


@pytest.fixture(scope="module")
def testbed():
    return Testbed().load()


@pytest.fixture(scope="module")
def samples():
    return TestbedDataset().samples("calibration", 12)  # images, video and audio: rows of different length


@pytest.fixture(scope="module")
def trace(testbed, samples):
    return calibrate(testbed, samples, ALL, batch_size=5)


@pytest.fixture(scope="module")
def plain(testbed, samples):
    """Per sample: hidden states (L+1, T, d) in float64 from batches of one, and the group masks."""
    found = []
    with torch.inference_mode():
        for sample in samples:
            inputs = testbed.encode([sample])
            states = hidden_states(testbed, inputs)[:, 0].double().numpy()
            masks = {name: inputs.groups[name][0].numpy() for name in ("visual", "audio", "text")}
            last = np.zeros(states.shape[1], bool)
            last[-1] = True
            found.append((states, {"all": np.ones(states.shape[1], bool), **masks, "last": last}))
    return found


def test_hidden_states_are_the_raw_residual_stream(testbed, samples):
    """[0] is the embedding, [l+1] = layer l applied to [l], and the last is before the final norm."""
    with torch.inference_mode():
        inputs = testbed.encode(samples[:2])
        states = hidden_states(testbed, inputs)
        logits = testbed.adapter.forward(testbed, inputs)
        again = testbed.model.lm_head(testbed.decoder.norm(states[-1]))
    assert states.shape[0] == testbed.info.n_layers + 1
    assert torch.equal(states[0], inputs.embeds)
    torch.testing.assert_close(again, logits, atol=1e-5, rtol=1e-5)


def test_token_cosine(trace, plain):
    for row, (states, masks) in enumerate(plain):
        units = states / np.linalg.norm(states, axis=-1, keepdims=True)
        cosines = np.einsum("atd,btd->tab", units, units)
        for group, name in enumerate(GROUPS):
            np.testing.assert_allclose(trace["token_cosine"][row, group], cosines[masks[name]].sum(0), atol=2e-3)
            assert trace["token_count"][row, group] == masks[name].sum()


def test_norms(trace, plain):
    for row, (states, masks) in enumerate(plain):
        norms = np.linalg.norm(states, axis=-1)
        updates = np.linalg.norm(np.diff(states, axis=0), axis=-1)
        for group, name in enumerate(GROUPS):
            np.testing.assert_allclose(
                trace["state_norm"][row, group], norms[:, masks[name]].sum(1), rtol=1e-4, atol=1e-3
            )
            np.testing.assert_allclose(
                trace["update_norm"][row, group], updates[:, masks[name]].sum(1), rtol=1e-3, atol=1e-3
            )


def test_points_and_pooled(trace, plain):
    for row, (states, masks) in enumerate(plain):
        np.testing.assert_allclose(trace["points.last"][row], states[1:, -1], atol=1e-3)
        np.testing.assert_allclose(trace["points.mean"][row], states[1:].mean(1), atol=1e-3)
        np.testing.assert_allclose(trace["pooled"][row, 1], states[:, masks["text"]].mean(1), atol=1e-3)
        np.testing.assert_allclose(trace["pooled"][row, 2], states[:, -1], atol=1e-3)
        if masks["visual"].any():
            np.testing.assert_allclose(trace["pooled"][row, 0], states[:, masks["visual"]].mean(1), atol=1e-3)


def test_aggregator_is_an_added_position_that_nothing_else_sees(testbed, samples, trace, plain):
    """Attention is causal: with or without the added token every other statistic is the same."""
    without = calibrate(testbed, samples, ALL - {"points.aggregator"}, batch_size=5)
    for name in without.arrays:
        np.testing.assert_allclose(trace[name], without[name], rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        inputs = testbed.encode(samples[:1])
        mean = inputs.embeds[0, inputs.groups["text"][0]].mean(0)
        longer = torch.cat([inputs.embeds, mean[None, None]], 1)
        mask = torch.ones(longer.shape[:2], dtype=torch.long)
        states = hidden_states(testbed, dataclasses.replace(inputs, embeds=longer, attention_mask=mask))
    np.testing.assert_allclose(trace["points.aggregator"][0], states[1:, 0, -1].numpy(), atol=1e-3)


def test_one_forward_per_sample_serves_every_statistic(samples):
    loaded = Testbed().load()
    rows = []
    loaded.layers[3].register_forward_hook(lambda _m, _a, output: rows.append(len(output)))
    calibrate(loaded, samples, ALL, batch_size=5)
    assert sum(rows) == len(samples)


def test_means_by_tokens_samples_and_domain(trace, plain):
    pairs = []
    for states, _ in plain:
        units = states / np.linalg.norm(states, axis=-1, keepdims=True)
        pairs.append(np.einsum("atd,btd->tab", units, units))
    np.testing.assert_allclose(trace.mean_cosine("all"), np.concatenate(pairs).mean(0), atol=1e-4)
    by_sample = np.stack([pair.mean(0) for pair in pairs]).mean(0)
    np.testing.assert_allclose(trace.mean_cosine("all", average="samples"), by_sample, atol=1e-4)
    video = [pair for pair, domain in zip(pairs, trace.meta.domains, strict=True) if domain == "video"]
    np.testing.assert_allclose(trace.mean_cosine("all", domain="video"), np.concatenate(video).mean(0), atol=1e-4)
    with pytest.raises(CalibrationError, match="no calibration sample of domain 'cooking'"):
        trace.mean_cosine("all", domain="cooking")


def test_batch_size_and_order_change_nothing_that_matters():
    loaded = TinyLlama().load()
    samples = TinyText().samples("calibration", 9)
    first = calibrate(loaded, samples, ALL, batch_size=1)
    second = calibrate(loaded, samples, ALL, batch_size=9)
    for name in first.arrays:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-3, atol=2e-3)
    assert first.meta.key == second.meta.key


def test_trace_round_trip_and_damage(trace, tmp_path):
    path = trace.save(tmp_path)
    again = Trace.load(path)
    assert again.meta == trace.meta
    assert again.arrays.keys() == trace.arrays.keys()
    assert all(np.array_equal(again[name], trace[name]) for name in trace.arrays)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # one bit of one tensor
    for damaged, match in ((data, "checksum"), (data[: len(data) // 2], "damaged"), (b"", "damaged")):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=match) as caught:
            Trace.load(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match="no such trace"):
        Trace.load(tmp_path / "absent.safetensors")


def test_fingerprint_tells_samples_apart(samples):
    assert fingerprint(samples) == fingerprint(TestbedDataset().samples("calibration", 12))
    image = samples[0].images[0].copy()
    image[0, 0, 0] ^= 1
    assert fingerprint([dataclasses.replace(samples[0], images=(image,))]) != fingerprint(samples[:1])
    assert fingerprint(samples[::-1]) != fingerprint(samples)


def test_nan_names_layer_and_sample():
    loaded = TinyLlama().load()
    samples = TinyText().samples("calibration", 3)
    loaded.layers[2].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(CalibrationError, match=r"output of layer 2, sample 'calibration/0/0'"):
        calibrate(loaded, samples, frozenset({"norms"}))


def test_bad_requests():
    loaded = TinyLlama().load()
    with pytest.raises(CalibrationError, match="no calibration samples"):
        calibrate(loaded, [], ALL)
    with pytest.raises(UnknownName, match="did you mean 'norms'"):
        calibrate(loaded, TinyText().samples("calibration", 2), frozenset({"norm"}))


# -- inside layers, attention and single tokens ------------------------------------------------------------------------


def eager_pass(loaded, sample):
    """One sample alone, in float64: states (L+1, T, d), attention (L, T, T) of all heads, groups, MLP outputs."""
    inputs = loaded.encode([sample])
    before = loaded.adapter.text_config(loaded.model)._attn_implementation
    added: list[np.ndarray] = []
    hooks = [
        layer.mlp.register_forward_hook(lambda _m, _a, output: added.append(output[0].double().numpy()))
        for layer in loaded.layers
    ]
    loaded.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            states = hidden_states(loaded, inputs)[:, 0].double().numpy()
            added.clear()
            weights = loaded.decoder(
                inputs_embeds=inputs.embeds,
                attention_mask=inputs.attention_mask,
                position_ids=torch.arange(inputs.embeds.shape[1])[None],
                use_cache=False,
                output_attentions=True,
            ).attentions
    finally:
        loaded.model.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
    attention = np.stack([layer[0].double().mean(0).numpy() for layer in weights])
    groups = {name: inputs.groups[name][0].numpy() for name in ("visual", "audio", "text")}
    return states, attention, groups, np.stack(added)


def plain_importance(attention, media, text):
    """Token importance of one layer, term by term from the whole matrix."""
    found = np.zeros(len(attention))
    for token in range(len(attention)):
        if media[token]:
            terms = [attention[rows, token].mean() for rows in (media, text) if rows.any()]
        else:
            terms = [attention[token, media].mean()] if media.any() else []
            terms.append(attention[text, token].mean())
        found[token] = sum(terms) / len(terms)
    return found


@pytest.fixture(scope="module")
def eager(testbed, samples):
    return [eager_pass(testbed, sample) for sample in samples]


@pytest.fixture(scope="module")
def importances(eager):
    """(T,) per sample: mean over layers."""
    return [
        np.mean([plain_importance(a, groups["visual"] | groups["audio"], groups["text"]) for a in attention], axis=0)
        for _, attention, groups, _ in eager
    ]


def test_sublayer_cosine(trace, eager, plain):
    def cosine(a, b):
        return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    for row, ((states, _, _, added), (_, masks)) in enumerate(zip(eager, plain, strict=True)):
        middle = states[1:] - added  # Llama: the MLP's output is added to the residual
        both = np.stack([cosine(states[:-1], middle), cosine(middle, states[1:])], -1)  # (L, T, 2)
        for group, name in enumerate(GROUPS):
            expected = both[:, masks[name]].sum(1)
            np.testing.assert_allclose(trace["sublayer_cosine"][row, group], expected, atol=2e-3)


def test_attention_importance_from_fused_kernels(testbed, trace, importances):
    assert testbed.adapter.text_config(testbed.model)._attn_implementation == "sdpa"
    found = trace["attention_importance"]
    for row, expected in enumerate(importances):
        assert trace["token_count"][row, 0] == len(expected)
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=2e-5)
        assert not found[row, len(expected) :].any()


@pytest.mark.parametrize("model", [TinyLlama, TinyGemma])  # grouped queries; sliding windows and scaled queries
def test_attention_importance_eager_equals_chunked_equals_whole(model, monkeypatch):
    loaded, data = model().load(), TinyMedia().samples("calibration", 7)
    asked = frozenset({"attention_importance"})
    found = calibrate(loaded, data, asked, batch_size=4)["attention_importance"]
    for row, sample in enumerate(data):
        _, attention, groups, _ = eager_pass(loaded, sample)
        media = groups["visual"] | groups["audio"]
        expected = np.mean([plain_importance(a, media, groups["text"]) for a in attention], axis=0)
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=1e-5)
    monkeypatch.setattr("prunebench.calibration.attention._CHUNK", 50)  # one row of the matrix at once
    chunked = calibrate(loaded, data, asked, batch_size=4)["attention_importance"]
    np.testing.assert_allclose(chunked, found, atol=1e-6)
    loaded.model.set_attn_implementation("eager")
    np.testing.assert_allclose(calibrate(loaded, data, asked)["attention_importance"], found, atol=1e-5)


def test_watching_attention_changes_nothing(testbed, samples, trace):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    with_it = calibrate(testbed, samples[:4], {"important_cosine", "points.last"})
    without = calibrate(testbed, samples[:4], {"points.last"})
    assert np.array_equal(with_it["points.last"], without["points.last"])
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    broken = TinyLlama().load()
    broken.layers[1].mlp.forward = lambda _x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        calibrate(broken, TinyText().samples("calibration", 1), {"important_cosine"})
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in broken.model.modules())


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_important_cosine_by_brute_force(testbed, samples, eager, importances, share):
    trace = calibrate(testbed, samples, {f"important_cosine={share}", "token_cosine"}, batch_size=5)
    sums, counts = trace[f"important_cosine={share}"], trace[f"important_cosine={share}.count"]
    for row, (states, _, groups, _) in enumerate(eager):
        units = states / np.linalg.norm(states, axis=-1, keepdims=True)
        cosines = (units[1:] * units[:-1]).sum(-1)  # (L, T)
        total = np.zeros(len(cosines))
        for kind, mask in enumerate((groups["visual"] | groups["audio"], groups["text"]), start=1):
            tokens = sorted(np.flatnonzero(mask), key=lambda t: (-importances[row][t], t))
            kept = tokens[: int(np.ceil(round(share * len(tokens), 9)))]
            assert counts[row, kind] == len(kept)
            np.testing.assert_allclose(sums[row, kind], cosines[:, kept].sum(1), atol=2e-3)
            total += cosines[:, kept].sum(1)
        np.testing.assert_allclose(sums[row, 0], total, atol=2e-3)
        assert counts[row, 0] == counts[row, 1] + counts[row, 2]
    if share == 1.0:  # nothing is left out: the mean over all tokens
        everything = np.diagonal(trace["token_cosine"][:, 0], offset=1, axis1=1, axis2=2)
        np.testing.assert_allclose(sums[:, 0], everything, atol=1e-3)


def test_token_states_and_mlp_outputs(trace, eager, plain):
    for row, ((states, _, groups, added), _) in enumerate(zip(eager, plain, strict=True)):
        places = trace["token_states=16.positions"][row]
        there = places[places >= 0]
        length = states.shape[1]
        assert len(there) == min(16, length) and list(there) == sorted(set(there)) and there[-1] == length - 1
        np.testing.assert_allclose(trace["token_states"][row, : len(there)], states[:, there].swapaxes(0, 1), atol=2e-3)
        np.testing.assert_allclose(trace["mlp_outputs"][row, : len(there)], added[:, there].swapaxes(0, 1), atol=2e-3)
        media = groups["visual"] | groups["audio"]
        kinds = trace["token_states=16.groups"][row, : len(there)]
        assert np.array_equal(kinds < 2, media[there])
        others = there[:-1]  # beside the last: half media, half text, as far as there are
        n_media, n_text = media.sum(), (~media).sum() - 1
        assert media[others].sum() == min(n_media, max(8, 15 - n_text), 15)
    assert np.array_equal(trace["token_states=16.positions"], trace["mlp_outputs=16.positions"])


def test_tokens_are_read_back_in_one_order(testbed, samples):
    trace = calibrate(testbed, samples, {"token_states=200", "mlp_outputs=200", "norms"}, batch_size=5)
    states, added = trace.tokens("token_states=200", 3), trace.tokens("mlp_outputs=200", 2)
    assert states.shape == added.shape == (trace["token_count"][:, 0].sum(), testbed.info.hidden_size)
    norms = np.linalg.norm(states, axis=1)
    np.testing.assert_allclose(norms.sum(), trace["state_norm"][:, 0, 3].sum(), rtol=1e-4)
    one = trace.tokens("token_states=200", 3, rows=np.array([2]))
    first = int(trace["token_count"][:2, 0].sum())
    assert np.array_equal(one, states[first : first + len(one)])


def test_half_precision_tokens_survive_outliers(testbed, samples):
    loaded = Testbed().load(LoadOptions(dtype="bfloat16"))
    outlier = torch.tensor(5)
    handle = loaded.layers[2].register_forward_hook(lambda _m, _a, output: output.index_fill(2, outlier, 1e6))
    try:
        trace = calibrate(loaded, samples[:3], {"token_states=4"}, batch_size=1)
        found = trace.tokens("token_states=4", 3)
        with torch.inference_mode():
            exact = hidden_states(loaded, loaded.encode([samples[0]]))[3, 0].numpy()
    finally:
        handle.remove()
    assert trace["token_states=4"].dtype == np.float16
    rows = trace["token_states=4.positions"][0]
    assert found[:4, 5] == pytest.approx(exact[rows, 5]) and exact[rows, 5].min() > 65504  # float16 ends there
    np.testing.assert_allclose(found[:4], exact[rows], atol=1e6 * 2.0**-24)


def test_what_an_architecture_does_not_show_is_left_out_with_its_reason(tmp_path):
    """Gemma norms what its MLP gives: no fold is possible, and every other statistic is collected as asked."""
    loaded, data = TinyGemma().load(), TinyText().samples("calibration", 5)
    trace = calibrate(loaded, data, {"mlp_outputs=4", "token_states=4", "sublayer_cosine", "norms"}, batch_size=2)
    assert trace["state_norm"].shape[0] == 5
    assert trace["sublayer_cosine"].shape == (5, len(GROUPS), 6, 2)
    assert trace.has({"mlp_outputs=4"}) and not trace.has({"mlp_outputs=5"})
    with pytest.raises(CalibrationError, match="closed-form fold does not fit this architecture"):
        trace["mlp_outputs=4"]
    with pytest.raises(CalibrationError, match="closed-form fold does not fit"):
        Trace.load(trace.save(tmp_path)).tokens("mlp_outputs=4", 0)


def test_a_model_without_readable_attention(monkeypatch):
    loaded, data = TinyLlama().load(), TinyText().samples("calibration", 3)
    for layer in loaded.layers:  # an attention of its own, behind no interface and without probabilities
        monkeypatch.setattr(
            layer.self_attn, "forward", lambda hidden_states, **_: (torch.zeros_like(hidden_states), None)
        )
    trace = calibrate(loaded, data, {"important_cosine=0.5", "norms"})
    assert trace["state_norm"].any()
    with pytest.raises(CalibrationError, match="load it with --attn-implementation eager or sdpa") as caught:
        trace["important_cosine"]
    assert "\n" not in str(caught.value)


def test_values_of_statistics(testbed, samples, trace, tmp_path, monkeypatch):
    assert (
        canonical("token_states") == "token_states=16" and canonical("important_cosine=.50") == "important_cosine=0.5"
    )
    assert trace.has({"token_states", "important_cosine=0.50"}) and not trace.has({"important_cosine=0.25"})
    assert trace["token_states"] is trace["token_states=16"]
    twice = calibrate(testbed, samples[:2], {"token_states", "token_states=16", "token_states=3"})
    assert twice.meta.statistics == ("token_states=16", "token_states=3")
    assert twice["token_states=3"].shape[1] == 3
    for name, error, match in (
        ("token_state=4", UnknownName, "did you mean 'token_states'"),
        ("token_states=0", BadParameter, "'0' is not a number of tokens"),
        ("token_states=many", BadParameter, "'many' is not a number of tokens"),
        ("important_cosine=1.5", BadParameter, "a share above 0, at most 1"),
        ("important_cosine=nan", BadParameter, "a share above 0"),
        ("norms=2", BadParameter, "takes no value"),
    ):
        with pytest.raises(error, match=match):
            calibrate(testbed, samples[:1], {name})
    sizes = trace_bytes(testbed.info, len(samples), ALL)
    for name, size in sizes.items():
        held = [
            a for key, a in trace.arrays.items() if key.split(".count")[0].split(".pos")[0].split(".gro")[0] == name
        ]
        if held and name != "attention_importance":  # its width is that of the longest sample
            assert size == sum(array.nbytes for array in held), name
    with pytest.raises(CalibrationError, match=r"would take .* GiB, .* of it token_states=4096: ask for fewer"):
        calibrate(testbed, samples * 100, {"token_states=4096", "norms"})
    monkeypatch.setenv("PRUNEBENCH_MAX_TRACE_GIB", "0.0001")
    with pytest.raises(CalibrationError, match=r"now 0\.0001"):
        calibrate(testbed, samples, {"token_states"})
    monkeypatch.setenv("PRUNEBENCH_MAX_TRACE_GIB", "plenty")
    with pytest.raises(CalibrationError, match="'plenty' is not a number"):
        calibrate(testbed, samples, {"norms"})


def test_padding_may_hold_anything(testbed, samples):
    """A layer that writes NaN where there is padding changes no number of any statistic."""

    def encode(part):
        inputs = testbed.encode(part)
        return dataclasses.replace(inputs, embeds=inputs.embeds.masked_fill(inputs.attention_mask[..., None] == 0, 7.0))

    first = calibrate(testbed, samples, ALL - {"points.aggregator"}, batch_size=12)
    hook = testbed.layers[-1].register_forward_hook(
        lambda _m, _a, output: output.masked_fill(testbed_mask[..., None] == 0, float("nan"))
    )
    with torch.inference_mode():
        testbed_mask = testbed.encode(samples).attention_mask
    try:
        second = calibrate(testbed, samples, ALL - {"points.aggregator", "mlp_outputs"}, batch_size=12, encode=encode)
    finally:
        hook.remove()
    for name in second.arrays:
        np.testing.assert_allclose(second[name], first[name], rtol=1e-4, atol=1e-3)
