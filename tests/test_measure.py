"""Costs by counting against closed forms; latency and memory by what must hold whatever the machine."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from prunebench import Plan
from prunebench.config import LatencySpec
from prunebench.errors import ModelError
from prunebench.measure.cost import REFERENCE_TOKENS, checkpoint_revision, weight_bytes
from prunebench.measure.latency import measure_latency
from prunebench.measure.memory import nvml_process_bytes, peak_rss_bytes, torch_peak
from tests.tiny_plugin import TinyLlama, TinyText


@pytest.fixture(scope="module")
def loaded():
    return TinyLlama().load()


def test_layer_costs_by_hand(loaded):
    """d = 32, inter = 48, 4 heads and 2 key-value heads of 8: q, k, v, o, gate, up, down and two norms."""
    linear = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48
    cost, tokens = loaded.info.layers[0], REFERENCE_TOKENS
    assert cost.params == linear + 2 * 32
    assert cost.bytes == 4 * cost.params
    assert cost.kv_bytes_per_token == 2 * 2 * 8 * 4
    assert cost.prefill_flops == 2 * tokens * linear + 2 * tokens * (tokens + 1) * 32
    embedding_and_head = 2 * 64 * 32
    assert loaded.info.lm_params == 6 * cost.params + embedding_and_head + 32
    assert loaded.info.lm_prefill_flops == 6 * cost.prefill_flops + 2 * tokens * 64 * 32
    assert loaded.info.kv_bytes_per_token == 6 * cost.kv_bytes_per_token


def test_tied_weights_count_once():
    first = nn.Linear(4, 3, bias=False)
    second = nn.Linear(4, 3, bias=False)
    second.weight = first.weight
    assert weight_bytes(nn.ModuleList([first, second])) == 4 * 3 * 4


def test_revision_follows_bytes_and_names(tmp_path):
    with pytest.raises(ModelError, match=r"no \*\.safetensors"):
        checkpoint_revision(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "config.json").write_text("{}")
    first = checkpoint_revision(tmp_path)
    (tmp_path / "notes.txt").write_text("not part of the model")
    assert checkpoint_revision(tmp_path) == first
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert checkpoint_revision(tmp_path) != first


class Slow(nn.Module):
    """A layer that takes a known time more."""

    def __init__(self, inner: nn.Module, seconds: float) -> None:
        super().__init__()
        self.inner, self.seconds = inner, seconds

    def forward(self, *args, **kwargs):
        time.sleep(self.seconds)
        return self.inner(*args, **kwargs)


def test_latency_sees_what_was_removed():
    """Two slow layers go: prefill and each decoded token lose their time, the encoder does not."""
    loaded = TinyLlama().load()
    for layer in (1, 4):
        loaded.layers[layer] = Slow(loaded.layers[layer], 0.05)
    spec = LatencySpec(new_tokens=3, warmup=1, rounds=3, batch_size=2)
    samples = TinyText().samples("test", 2)
    latency, peaks = measure_latency(loaded, Plan.drop(loaded.info, (1, 4)), samples, spec)
    assert latency.prefill.dense_median > 100 > latency.prefill.median
    assert latency.decode.dense_median > 100 > latency.decode.median
    assert latency.encoder.dense_median < 100
    assert latency.end_to_end.dense_median > 300
    assert latency.end_to_end.n == 3
    assert latency.new_tokens == 3
    assert latency.clock == "monotonic clock"
    assert peaks["pruned"].allocated is None  # a CPU has no allocator peak: null, never zero
    assert len(loaded.layers) == 6


def test_token_counts_are_fixed_even_if_the_model_wants_to_stop():
    """The end token first in every step: as many decode steps run all the same."""
    loaded = TinyLlama().load()
    loaded.model.lm_head.weight.data.zero_()
    steps = []
    handle = loaded.layers[0].register_forward_hook(lambda *_: steps.append(1))
    measure_latency(
        loaded, Plan.drop(loaded.info), TinyText().samples("test", 1), LatencySpec(new_tokens=5, warmup=0, rounds=1)
    )
    handle.remove()
    assert len(steps) == 2 * 5  # dense and pruned, one prefill and four steps each


def test_memory_of_a_cpu():
    assert peak_rss_bytes() > 50e6
    assert nvml_process_bytes(torch.device("cpu")) is None
    with torch_peak(torch.device("cpu")) as peak:
        pass
    assert (peak.allocated, peak.reserved) == (None, None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_memory_and_latency_of_a_gpu():
    loaded = TinyLlama().load()
    loaded.model.to("cuda")
    loaded.device = torch.device("cuda")
    encode = loaded.adapter.encode
    loaded.adapter.encode = lambda model, samples: encode(TinyLlama().load(), samples).to("cuda")
    latency, peaks = measure_latency(
        loaded,
        Plan.drop(loaded.info, (1, 2)),
        TinyText().samples("test", 1),
        LatencySpec(new_tokens=4, warmup=1, rounds=2),
    )
    assert latency.clock == "cuda events"
    assert peaks["dense"].allocated >= weight_bytes(loaded.model)
    assert peaks["pruned"].reserved >= peaks["pruned"].allocated
