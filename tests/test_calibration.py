"""The one streaming pass: every statistic against a plain double-precision computation on the same hidden states."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from prunebench_models.testbed.adapter import Testbed
from prunebench_models.testbed.data import TestbedDataset

from prunebench.calibration.collect import GROUPS, STATISTICS, calibrate, hidden_states
from prunebench.calibration.samples import fingerprint
from prunebench.calibration.trace import Trace
from prunebench.errors import CalibrationError, StoreError, UnknownName
from tests.tiny_plugin import TinyLlama, TinyText

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
