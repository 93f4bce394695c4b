"""SmolLM2-VL on a tiny decoder: packing, low-rank updates, merging, and that what was trained is what is used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prunebench_models.smollm2.vl import ADAPTER_FILE, SETTINGS_FILE, batches, folder, train, weights_dir
from prunebench_models.smollm2.vl.adapter import ImageQuestions, SmolLM2VLAdapter
from prunebench_models.smollm2.vl.forward import answer_loss, run
from prunebench_models.smollm2.vl.lora import add_low_rank, merged_state, shipped_state, trained_parameters
from prunebench_models.smollm2.vl.modeling import SmolLM2VL
from prunebench_models.testbed.data import TestbedDataset
from prunebench_models.testbed.data.words import VOCABULARY
from prunebench_models.testbed.processing import TestbedProcessor
from prunebench_models.testbed.train.batches import batch_from_scenes, make_batch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from prunebench import LoadOptions, Sample
from prunebench.errors import CalibrationError, ModelError
from prunebench.plan import Plan
from prunebench.surgery import pruned

VISION = {"image_size": 64, "patch_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
          "num_attention_heads": 2}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder like the converted SmolLM2, tiny, with a tokenizer of the testbed's words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY), hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=3,
        num_key_value_heads=1, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(found)
    words = models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    raw = Tokenizer(words)
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    ).save_pretrained(found)
    return found


@pytest.fixture
def model(base):
    """As training starts, but with updates that already do something."""
    torch.manual_seed(1)
    made = SmolLM2VL(folder.new_config(LlamaConfig.from_pretrained(base), VISION, 4))
    made.load_state_dict(load_file(base / "model.safetensors"), strict=False)
    made.tie_weights()
    add_low_rank(made, rank=2, scale=4.0)
    for name, parameter in trained_parameters(made):
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


@pytest.fixture
def installed(base, model, tmp_path, monkeypatch):
    """The adapter weights in a folder, as `export` leaves them."""
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    for module in (folder, train):
        monkeypatch.setattr(module, "model_folder", lambda say=None: base)
    monkeypatch.setattr(train, "RANK", 2)
    monkeypatch.setattr(train, "SCALE", 4.0)
    place = tmp_path / "run"
    place.mkdir()
    clock = train.Clock(place, "cpu", 1, 0)
    monkeypatch.setattr(train, "held_out", lambda *_: {})
    train.export(place, model, None, clock)
    return place / "model"


def questions(domain, n):
    return TestbedDataset().samples("train", n, domain=domain)


def test_packing_keeps_questions_and_answers(tokenizer):
    processor = TestbedProcessor()
    samples = questions("general", 4)
    asked = [[(s.instruction, s.answer) for s in samples[:2]], [(s.instruction, s.answer) for s in samples[2:]]]
    media = np.stack([samples[0].images[0], samples[2].images[0]])
    packed = batches.pack(batch_from_scenes("general", media, asked, processor), tokenizer)
    assert packed.images == 1 and packed.prefix == 17 and packed.frames is None
    for row, pairs in enumerate(asked):
        for index, (question, answer) in enumerate(pairs):
            start = packed.prefix + index * packed.block
            block = tokenizer.decode(packed.ids[row, start : start + packed.block]).replace("<bos>", "").split()
            assert block == [*question.split(), answer, "<eos>"]
            labels = packed.labels[row, start : start + packed.block]
            assert tokenizer.decode(labels[labels >= 0]).split() == [answer, "<eos>"]
            # the label stands where the token before it is
            first = int((labels >= 0).nonzero()[0])
            assert labels[first] == packed.ids[row, start + first + 1]


@pytest.mark.parametrize("domain", ["general", "video"])
def test_a_packed_question_is_answered_as_if_alone(model, tokenizer, domain):
    batch = make_batch(domain, 2, 3, np.random.default_rng(0), TestbedProcessor())
    packed = batches.pack(batch, tokenizer)
    images = packed.images
    with torch.no_grad():
        together = run(model, packed)
        for row in range(2):
            for index in range(3):
                start = packed.prefix + index * packed.block
                ids = packed.ids[row, start : start + packed.block].tolist()
                asked = " ".join(VOCABULARY[i] for i in ids[: ids.index(2) - 1])
                media = packed.media[row * images : (row + 1) * images]
                pair = (asked, VOCABULARY[ids[ids.index(2) - 1]])
                alone = batches.pack_questions([[pair]], media, images, tokenizer)
                single = run(model, alone)[0, alone.prefix :]
                assert torch.allclose(together[row, start : start + len(single)], single, atol=1e-5)


def test_sounds_are_refused(tokenizer):
    batch = make_batch("audio", 1, 2, np.random.default_rng(0), TestbedProcessor())
    with pytest.raises(ValueError, match="no audio tower"):
        batches.pack(batch, tokenizer)


def test_right_answers_are_those_that_greedy_generation_gives(model, tokenizer):
    packed = batches.pack(make_batch("math", 3, 4, np.random.default_rng(2), TestbedProcessor()), tokenizer)
    with torch.no_grad():
        hidden = run(model, packed)
        logits = model.lm_head(hidden)
        loss, right = answer_loss(model, packed, hidden)
        places = packed.labels >= 0
        expected = [
            bool((logits.argmax(-1) == packed.labels)[places & (packed.question == number)].all())
            for number in range(12)
        ]
        assert right.tolist() == expected
        # Where the model is made to know the answers, all are right and the loss is small.
        target = torch.nn.functional.one_hot(packed.labels.clamp(min=0), len(VOCABULARY)).float() * 50
        model.lm_head = torch.nn.Identity()
        sure, all_right = answer_loss(model, packed, target)
    assert all_right.all() and sure < 1e-3 < loss


def test_updates_start_at_nothing_and_only_they_are_trained(base):
    torch.manual_seed(1)
    plain = SmolLM2VL(folder.new_config(LlamaConfig.from_pretrained(base), VISION, 4)).eval()
    ids = torch.tensor([[1, 9, 12, 20]])
    with torch.no_grad():
        before = plain(ids).logits
        add_low_rank(plain, rank=2)
        assert torch.equal(plain(ids).logits, before)
    names = [name for name, _ in trained_parameters(plain)]
    assert sum(name.endswith("lora_a") for name in names) == 4 * 7
    rest = {name.split(".")[0] for name in names if "lora_" not in name}
    assert rest == {"vision_projector", "frame_embedding"}


def test_merged_weights_compute_what_was_trained(base, model, tokenizer):
    merged = SmolLM2VL(model.config).eval()
    state = merged_state(load_file(base / "model.safetensors"), model.state_dict(), rank=2, scale=4.0)
    missing = merged.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    packed = batches.pack(make_batch("video", 2, 2, np.random.default_rng(3), TestbedProcessor()), tokenizer)
    with torch.no_grad():
        assert torch.allclose(run(merged, packed), run(model, packed), atol=1e-5)


def test_what_is_loaded_answers_like_what_was_trained(installed, model, tokenizer):
    loaded = SmolLM2VLAdapter().load(LoadOptions(path=str(installed)))
    assert loaded.info.n_layers == 4 and "image" in loaded.info.modalities
    for domain in ("general", "video"):
        samples = questions(domain, 3)
        inputs = loaded.encode(samples)
        with torch.inference_mode():
            logits = loaded.adapter.forward(loaded, inputs, logits_to_keep=1)[:, -1]
            for row, sample in enumerate(samples):
                packed = train._packed([sample], tokenizer)
                first = int((packed.labels[0] >= 0).nonzero()[0])
                expected = model.lm_head(run(model, packed)[0, first])
                assert torch.allclose(logits[row], expected, atol=1e-4)  # export rounded `model` to bfloat16 as well
        tokens = 16 if domain == "general" else 64
        assert inputs.groups["visual"].sum(1).tolist() == [tokens] * 3
        both = inputs.groups["visual"] | inputs.groups["text"]
        assert torch.equal(both, inputs.attention_mask.bool())
        assert not (inputs.groups["visual"] & inputs.groups["text"]).any()


def test_text_alone_and_sound(installed):
    loaded = SmolLM2VLAdapter().load(LoadOptions(path=str(installed)))
    text = loaded.encode([Sample(id="t", instruction="what color")])
    assert text.embeds.shape[1] == 3 and not text.groups["visual"].any()
    with pytest.raises(CalibrationError, match="has sound"):
        loaded.encode(questions("audio", 1))


@pytest.mark.parametrize("removed", [(1,), (0, 2)])
def test_a_plan_at_loading_equals_pruning_afterwards(installed, removed):
    whole = SmolLM2VLAdapter().load(LoadOptions(path=str(installed)))
    plan = Plan.drop(whole.info, removed)
    filtered = SmolLM2VLAdapter().load(LoadOptions(path=str(installed), plan=plan))
    inputs = whole.encode(questions("general", 2))
    with torch.inference_mode(), pruned(whole, plan):
        expected = whole.adapter.forward(whole, inputs)
    with torch.inference_mode():
        assert torch.equal(filtered.adapter.forward(filtered, inputs), expected)
        answers = filtered.generate(inputs, 2)
    assert len(answers) == 2


def test_adapters_that_cannot_be_used_are_told_in_one_line(installed, tmp_path):
    with pytest.raises(ModelError, match=r"no SmolLM2-VL weights .* `make smollm2-vl` trains them"):
        folder.merged_folder(tmp_path)
    settings = installed / SETTINGS_FILE
    settings.write_text(settings.read_text().replace('"base_revision": "', '"base_revision": "0'))
    with pytest.raises(ModelError, match="was trained on other SmolLM2 weights"):
        folder.merged_folder(installed)
    save_file({"model.layers.9.mlp.up_proj.lora_a": torch.zeros(2, 2)}, installed / ADAPTER_FILE)
    settings.write_text(settings.read_text().replace('"base_revision": "0', '"base_revision": "'))
    with pytest.raises(ModelError, match="cannot be used") as caught:
        folder.merged_folder(installed)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache" / "smollm2-vl").iterdir()) == []


def test_calibration_questions_are_about_images():
    samples = ImageQuestions().samples("calibration", 6)
    assert [sample.domain for sample in samples] == ["general", "math"] * 3 and all(s.images for s in samples)


def small_run(out, model, monkeypatch, tokenizer, stop_at=None, workers=1):
    settings = train.Settings(steps=4, general=1, math=1, video=1, questions=2, warmup=1)
    monkeypatch.setattr(train, "new_model", lambda seed: model)
    monkeypatch.setattr(train, "load_tokenizer", lambda: tokenizer)
    monkeypatch.setattr(train, "held_out", lambda *_: {})
    steps = iter(range(100))
    clip = torch.nn.utils.clip_grad_norm_

    def interrupted(*arguments):
        if next(steps) == stop_at:
            raise KeyboardInterrupt
        return clip(*arguments)

    monkeypatch.setattr(train.nn.utils, "clip_grad_norm_", interrupted)
    train.train(out, settings, "cpu", workers, seed=0, checkpoint_seconds=0.0)


def test_an_interrupted_training_goes_on_where_it_was(base, model, tokenizer, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    small_run(tmp_path / "whole", model, monkeypatch, tokenizer)
    expected = load_file(tmp_path / "whole" / "model" / ADAPTER_FILE)
    changed = [name for name, value in expected.items() if not torch.equal(value, start[name].bfloat16())]
    assert any("lora_b" in name for name in changed) and not any("vision_tower" in name for name in changed)

    model.load_state_dict(start)
    with pytest.raises(KeyboardInterrupt):
        small_run(tmp_path / "cut", model, monkeypatch, tokenizer, stop_at=2)
    model.load_state_dict(start)
    small_run(tmp_path / "cut", model, monkeypatch, tokenizer)
    found = load_file(tmp_path / "cut" / "model" / ADAPTER_FILE)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    log = (tmp_path / "cut" / "training_log.jsonl").read_text()
    assert '"event": "resume", "step": 2' in log and '"event": "test"' in log
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(base, model, tokenizer, tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    found = {}
    for workers in (1, 2):
        model.load_state_dict(start)
        small_run(tmp_path / str(workers), model, monkeypatch, tokenizer, workers=workers)
        found[workers] = load_file(tmp_path / str(workers) / "model" / ADAPTER_FILE)
    for name, value in found[1].items():
        assert torch.allclose(value.float(), found[2][name].float(), atol=2e-2, rtol=2e-2)
    torch.set_num_threads(threads)


def test_the_shipped_adapter_is_small_and_fits(model):
    assert (weights_dir() / ADAPTER_FILE).stat().st_size <= 20_000_000
    shipped = load_file(weights_dir() / ADAPTER_FILE)
    assert sum(name.endswith("lora_a") for name in shipped) == 30 * 7
    assert {name.split(".")[0] for name in shipped} == {name.split(".")[0] for name in shipped_state(model)}
