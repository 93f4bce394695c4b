"""The statistics that look inside layers, on every family's own wiring: what is not shown is said, never guessed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from prunebench_models.transformers_adapter import TransformersAdapter

from prunebench.adapter import DecoderInputs, LoadedModel, LoadOptions
from prunebench.calibration.collect import GROUPS, calibrate
from prunebench.calibration.samples import Sample
from prunebench.errors import CalibrationError
from prunebench.measure.cost import describe
from tests.tiny_families import FAMILIES, IDS

SCALED = {"gemma3", "gemma3 text"}
"""Families that norm or scale what the MLP gives before it joins the residual stream."""


class Words(TransformersAdapter):
    """A family's decoder on fixed tokens; the first three stand for an image's."""

    name = "words"

    def load(self, options: LoadOptions = LoadOptions()) -> LoadedModel:
        model_class, config = FAMILIES[options.reference]()
        torch.manual_seed(0)
        model = model_class(config).eval()
        model.set_attn_implementation(options.attn_implementation)
        for parameter in model.parameters():
            parameter.data.mul_(3.0) if parameter.dim() > 1 else None
        info = describe(model, self, name="words", revision="r", dtype="float32")
        return LoadedModel(model, self, info, torch.device("cpu"))

    def encode(self, loaded, samples):
        embeds = loaded.model.get_input_embeddings()(IDS)
        media = torch.arange(IDS.shape[1])[None] < 3
        return DecoderInputs(embeds, torch.ones_like(IDS), {"visual": media, "text": ~media})


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mllama"])
def test_family(family):
    loaded = Words().load(LoadOptions(reference=family, attn_implementation="sdpa"))
    asked = {"sublayer_cosine", "important_cosine=0.5", "attention_importance", "mlp_outputs=4", "token_states=4"}
    trace = calibrate(loaded, [Sample("a", "")], asked)
    assert trace["sublayer_cosine"].shape == (1, len(GROUPS), 6, 2)
    eager = Words().load(LoadOptions(reference=family, attn_implementation="eager"))
    again = calibrate(eager, [Sample("a", "")], asked)
    np.testing.assert_allclose(trace["attention_importance"], again["attention_importance"], atol=1e-4)
    assert trace["attention_importance"].min() > 0
    if family in SCALED:
        with pytest.raises(CalibrationError, match="turn compensation off"):
            trace["mlp_outputs=4"]
        return
    # Without attention a layer's first cosine is 1, and without an MLP its second: both are seen where they are.
    for layer, part in enumerate(("attention", "mlp")):
        module = loaded.layers[layer].self_attn if part == "attention" else loaded.layers[layer].mlp
        for parameter in module.parameters():
            parameter.data.zero_()
    silent = calibrate(loaded, [Sample("a", "")], {"sublayer_cosine", "mlp_outputs=4"})
    found = silent["sublayer_cosine"][0, 0] / silent["token_count"][0, 0]
    assert found[0, 0] == pytest.approx(1) and found[1, 1] == pytest.approx(1)
    assert found[0, 1] < 0.999 and found[1, 0] < 0.999
    assert not silent["mlp_outputs=4"][0, :, 1].any() and silent["mlp_outputs=4"][0, :, 0].any()


def test_layers_that_do_not_run_are_not_passed_over():
    """Without an image the cross-attention layers of Mllama are left out: sums over the rest would be misnumbered."""
    loaded = Words().load(LoadOptions(reference="mllama", attn_implementation="sdpa"))
    with pytest.raises(CalibrationError, match="4 of 6 decoder layers ran"):
        calibrate(loaded, [Sample("a", "")], {"token_cosine"})
