"""Every family of the table, loaded without the layers that a plan removes, is the dense model pruned afterwards."""

from __future__ import annotations

import pytest
import torch
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.hf.families import ALIASES

from prunebench import LoadedModel, LoadOptions, Plan, prune
from prunebench.checkpoint import dense_info, load_pretrained
from prunebench.measure.cost import describe
from tests.models.family_configs import BY_NAME, FAMILIES


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_loading_with_a_plan(tmp_path, name):
    """Logits on the family's own media, bit for bit, for a drop at the beginning and one in the middle."""
    family, adapter = BY_NAME[name], TransformersModel()
    adapter.use(ALIASES[family.row])
    dense = family.model()
    model_class = type(dense)
    dense.save_pretrained(tmp_path, max_shard_size="100KB")
    config = model_class.config_class.from_pretrained(tmp_path)
    info = dense_info(model_class, config, adapter, name="tiny", revision="r", dtype="float32")
    assert info == describe(dense, adapter, name="tiny", revision="r", dtype="float32")
    batch = family.inputs(dense, 1)
    for drop in ((0, 2), (1, 4)):
        plan = Plan.drop(info, drop)
        options = LoadOptions(plan=plan)
        model = load_pretrained(model_class, tmp_path, config, options, ignore_unexpected=adapter.family.ignored)
        adapter.layers_removed(model, plan.kept_layers)
        whole = LoadedModel(model_class.from_pretrained(tmp_path).eval(), adapter, info, torch.device("cpu"))
        prune(whole, plan)
        with torch.inference_mode():
            found, expected = (m(**batch, use_cache=False).logits for m in (model, whole.model))
        assert torch.equal(found, expected), drop
        assert model.config.to_dict() == whole.model.config.to_dict()
