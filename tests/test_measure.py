"""Costs by counting against closed forms; latency and memory by what must hold whatever the machine."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from prunebench import Plan
from prunebench.config import LatencySpec
from prunebench.errors import ModelError
from prunebench.measure import sparse_kernels
from prunebench.measure.cost import REFERENCE_TOKENS, checkpoint_revision, weight_bytes
from prunebench.measure.latency import measure_latency
from prunebench.measure.memory import nvml_process_bytes, peak_rss_bytes, torch_peak
from prunebench.measure.model import DENSE_KERNELS, measure_model
from prunebench.ops import SetWeights
from prunebench.surgery import pruned
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


# -- thinned plans -----------------------------------------------------------------------------------------------------

SPEC = LatencySpec(new_tokens=3, warmup=1, rounds=2)


def thinned_plan(loaded, kind: str, patterned: str = "mlp.up_proj") -> Plan:
    """The weights of two matrices of layer 1 zeroed: 2:4 in the one that `patterned` names, else whole rows."""
    tensors = {}
    for name in ("mlp.up_proj", "mlp.down_proj"):
        weight = loaded.layers[1].get_submodule(name).weight.detach().clone()
        if name == patterned:
            weight.view(weight.shape[0], -1, 4)[..., ::2] = 0.0
        else:
            weight[::2] = 0.0
        tensors[f"new.{name}.weight"] = weight
    return Plan.of(loaded.info, [SetWeights(layer=1, tensors="new")], tensors, kind=kind)


class Stand(torch.Tensor):
    """In place of torch's sparse tensors: multiplies densely, and counts how often."""

    calls = 0

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is torch.nn.functional.linear:
            Stand.calls += 1
        args = [arg.as_subclass(torch.Tensor) if isinstance(arg, Stand) else arg for arg in args]
        found = func(*args, **(kwargs or {}))
        made = func.__name__ in ("detach", "requires_grad_")  # what turns it into a parameter
        return found.as_subclass(cls) if made else found


@pytest.fixture
def with_kernels(monkeypatch):
    """As if this machine had sparse tensor cores."""
    monkeypatch.setattr("prunebench.measure.model.why_not", lambda loaded, pattern: "")
    monkeypatch.setattr(sparse_kernels, "to_sparse", lambda weight: weight.clone().as_subclass(Stand))
    Stand.calls = 0


def held(loaded) -> list[tuple[str, int]]:
    return [(name, id(parameter)) for name, parameter in loaded.model.named_parameters(remove_duplicate=False)]


@pytest.mark.parametrize("kind", ["weights", "2:4", "4:8"])
def test_masks_are_not_timed_where_dense_kernels_run(kind):
    loaded = TinyLlama().load()
    before = held(loaded)
    found = measure_model(loaded, thinned_plan(loaded, kind), TinyText().samples("test", 1), SPEC)
    assert found.latency is None and found.untimed.startswith(DENSE_KERNELS)
    assert ("CUDA" in found.untimed) == (kind == "2:4") and ("4:8" in found.untimed) == (kind == "4:8")
    assert found.memory.stored == found.memory.dense_stored == 4 * loaded.info.model_params
    zeros = 48 * 32 // 2 + 32 * 48 // 2
    assert found.memory.stored - found.memory.stored_compressed == 4 * zeros - 2 * 48 * 32 // 8
    assert held(loaded) == before
    unasked = measure_model(loaded, thinned_plan(loaded, kind), [], LatencySpec(enabled=False))
    assert (unasked.latency, unasked.untimed) == (None, None)  # nobody asked for a time


def test_plans_that_change_shapes_or_remove_layers_are_timed():
    loaded = TinyLlama().load()
    samples = TinyText().samples("test", 1)
    both = Plan.of(loaded.info, [*thinned_plan(loaded, "weights").ops, {"op": "drop_layer", "layer": 4}],
                   thinned_plan(loaded, "weights").tensors, kind="weights")  # fmt: skip
    for plan in (Plan.drop(loaded.info, (1,)), both, thinned_plan(loaded, "layers")):
        found = measure_model(loaded, plan, samples, SPEC)
        assert found.latency is not None and found.untimed is None and found.latency.kernels is None


def test_sparse_kernels_run_for_the_time_of_the_measurement(with_kernels):
    loaded = TinyLlama().load()
    before, plan = held(loaded), thinned_plan(loaded, "2:4")
    found = measure_model(loaded, plan, TinyText().samples("test", 1), SPEC)
    assert found.untimed is None and held(loaded) == before
    linear = 6 * 7  # one of them keeps 2:4
    assert found.latency.kernels == (
        f"Stand in 1 of {linear} linear modules; dense: {linear - 1} (more than 2 of 4 neighbours stay)"
    )
    assert Stand.calls == 3 * 3  # prefill and two tokens, three rounds, in the pruned model alone
    assert found.latency.end_to_end.n == 2


def test_the_model_is_whole_again_after_sparse_kernels_failed(with_kernels, monkeypatch):
    loaded = TinyLlama().load()
    before, plan, samples = held(loaded), thinned_plan(loaded, "2:4"), TinyText().samples("test", 1)

    def refuse(weight):
        raise RuntimeError("shape is not supported\nsecond line")

    monkeypatch.setattr(sparse_kernels, "to_sparse", refuse)
    found = measure_model(loaded, plan, samples, SPEC)
    assert found.latency is None and "1 (torch: shape is not supported)" in found.untimed and held(loaded) == before

    class Breaks(Stand):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            if func is torch.nn.functional.linear:
                raise NotImplementedError("no kernel for this device")
            return super().__torch_function__(func, types, args, kwargs)

    monkeypatch.setattr(sparse_kernels, "to_sparse", lambda weight: weight.clone().as_subclass(Breaks))
    found = measure_model(loaded, plan, samples, SPEC)
    assert found.latency is None and found.untimed.endswith("the sparse ones failed: no kernel for this device")
    assert held(loaded) == before
    with pytest.raises(KeyError), pruned(loaded, plan):
        inside = held(loaded)
        with sparse_kernels.semi_structured(loaded.layers):
            raise KeyError
    assert held(loaded) == before != inside


def test_what_keeps_the_pattern():
    weight = torch.arange(1.0, 33.0).view(4, 8)
    assert not sparse_kernels.keeps_pattern(weight)
    weight.view(4, 2, 4)[..., (0, 3)] = 0.0
    assert sparse_kernels.keeps_pattern(weight)
    weight[2, 4] = 1.0  # a third one in one group of four
    assert not sparse_kernels.keeps_pattern(weight)
    assert not sparse_kernels.keeps_pattern(torch.zeros(4, 6)) and not sparse_kernels.keeps_pattern(torch.zeros(8))


def test_why_no_sparse_kernel_runs(loaded, monkeypatch):
    why = sparse_kernels.why_not
    assert why(loaded, "4:8") == "there is no sparse kernel for 4:8" and "this is cpu" in why(loaded, "2:4")
    there = SimpleNamespace(device=torch.device("cuda"), info=SimpleNamespace(dtype="float32"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0, this device has 7.5" in why(there, "2:4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert "half-precision weights, these are float32" in why(there, "2:4")
    there.info.dtype = "bfloat16"
    assert why(there, "2:4") == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_torch_sparse_kernels_give_what_the_dense_ones_give(dtype):
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256, bias=False), nn.Linear(256, 50))
    layer = layer.to("cuda", dtype)
    for module in (layer[0], layer[2]):
        module.weight.data.view(module.out_features, -1, 4)[..., ::2] = 0.0
    before = [(name, id(value)) for name, value in layer.named_parameters()]
    x = torch.randn(2, 24, 256, device="cuda", dtype=dtype)
    with torch.inference_mode():
        dense = layer(x)
        with sparse_kernels.semi_structured([layer]) as found:
            sparse = layer(x)
            assert type(layer[0].weight.data) is not torch.Tensor
    assert found.converted == 2 and found.refused == {sparse_kernels.NOT_PATTERN: 1}
    assert (sparse - dense).norm() < 1e-2 * dense.norm()
    assert [(name, id(value)) for name, value in layer.named_parameters()] == before
