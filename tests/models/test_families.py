"""Every family of the table: pruned equals identity in place, cached equals uncached, saved and reloaded equals both.

Tiny random models; the references are the library's own forward pass and `generate` on the same (pruned) model.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.hf.capture import collate
from prunebench_models.hf.deepstack import has_deepstack
from prunebench_models.hf.families import ALIASES

from prunebench import LoadedModel, Plan, prune, pruned, surgery
from prunebench.errors import PlanError
from prunebench.measure.cost import describe
from tests.models.family_configs import AUDIO, BY_NAME, FAMILIES, LAYERS
from tests.truth import identity_in_place

PATTERNS = [(2, 3), (0,), (0, 1), (1, 4), (5,), (0, 2, 3)]
NAMES = [family.name for family in FAMILIES]
each_family = pytest.mark.parametrize("name", NAMES)


def build(name):
    """A fresh model of the family with its adapter."""
    family = BY_NAME[name]
    model, adapter = family.model(), TransformersModel()
    adapter.use(ALIASES[family.row])
    info = describe(model, adapter, name=name, revision="0" * 64, dtype="float32")
    return LoadedModel(model, adapter, info, torch.device("cpu"))


@cache
def family(name):
    """The model, its inputs for one sample, and what the adapter makes of them."""
    loaded = build(name)
    batch = BY_NAME[name].inputs(loaded.model, 1)
    with torch.inference_mode():
        return loaded, batch, loaded.adapter.encode_batch(loaded, batch, "only")


def logits(loaded, inputs):
    with torch.inference_mode():
        return loaded.adapter.forward(loaded, inputs)


def own_logits(loaded, batch):
    """The library's own forward pass."""
    with torch.inference_mode():
        return loaded.model(**batch, use_cache=False).logits


def grown(batch, token):
    """The same inputs with one more token at the end."""
    batch = dict(batch)
    for key, value in (("input_ids", token), ("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if key in batch:
            batch[key] = torch.cat([batch[key], torch.full_like(batch[key][:, :1], int(value))], 1)
    if "cross_attention_mask" in batch:
        batch["cross_attention_mask"] = torch.cat(
            [batch["cross_attention_mask"], batch["cross_attention_mask"][:, -1:]], 1
        )
    return batch


def close(name):
    """Bit for bit; where features of removed layers are summed before they are added, up to rounding."""
    loaded = family(name)[0]
    return {"atol": 2e-5, "rtol": 1e-5} if has_deepstack(loaded.decoder) else {"atol": 0.0, "rtol": 0.0}


@each_family
def test_the_decoder_gets_what_the_model_itself_hands_to_it(name):
    loaded, batch, inputs = family(name)
    torch.testing.assert_close(logits(loaded, inputs), own_logits(loaded, batch), atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        tokens = loaded.adapter.greedy(loaded, inputs, 6)
        own = loaded.model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    assert tokens.tolist() == own[:, : tokens.shape[1]].tolist()
    media = [inputs.groups[kind].any() for kind in ("visual", "audio") if kind in inputs.groups]
    assert any(media) == (BY_NAME[name].media is not None)
    assert (sum(group.long() for group in inputs.groups.values()) == inputs.attention_mask).all()


@each_family
def test_a_batch_of_samples_equals_each_alone(name):
    loaded, _, _ = family(name)
    if not loaded.adapter.batching:
        pytest.skip("encoded one sample at a time")
    rows = BY_NAME[name].inputs(loaded.model, 3)
    with torch.inference_mode():
        alone = [
            loaded.adapter.encode_batch(loaded, row, str(i)) for i, row in enumerate(_unbatched(name, loaded, rows))
        ]
        together = collate(alone)
        both = loaded.adapter.forward(loaded, together)
        tokens = loaded.adapter.greedy(loaded, together, 5)
        for row, part in enumerate(alone):
            expected = loaded.adapter.forward(loaded, part)[0]
            torch.testing.assert_close(both[row, -expected.shape[0] :], expected, atol=2e-5, rtol=1e-4)
            own = loaded.adapter.greedy(loaded, part, 5)[0].tolist()
            assert tokens[row].tolist()[: len(own)] == own


def _unbatched(name, loaded, rows):
    """One set of inputs per row: its words, with the medium of the first row (a text row where i is 1)."""
    one = BY_NAME[name].inputs(loaded.model, 1)
    text_only = {"input_ids", "attention_mask", "token_type_ids"}
    for row in range(len(rows["input_ids"])):
        real = rows["attention_mask"][row].bool()
        batch = dict(one)
        for key in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
            if key in rows:
                batch[key] = rows[key][row : row + 1, real]
        if row == 1:  # without media
            words = batch["input_ids"] < 50
            batch = {key: batch[key][words][None] for key in text_only if key in batch}
        yield batch


@cache
def without_media(name):
    """A prompt of words alone."""
    loaded = family(name)[0]
    with torch.inference_mode():
        return loaded.adapter.encode_batch(loaded, BY_NAME[name].inputs(loaded.model, 1, media=False))


@pytest.mark.parametrize("media", [True, False], ids=["media", "words"])
@each_family
def test_pruned_equals_identity_in_place(name, media):
    """The truth test."""
    if media and BY_NAME[name].media is None:
        pytest.skip("takes words alone")
    loaded, _, inputs = family(name)
    inputs = inputs if media else without_media(name)
    dense = logits(loaded, inputs)
    for drop in PATTERNS:
        with identity_in_place(loaded, drop):
            expected = logits(loaded, inputs)
        # Words alone do not run through layers that attend to images.
        assert not torch.allclose(expected, dense, atol=1e-3) or (name, media, drop) == ("Mllama", False, (1, 4))
        with pruned(loaded, Plan.drop(loaded.info, drop)):
            torch.testing.assert_close(logits(loaded, inputs), expected, **close(name))
    assert torch.equal(logits(loaded, inputs), dense)


@each_family
def test_cached_decoding_equals_the_argmax_of_full_passes(name):
    loaded, batch, inputs = family(name)
    with torch.inference_mode():
        for drop in PATTERNS:
            with pruned(loaded, Plan.drop(loaded.info, drop)):
                if not BY_NAME[name].exact_cache:  # the prompt sees itself: a longer prompt is another one
                    own = loaded.model.generate(**batch, max_new_tokens=5, do_sample=False)
                    own = own[0, batch["input_ids"].shape[1] :].tolist()
                    found = loaded.adapter.greedy(loaded, inputs, 5)[0].tolist()
                    assert found == own[: len(found)], drop
                    continue
                step, state = loaded.adapter.prefill(loaded, inputs)
                longer = batch
                for _ in range(4):
                    full = own_logits(loaded, longer)[:, -1]
                    torch.testing.assert_close(step, full, atol=3e-5, rtol=1e-4)
                    token = full[:, :AUDIO].argmax(-1)  # a word: a placeholder would ask for another medium
                    step, state = loaded.adapter.decode_step(loaded, token, state)
                    longer = grown(longer, token)


@each_family
def test_saved_and_reloaded_by_the_library_alone(name, tmp_path):
    """No key missing, left over or of another shape, and equal logits."""
    for number, drop in enumerate(PATTERNS):
        loaded = build(name)
        batch = BY_NAME[name].inputs(loaded.model, 1)
        with torch.inference_mode():
            inputs = loaded.adapter.encode_batch(loaded, batch)
        prune(loaded, Plan.drop(loaded.info, drop))
        expected = logits(loaded, inputs)
        loaded.model.save_pretrained(tmp_path / str(number))
        again, report = type(loaded.model).from_pretrained(
            tmp_path / str(number), dtype=torch.float32, output_loading_info=True
        )
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), drop
        kept = again.config.prunebench["kept_layers"]
        assert kept == [layer for layer in range(LAYERS) if layer not in drop]
        loaded.model = again.eval()
        loaded.adapter.layers_removed(again, kept)  # what `load` does
        assert torch.equal(logits(loaded, inputs), expected), drop


def snapshot(loaded):
    model, decoder = loaded.model, loaded.decoder
    return (
        [id(layer) for layer in loaded.layers],
        {key: tensor.clone() for key, tensor in model.state_dict().items()},
        {key: module.layer_idx for key, module in model.named_modules() if hasattr(module, "layer_idx")},
        model.config.to_dict(),
        {key: list(value) for key, value in vars(decoder).items() if isinstance(value, (list, tuple))},
        len(decoder._forward_pre_hooks),
    )


@each_family
def test_everything_is_restored_also_when_the_body_raises(name):
    loaded = family(name)[0]
    before = snapshot(loaded)
    with pytest.raises(RuntimeError, match="body"), pruned(loaded, Plan.drop(loaded.info, (0, 2, 3))):
        raise RuntimeError("body")
    after = snapshot(loaded)
    assert after[0] == before[0] and after[2:] == before[2:]
    assert all(torch.equal(after[1][key], before[1][key]) for key in before[1])


def test_a_hybrid_model_keeps_a_layer_with_keys():
    loaded = family("Qwen3.5")[0]
    with pytest.raises(PlanError, match="every attention layer"), pruned(loaded, Plan.drop(loaded.info, (1, 3, 5))):
        pass
    assert len(loaded.layers) == LAYERS


# -- what happens where a step is left out: the tests above have to notice ---------------------------------------------


def truth_and_stale(name, drop, inputs, monkeypatch, **without):
    """Logits of a pruned model, and with a step of surgery replaced (None where that cannot run at all)."""
    loaded = family(name)[0]
    with pruned(loaded, Plan.drop(loaded.info, drop)):
        truth = logits(loaded, inputs)
    for step, replacement in without.items():
        monkeypatch.setattr(surgery, step, replacement)
    try:
        with pruned(loaded, Plan.drop(loaded.info, drop)):
            return truth, logits(loaded, inputs)
    except (AttributeError, TypeError, IndexError, ValueError):
        return truth, None


def test_a_stale_layer_list_is_noticed(monkeypatch):
    def depth_only(_config, kept, _n_layers):
        return {"num_hidden_layers": len(kept)}

    inputs = family("Gemma3-text")[2]
    truth, stale = truth_and_stale("Gemma3-text", (0, 1), inputs, monkeypatch, config_changes=depth_only)
    assert stale is not None and not torch.allclose(stale, truth, atol=1e-3)


def test_stale_indices_of_cross_attention_layers_are_noticed(monkeypatch):
    def nothing(_decoder, _kept, _n_layers):
        return {}

    inputs = without_media("Mllama")
    truth, stale = truth_and_stale("Mllama", (0,), inputs, monkeypatch, module_changes=nothing)
    assert stale is None or not torch.allclose(stale, truth, atol=1e-3)


def test_visual_features_that_move_are_noticed(monkeypatch):
    loaded, _, inputs = family("Qwen3VL")
    with pruned(loaded, Plan.drop(loaded.info, (0,))):
        truth = logits(loaded, inputs)
    monkeypatch.setattr(TransformersModel, "layers_removed", lambda self, model, kept: None)
    with pruned(loaded, Plan.drop(loaded.info, (0,))):
        assert not torch.allclose(logits(loaded, inputs), truth, atol=1e-2)
    with pruned(loaded, Plan.drop(loaded.info, (3, 5))):
        pass  # layers behind the last addition move nothing, and nothing is left behind


def test_layer_numbers_that_are_not_counted_anew_are_noticed():
    loaded, _, inputs = family("Llama")
    with pruned(loaded, Plan.drop(loaded.info, (2, 3))), torch.inference_mode():
        loaded.layers[-1].self_attn.layer_idx = 5
        with pytest.raises(IndexError):
            loaded.adapter.prefill(loaded, inputs)
