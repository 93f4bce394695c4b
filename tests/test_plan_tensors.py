"""Operations in a plan: which go together, what they read, and how their tensors are kept beside the JSON."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from prunebench.budget import Budget, achieved
from prunebench.errors import PlanError, StoreError
from prunebench.ops import DropSublayer, Fold, Merge, layers_touched
from prunebench.plan import Plan
from prunebench.plan_tensors import PlanTensors
from prunebench.store import Store, read_record
from prunebench.strategy import PlanContext, Strategy
from tests.factories import make_model, make_record

MODEL = make_model(8)


def drop(layer, part=None):
    return (
        {"op": "drop_layer", "layer": layer} if part is None else {"op": "drop_sublayer", "layer": layer, "part": part}
    )


def fold(layer, module="mlp.down_proj", side="out", tensor="m"):
    return {"op": "fold", "layer": layer, "module": module, "side": side, "tensor": tensor}


def replace(start, stop, module="linear", tensors="r"):
    return {"op": "replace_block", "start": start, "stop": stop, "module": module, "tensors": tensors}


def merge(into, sources, coefficients=None):
    factors = coefficients or [1.0] * len(sources)
    return {"op": "merge", "into": into, "sources": list(sources), "coefficients": factors}


def weights(layer, tensors="w"):
    return {"op": "set_weights", "layer": layer, "tensors": tensors}


TENSORS = {"m": np.eye(4, dtype=np.float32), "r.weight": torch.eye(4).bfloat16(), "w.norm.weight": np.ones(4)}
OPS = [drop(0), drop(1, "attention"), replace(2, 4), fold(5), weights(6), merge(6, (6, 7), [0.25, 0.75])]


def whole():
    return Plan.of(MODEL, OPS, TENSORS)


# -- old plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "digest"),
    [
        ((9, 10, *range(14, 21)), "f3d4ffcd8eb5e88eb86662b1ce4f13c653ee1ad859da71ddb18faf1d5c8b6089"),
        ((16, 17, 20), "aac1bb10e254ba60ef733c6238aabd33e940b8b047d0d636f522c131470c00b3"),
    ],
)
def test_plans_have_the_digest_that_they_had_before_there_were_other_operations(layers, digest):
    """Target, operations and digest as published records of the SmolLM2 leaderboard have them."""
    revision = "25ffcf362f098779ed6feb9b3b35fea310e30aafab434d6b9aeccea5286a490e"
    target = {"model": "smollm2", "revision": revision, "n_layers": 30}
    ops = [{"op": "drop_layer", "layer": layer} for layer in layers]
    plan = Plan.from_json(json.dumps({"target": target, "ops": ops}))
    assert plan.digest == digest and plan.only_drops and plan.tensors_digest is None
    said = json.loads(plan.to_json())
    assert (said["ops"], said["target"]) == (ops, target)


def test_a_plan_without_tensors_says_nothing_of_them():
    said = json.loads(Plan.drop(MODEL, (2, 5)).to_json())
    assert "tensors" not in said and "tensors_digest" not in said
    assert sorted(said) == ["budget", "cost", "kind", "ops", "provenance", "schema_version", "scores", "target"]


# -- what operations come to -------------------------------------------------------------------------------------------


def test_layers_by_hand():
    plan = whole()
    assert plan.removed_layers == (0, 3, 7) and plan.kept_layers == (1, 2, 4, 5, 6)
    assert plan.removed_sublayers == ((1, "attention"),) and plan.attention_layers == (4, 5, 6)
    assert plan.needed_layers == (1, 2, 4, 5, 6, 7) and not plan.only_drops and not plan.is_empty
    assert layers_touched(plan.ops[2]) == {2, 3} and layers_touched(plan.ops[5]) == {6, 7}
    assert layers_touched(Merge(into=1, sources=(2,), coefficients=(1.0,))) == {1, 2}


def test_an_order_of_operations_makes_no_other_plan():
    assert Plan.of(MODEL, OPS[::-1], TENSORS).digest == whole().digest
    assert Plan.of(MODEL, [*OPS[:-1], merge(6, (6, 7), [0.75, 0.25])], TENSORS).digest != whole().digest
    assert Plan.of(MODEL, OPS, {**TENSORS, "m": 2 * TENSORS["m"]}).digest != whole().digest


GOES = [
    [drop(1, "attention"), drop(1, "mlp")],
    [drop(1, "attention"), fold(1, "mlp.up_proj")],
    [fold(1), fold(1, side="in", tensor="n"), fold(1, "mlp.up_proj", tensor="o")],
    [merge(1, (1, 2)), fold(1), weights(1)],
    [replace(1, 3, "decoder_layer"), weights(1), fold(1)],
]
CLASHES = [
    ([drop(1), drop(1)], "touch layer 1"),
    ([drop(1), drop(1, "mlp")], "touch layer 1"),
    ([drop(1, "mlp"), drop(1, "mlp")], "touch layer 1"),
    ([drop(1), fold(1)], "touch layer 1: one removes it"),
    ([drop(1, "attention"), drop(1, "mlp"), weights(1)], "touch layer 1: one removes it"),
    ([merge(1, (1, 2)), weights(2)], "touch layer 2: one removes it"),
    ([merge(1, (1, 2)), drop(2)], "touch layer 2"),
    ([merge(1, (2,)), merge(3, (2,))], "touch layer 2"),
    ([replace(1, 4), drop(2)], "touch layer 2"),
    ([replace(1, 4), drop(1, "mlp")], "touch layer 1"),
    ([replace(1, 4), replace(3, 5, tensors="s")], "touch layer 3"),
    ([fold(1), fold(1, tensor="n")], "folded twice on side 'out'"),
    ([weights(1), weights(1, "v")], "weights are set twice"),
    ([replace(1, 1)], r"\[1, 1\) holds no layer"),
    ([replace(7, 9)], "layer 8 does not exist"),
    ([replace(7, 10**15)], "layer 999999999999999 does not exist"),  # said before its layers are counted
    ([merge(1, (2, 3), [1.0])], "1 coefficients for 2 layers"),
    ([merge(1, (2, 2))], "merged twice into layer 1"),
    ([merge(1, (1,), [float("nan")])], "finite number"),
    ([merge(0, range(8)), drop(0, "mlp")], "touch layer 0"),
    ([drop(0), *(drop(layer, part) for layer in range(1, 8) for part in ("attention", "mlp"))], "removes every layer"),
    ([{"op": "fold", "layer": 1, "module": "mlp", "side": "left", "tensor": "m"}], "'out' or 'in'"),
    ([{"op": "halve", "layer": 1}], "drop_sublayer"),
    ([drop(1, "norm")], "'attention' or 'mlp'"),
]


def values_for(ops):
    """Some tensor for each operation that reads one."""
    found = {op["tensor"]: np.eye(2) for op in ops if "tensor" in op}
    return found | {f"{op['tensors']}.weight": np.eye(2) for op in ops if "tensors" in op}


@pytest.mark.parametrize("ops", GOES)
def test_operations_that_go_together(ops):
    plan = Plan.of(MODEL, ops, values_for(ops))
    assert Plan.of(MODEL, ops[::-1], values_for(ops)).digest == plan.digest


@pytest.mark.parametrize(("ops", "words"), CLASHES)
def test_operations_that_do_not(ops, words):
    with pytest.raises(PlanError, match=words) as caught:
        Plan.of(MODEL, ops, values_for(ops))
    assert "\n" not in str(caught.value)


TENSORS_REFUSED = {
    "missing matrix": ([fold(1)], {}, "fold of layer 1 needs the tensor 'm'"),
    "missing group": ([weights(3)], {"v.a": np.ones(2)}, r"set_weights of layer 3 needs tensors 'w\.\*'"),
    "left over": ([fold(1)], {"m": np.eye(2), "n": np.eye(2)}, "no operation reads the tensor 'n'"),
    "read twice": ([weights(1), weights(2)], {"w.a": np.ones(2)}, "two operations read the tensor 'w.a'"),
    "not finite": ([fold(1)], {"m": np.full((2, 2), np.inf)}, "'m' holds values that are not finite"),
    "not finite in torch": ([fold(1)], {"m": torch.full((2, 2), torch.nan)}, "'m' holds values that are not finite"),
    "whole numbers": ([fold(1)], {"m": np.eye(2, dtype=np.int64)}, "of the format int64"),
    "no values": ([fold(1)], {"m": torch.empty(2, 2, device="meta")}, "'m' is on the meta device and holds no values"),
    "a list": ([fold(1)], {"m": [[1.0]]}, "'m' is list, neither an array nor a torch tensor"),
}


@pytest.mark.parametrize(("ops", "tensors", "words"), TENSORS_REFUSED.values(), ids=TENSORS_REFUSED.keys())
def test_tensors_that_do_not_belong(ops, tensors, words):
    with pytest.raises(PlanError, match=words) as caught:
        Plan.of(MODEL, ops, tensors)
    assert "\n" not in str(caught.value)


# -- tensors on disk ---------------------------------------------------------------------------------------------------


def test_tensors_come_back_as_they_went(tmp_path):
    plan, path = whole(), tmp_path / "folder" / "plan.json"
    plan.save(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["plan.json", "plan.safetensors"]
    again = Plan.load(path)
    assert again == plan and again.digest == plan.digest and again.tensors.digest == plan.tensors_digest
    assert again.tensors["r.weight"].dtype == torch.bfloat16 and again.tensors["w.norm.weight"].dtype == torch.float64
    assert torch.equal(again.tensors.torch("m"), plan.tensors.torch("m"))
    assert again.tensors.group("w").keys() == {"norm.weight"}
    assert json.loads(path.read_text())["tensors_digest"] == plan.tensors_digest
    again.save(tmp_path / "again.json")
    assert Plan.load(tmp_path / "again.json") == plan


def test_the_digest_is_of_names_formats_shapes_and_values():
    base = PlanTensors({"a": np.zeros((2, 3), np.float32)})
    assert base.digest == PlanTensors({"a": torch.zeros(2, 3)}).digest
    assert base.digest == PlanTensors({"a": np.zeros((3, 2), np.float32).T}).digest
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.float64)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(1)},
        {"a": torch.ones(2, 3)},
    ]
    assert len({base.digest, *(PlanTensors(other).digest for other in others)}) == 6
    assert PlanTensors().digest is None and PlanTensors({}) == PlanTensors(None)


def test_a_plan_is_copied_and_sent_with_its_tensors():
    plan = whole()
    for other in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan)), plan.model_copy(update={"kind": "width"})):
        assert other.tensors == plan.tensors and other.digest == plan.digest
        assert torch.equal(other.tensors.torch("r.weight"), torch.eye(4).bfloat16())


def test_tensors_cannot_be_written_to():
    tensors = whole().tensors
    with pytest.raises(TypeError):
        tensors["m"] = np.eye(4)
    with pytest.raises(ValueError, match="read-only"):
        tensors["m"][0, 0] = 5


def test_saving_copies_only_what_shares_memory(tmp_path, monkeypatch):
    """New weights of a large model are as large as the model; a view into a larger tensor is written as it reads."""
    import safetensors.torch

    big = torch.arange(24.0).reshape(4, 6)
    values = {"a": torch.eye(3), "b": big[1:3], "c": big[2:], "d": big[:, ::2], "e": torch.zeros(0)}
    handed, real = {}, safetensors.torch.save_file
    monkeypatch.setattr(
        safetensors.torch, "save_file", lambda own, *args, **more: handed.update(own) or real(own, *args, **more)
    )
    tensors = PlanTensors(values)
    tensors.save(tmp_path / "t.safetensors")
    assert handed["a"].data_ptr() == values["a"].data_ptr() and handed["b"].data_ptr() == values["b"].data_ptr()
    assert handed["c"].data_ptr() != values["c"].data_ptr()
    again = PlanTensors.load(tmp_path / "t.safetensors", tensors.digest)
    assert list(again) == list("abcde") and all(torch.equal(again.torch(name), values[name]) for name in values)


def test_two_names_of_one_memory_are_kept(tmp_path):
    both = torch.eye(2)
    plan = Plan.of(MODEL, [weights(1)], {"w.a": both, "w.b": both, "w.c": both[:1]})
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def damaged(path, how):
    side = path.with_suffix(".safetensors")
    if how == "missing":
        side.unlink()
    elif how == "cut":
        side.write_bytes(side.read_bytes()[:-5])
    elif how == "empty":
        side.write_bytes(b"")
    elif how == "bit":
        content = bytearray(side.read_bytes())
        content[-1] ^= 1
        side.write_bytes(bytes(content))
    else:
        PlanTensors({"m": np.eye(3)}).save(side)


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("missing", StoreError, "are missing"),
        ("cut", StoreError, "cannot read the plan's tensors"),
        ("empty", StoreError, "cannot read the plan's tensors"),
        ("bit", PlanError, "holds other tensors than the plan says"),
        ("other", PlanError, "holds other tensors than the plan says"),
    ],
)
def test_a_damaged_side_file_is_refused_in_one_line(tmp_path, how, kind, words):
    path = tmp_path / "plan.json"
    whole().save(path)
    damaged(path, how)
    with pytest.raises(kind, match=words) as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value) and "plan.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"tensor":"m"', '"tensor":"other"', "fold of layer 5 needs the tensor 'other'"),
        ('"tensors":"w"', '"tensors":"r"', r"two operations read the tensor 'r\.weight'"),
    ],
)
def test_names_that_were_changed_in_the_json_are_one_line(tmp_path, old, new, words):
    """Not a KeyError in the middle of surgery: the tensors are the right ones, but nothing reads them by that name."""
    path = tmp_path / "plan.json"
    whole().save(path)
    text = json.dumps(json.loads(path.read_text()), separators=(",", ":"))
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(PlanError, match=words) as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)


def test_a_plan_without_its_tensors_is_read_but_not_saved(tmp_path):
    plan = Plan.from_json(whole().to_json())
    assert plan.removed_layers == (0, 3, 7) and plan.digest == whole().digest and not plan.tensors
    with pytest.raises(PlanError, match="not at hand"):
        plan.save(tmp_path / "plan.json")
    assert not list(tmp_path.iterdir())
    assert plan.with_tensors(TENSORS) == whole()
    with pytest.raises(PlanError, match="not the tensors"):
        plan.with_tensors({"m": np.eye(4)})
    with pytest.raises(StoreError, match=r"call it plan\.json"):
        whole().save(tmp_path / "plan.safetensors")


def test_a_store_keeps_the_tensors_of_its_records(tmp_path):
    plan, store = whole(), Store(tmp_path)
    record = make_record(model=MODEL).model_copy(update={"plan": plan})
    store.write(record)
    found = read_record(store.path(record.id)).plan
    assert not found.tensors and found.digest == plan.digest
    assert [file.name for file in (tmp_path / "plans").iterdir()] == [f"{plan.tensors_digest}.safetensors"]
    assert store.whole_plan(found) == plan
    stamp = store.tensors_path(plan.tensors_digest).stat().st_mtime_ns
    store.write(record)
    assert store.tensors_path(plan.tensors_digest).stat().st_mtime_ns == stamp
    bare = Plan.drop(MODEL, (1,))
    assert store.whole_plan(bare) is bare
    with pytest.raises(StoreError, match="are missing"):
        Store(tmp_path / "elsewhere").whole_plan(found)


# -- how much goes -----------------------------------------------------------------------------------------------------


def model_of_parts():
    """Layers of 100 parameters, 400 bytes: attention has 30 of them, the MLP 70; 1,000 in the language model."""
    parts = {"params": (30, 70), "bytes": (120, 280), "prefill_flops": (400.0, 600.0), "kv_bytes_per_token": (16, 0)}
    split = [{key: values[i] for key, values in parts.items()} for i in (0, 1)]
    layer = type(MODEL.layers[0])(**{**MODEL.layers[0].model_dump(), "attention": split[0], "mlp": split[1]})
    return MODEL.model_copy(update={"layers": (layer,) * 8})


@dataclass(frozen=True)
class Parts(Strategy):
    """Drops the attention of one layer, and of another the MLP too."""

    name = "parts"
    both: bool = False

    def plan(self, context):
        ops = [DropSublayer(layer=1, part="attention")]
        return self.build_plan(context, ops=[*ops, DropSublayer(layer=1, part="mlp")] if self.both else ops)


def test_a_plan_that_takes_parts_is_not_ranked_among_whole_layers():
    context = PlanContext(model=model_of_parts(), budget=Budget(value=1, unit="layers"))
    plan = Parts().plan(context)
    assert plan.kind == "sublayers" and plan.budget.achieved.sublayers_removed == 1
    assert plan.budget.achieved.params_removed == 30
    whole = Parts(both=True).plan(context)
    assert whole.kind == "layers" and whole.budget.achieved.layers_removed == 1 and whole.removed_layers == (1,)


def test_the_account_of_every_operation_by_hand():
    model = model_of_parts()
    assert model.lm_params == 1000 and model.lm_prefill_flops == 8000 and model.reference_tokens == 10

    def got(*ops):
        plan = Plan.of(model, ops, values_for(ops))
        return achieved(model, ops=plan.ops, tensors=plan.tensors)

    attention = got(drop(1, "attention"), drop(2, "attention"))
    assert (attention.layers_removed, attention.sublayers_removed, attention.params_removed) == (0, 2, 60)
    assert attention.lm_params == 0.06 and attention.kv_bytes_per_token == 0.25 and attention.prefill_flops == 0.1
    mlp = got(drop(1, "mlp"), drop(4))
    assert (mlp.layers_removed, mlp.sublayers_removed, mlp.params_removed) == (1, 1, 170)
    assert mlp.layers == 0.125 and mlp.kv_bytes_per_token == 0.125 and mlp.bytes == 680 / 8000
    linear = got(replace(1, 3))  # two layers of 100 go, a map of 2 x 2 comes, in the same number format
    assert (linear.layers_removed, linear.params_removed) == (1, 196) and linear.kv_bytes_per_token == 0.25
    assert linear.bytes == (800 - 16) / 8000 and linear.prefill_flops == (2000 - 2 * 10 * 4) / 8000
    assert got(replace(1, 3, "decoder_layer")) == got(drop(2))
    assert got(merge(1, (1, 2)), fold(1), weights(1)) == got(drop(2))
    assert got(fold(1)).params_removed == 0
    with pytest.raises(PlanError, match="no mlp that can be told apart"):
        achieved(MODEL, ops=Plan.of(MODEL, [drop(1, "mlp")]).ops)


def test_names_of_tensors_are_plain():
    for name in ("../m", "a b", ""):
        with pytest.raises(PlanError, match="pattern"):
            Plan.of(MODEL, [fold(1, tensor=name)], {name: np.eye(2)})
    assert Fold(layer=1, module="mlp.experts.0", side="in", tensor="a-b.c_1").tensor == "a-b.c_1"
