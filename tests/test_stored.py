"""Bytes on disk: the formats are really written, compared with the count, and read back to the same bits."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from prunebench import Plan
from prunebench.measure.stored import compressed_bytes, stored_bytes
from prunebench.ops import SetWeights
from prunebench.surgery import pruned
from tests.tiny_plugin import TinyLlama

FORMATS = (torch.float32, torch.float16, torch.bfloat16)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The values as whole numbers, so that bits are compared and bfloat16 can be handled by numpy."""
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).numpy()


def thinned(shape, share, dtype, seed=0) -> torch.Tensor:
    """Random, with `share` of the values zero."""
    random = np.random.default_rng(seed)
    values = torch.from_numpy(random.normal(size=shape)).to(dtype)
    return torch.where(torch.from_numpy(random.random(shape) < share), torch.zeros((), dtype=dtype), values)


def two_of_four(shape, dtype, seed=0) -> torch.Tensor:
    values = thinned(shape, 0.0, dtype, seed)
    order = np.random.default_rng(seed + 1).random((shape[0], shape[1] // 4, 4)).argsort(-1)
    return torch.where(torch.from_numpy(order < 2).reshape(shape), values, torch.zeros((), dtype=dtype))


def written(tensors: dict[str, np.ndarray | torch.Tensor], path) -> int:
    """Bytes of a safetensors file beyond its header."""
    save_file({name: torch.as_tensor(value) for name, value in tensors.items()}, str(path))
    data = path.read_bytes()
    return len(data) - 8 - int.from_bytes(data[:8], "little")


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 0.5, 0.9, 1.0])
def test_a_bitmask_with_its_values_has_the_counted_size_and_gives_back_the_bits(dtype, share, tmp_path):
    tensor = thinned((13, 7), share, dtype)  # 91 values: the last byte of the mask is not full
    flat = bits(tensor).reshape(-1)
    mask, values = np.packbits(flat != 0), flat[flat != 0]
    sparse = written({"mask": mask, "values": values}, tmp_path / "sparse.safetensors")
    dense = written({"dense": tensor}, tmp_path / "dense.safetensors")
    assert compressed_bytes(tensor) == min(sparse, dense)
    read = load_file(str(tmp_path / "sparse.safetensors"))
    back = np.zeros_like(flat)
    back[np.unpackbits(read["mask"].numpy())[: back.size].astype(bool)] = read["values"].numpy()
    np.testing.assert_array_equal(back, flat)


@pytest.mark.parametrize("dtype", FORMATS)
def test_half_of_the_values_with_two_bits_each_is_as_large_as_the_bitmask(dtype, tmp_path):
    tensor = two_of_four((6, 16), dtype)
    flat = bits(tensor).reshape(-1, 4)
    places = np.sort(np.argsort(flat == 0, axis=1, kind="stable")[:, :2], axis=1)
    values = np.take_along_axis(flat, places, axis=1)
    packed = np.packbits(((places[..., None] >> np.array([1, 0])) & 1).astype(np.uint8).reshape(-1))
    size = written({"places": packed, "values": values}, tmp_path / "two.safetensors")
    assert size == flat.size * tensor.element_size() // 2 + flat.size // 8 == compressed_bytes(tensor)
    read = load_file(str(tmp_path / "two.safetensors"))
    pairs = np.unpackbits(read["places"].numpy())[: 2 * values.size].reshape(-1, 2, 2)
    back = np.zeros_like(flat)
    np.put_along_axis(back, pairs @ np.array([2, 1]), read["values"].numpy(), axis=1)
    np.testing.assert_array_equal(back, flat)
    fewer = tensor.clone()
    fewer[0] = 0  # more zeros than the pattern asks for: the bitmask is the smaller one
    assert compressed_bytes(fewer) < size


class Parts(nn.Module):
    """A tied weight, a buffer that is kept and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("kept", torch.ones(5))
        self.register_buffer("gone", torch.ones(100), persistent=False)


def test_each_tensor_of_a_checkpoint_counts_once(tmp_path):
    model = Parts()
    tensors = {"first": model.first.weight.detach(), "kept": model.kept}
    assert stored_bytes(model).plain == written(tensors, tmp_path / "m.safetensors") == 4 * (32 + 5)
    model.first.weight.data[:2] = 0.0
    assert stored_bytes(model) == (4 * 37, 4 + 4 * 16 + 20)
    assert stored_bytes(model, compress=False) == (4 * 37, None)
    with torch.device("meta"):
        assert stored_bytes(Parts()) == (4 * 37, None)  # no zeros can be found: null, not zero


def test_a_zero_has_no_sign_and_eight_bits_are_counted():
    assert compressed_bytes(torch.full((64,), -0.0)) == 8
    small = torch.zeros(64).to(torch.float8_e4m3fn)
    assert compressed_bytes(small) == 8 and compressed_bytes(torch.ones(64).to(small.dtype)) == 64
    assert compressed_bytes(torch.zeros(0)) == 0


def test_a_pruned_model_is_counted_as_save_pretrained_writes_it(tmp_path):
    loaded = TinyLlama().load()
    weight = loaded.layers[1].mlp.up_proj.weight.detach().clone()
    weight[:, ::2] = 0.0
    ops = [SetWeights(layer=1, tensors="one"), {"op": "drop_layer", "layer": 3}]
    plan = Plan.of(loaded.info, ops, {"one.mlp.up_proj.weight": weight})
    with pruned(loaded, plan):
        found = stored_bytes(loaded.model)
        loaded.model.save_pretrained(tmp_path / "model")
    data = (tmp_path / "model" / "model.safetensors").read_bytes()
    header = int.from_bytes(data[:8], "little")
    assert found.plain == len(data) - 8 - header
    assert found.plain == stored_bytes(loaded.model).plain - 4 * loaded.info.layers[3].params
    assert found.plain - found.compressed == 4 * weight.numel() // 2 - weight.numel() // 8
    assert json.loads(data[8 : 8 + header])
