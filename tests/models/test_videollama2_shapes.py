"""The official sizes, without weights: token counts, parameter counts, and the bytes of the published files."""

from __future__ import annotations

import pytest
import torch
from prunebench_models.videollama2.beats import Beats, BeatsConfig, relative_buckets
from prunebench_models.videollama2.configuration import Videollama2MistralConfig, Videollama2Qwen2Config
from prunebench_models.videollama2.connector import StcConnector
from prunebench_models.videollama2.modeling import Videollama2MistralForCausalLM, Videollama2Qwen2ForCausalLM
from prunebench_models.videollama2.tower_settings import tower_settings
from transformers import CLIPVisionConfig
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

CLIP, SIGLIP = "openai/clip-vit-large-patch14-336", "google/siglip-so400m-patch14-384"


def mistral_7b(frames):
    return Videollama2MistralConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, mm_vision_tower=CLIP, vision_config=tower_settings(CLIP, None), mm_hidden_size=1024,
        mm_projector_type="stc_connector", num_frames=frames,
    )  # fmt: skip


def qwen2_7b(**fields):
    return Videollama2Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, mm_vision_tower=SIGLIP, vision_config=tower_settings(SIGLIP, None), mm_hidden_size=1152,
        mm_projector_type="stc_connector_v35", num_frames=16, **fields,
    )  # fmt: skip


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_videollama2_7b_has_the_published_size():
    """16.07 GB in bfloat16; 845 tokens from 8 frames of 336×336, 1521 from 16, as many from an image."""
    with torch.device("meta"):
        model = Videollama2MistralForCausalLM(mistral_7b(8)).to(torch.bfloat16)
        assert 2 * count(model) / 1e9 == pytest.approx(16.07, abs=0.01)
        assert model.encode_frames(torch.zeros(8, 3, 336, 336)).shape == (845, 4096)
        assert model.encode_frames(torch.zeros(16, 3, 336, 336)).shape == (1521, 4096)
        assert model.encode_image(torch.zeros(1, 3, 336, 336)).shape == (845, 4096)


def test_videollama21_av_has_the_published_sizes():
    """Audio tower 90.8 M values, its projector 15.6 M; 1352 tokens from 16 frames of 384×384, 1496 from 30 seconds."""
    with torch.device("meta"):
        config = qwen2_7b(mm_audio_tower="audio_tower.bin", mm_projector_a_type="mlp2x_gelu")
        model = Videollama2Qwen2ForCausalLM(config)
        assert count(model.model.audio_tower) / 1e6 == pytest.approx(90.8, abs=0.1)
        assert count(model.model.mm_projector_a) / 1e6 == pytest.approx(15.6, abs=0.01)
        assert model.encode_frames(torch.zeros(16, 3, 384, 384)).shape == (1352, 3584)
        assert model.encode_image(torch.zeros(1, 3, 384, 384)).shape == (1352, 3584)
        assert model.encode_audio(torch.zeros(1, 2998, 128)).shape == (1496, 3584)
        assert len(model.model.vision_tower.vision_tower.vision_model.encoder.layers) == 27


def test_the_last_layers_of_the_tower_do_not_run():
    """The features are those of the last but one layer: damage behind it changes nothing, damage before it does."""
    settings = {**tower_settings(CLIP, None), "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = mistral_7b(8)
    config.vision_config = {**settings, "num_hidden_layers": 4, "image_size": 28}
    config.update({"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2})
    config.update({"num_hidden_layers": 1, "vocab_size": 8, "mm_hidden_size": 16, "head_dim": 8})
    tower = Videollama2MistralForCausalLM(config).model.vision_tower
    assert isinstance(tower.config, CLIPVisionConfig)
    layers = tower.vision_tower.vision_model.encoder.layers
    pixels = torch.rand(2, 3, 28, 28)
    with torch.inference_mode():
        before = tower(pixels)
        layers[3].mlp.fc1.weight.fill_(float("nan"))
        assert torch.equal(tower(pixels), before)
        layers[2].mlp.fc1.weight.fill_(float("nan"))
        assert tower(pixels).isnan().all()


@pytest.mark.parametrize(("kind", "side", "frames"), [("stc_connector", 5, 4), ("stc_connector_v35", 5, 3)])
def test_a_repeated_frame_costs_one_and_counts_as_many(kind, side, frames):
    torch.manual_seed(0)
    connector = StcConnector(kind, 6, 8).eval()
    one = torch.randn(1, 1, side * side, 6)
    with torch.inference_mode():
        expected = connector(one.expand(1, frames, -1, -1))
        torch.testing.assert_close(connector(one, repeat=frames), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("n", [1, 7, 100, 1000])
def test_position_buckets_equal_those_of_wavlm(n):
    """A second implementation: the same scheme, official size."""
    attention = WavLMAttention(16, 2, num_buckets=320, max_distance=800)
    steps = torch.arange(n)
    expected = attention._relative_positions_bucket(steps[None] - steps[:, None])
    assert torch.equal(relative_buckets(n, 320, 800), expected)


def test_attention_equals_that_of_wavlm():
    """A second implementation of the gated bias. WavLM gates by the layer's input, which is the query where the
    query's projection is the identity."""
    torch.manual_seed(0)
    width, heads, n = 24, 3, 40
    config = BeatsConfig(
        embed_dim=8, encoder_layers=1, encoder_embed_dim=width, encoder_ffn_embed_dim=8, encoder_attention_heads=heads,
        conv_pos=4, conv_pos_groups=2, num_buckets=32, max_distance=40, predictor_class=3,
    )  # fmt: skip
    ours = Beats(config).eval().encoder.layers[0].self_attn
    theirs = WavLMAttention(width, heads, num_buckets=32, max_distance=40).eval()
    with torch.no_grad():
        for name in ("k_proj", "v_proj", "out_proj"):
            getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
        for attention in (ours, theirs):
            attention.q_proj.weight.copy_(torch.eye(width))
            attention.q_proj.bias.zero_()
        ours.grep_a.copy_(1 + 0.1 * torch.randn(1, heads, 1, 1))
        theirs.gru_rel_pos_const.copy_(ours.grep_a)
        theirs.gru_rel_pos_linear.load_state_dict(ours.grep_linear.state_dict())
        theirs.rel_attn_embed.load_state_dict(ours.relative_attention_bias.state_dict())
        x = torch.randn(2, n, width)
        bias = ours.relative_attention_bias(relative_buckets(n, 32, 40)).permute(2, 0, 1)
        torch.testing.assert_close(ours(x, bias), theirs(x)[0], atol=1e-5, rtol=1e-4)


def test_a_grid_that_is_not_square_is_refused():
    from prunebench.errors import ModelError

    with pytest.raises(ModelError, match="not a square grid"):
        StcConnector("stc_connector", 4, 8)(torch.zeros(1, 2, 10, 4))
