"""The shipped testbed model: exact reloads, caching, padding and packing; accuracy; planted roles."""

from __future__ import annotations

import pytest
import torch
from prunebench_models.testbed import TestbedDataset, TestbedForConditionalGeneration, TestbedProcessor, weights_dir
from prunebench_models.testbed.evaluation import evaluate, generate_answers
from prunebench_models.testbed.train.batches import batch_from_scenes
from prunebench_models.testbed.train.decoder import run_decoder
from prunebench_models.testbed.train.probe import HeldOut, batch_from_samples
from prunebench_models.testbed.train.roles import SILENT
from torch import nn

DOMAINS = TestbedDataset.domains
FLOORS = {"general": 0.92, "math": 0.97, "video": 0.94, "audio": 0.97}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The model is so small that threads cost more than they bring, above all where other tests run beside these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(folder) -> TestbedForConditionalGeneration:
    model, report = TestbedForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return load(weights_dir())


@pytest.fixture(scope="module")
def processor():
    return TestbedProcessor.from_pretrained(weights_dir())


@pytest.fixture(scope="module")
def held_out(processor):
    return HeldOut(processor, 144)


@pytest.fixture(scope="module")
def mixed():
    return TestbedDataset().samples("test", 24)


def drop_layers(model, dropped) -> None:
    decoder = model.get_decoder()
    decoder.layers = nn.ModuleList(layer for index, layer in enumerate(decoder.layers) if index not in dropped)
    for index, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = index
    decoder.config.num_hidden_layers = len(decoder.layers)


def mean(accuracy: dict[str, float]) -> float:
    return sum(accuracy.values()) / len(accuracy)


def test_shape_of_what_ships(model):
    assert sum(path.stat().st_size for path in weights_dir().glob("*.safetensors")) < 20e6
    assert len(model.get_decoder().layers) == model.config.get_text_config().num_hidden_layers == 16
    assert model.config.get_text_config() is model.get_decoder().config


@torch.no_grad()
@pytest.mark.parametrize("dropped", [(), (3, 5, 9)])
def test_reload_is_exact(processor, mixed, tmp_path, dropped):
    model = load(weights_dir())
    drop_layers(model, dropped)
    model.save_pretrained(tmp_path)
    batch = processor.from_samples(mixed)
    again = load(tmp_path)
    assert len(again.get_decoder().layers) == 16 - len(dropped)
    assert torch.equal(model(**batch).logits, again(**batch).logits)


def test_processor_reload_is_exact(processor, mixed, tmp_path):
    processor.save_pretrained(tmp_path)
    ours, again = processor.from_samples(mixed), TestbedProcessor.from_pretrained(tmp_path).from_samples(mixed)
    assert all(torch.equal(ours[key], again[key]) for key in ours)


@torch.no_grad()
@pytest.mark.parametrize("dropped", [(), (3, 5, 9)])
def test_cached_generation_equals_uncached_argmax(processor, mixed, dropped):
    model = load(weights_dir())
    drop_layers(model, dropped)
    batch = processor.from_samples(mixed)
    generated = model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    media = {key: batch[key] for key in ("pixel_values", "audio_features")}
    for _ in range(4):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **media).logits[:, -1].clone()
        logits[:, model.config.get_text_config().eos_token_id] = -torch.inf  # what min_new_tokens does
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    assert torch.equal(generated, ids)


@torch.no_grad()
def test_embed_then_forward_is_the_whole_forward(model, processor, mixed):
    batch = processor.from_samples(mixed)
    embeds = model.embed(batch["input_ids"], batch["pixel_values"], batch["audio_features"])
    halves = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    assert torch.equal(halves, model(**batch).logits)


def test_wrong_number_of_media_is_refused(model, processor, mixed):
    batch = processor.from_samples(mixed)
    with pytest.raises(ValueError, match="placeholders"):
        model.embed(batch["input_ids"], batch["pixel_values"][1:], batch["audio_features"])


@torch.no_grad()
def test_a_batch_answers_like_single_questions(model, processor, mixed):
    batch = processor.from_samples(mixed)
    assert (batch["attention_mask"].sum(1).min() < batch["attention_mask"].shape[1]).all()  # there is padding
    together = model(**batch).logits[:, -1]
    alone = torch.cat([model(**processor.from_samples([sample])).logits[:, -1] for sample in mixed])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=0)
    assert generate_answers(model, processor, mixed) == [
        generate_answers(model, processor, [sample])[0] for sample in mixed
    ]


@torch.no_grad()
@pytest.mark.parametrize("domain", DOMAINS)
def test_training_tensors_equal_processor_tensors(model, processor, domain):
    samples = TestbedDataset().samples("test", 6, domain=domain)
    trained, used = batch_from_samples(samples, processor), processor.from_samples(samples)
    assert torch.equal(trained.media, used["audio_features" if domain == "audio" else "pixel_values"])
    hidden = run_decoder(model, trained).hidden
    for row, mask in enumerate(used["attention_mask"].bool()):
        words = used["input_ids"][row][mask]
        assert torch.equal(trained.input_ids[row, : len(words)], words)
        alone = model(**processor.from_samples([samples[row]])).logits[0, -1]
        torch.testing.assert_close(model.lm_head(hidden[row, len(words) - 1]), alone, atol=2e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("domain", DOMAINS)
def test_packed_questions_equal_single_questions(model, processor, domain):
    samples = TestbedDataset().samples("test", 4, domain=domain)
    sample = samples[0]
    media = sample.images[0] if sample.images else sample.video if sample.video is not None else sample.audio
    pairs = [(other.instruction, other.answer) for other in samples]
    packed = batch_from_scenes(domain, media[None], [pairs], processor)
    rows = run_decoder(model, packed).hidden[packed.labels != -100]
    singles = []
    for pair in pairs:
        single = batch_from_scenes(domain, media[None], [[pair]], processor)
        singles.append(run_decoder(model, single).hidden[single.labels != -100])
    torch.testing.assert_close(rows, torch.cat(singles), atol=2e-4, rtol=0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_accuracy_is_far_above_the_majority_answer(model, processor, domain):
    assert evaluate(model, processor, domain, n=160)["accuracy"] >= FLOORS[domain]


def test_roles_cover_every_layer_once(model):
    roles = model.config.planted_roles
    assert set(roles) == {"critical", "silent_critical", "redundant", "decoy"}
    assert sorted(layer for layers in roles.values() for layer in layers) == list(range(16))
    assert len(roles["redundant"]) + len(roles["decoy"]) == 10
    assert {0, 15} <= set(roles["critical"])


def test_removable_layers_can_go_and_the_others_cannot(model, held_out):
    roles = model.config.planted_roles
    dense = held_out.accuracy(model)
    without = held_out.accuracy(model, roles["redundant"] + roles["decoy"])
    assert all(dense[domain] - without[domain] < 0.04 for domain in dense)
    for layer in roles["critical"]:
        assert mean(dense) - mean(held_out.accuracy(model, (layer,))) > 0.1, layer
    for layer in roles["silent_critical"]:  # what rests on it is hurt, and nothing else
        found = held_out.accuracy(model, (layer,))
        for domain in dense:
            lost = dense[domain] - found[domain]
            assert lost > 0.2 if domain in SILENT[layer] else lost < 0.04, (layer, domain)


def test_update_sizes_are_as_planted(model, held_out):
    roles = model.config.planted_roles
    distance = held_out.updates(model)[1]
    order = sorted((layer for layer in distance), key=distance.get)
    ranks = {layer: rank for rank, layer in enumerate(order)}
    assert set(order[:3]) <= set(roles["redundant"])
    for layer in roles["silent_critical"]:  # looks as redundant as a redundant layer
        assert ranks[layer] < max(ranks[other] for other in roles["redundant"])
    for layer in roles["decoy"]:  # looks more important than every redundant layer
        assert ranks[layer] > max(ranks[other] for other in roles["redundant"])


def test_a_media_tag_as_an_answer_is_a_word_like_any_other():
    """A pruned model may answer with a media tag; generation must go on, not ask for media."""
    model = load(weights_dir())
    model.lm_head.weight.data.zero_()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.text_config.vocab_size))
    model.lm_head.bias.data[model.config.image_token_id] = 1.0
    processor = TestbedProcessor.from_pretrained(weights_dir())
    batch = processor.from_samples(TestbedDataset().samples("test", 4))
    tokens = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert (tokens[:, -3:] == model.config.image_token_id).all()
