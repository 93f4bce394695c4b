"""What a thinner is shown is what each sample alone gives in the whole model, whatever stands beside it in a batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.hf.families import ALIASES
from torch import nn

from prunebench import LoadedModel, pruned
from prunebench.calibration.samples import Sample
from prunebench.errors import CalibrationError
from prunebench.layerwise import Thinner
from prunebench.measure.cost import describe
from prunebench.probing import Probe
from prunebench.probing.questions import Batch
from prunebench.testing.tiny import TinyGemma, TinyLlama, TinyMedia
from tests.layerwise.walks import Recorder, RowWise, alone, plan_below, rows_by_hand, sums_by_hand, walked
from tests.models.family_configs import BY_NAME

SAMPLES = TinyMedia().samples("calibration", 6)


@pytest.fixture(scope="module", params=[TinyLlama, TinyGemma], ids=lambda kind: kind.name)
def tiny(request):
    loaded = request.param().load()
    probe = Probe(loaded, SAMPLES, batch_size=6)
    with torch.inference_mode():
        (batch,) = probe.batches()
        return loaded, rows_by_hand(loaded, alone(batch.inputs)), batch


def close(found, expected, rtol=2e-5):
    """Relative to the largest entry: single entries may be sums that cancel."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.double(), expected.double(), atol=rtol * scale, rtol=0.0)


def check(recorder, by_hand, average="tokens"):
    assert recorder.views
    for key, (squares, hessian, total) in recorder.views.items():
        expected = sums_by_hand(by_hand, key, average)
        close(squares, expected[0])
        close(hessian, expected[1])
        assert squares.dtype == torch.float64 and hessian.dtype == torch.float32
        assert torch.equal(hessian, hessian.T)
        assert total == pytest.approx(expected[2])


@pytest.mark.parametrize("size", [1, 4, 6])
def test_sums_are_those_of_single_samples(tiny, size):
    loaded, by_hand, batch = tiny
    lengths = batch.inputs.attention_mask.sum(1).tolist()
    assert len(set(lengths)) > 2 and all(group.any() for group in batch.inputs.groups.values())
    tokens, samples = Recorder(), Recorder(average="samples")
    walked(Probe(loaded, SAMPLES, batch_size=size), tokens, samples)
    assert set(tokens.views) == {
        (number, name)
        for number, layer in enumerate(loaded.layers)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    check(tokens, by_hand)
    check(samples, by_hand, "samples")
    assert tokens.views[0, "mlp.up_proj"][2] == sum(lengths)
    assert samples.views[0, "mlp.up_proj"][2] == pytest.approx(len(lengths))


def test_only_what_is_needed_is_summed_up(tiny):
    loaded, _, _ = tiny
    squares, hessian = Recorder(["squares"]), Recorder(["hessian"])
    walked(Probe(loaded, SAMPLES), squares, hessian)
    assert all(view[0] is not None and view[1] is None for view in squares.views.values())
    assert all(view[0] is None and view[1] is not None for view in hessian.views.values())


def test_modules_with_the_same_input_share_their_sums(tiny):
    loaded, _, _ = tiny
    seen = {}

    class Sharing(Recorder):
        def thin(self, layer):
            seen[layer.number] = {name: id(view.hessian) for name, view in layer.linears.items()}
            return {}

    walked(Probe(loaded, SAMPLES), Sharing())
    for ids in seen.values():
        q, k, v = (ids[f"self_attn.{letter}_proj"] for letter in "qkv")
        assert q == k == v and ids["mlp.gate_proj"] == ids["mlp.up_proj"] and len(set(ids.values())) == 4


# -- masks and positions of each sample --------------------------------------------------------------------------------


def build(name):
    family = BY_NAME[name]
    model, adapter = family.model(), TransformersModel()
    adapter.use(ALIASES[family.row])
    info = describe(model, adapter, name=name, revision="0" * 64, dtype="float32")
    loaded = LoadedModel(model, adapter, info, torch.device("cpu"))
    with torch.inference_mode():
        return loaded, adapter.encode_batch(loaded, family.inputs(model, 1), "only")


def as_batch(inputs):
    rows = range(len(inputs.embeds))
    return Batch(0, rows, inputs, torch.full((len(rows), 1), -100))


@pytest.mark.parametrize("name", BY_NAME)
def test_families(name):
    """Positions on several axes, additions between layers, windows, cross attention: as in the family's own pass."""
    loaded, inputs = build(name)
    ids = torch.tensor([[11, 12, 2]])
    with torch.inference_mode():
        inputs = loaded.adapter.append_tokens(loaded, inputs, ids, torch.ones_like(ids))
    recorder = Recorder()
    _, walker = walked(Probe(loaded, SAMPLES), recorder, RowWise(0.5), batches=[as_batch(inputs)])
    check(recorder, rows_by_hand(loaded, [inputs]))
    with pruned(loaded, plan_below(loaded, walker, 5)):
        by_hand = rows_by_hand(loaded, [inputs])
    last = {key: view[0] for key, view in walker.thinner.views.items() if key[0] == 5}
    assert last
    for key, squares in last.items():
        close(squares, sums_by_hand(by_hand, key)[0])


@pytest.fixture(scope="module")
def padded():
    """Two samples of a model with positions on several axes: one shorter, with positions of its own."""
    loaded, inputs = build("Qwen2.5VL")
    cut = 5
    mask = inputs.attention_mask.repeat(2, 1)
    mask[1, :cut] = 0
    positions = inputs.extra["position_ids"].repeat_interleave(2, dim=-2)
    axes = torch.arange(1, positions.shape[0] + 1).view(-1, 1)
    positions[:, 1] = positions[:, 1] * axes + 3 * axes
    groups = {name: group.repeat(2, 1) & mask.bool() for name, group in inputs.groups.items()}
    embeds = inputs.embeds.repeat(2, 1, 1)
    return loaded, dataclasses.replace(
        inputs, embeds=embeds, attention_mask=mask, groups=groups, extra={**inputs.extra, "position_ids": positions}
    )


def test_each_sample_has_its_own_mask_and_positions(padded):
    loaded, inputs = padded
    recorder = Recorder()
    walked(Probe(loaded, SAMPLES), recorder, batches=[as_batch(inputs)])
    check(recorder, rows_by_hand(loaded, alone(inputs)))


def test_the_last_samples_mask_and_positions_for_all_would_give_something_else(padded):
    """As released layerwise code does it: kwargs are caught once, of the last sample, and used for every one."""
    loaded, inputs = padded
    recorder = Recorder()
    walked(Probe(loaded, SAMPLES), recorder, batches=[as_batch(inputs)])
    positions = inputs.extra["position_ids"][:, 1:].repeat_interleave(2, dim=-2)
    wrong = dataclasses.replace(
        inputs,
        attention_mask=inputs.attention_mask[1:].repeat(2, 1),
        extra={**inputs.extra, "position_ids": positions},
    )
    seen = {}
    handles = []
    for number, layer in enumerate(loaded.layers):
        handles.append(
            layer.mlp.down_proj.register_forward_hook(lambda _m, args, _o, n=number: seen.update({n: args[0]}))
        )
    with torch.inference_mode():
        loaded.adapter.forward(loaded, wrong, logits_to_keep=1)
    for handle in handles:
        handle.remove()
    mask, ours = inputs.attention_mask.bool(), recorder.views[5, "mlp.down_proj"][0]
    theirs = (seen[5][mask].double() ** 2).sum(0)
    difference = ((ours - theirs).abs() / ours).median().item()
    assert difference > 0.01, "the second sample's mask and positions make no difference: the test shows nothing"


# -- watchers ----------------------------------------------------------------------------------------------------------


class Watching(Recorder):
    """Counts the tokens of one group, and keeps the calls."""

    watches = True

    def __init__(self, group="visual", needs=("squares", "hessian")):
        super().__init__(needs)
        self.group, self.calls = group, []

    def count(self, call):
        self.calls.append(dataclasses.replace(call, inputs=call.inputs.clone(), outputs=call.outputs.clone()))
        tokens = call.groups.get(self.group)
        return torch.zeros(len(call.inputs)) if tokens is None else tokens.float() * 2


@pytest.mark.parametrize("size", [1, 6])
def test_a_watchers_weights_are_those_of_its_statistics_alone(tiny, size):
    loaded, by_hand, batch = tiny
    watching, other = Watching(), Recorder()
    walked(Probe(loaded, SAMPLES, batch_size=size), watching, other)
    check(other, by_hand)
    groups = [each.groups["visual"][0] for each in alone(batch.inputs)]
    for key, (squares, hessian, total) in watching.views.items():
        rows = torch.cat([seen[key][0][own] for seen, own in zip(by_hand, groups, strict=True)]).double()
        close(squares, 2 * (rows**2).sum(0))
        close(hessian, 2 * rows.T @ rows)
        assert total == 2 * len(rows)


def test_calls_show_every_module_and_sample_without_padding(tiny):
    loaded, by_hand, batch = tiny
    watching = Watching(needs=())
    walked(Probe(loaded, SAMPLES, batch_size=4), watching)
    assert len(watching.calls) == len(by_hand) * len(by_hand[0])
    for call in watching.calls:
        x, y = by_hand[call.sample][call.layer, call.module]
        close(call.inputs, x)
        close(call.outputs, y)
        assert torch.stack(list(call.groups.values())).sum(0).eq(1).all(), "groups are disjoint and cover all tokens"
        assert call.attention is None
        for name, group in alone(batch.inputs)[call.sample].groups.items():
            assert torch.equal(call.groups[name], group[0])


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_of_the_last_token_is_that_of_the_eager_model(tiny, implementation):
    loaded, _, batch = tiny
    config = loaded.adapter.text_config(loaded.model)
    before = config._attn_implementation
    watching = Watching(needs=("attention",))
    try:
        config._attn_implementation = implementation
        walked(Probe(loaded, SAMPLES, batch_size=4), watching)
        config._attn_implementation = "eager"
        with torch.inference_mode():
            for sample, inputs in enumerate(alone(batch.inputs)):
                out = loaded.decoder(
                    inputs_embeds=inputs.embeds, attention_mask=inputs.attention_mask, output_attentions=True
                )
                for layer, weights in enumerate(out.attentions):
                    calls = [call for call in watching.calls if (call.sample, call.layer) == (sample, layer)]
                    assert len(calls) == 7
                    for call in calls:
                        close(call.attention, weights[0, :, -1].mean(0))
                        assert call.attention.sum().item() == pytest.approx(1.0, abs=1e-5)
    finally:
        config._attn_implementation = before


def test_a_layer_without_attention_is_said_in_a_line():
    loaded = TinyLlama().load()
    loaded.model.config._attn_implementation = "eager"

    class Mute(nn.Module):
        def __init__(self, own):
            super().__init__()
            self.own = own

        def forward(self, *args, **kwargs):
            return self.own(*args, **kwargs)[0], None

    loaded.layers[2].self_attn = Mute(loaded.layers[2].self_attn)
    with pytest.raises(CalibrationError, match="layer 2 shows no attention"):
        walked(Probe(loaded, SAMPLES), Watching(needs=("attention",)))


@pytest.mark.parametrize("weights", [torch.ones(2), -1, float("nan")])
def test_weights_that_are_no_weights_are_refused(weights):
    class Wrong(Watching):
        def count(self, call):
            return weights if torch.is_tensor(weights) else torch.full((len(call.inputs),), weights)

    with pytest.raises(Exception, match=r"layer 0 self_attn.q_proj: count\(\) has to give one weight >= 0"):
        walked(Probe(TinyLlama().load(), SAMPLES), Wrong())


# -- inputs that cannot be told from padding ---------------------------------------------------------------------------


class Flat(nn.Module):
    """Gives its MLP all tokens of a batch in a row, as some mixtures of experts do."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp = mlp

    def forward(self, hidden):
        return self.mlp(hidden.reshape(-1, hidden.shape[-1])).view(hidden.shape)


@pytest.mark.parametrize("thinner", [Recorder, Watching], ids=lambda kind: kind.__name__)
def test_flat_inputs_need_batches_without_padding(thinner):
    loaded = TinyLlama().load()
    expected = thinner()
    walked(Probe(loaded, SAMPLES, batch_size=1), expected)
    loaded.layers[3].mlp = Flat(loaded.layers[3].mlp)
    with pytest.raises(CalibrationError, match=r"layer 3: the input of mlp.mlp.gate_proj .* use --batch-size 1"):
        walked(Probe(loaded, SAMPLES, batch_size=6), thinner())
    found = thinner()
    walked(Probe(loaded, SAMPLES, batch_size=1), found)
    for name in ("gate_proj", "down_proj"):
        assert torch.equal(found.views[3, f"mlp.mlp.{name}"][1], expected.views[3, f"mlp.{name}"][1])


class Routed(Flat):
    """Gives its MLP the first tokens of a sample alone, and none of short samples, as experts are given some."""

    def forward(self, hidden):
        rows = hidden.reshape(-1, hidden.shape[-1])
        some = len(rows) // 2 if len(rows) > self.least else 0
        return torch.cat([self.mlp(rows[:some]), rows[some:]]).view(hidden.shape)


@pytest.mark.parametrize("average", ["tokens", "samples"])
def test_modules_that_see_some_of_the_tokens_have_the_weights_of_these_alone(average):
    loaded = TinyLlama().load()
    probe = Probe(loaded, SAMPLES, batch_size=1)
    with torch.inference_mode():
        lengths = [batch.inputs.n_tokens for batch in probe.batches()]
    for least, expected in ((0, sum(n // 2 / (n if average == "samples" else 1) for n in lengths)), (10**6, 0.0)):
        mlp = loaded.layers[3].mlp
        loaded.layers[3].mlp = Routed(mlp)
        loaded.layers[3].mlp.least = least
        found = Recorder(average=average)
        walked(probe, found)
        loaded.layers[3].mlp = mlp
        assert found.views[3, "mlp.mlp.up_proj"][2] == pytest.approx(expected, rel=1e-12)
        assert found.views[3, "self_attn.q_proj"][2] == (len(lengths) if average == "samples" else sum(lengths))


def test_inputs_that_are_not_finite_are_named():
    loaded = TinyLlama().load()
    loaded.layers[4].input_layernorm.weight.data[3] = float("inf")
    with pytest.raises(CalibrationError, match=r"layer 4: what goes into self_attn.q_proj is not finite"):
        walked(Probe(loaded, SAMPLES), Recorder())


def test_running_text_is_read_to_its_end():
    class Reader(TinyLlama):
        def text_ids(self, loaded, sample):
            return [1, *(int(word[1:]) for word in sample.instruction.split())]

    loaded = Reader().load()
    texts = [Sample(id=str(i), instruction=text) for i, text in enumerate(["w5 w9 w7 w5", "w8 w8", "w30 w4 w6"])]
    recorder = Recorder()
    walked(Probe(loaded, texts, batch_size=3), recorder)
    with torch.inference_mode():
        by_hand = rows_by_hand(loaded, [loaded.encode([sample]) for sample in texts])
    check(recorder, by_hand)
    assert recorder.views[0, "mlp.up_proj"][2] == 5 + 3 + 4


def test_a_thinner_that_needs_nothing_is_shown_weights_alone():
    recorder = Recorder(needs=())
    assert isinstance(recorder, Thinner)
    loaded = TinyLlama().load()
    walked(Probe(loaded, SAMPLES), recorder)
    assert all(view == (None, None, 0.0) for view in recorder.views.values()) and len(recorder.views) == 6 * 7
