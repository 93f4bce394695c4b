"""Several thinners in one walk come to what each comes to alone, from fewer layers run; the model stays as it is."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
import torch
from torch import nn

from prunebench import pruned
from prunebench.errors import CalibrationError, PlanError
from prunebench.layerwise import Thinned
from prunebench.layerwise.held import Held, Material, Room, nbytes
from prunebench.layerwise.linears import linear_modules, not_linear
from prunebench.layerwise.stopwatch import Stopwatch
from prunebench.layerwise.sweep import sweep
from prunebench.layerwise.walker import Walker
from prunebench.probing import Probe
from prunebench.testing.state import ModelState
from prunebench.testing.tiny import TinyGemma, TinyLlama, TinyMedia
from tests.layerwise.walks import (
    Recorder,
    RowWise,
    alone,
    layers_that_run,
    plan_below,
    rows_by_hand,
    sums_by_hand,
    walked,
)
from tests.tiny_families import qwen2_moe

SAMPLES = TinyMedia().samples("calibration", 6)
BOTH = ("squares", "hessian")


@pytest.fixture(scope="module")
def llama():
    return TinyLlama().load()


@pytest.fixture(scope="module")
def gemma():
    return TinyGemma().load()


def same(walkers, others):
    for one, two in zip(walkers, others, strict=True):
        assert one.ops == two.ops and one.ops
        assert list(one.tensors) == list(two.tensors)
        assert all(torch.equal(value, two.tensors[name]) for name, value in one.tensors.items())
        for key, view in one.thinner.views.items():
            for mine, theirs in zip(view[:2], two.thinner.views[key][:2], strict=True):
                assert (mine is None and theirs is None) or torch.equal(mine, theirs)


class Updating(RowWise):
    """Gives new values too, and leaves every other layer alone."""

    def thin(self, layer):
        kept = super().thin(layer)
        if layer.number % 2:
            return {}
        return {name: Thinned(a.keep, 1.1 * layer.linears[name].weight * a.keep) for name, a in kept.items()}


MAKERS = [
    lambda: RowWise(0.5),
    lambda: RowWise(0.5, sequential=False, needs=BOTH),
    lambda: RowWise(0.25, needs=BOTH),
    lambda: Updating(0.5),
    lambda: RowWise(0.5, sequential=False, needs=()),
]


@pytest.mark.parametrize("memory", [0, 40_000, 1 << 30])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_together_is_each_alone_bit_for_bit_from_fewer_layers(family, memory, request):
    loaded = request.getfixturevalue(family)
    with layers_that_run(loaded) as ran:
        apart = [walked(Probe(loaded, SAMPLES, batch_size=4), make())[0] for make in MAKERS]
        separately = len(ran)
        ran.clear()
        together = walked(Probe(loaded, SAMPLES, batch_size=4, memory=memory), *(make() for make in MAKERS))
        assert 0 < len(ran) < separately
    same(together, apart)
    for one, two in zip(together, apart, strict=True):
        assert (one.layer_forwards, one.token_layers, one.peak) == (two.layer_forwards, two.token_layers, two.peak)


def test_each_is_charged_what_runs_for_it_alone(llama):
    tokens = sum(batch.inputs.n_tokens for batch in Probe(llama, SAMPLES).batches())
    for make, layers in zip(MAKERS, [11, 6, 11, 11, 0], strict=True):
        with layers_that_run(llama) as ran:
            (walker,) = walked(Probe(llama, SAMPLES, batch_size=6), make())
        assert len(ran) == layers, "the six samples are one batch"
        assert (walker.layer_forwards, walker.token_layers) == (layers * 6, layers * tokens)


def test_sequential_statistics_are_those_of_the_model_pruned_below(llama):
    probe = Probe(llama, SAMPLES, batch_size=6)
    (batch,) = probe.batches()
    for make in (lambda: RowWise(0.5, needs=BOTH), lambda: Updating(0.5, needs=BOTH)):
        (walker,) = walked(probe, make())
        for number in range(6):
            with pruned(llama, plan_below(llama, walker, number)):
                by_hand = rows_by_hand(llama, alone(batch.inputs))
            for name in linear_modules(llama.layers[number]):
                squares, hessian, _ = sums_by_hand(by_hand, (number, name))
                found = walker.thinner.views[number, name]
                torch.testing.assert_close(found[0], squares, atol=2e-5 * squares.max().item(), rtol=0.0)
                torch.testing.assert_close(found[1].double(), hessian, atol=2e-5 * squares.max().item(), rtol=0.0)
        dense = rows_by_hand(llama, alone(batch.inputs))
        far = sums_by_hand(dense, (5, "mlp.down_proj"))[0]
        assert not torch.allclose(walker.thinner.views[5, "mlp.down_proj"][0], far, rtol=0.05), "thinning shows"


def test_dense_statistics_stay_dense_beside_sequential_thinners(llama):
    probe = Probe(llama, SAMPLES, batch_size=6)
    (batch,) = probe.batches()
    _, dense = walked(probe, RowWise(0.75), RowWise(0.75, sequential=False))
    by_hand = rows_by_hand(llama, alone(batch.inputs))
    for key, view in dense.thinner.views.items():
        squares = sums_by_hand(by_hand, key)[0]
        torch.testing.assert_close(view[0], squares, atol=2e-5 * squares.max().item(), rtol=0.0)


# -- memory ------------------------------------------------------------------------------------------------------------


def test_no_statistics_outlive_their_layer(llama):
    alive: list[tuple[int, weakref.ref]] = []
    most = []

    class Watched(RowWise):
        def thin(self, layer):
            gc.collect()
            assert not [number for number, ref in alive if number != layer.number and ref() is not None]
            found = {id(view.hessian): view.hessian for view in layer.linears.values()}
            alive.extend((layer.number, weakref.ref(hessian)) for hessian in found.values())
            most.append(len({id(ref()) for _, ref in alive if ref() is not None}))
            return {name: Thinned(self.keep(view)) for name, view in layer.linears.items()}

    walked(Probe(llama, SAMPLES, batch_size=4), *(Watched(0.5, needs=BOTH) for _ in range(3)))
    gc.collect()
    assert not [ref for _, ref in alive if ref() is not None]
    assert max(most) == 4, "q, k and v share one; gate and up share one; three streams one after the other"


def test_the_counted_peak_is_in_closed_form(llama):
    with torch.inference_mode():
        batches = list(Probe(llama, SAMPLES, batch_size=4).batches())
    inputs = sum(nbytes(batch.inputs) for batch in batches)
    states = sum(batch.inputs.embeds.numel() * 4 for batch in batches)
    widths = [32, 32, 32, 48]  # of what q k v, o, gate up, and down are given
    weights = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48
    cases = {
        "squares": (RowWise(0.5), 8 * sum(widths)),
        "both": (RowWise(0.5, sequential=False, needs=BOTH), 8 * sum(widths) + 4 * sum(w * w for w in widths)),
    }
    for thinner, statistics in cases.values():
        (walker,) = walked(Probe(llama, SAMPLES, batch_size=4), thinner)
        assert walker.peak == inputs + states + statistics + weights, "masks take a byte for each weight"
    (walker,) = walked(Probe(llama, SAMPLES), RowWise(0.5, sequential=False, needs=()))
    assert walker.peak == weights


def test_states_beyond_the_bound_go_to_cpu_memory(llama):
    room, there = Room(100), Held(Room(0), torch.device("cpu"))
    held = Held(room, torch.device("cpu"))
    held[0], held[1] = torch.zeros(20), torch.ones(20)
    assert room.used == 80 and held.nbytes == 160 and torch.equal(held[1], torch.ones(20)) and held[2] is None
    held[0] = torch.zeros(10)
    held[1] = torch.ones(15)
    assert room.used == 100 and held.nbytes == 100
    held.clear()
    assert room.used == 0 and held[0] is None
    there[0] = torch.zeros(3)
    assert torch.equal(there[0], torch.zeros(3))
    with torch.inference_mode():
        batches = list(Probe(llama, SAMPLES, batch_size=4).batches())
    held = []

    def one_by_one():
        for batch in batches:
            held.append(small_room.used)  # what came before is put away when the next one is made
            yield batch

    small_room = Room(nbytes(batches[0].inputs))
    fits = Material(one_by_one(), torch.device("cpu"), small_room)
    assert held == [0, nbytes(batches[0].inputs)] and fits.nbytes == sum(nbytes(b.inputs) for b in batches)
    small = Material(batches, torch.device("cpu"), Room(0))
    assert small.room.used == 0 and small.samples == fits.samples == 6 and len(small) == len(fits) == 2
    assert small.tokens == fits.tokens == sum(b.inputs.n_tokens for b in batches)
    assert torch.equal(small.batch(1).inputs.embeds, batches[1].inputs.embeds)


def test_a_walk_gives_back_all_room(llama):
    probe = Probe(llama, SAMPLES, batch_size=4)
    with torch.inference_mode():
        material = Material(list(probe.batches()), llama.device, Room(1 << 30))
    for thinners in ([RowWise(0.5), RowWise(0.5, sequential=False)], [Breaking(ValueError(), 3), Updating(0.5)]):
        sweep(probe, material, [Walker(thinner) for thinner in thinners])
        assert material.room.used == material.nbytes


# -- what goes wrong ---------------------------------------------------------------------------------------------------


class Breaking(RowWise):
    def __init__(self, error, layer, **kwargs):
        super().__init__(0.5, **kwargs)
        self.error, self.layer = error, layer

    def thin(self, layer):
        if layer.number == self.layer:
            raise self.error
        return super().thin(layer)


def swept(loaded, *thinners):
    probe, walkers = Probe(loaded, SAMPLES, batch_size=4), [Walker(thinner) for thinner in thinners]
    with torch.inference_mode():
        material = Material(list(probe.batches()), loaded.device, Room(probe.memory))
    sweep(probe, material, walkers)
    return walkers


@pytest.mark.parametrize("layer", [0, 3, 5])
@pytest.mark.parametrize("sequential", [True, False])
def test_one_that_raises_leaves_the_others_as_they_are(llama, layer, sequential):
    expected = [*swept(llama, RowWise(0.5)), *swept(llama, RowWise(0.5, sequential=False))]
    error = ValueError("no")
    for place in range(3):
        thinners = [RowWise(0.5), RowWise(0.5, sequential=False)]
        thinners.insert(place, Breaking(error, layer, sequential=sequential))
        found = swept(llama, *thinners)
        broken = found.pop(place)
        assert broken.error is error
        assert [op.layer for op in broken.ops] == list(range(layer))
        same(found, expected)


@pytest.mark.parametrize("places", [(0, 1), (1, 0)])
def test_one_on_dense_states_that_raises_leaves_no_dense_states_behind(llama, places):
    (expected,) = swept(llama, RowWise(0.5))
    thinners = [RowWise(0.5), Breaking(ValueError("no"), 0, sequential=False)]
    found = swept(llama, *(thinners[place] for place in places))
    same([found[places.index(0)]], [expected])


def test_a_counting_that_raises_is_out_alone(llama):
    class Counting(RowWise):
        watches = True

        def count(self, call):
            if call.layer == 2 and call.sample == 3:
                raise ValueError(f"sample {call.sample}")
            return None

    broken, fine = swept(llama, Counting(0.5), RowWise(0.5))
    assert "sample 3" in str(broken.error) and len(broken.ops) == 2
    same([fine], swept(llama, RowWise(0.5)))


@pytest.mark.parametrize("layer", [0, 2, 5])
def test_an_interrupt_leaves_the_model_as_it_was(llama, layer):
    def patched():
        return [name for name, module in llama.model.named_modules() if "forward" in vars(module)]

    before, forwards = ModelState.of(llama), patched()
    parameters = [id(p) for p in llama.model.parameters()]
    with pytest.raises(KeyboardInterrupt):
        swept(llama, RowWise(0.5), Breaking(KeyboardInterrupt(), layer), RowWise(0.5, sequential=False))

    class Stopped(RowWise):  # in the middle of a forward pass, with hooks in place
        watches = True

        def count(self, call):
            if call.layer == layer and call.module == "mlp.up_proj":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        swept(llama, RowWise(0.5), Stopped(0.5, needs=("squares", "attention")))
    assert before.change(ModelState.of(llama)) is None and patched() == forwards
    assert [id(p) for p in llama.model.parameters()] == parameters


def test_a_sweep_leaves_the_model_as_it_was(llama):
    before = ModelState.of(llama)
    walked(Probe(llama, SAMPLES), *(make() for make in MAKERS))
    assert before.change(ModelState.of(llama)) is None


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda w: {"mlp.nothing": Thinned(w > 0)}, "layer 0 has no linear module 'mlp.nothing' to thin"),
        (lambda w: {"mlp.up_proj": Thinned(w)}, "layer 0 mlp.up_proj: keep is torch.float32"),
        (lambda w: {"mlp.up_proj": Thinned((w > 0)[1:])}, "layer 0 mlp.up_proj: keep is torch.bool"),
        (lambda w: {"mlp.up_proj": Thinned(w > 0, w[1:])}, "the new weight has shape"),
        (lambda w: {"mlp.up_proj": Thinned(w > 0, w / 0)}, "a new weight is not finite"),
        (lambda w: {"mlp.up_proj": w > 0}, "the answer is Tensor"),
    ],
)
def test_answers_that_do_not_fit_are_refused(llama, answer, message):
    class Odd(Recorder):
        def thin(self, layer):
            return answer(layer.linears["mlp.up_proj"].weight)

    with pytest.raises(PlanError, match=message):
        walked(Probe(llama, SAMPLES), Odd())


def test_patterns_are_kept_to(llama):
    walker = Walker(RowWise(0.5), pattern="2:4")
    probe = Probe(llama, SAMPLES)
    with torch.inference_mode():
        sweep(probe, Material(list(probe.batches()), llama.device, Room(1 << 30)), [walker])
    assert "more than 2 of 4 neighbours stay" in str(walker.error)


# -- what is no linear module ------------------------------------------------------------------------------------------


def test_fused_experts_convolutions_and_quantised_weights_are_named():
    model_class, config = qwen2_moe()
    assert "mlp.experts (Qwen2MoeExperts) in all layers" in not_linear(model_class(config).model.layers)
    assert not_linear(TinyLlama().load().layers) == ""
    layers = TinyLlama().load().layers
    layers[1].conv = nn.Conv1d(4, 4, 3)
    layers[1].mlp.up_proj.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    layers[2].conv = nn.Conv1d(4, 4, 3)
    assert not_linear(layers) == "mlp.up_proj (Linear) in layer 1, conv (Conv1d) in 2 of 6 layers"
    assert "mlp.up_proj" not in linear_modules(layers[1]) and "mlp.gate_proj" in linear_modules(layers[1])


def test_modules_that_see_no_token_have_sums_of_zero_and_are_noted(llama):
    loaded = TinyLlama().load()
    loaded.layers[1].mlp.spare = nn.Linear(32, 8)
    recorder = Recorder()
    (walker,) = walked(Probe(loaded, SAMPLES), recorder)
    squares, hessian, total = recorder.views[1, "mlp.spare"]
    assert squares.shape == (32,) and hessian.shape == (32, 32) and not squares.any() and total == 0.0
    assert walker.unseen == ["mlp.spare of layer 1"]


# -- time --------------------------------------------------------------------------------------------------------------


def test_time_inside_a_section_is_its_own(monkeypatch):
    class Someone:
        seconds = 0.0

    clock = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    monkeypatch.setattr("prunebench.layerwise.stopwatch.time.perf_counter", lambda: next(clock))
    a, b, watch = Someone(), Someone(), Stopwatch()
    with watch.on([a, b]), watch.on([b]):  # both from 0 to 1 and from 3 to 7, b alone in between
        pass
    with pytest.raises(ValueError, match="no"), watch.on([a]):  # 15 to 31
        raise ValueError("no")
    assert (a.seconds, b.seconds) == (1 + 4 + 16, 1 + 4 + 2)


def test_shared_time_counts_in_full_for_each_and_own_time_for_one(llama):
    class Slow(RowWise):
        def thin(self, layer):
            time.sleep(0.03)
            return super().thin(layer)

    handle = llama.layers[3].mlp.register_forward_hook(lambda *_: time.sleep(0.05))
    try:
        slow, fast = walked(Probe(llama, SAMPLES), Slow(0.5, sequential=False), RowWise(0.5, sequential=False))
    finally:
        handle.remove()
    assert fast.seconds > 0.05 and slow.seconds > 0.05 + 6 * 0.03
    assert slow.seconds - fast.seconds > 0.1


def test_a_decoder_that_passes_over_a_layer_is_said(llama, monkeypatch):
    probe = Probe(llama, SAMPLES)
    monkeypatch.setattr(probe.passage, "states", lambda *_a, **_k: {1: None})
    with pytest.raises(CalibrationError, match="runs no layer 1 on these samples"):
        walked(probe, Recorder())
