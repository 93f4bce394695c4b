"""Masks zero what their bits say and nothing else; bits come back as they went; plans of both new operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunebench import Plan, pruned
from prunebench.bits import pack, unpack
from prunebench.budget import Achieved, achieved
from prunebench.errors import PlanError
from prunebench.testing.state import ModelState
from tests.factories import make_model
from tests.test_operations import build, logits, objects, shared
from tests.thinning import masks, slices

each = pytest.mark.parametrize("name", ["Llama", "Gemma3-text", "Qwen3VL", "testbed"])
PATH = "mlp.down_proj.weight"


# -- bits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (9,), (3, 13), (2, 3, 64), (4, 1)])
def test_bits_come_back_as_they_went(shape):
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(shape[-1])) < 0.5
    packed = pack(keep)
    assert packed.dtype == torch.uint8 and packed.shape == (*shape[:-1], -(-shape[-1] // 8))
    assert torch.equal(unpack(packed, shape[-1]), keep) and torch.equal(pack(keep.numpy()), packed)
    by_hand = sum(int(bit) << (7 - i) for i, bit in enumerate(keep.reshape(-1, shape[-1])[0][:8]))
    assert int(packed.reshape(-1)[0]) == by_hand


@pytest.mark.parametrize(
    ("packed", "columns", "words"),
    [
        (torch.zeros(2, 2, dtype=torch.uint8), 17, r"bits of 17 columns are uint8 of width 3, got uint8 \(2, 2\)"),
        (torch.zeros(2, 2, dtype=torch.uint8), 8, "of width 1"),
        (np.zeros(2, np.int64), 16, "got int64"),
        (torch.tensor([0, 1], dtype=torch.uint8), 15, "there are bits behind column 15"),
    ],
)
def test_bits_of_another_width_are_refused(packed, columns, words):
    with pytest.raises(ValueError, match=words):
        unpack(packed, columns)


# -- the operation -----------------------------------------------------------------------------------------------------


@each
def test_a_mask_is_a_product_with_zeros_and_ones_and_is_undone_bit_for_bit(name):
    loaded, inputs = shared(name)
    ops, tensors, keeps = masks(loaded, (0, 3))
    plan = Plan.of(loaded.info, ops, tensors, kind="weights")
    before, same, dense = ModelState.of(loaded), objects(loaded), logits(loaded, inputs)
    other, _ = build(name)
    with torch.no_grad():
        for key, keep in keeps.items():
            number, path = key[1:].split(".", 1)
            other.layers[int(number)].get_parameter(path).mul_(keep)
    expected = logits(other, inputs)
    with pruned(loaded, plan):
        assert torch.equal(logits(loaded, inputs), expected)
        zeros = sum(
            int((loaded.layers[layer].get_parameter(path) == 0).sum()) for layer, path in _linears(loaded, keeps)
        )
    report = achieved(loaded.info, ops=plan.ops)
    assert zeros == report.params_zeroed == sum(op["zeros"] for op in ops) > 0
    assert report.model_copy(update={"params_zeroed": 0}) == achieved(loaded.info)
    assert not torch.equal(expected, dense) and torch.equal(logits(loaded, inputs), dense)
    assert before.change(ModelState.of(loaded)) is None and objects(loaded) == same


def _linears(loaded, keeps):
    return [(int(key[1:].split(".", 1)[0]), key.split(".", 1)[1]) for key in keeps]


@each
def test_a_mask_of_ones_changes_nothing(name):
    loaded, inputs = shared(name)
    dense = logits(loaded, inputs)
    ops, tensors, _ = masks(loaded, (0, 1), share=0.0)
    assert [op["zeros"] for op in ops] == [0, 0]
    with pruned(loaded, Plan.of(loaded.info, ops, tensors)):
        assert torch.equal(logits(loaded, inputs), dense)


def test_a_mask_comes_after_new_values():
    """What SparseGPT's plans are made of: values and zeros of one layer, in any order."""
    loaded, _ = shared("Llama")
    values = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    keep = torch.rand(32, 48, generator=torch.Generator().manual_seed(1)) < 0.5
    ops = [
        {"op": "mask", "layer": 1, "tensors": "z", "zeros": int((~keep).sum())},
        {"op": "set_weights", "layer": 1, "tensors": "w"},
    ]
    tensors = {f"w.{PATH}": values, f"z.{PATH}": pack(keep)}
    plans = [Plan.of(loaded.info, order, tensors) for order in (ops, ops[::-1])]
    assert plans[0].digest == plans[1].digest
    for plan in plans:
        with pruned(loaded, plan):
            assert torch.equal(loaded.layers[1].mlp.down_proj.weight, values * keep)


def test_a_mask_of_a_bias_and_of_what_stands_for_a_block():
    loaded, _ = shared("Llama")
    tensors = {"r.weight": torch.ones(32, 32), "r.bias": torch.ones(32)}
    tensors |= {"z.bias": pack(torch.arange(32) % 2 == 0), "z.weight": pack(torch.eye(32, dtype=torch.bool))}
    ops = [
        {"op": "replace_block", "start": 1, "stop": 3, "module": "linear", "tensors": "r"},
        {"op": "mask", "layer": 1, "tensors": "z", "zeros": 16 + 32 * 31},
    ]
    with pruned(loaded, Plan.of(loaded.info, ops, tensors)):
        assert torch.equal(loaded.layers[1].weight, torch.eye(32))
        assert torch.equal(loaded.layers[1].bias, (torch.arange(32) % 2 == 0).float())


def two_of_four(rows, columns):
    keep = torch.zeros(rows, columns, dtype=torch.bool)
    keep[:, ::4], keep[:, 3::4] = True, True
    return keep


def mask(zeros=32 * 24, **changes):
    return {"op": "mask", "layer": 1, "tensors": "z", "zeros": zeros, **changes}


def test_a_pattern_is_held():
    loaded, _ = shared("Llama")
    with pruned(loaded, Plan.of(loaded.info, [mask(pattern="2:4")], {f"z.{PATH}": pack(two_of_four(32, 48))})):
        weight = loaded.layers[1].mlp.down_proj.weight
        assert ((weight.reshape(32, 12, 4) != 0).sum(-1) == 2).all()


def broken():
    keep = two_of_four(32, 48)
    keep[5, 0:4] = torch.tensor([True, True, True, False])
    return keep


REFUSED = {
    "no such parameter": (mask(), {"z.mlp.middle": pack(two_of_four(32, 48))}, "layer 1 has no parameter 'mlp.middle'"),
    "other width": (mask(), {f"z.{PATH}": pack(two_of_four(32, 40))}, "bits of 48 columns are uint8 of width 6"),
    "bits behind": (mask(), {"z.mlp.up_proj.bias": pack(two_of_four(1, 48)[0])}, "no parameter 'mlp.up_proj.bias'"),
    "other rows": (
        mask(),
        {f"z.{PATH}": pack(two_of_four(31, 48))},
        r"shape \(31, 6\) for a parameter of shape \(32, 48\)",
    ),
    "other count": (mask(7), {f"z.{PATH}": pack(two_of_four(32, 48))}, "zeroes 768 weights, the operation says 7"),
    "broken pattern": (mask(767, pattern="2:4"), {f"z.{PATH}": pack(broken())}, "keeps more than 2 of 4 neighbours"),
    "odd pattern": (mask(pattern="2:5"), {f"z.{PATH}": pack(two_of_four(32, 48))}, "48 columns are no multiple of 5"),
}


@pytest.mark.parametrize(("op", "tensors", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused_and_nothing_has_changed(op, tensors, words):
    loaded, _ = shared("Llama")
    first, more, _ = masks(loaded, (0,))  # something that works: it has to be undone too
    before, same = ModelState.of(loaded), objects(loaded)
    plan = Plan.of(loaded.info, [*first, op], {**more, **tensors})
    with pytest.raises(PlanError, match=words) as caught, pruned(loaded, plan):
        pass
    assert "\n" not in str(caught.value)
    assert before.change(ModelState.of(loaded)) is None and objects(loaded) == same


@pytest.mark.parametrize("where", ["offloaded", "quantised", "shared"])
def test_weights_that_cannot_be_changed_are_not_masked(where):
    loaded, _ = build("Llama")
    plan = Plan.of(loaded.info, [mask()], {f"z.{PATH}": pack(two_of_four(32, 48))})
    words = f"the weights of layer 1 are {where}"
    if where == "offloaded":
        loaded.layers[1].to("meta")
    elif where == "quantised":
        down = loaded.layers[1].mlp.down_proj
        down.weight = nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    else:
        loaded.layers[1].mlp, words = loaded.layers[2].mlp, "layer 1 shares 'mlp.down_proj' with another layer"
    same = objects(loaded)
    with pytest.raises(PlanError, match=words), pruned(loaded, plan):
        pass
    assert objects(loaded) == same


# -- plans -------------------------------------------------------------------------------------------------------------

MODEL = make_model()
BITS = pack(torch.ones(2, 8, dtype=torch.bool))
SLICE = {"op": "slice", "layer": 1, "tensors": "s", "heads": (1, 2), "params_removed": 3}
ROW = pack(torch.tensor([True, False]))
Z, S = {"z.a": BITS}, {"s.heads": ROW}
ZERO = {"op": "mask", "layer": 1, "tensors": "z", "zeros": 0}

NOT_TOGETHER = {
    "two masks": ([ZERO, {**ZERO, "tensors": "y"}], {**Z, "y.a": BITS}, "layer 1: it is masked twice"),
    "two slices": ([SLICE, {**SLICE, "tensors": "t"}], {**S, "t.heads": ROW}, "layer 1: it is sliced twice"),
    "removed and masked": ([ZERO, {"op": "drop_layer", "layer": 1}], Z, "one removes it"),
    "removed and sliced": ([SLICE, {"op": "drop_layer", "layer": 1}], S, "one removes it"),
    "in a block": (
        [{**ZERO, "layer": 2}, {"op": "replace_block", "start": 1, "stop": 3, "module": "linear", "tensors": "r"}],
        {**Z, "r.weight": np.eye(2)},
        "touch layer 2: one removes it",
    ),
    "a part and sliced": ([SLICE, {"op": "drop_sublayer", "layer": 1, "part": "mlp"}], S, "drop_sublayer and slice do"),
    "merged and sliced": (
        [SLICE, {"op": "merge", "into": 1, "sources": (1, 2), "coefficients": (1, 1)}],
        S,
        "merge and slice do not go together",
    ),
    "replaced and sliced": (
        [SLICE, {"op": "replace_block", "start": 1, "stop": 2, "module": "linear", "tensors": "r"}],
        {**S, "r.weight": np.eye(2)},
        "replace_block and slice do not go together",
    ),
    "nothing sliced": ([{**SLICE, "heads": None}], {}, "names neither heads nor channels"),
    "all gone": ([{**SLICE, "heads": (0, 2)}], S, "keeps 0 of 2 heads"),
    "more than all": ([{**SLICE, "channels": (3, 2)}], S, "keeps 3 of 2 channels"),
    "less than none": ([{**ZERO, "zeros": -1}], Z, "zeros"),
    "no pattern": ([{**ZERO, "pattern": "half"}], Z, "pattern"),
    "no bits": ([SLICE], {}, "slice of layer 1 needs the tensor 's.heads'"),
    "no mask": ([ZERO], {}, r"mask of layer 1 needs tensors 'z\.\*'"),
    "left over": ([SLICE], {**S, "s.channels": ROW}, "no operation reads the tensor 's.channels'"),
    "numbers for bits": ([ZERO], {"z.a": np.ones((2, 8))}, r"'z.a' is of the format float64: .* wants packed bits"),
    "bits for numbers": (
        [{"op": "set_weights", "layer": 1, "tensors": "z"}],
        Z,
        "'z.a' is of the format uint8: .* one of",
    ),
    "no such layer": ([{**ZERO, "layer": 8}], Z, "layer 8 does not exist"),
}


@pytest.mark.parametrize(("ops", "tensors", "words"), NOT_TOGETHER.values(), ids=NOT_TOGETHER.keys())
def test_plans_that_contradict_themselves_are_refused(ops, tensors, words):
    with pytest.raises(PlanError, match=words) as caught:
        Plan.of(MODEL, ops, tensors)
    assert "\n" not in str(caught.value)


def test_both_operations_come_back_from_json_and_disk(tmp_path):
    loaded, _ = shared("Llama")
    ops, tensors, _ = slices(loaded, (0, 2), {"heads": 1, "channels": 20})
    more, others, _ = masks(loaded, (1, 3))
    plan = Plan.of(loaded.info, [*ops, *more], {**tensors, **others}, kind="width")
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan and again.digest == plan.digest and again.tensors.digest == plan.tensors_digest
    assert all(again.tensors.torch(name).dtype == torch.uint8 for name in again.tensors)
    read = Plan.from_json(plan.to_json())
    assert read.digest == plan.digest and read.ops == plan.ops and read.kept_layers == tuple(range(6))
    assert achieved(loaded.info, ops=read.ops) == achieved(loaded.info, ops=plan.ops)
    assert not plan.only_drops and not plan.is_empty
    changed = {**tensors, **others, "m1.mlp.down_proj.weight": ~others["m1.mlp.down_proj.weight"]}
    assert Plan.of(loaded.info, [*ops, *more], changed).digest != plan.digest


def test_zeros_are_said_only_where_there_are_some():
    none = achieved(MODEL, (1,))
    assert (
        "params_zeroed" not in none.model_dump_json() and Achieved.model_validate_json(none.model_dump_json()) == none
    )
    some = achieved(MODEL, ops=Plan.of(MODEL, [{**ZERO, "zeros": 5}], Z).ops)
    assert '"params_zeroed":5' in some.model_dump_json() and some.params_zeroed == 5
    assert Achieved.model_validate_json(some.model_dump_json()) == some
