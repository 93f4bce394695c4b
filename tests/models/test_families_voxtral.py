"""Voxtral with Mistral's own tokenizer format: a tiny checkpoint with a cut vocabulary."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from prunebench_models.hf.adapter import TransformersModel

from prunebench import LoadOptions, Plan, Sample, pruned
from prunebench.errors import MissingExtra
from tests.models.family_configs import LLAMA

AUDIO, BEGIN_AUDIO, SPECIAL = 24, 25, 40  # ids as in the published tokenizer
needs_tokenizer = pytest.mark.skipif(
    importlib.util.find_spec("mistral_common") is None, reason="needs pip install 'prunebench[voxtral]'"
)


def save_checkpoint(folder: Path) -> Path:
    """Weights and feature extractor; the library wants 30 seconds of 128 mel bands per chunk."""
    torch.manual_seed(0)
    model = tf.VoxtralForConditionalGeneration(
        tf.VoxtralConfig(
            text_config={**LLAMA, "head_dim": 8, "vocab_size": SPECIAL + 300, "max_position_embeddings": 2048},
            audio_config=dict(
                num_mel_bins=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, hidden_size=16,
                max_source_positions=1500,
            ),
            audio_token_id=AUDIO,
        )
    )  # fmt: skip
    model.generation_config.eos_token_id = 2
    model.save_pretrained(folder)
    tf.WhisperFeatureExtractor(feature_size=128).save_pretrained(folder)
    (folder / "tekken.json").write_text("{}")
    return folder


def write_tokenizer(folder: Path) -> None:
    """The package's own vocabulary, cut to its first 300 entries, with the sound tokens where Voxtral has them."""
    import mistral_common

    data = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text())
    data.pop("image", None)
    data["vocab"] = data["vocab"][:300]
    data["config"] |= {
        "num_vocab_tokens": 300, "default_vocab_size": 300 + SPECIAL, "default_num_special_tokens": SPECIAL,
        "version": "v7",
    }  # fmt: skip
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
    names += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"]
    names += ["[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
    names += [f"<SPECIAL_{i}>" for i in range(len(names), SPECIAL)]
    names[AUDIO], names[BEGIN_AUDIO], names[34] = "[AUDIO]", "[BEGIN_AUDIO]", "[TRANSCRIBE]"
    data["special_tokens"] = [{"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(names)]
    data["audio"] = {
        "sampling_rate": 16000, "frame_rate": 12.5, "chunk_length_s": 30.0,
        "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
    }  # fmt: skip
    (folder / "tekken.json").write_text(json.dumps(data))


@needs_tokenizer
def test_sound_goes_through_the_real_processor(tmp_path):
    write_tokenizer(save_checkpoint(tmp_path))
    loaded = TransformersModel().load(LoadOptions(name="voxtral", reference=str(tmp_path)))
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 32000).astype(np.float32)
    samples = [
        Sample(id="sound", instruction="What is it?", audio=wave, sampling_rate=16000),
        Sample(id="words", instruction="Say something."),
    ]
    with torch.inference_mode():
        inputs = loaded.encode(samples)
        assert inputs.groups["audio"].sum(1).tolist() == [375, 0]  # 12.5 tokens a second, padded to 30 seconds
        together = loaded.adapter.forward(loaded, inputs, logits_to_keep=1)
        for row, sample in enumerate(samples):
            alone = loaded.encode([sample])
            expected = loaded.adapter.forward(loaded, alone, logits_to_keep=1)[0]
            torch.testing.assert_close(together[row], expected, atol=2e-5, rtol=1e-4)
        with pruned(loaded, Plan.drop(loaded.info, (1, 4))):
            assert len(loaded.generate(inputs, 4)) == 2


@pytest.mark.skipif(importlib.util.find_spec("mistral_common") is not None, reason="mistral-common is installed")
def test_without_the_package_one_line_says_what_to_install(tmp_path):
    save_checkpoint(tmp_path)
    with pytest.raises(MissingExtra, match=r"pip install 'prunebench\[voxtral\]'"):
        TransformersModel().load(LoadOptions(name="voxtral", reference=str(tmp_path)))
