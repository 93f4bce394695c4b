"""The conformance kit: what ships passes it, and each deliberate mistake is caught by the check of that name."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from prunebench_models.testbed.adapter import Testbed
from transformers import LlamaForCausalLM

from prunebench import Budget, Dataset, Evaluator, Plan, ScoreStrategy, ScoreTable, Strategy, TaskResult, testing
from prunebench.errors import EvaluationError
from prunebench.plugins import get_plugins
from prunebench.suites import Task
from prunebench.testing.pruning import drop_patterns
from prunebench.testing.tiny import TINY_MODELS, TinyGemma, TinyLlama, TinyMedia, TinyText

STRATEGIES = sorted({entry.value.name for entry in get_plugins().registry("strategies").values()})


def why(report: testing.Report) -> dict[str, str]:
    """Failed checks with their reasons; every reason is one line that says something."""
    for result in report.results:
        assert result.proves and "\n" not in result.reason
        assert bool(result.reason) == (result.status != "passed")
    return {result.name: result.reason for result in report.failed}


# -- what ships --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def testbed():
    """A bench of the shipped model, loaded and calibrated once."""
    return testing.Bench.named(get_plugins(), "testbed")


@pytest.mark.parametrize("name", STRATEGIES)
def test_registered_strategies_pass(name, testbed):
    report = testing.check_strategy(get_plugins().get("strategies", name), [*testing.tiny_benches(), testbed])
    assert report.ok and not why(report)
    assert {result.on for result in report.results} == {"", *TINY_MODELS, "testbed"}


@pytest.mark.parametrize("adapter", [TinyLlama, TinyGemma, Testbed], ids=lambda a: a.name)
def test_adapters_pass(adapter):
    report = testing.check_adapter(adapter)
    assert not why(report)
    assert report.count("passed") == len(report.results)  # nothing was left out


def test_a_loaded_model_is_checked_as_it_is():
    loaded = TinyGemma().load()
    report = testing.check_adapter(loaded.adapter, loaded)
    skipped = {result.name for result in report.results if result.status == "skipped"}
    assert report.ok and skipped == {"wrong-folder", "load-again", "plan-at-loading"}


@pytest.mark.parametrize("dataset", [TinyText, TinyMedia])
def test_tiny_datasets_pass(dataset):
    assert testing.check_dataset(dataset).ok


def test_the_shipped_dataset_and_evaluator_pass():
    plugins = get_plugins()
    assert testing.check_dataset(plugins.get("datasets", "testbed")).ok
    report = testing.check_evaluator(plugins.get("evaluators", "local"))
    assert report.ok and not report.count("skipped")


@pytest.mark.parametrize("check", testing.strategy_checks(get_plugins().get("strategies", "first_n")))
def test_checks_are_tests_of_their_own(check):
    """What a plugin's tests write: a check that does not apply is a skipped test."""
    check()


def test_every_check_says_what_it_proves_and_has_a_name_of_its_own():
    checks = [
        *testing.strategy_checks(STRATEGY),
        *testing.adapter_checks(TinyLlama),
        *testing.dataset_checks(TinyText),
        *testing.evaluator_checks(Counting),
    ]
    assert len(checks) > 60 and all(len(check.proves) > 20 for check in checks)
    assert len({check.__name__ for check in testing.strategy_checks(STRATEGY)}) == 6 + 2 * 12


def test_drop_patterns_hold_the_first_and_the_last_layer_that_may_go():
    patterns = drop_patterns(8, protected=(0, 7))
    assert {(1,), (6,), tuple(range(1, 7))} <= set(patterns)
    assert not any({0, 7} & set(drop) for drop in patterns)
    assert drop_patterns(3, protected=(0, 1, 2)) == []
    assert all(0 < len(drop) < 6 and list(drop) == sorted(set(drop)) for drop in drop_patterns(6))


# -- strategies that are wrong -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Good(ScoreStrategy):
    """Deeper layers go first: score(l) = l."""

    name = "good"

    def score(self, context):
        return np.arange(context.model.n_layers, dtype=float)


STRATEGY = Good
NAMED = {"name": "wrong", "__doc__": "Deeper layers go first: score(l) = l."}


def strategy(base: type = Good, **members: Any) -> type[Strategy]:
    """A strategy with one thing changed."""
    return dataclass(frozen=True)(type("Wrong", (base,), {**NAMED, **members}))


def score_with(change) -> Any:
    """A score() that does `change(context)` first."""

    def score(self, context):
        change(context)
        return np.arange(context.model.n_layers, dtype=float)

    return score


def plan_with(change) -> Any:
    """A plan() that returns `change(self, context, right plan)`."""

    def plan(self, context):
        return change(self, context, ScoreStrategy.plan(self, context))

    return plan


def remove(self, context, layers):
    return self.build_plan(context, layers)


def cosine(self):
    return frozenset({"token_cosine"})


def clipped(self, context):
    return remove(self, context, range(context.model.n_layers)[: min(context.n_remove, 4)])


def refused(self, context):
    if context.n_remove > 4:
        raise ValueError("too much")
    return ScoreStrategy.plan(self, context)


def dead_trace(context):
    context.need_trace().arrays["token_cosine"][:] = 0


def unfrozen():
    cls = dataclass(frozen=True)(type("Wrong", (Good,), NAMED))
    cls.__setattr__ = object.__setattr__
    return cls


WRONG_STRATEGIES = {
    "no docstring": (strategy(__doc__=None), "docstring", "has no docstring"),
    "no formula": (strategy(__doc__="Removes layers.", requires=cosine), "docstring", "neither a formula"),
    "a name with a space": (strategy(name="two words"), "declaration", "'two words' is no name that can be typed"),
    "an unknown kind": (strategy(kind="heads"), "declaration", "kind is 'heads'"),
    "not frozen": (unfrozen(), "frozen", "select can be changed after construction"),
    "a parameter that is no JSON": (
        strategy(__annotations__={"skip": frozenset[int]}, skip=frozenset({1})),
        "parameters",
        "the parameters are no JSON",
    ),
    "a default outside its type": (strategy(__annotations__={"k": int}, k="many"), "parameters", "k=many"),
    "an untyped parameter": (strategy(__annotations__={"k": Any}, k=1), "parameters", "'k' has the type Any"),
    "unknown parameters taken": (
        strategy(from_params=classmethod(lambda cls, params=None: cls())),
        "unknown-parameter",
        "takes a parameter that does not exist",
    ),
    "an unknown statistic": (strategy(requires=lambda self: {"cosines"}), "statistics", "'cosines'"),
    "a word for statistics": (strategy(requires=lambda self: "norms"), "statistics", "returned str"),
    "a statistic that it did not ask for": (
        strategy(requires=cosine, score=lambda self, context: context.trace["update_norm"].sum((0, 1))),
        "contract",
        "name it in the strategy's requires",
    ),
    "the trace changed": (strategy(requires=cosine, score=score_with(dead_trace)), "trace-untouched", "token_cosine"),
    "layers in a list": (strategy(plan=lambda self, context: [0]), "contract", "plan() returned list"),
    "a plan for another model": (
        strategy(plan=plan_with(lambda self, c, p: Plan.drop(c.model.model_copy(update={"name": "x"}), [0]))),
        "contract",
        "the plan is for x",
    ),
    "no provenance": (
        strategy(plan=plan_with(lambda self, c, p: p.model_copy(update={"provenance": None}))),
        "contract",
        "does not say which strategy made it",
    ),
    "one layer too few": (
        strategy(plan=plan_with(lambda self, c, p: remove(self, c, p.removed_layers[1:]))),
        "budget",
        "the plan removes 0",
    ),
    "a layer where none was asked": (
        strategy(plan=plan_with(lambda self, c, p: p if c.n_remove else remove(self, c, [0]))),
        "empty-budget",
        "the plan removes [0]",
    ),
    "too large a budget cut short": (strategy(plan=clipped), "budget", "5 layers of 6 layers is 5, the plan removes 4"),
    "too large a budget refused otherwise": (
        strategy(plan=refused),
        "largest-budget",
        "5 of 6 layers give ValueError: too much: raise BudgetError",
    ),
    "a protected layer": (
        strategy(plan=lambda self, context: remove(self, context, range(context.n_remove))),
        "protected",
        "removes layer 0, which is protected",
    ),
    "a column that is not finite": (
        strategy(score=lambda self, c: ScoreTable(values=(0.0,) * 6, meaning="x", columns={"y": (np.nan,) * 6})),
        "scores",
        "y: layer 0",
    ),
    "notes that are no JSON": (
        strategy(score=score_with(lambda context: context.notes.update(array=np.zeros(2)))),
        "json-round-trip",
        "cannot be kept as JSON",
    ),
    "the global random state": (
        strategy(score=lambda self, context: np.random.random(context.model.n_layers)),
        "determinism",
        "np.random.default_rng(context.seed)",
    ),
    "a seed that is not declared": (
        strategy(score=lambda self, c: np.random.default_rng(c.seed).random(c.model.n_layers)),
        "seeds",
        "declare `stochastic = True`",
    ),
    "stochastic without a seed": (strategy(stochastic=True), "seeds", "8 seeds give one plan"),
    "an exception": (strategy(score=lambda self, context: {}["lost"]), "contract", "raised KeyError: 'lost'"),
}


@pytest.mark.parametrize(("cls", "name", "words"), WRONG_STRATEGIES.values(), ids=WRONG_STRATEGIES.keys())
def test_a_wrong_strategy_is_caught_by_name(cls, name, words):
    found = why(testing.check_strategy(cls, [testing.tiny_benches()[0]]))
    assert words in found.get(name, ""), found


def test_the_base_of_the_wrong_strategies_is_right():
    assert testing.check_strategy(Good).ok
    assert testing.check_strategy(strategy()).ok


CHANGES = {
    "tensor model.layers.2.mlp.up_proj.weight": lambda m: m.model.layers[2].mlp.up_proj.weight.data.mul_(1.01),
    "configuration entry model.num_hidden_layers": lambda m: setattr(m.config, "num_hidden_layers", 5),
    "module model.layers.1 (forward_hooks)": lambda m: m.model.layers[1].register_forward_hook(lambda *_: None),
    "module model.norm (training flag)": lambda m: m.model.norm.train(),
    "the list of decoder layers (6 before, 5 after)": lambda m: m.model.layers.__delitem__(3),
}


@pytest.mark.parametrize(("what", "change"), CHANGES.items(), ids=CHANGES.keys())
def test_a_strategy_that_touches_the_model_is_caught(what, change):
    bench = testing.tiny_benches()[0]
    found = why(testing.check_strategy(strategy(score=score_with(lambda _: change(bench.loaded.model))), [bench]))
    assert found["model-untouched"].startswith(f"plan() changed {what}: "), found


# -- adapters that are wrong -------------------------------------------------------------------------------------------


def adapter(base: type = TinyGemma, **members: Any) -> type:
    """An adapter with one thing changed."""
    return type("Wrong", (base,), {"__doc__": "A tiny decoder.", **members})


def load_with(change, base: type = TinyGemma) -> Any:
    """A load() after which `change(loaded)` is done."""

    def load(self, options=None):
        loaded = base.load(self, options) if options else base.load(self)
        return change(loaded) or loaded

    return load


def encode_with(change, base: type = TinyGemma) -> Any:
    """An encode() that returns `change(inputs, samples)`."""
    return lambda self, loaded, samples: change(base.encode(self, loaded, samples), samples)


def group(inputs, **masks):
    return replace(inputs, groups={**inputs.groups, **masks})


def right_padded(inputs, _samples):
    order = inputs.attention_mask.argsort(dim=1, descending=True, stable=True)
    rows = torch.arange(len(order))[:, None]
    groups = {name: mask[rows, order] for name, mask in inputs.groups.items()}
    return replace(
        inputs, embeds=inputs.embeds[rows, order], attention_mask=inputs.attention_mask[rows, order], groups=groups
    )


def no_mask(inputs, _samples):
    return replace(inputs, attention_mask=torch.ones_like(inputs.attention_mask))


class Frozen:
    """A copy of the decoder's configuration: what surgery writes into it never arrives."""

    @staticmethod
    def text_config(self, model):
        from copy import deepcopy

        if not hasattr(self, "copied"):
            self.copied = deepcopy(model.config)
        return self.copied


class Forgetful(LlamaForCausalLM):
    """Leaves the final norm out of its checkpoint."""

    def save_pretrained(self, folder, **options):
        state = {name: tensor for name, tensor in self.state_dict().items() if name != "model.norm.weight"}
        return super().save_pretrained(folder, state_dict=state, **options)


def forgetful(self):
    return Forgetful(TinyLlama.build(self).config)


def info_with(**changes):
    return load_with(lambda loaded: setattr(loaded, "info", loaded.info.model_copy(update=changes)))


def step_wrong(self, loaded, tokens, state):
    return TinyGemma.decode_step(self, loaded, (tokens + 1) % 64, state)


def all_logits(self, loaded, inputs, *, logits_to_keep=0):
    return TinyGemma.forward(self, loaded, inputs)


def drawn(self, loaded, inputs, max_new_tokens):
    return [f"w{torch.randint(10**6, ()).item()}" for _ in inputs.attention_mask]


def never_undone(self, model, kept):
    model.config.kept = list(kept)
    return None


def switched(self, loaded, inputs, max_new_tokens):
    loaded.model.config.use_cache = False
    return [""] * len(inputs.attention_mask)


def blind(inputs, samples):
    """The same tokens whatever the media hold."""
    embeds = inputs.embeds.clone()
    embeds[~inputs.groups["text"]] = 0.5
    return replace(inputs, embeds=embeds)


def other_layers(self, model):
    from copy import deepcopy

    if not hasattr(self, "copied"):
        self.copied = deepcopy(model.model)
    return self.copied


def failing(self, options=None):
    raise ValueError("no luck")


WRONG_ADAPTERS = {
    "no docstring": (adapter(__doc__=None), "docstring", "has no docstring"),
    "an unknown modality": (adapter(modalities=("text", "smell")), "declaration", "modality 'smell'"),
    "a foreign exception": (adapter(load=failing), "load", "load() raised ValueError: no luck: raise ModelError"),
    "training mode": (adapter(load=load_with(lambda m: m.model.train() and None)), "load", "in training mode"),
    "the folder ignored": (
        adapter(load=lambda self, options=None: TinyGemma.load(self)),
        "wrong-folder",
        "an empty --model-path is ignored",
    ),
    "the plan ignored": (
        adapter(load=lambda self, options=None: TinyGemma.load(self)),
        "plan-at-loading",
        "load() ignores options.plan",
    ),
    "parameters miscounted": (adapter(load=info_with(model_params=1)), "info", "info says model_params = 1"),
    "the language model miscounted": (adapter(load=info_with(lm_params=1)), "info", "info says lm_params = 1: layers"),
    "key-value bytes miscounted": (adapter(load=info_with(kv_bytes_per_token=1)), "info", "kv_bytes_per_token = 1"),
    "a revision that changes": (
        adapter(
            load=load_with(
                lambda m: setattr(m, "info", m.info.model_copy(update={"revision": str(id(object()) + id(m))}))
            )
        ),
        "load-again",
        "info.revision differs",
    ),
    "ids that do not fit": (
        adapter(encode=encode_with(lambda i, s: replace(i, sample_ids=()))),
        "encode",
        "sample_ids are ()",
    ),
    "groups on padding": (
        adapter(encode=encode_with(lambda i, s: group(i, text=~i.groups["visual"] & ~i.groups["audio"]))),
        "groups",
        "group 'text' covers padding",
    ),
    "groups that overlap": (
        adapter(encode=encode_with(lambda i, s: group(i, text=i.attention_mask.bool()))),
        "groups",
        "shares tokens with another group",
    ),
    "right padding": (adapter(encode=encode_with(right_padded)), "left-padding", "not padded on the left"),
    "a batch that differs": (adapter(encode=encode_with(no_mask)), "batch", "in a batch and alone"),
    "a modality that it does not see": (
        adapter(encode=encode_with(blind)),
        "modalities",
        "image is declared, but another image gives the same decoder inputs",
    ),
    "media tokens among the text": (
        adapter(
            encode=encode_with(
                lambda i, s: group(
                    i, text=i.attention_mask.bool(), visual=i.groups["visual"] & False, audio=i.groups["audio"] & False
                )
            )
        ),
        "modalities",
        "the group 'text' holds image tokens: put them into 'visual'",
    ),
    "another decoder": (adapter(decoder=other_layers), "layers", "the layers that ran are [] of 6"),
    "all logits": (adapter(forward=all_logits), "logits-to-keep", "shape"),
    "a wrong step": (adapter(decode_step=step_wrong), "cache", "decoding step 1 with a cache"),
    "sampling": (adapter(generate=drawn), "generate", "decode greedily"),
    "noise in the encoder": (
        adapter(encode=encode_with(lambda i, s: replace(i, embeds=i.embeds + torch.randn_like(i.embeds)))),
        "determinism",
        "other embeddings for the same samples",
    ),
    "a stale layer list": (adapter(text_config=Frozen.text_config), "truth", "a list with an entry per layer"),
    "a change that is never undone": (adapter(layers_removed=never_undone), "restored", "configuration entry"),
    "a change left after an error": (
        adapter(layers_removed=never_undone),
        "restored-after-error",
        "configuration entry",
    ),
    "a checkpoint with a hole": (
        adapter(TinyLlama, build=forgetful),
        "save-and-reload",
        "missing keys model.norm.weight",
    ),
    "a setting left behind": (adapter(generate=switched), "untouched", "configuration entry model.use_cache"),
}


@pytest.mark.parametrize(("cls", "name", "words"), WRONG_ADAPTERS.values(), ids=WRONG_ADAPTERS.keys())
def test_a_wrong_adapter_is_caught_by_name(cls, name, words):
    checks = testing.adapter_checks(cls)
    results = {check.name: check.result() for check in checks if check.name in (name, "generate")}
    assert results[name].status == "failed" and words in results[name].reason, results


def test_the_base_of_the_wrong_adapters_is_right():
    assert testing.check_adapter(adapter()).ok


def test_nothing_is_said_of_a_model_that_does_not_load():
    report = testing.check_adapter(adapter(load=failing))
    assert not report.ok and [r.name for r in report.failed] == ["load"]
    assert {r.name for r in report.results if r.status == "passed"} == {"docstring", "declaration"}


# -- datasets and evaluators that are wrong ----------------------------------------------------------------------------


def dataset(change, base: type = TinyMedia) -> type[Dataset]:
    """A dataset whose samples are `change(samples, split, n)`."""

    def samples(self, split, n, *, seed=0, domain=None):
        return change(base.samples(self, split, n, seed=seed, domain=domain), split, n)

    return type("Wrong", (base,), {"__doc__": "Random words.", "samples": samples})


def each(**changes):
    return lambda samples, split, n: [
        replace(s, **{k: v(s) if callable(v) else v for k, v in changes.items()}) for s in samples
    ]


def any_split(self, split, n, *, seed=0, domain=None):
    known = split if split in ("train", "calibration", "test") else "test"
    return TinyMedia.samples(self, known, n, seed=seed, domain=domain)


WRONG_DATASETS = {
    "too many": (dataset(lambda samples, split, n: samples * 2), "samples", "gave 24"),
    "grey images": (dataset(each(images=(np.zeros((4, 4), np.uint8),))), "samples", "give uint8 (height, width, 3)"),
    "no sampling rate": (dataset(each(sampling_rate=None)), "samples", "audio without a sampling_rate"),
    "an answer outside": (dataset(each(answer="w63")), "samples", "none of its options"),
    "one id": (dataset(each(id="same")), "ids", "'same' stands twice"),
    "unseeded": (
        dataset(each(instruction=lambda s: str(np.random.random()))),
        "determinism",
        "another instruction of sample",
    ),
    "another sample i": (
        dataset(lambda samples, split, n: each(instruction=lambda s: f"{s.instruction} {n}")(samples, split, n)),
        "prefix",
        "the first 6 samples differ when 12 are asked for",
    ),
    "one question in two splits": (
        dataset(each(instruction="w5", images=(), video=None, audio=None)), "disjoint-splits", "is in train too"
    ),
    "one domain": (dataset(each(domain="a")), "domains", "gave a sample of 'a'"),
    "any split": (type("Wrong", (TinyMedia,), {"__doc__": "x", "samples": any_split}), "unknown-split", "BadParameter"),
}  # fmt: skip


@pytest.mark.parametrize(("cls", "name", "words"), WRONG_DATASETS.values(), ids=WRONG_DATASETS.keys())
def test_a_wrong_dataset_is_caught_by_name(cls, name, words):
    found = why(testing.check_dataset(cls))
    assert words in found.get(name, ""), found


class Counting(Evaluator):
    """Scores the parity of each question's number."""

    name = "counting"

    def evaluate(self, loaded, task, progress=None):
        if task.metric != "exact_match":
            raise EvaluationError(f"no metric {task.metric!r}")
        return self.result(loaded, task)

    def result(self, loaded, asked, **changes):
        scores = tuple(float(i % 2) for i in range(asked.n))
        values = {
            "task": asked.id, "metric": asked.metric, "n": asked.n, "score": 0.5, "ci_low": 0.1, "ci_high": 0.9,
            "ci_method": "wilson", "ids": tuple(map(str, range(asked.n))), "scores": scores,
            "answers": ("x",) * asked.n,
        }  # fmt: skip
        return TaskResult(**{**values, **changes})


def evaluator(**members: Any) -> type[Evaluator]:
    return type("Wrong", (Counting,), {"__doc__": "Counts.", **members})


def result_with(**changes):
    return lambda self, loaded, task: Counting.result(self, loaded, task, **changes)


def scaling(self, loaded, task):
    loaded.model.lm_head.weight.data.mul_(2)
    return Counting.result(self, loaded, task)


def refusing(self, task):
    raise EvaluationError("not this one")


WRONG_EVALUATORS = {
    "another task": (evaluator(result=result_with(task="other")), "result", "is of task 'other'"),
    "too few clusters": (evaluator(result=result_with(clusters=("a",))), "result", "1 clusters for n = 2"),
    "too many verdicts": (evaluator(result=result_with(verdicts=(1.0,) * 3)), "result", "3 verdicts for n = 2"),
    "a revision that is none": (evaluator(revision=lambda self, t: None), "beforehand", "revision() gives None"),
    "a revision by chance": (
        evaluator(revision=lambda self, t: str(np.random.random())),
        "beforehand",
        "says something else",
    ),
    "a need of its own": (evaluator(needs=lambda self, t: ["a disk"]), "beforehand", "needs() gives 'a disk'"),
    "its own task refused": (evaluator(check=refusing), "beforehand", "not this one"),
    "too few scores": (evaluator(result=result_with(scores=(1.0,))), "result", "1 scores for n = 2"),
    "outside its interval": (evaluator(result=result_with(score=0.95)), "interval", "outside its interval"),
    "random": (
        evaluator(result=lambda s, m, t: Counting.result(s, m, t, scores=tuple(np.random.random(2)))),
        "determinism",
        "other scores",
    ),
    "a weight": (evaluator(result=scaling), "model-untouched", "tensor"),
    "any metric": (
        evaluator(evaluate=lambda self, m, t, progress=None: Counting.result(self, m, t)),
        "unknown-metric",
        "raise EvaluationError",
    ),
}


@pytest.mark.parametrize(("cls", "name", "words"), WRONG_EVALUATORS.values(), ids=WRONG_EVALUATORS.keys())
def test_a_wrong_evaluator_is_caught_by_name(cls, name, words):
    task, loaded = Task(id="t", n=2), TinyLlama().load()
    assert testing.check_evaluator(Counting, task, loaded).ok
    found = why(testing.check_evaluator(cls, task, loaded))
    assert words in found.get(name, ""), found


# -- reports -----------------------------------------------------------------------------------------------------------


def test_a_report_is_json_and_raises_with_a_line_for_each_failure():
    good = testing.check_strategy(Good)
    good.raise_for_failures()
    assert json.loads(json.dumps(good.to_dict()))["ok"] is True
    bad = testing.check_strategy(strategy(stochastic=True, __doc__=None))
    rows = json.loads(json.dumps(bad.to_dict()))
    assert rows["ok"] is False and rows["kind"] == "strategy" and rows["name"] == "wrong"
    with pytest.raises(testing.Failed) as raised:
        bad.raise_for_failures()
    lines = str(raised.value).splitlines()
    assert len(lines) == 1 + len(bad.failed) == 4
    assert lines[0] == "strategy wrong: 3 of 30 failed" and lines[2].startswith("  seeds [tiny-llama]: 8 seeds")


def test_only_skipped_checks_are_no_success():
    skipped = testing.Result("a", "proves", "skipped", "reason")
    assert not testing.Report("model", "x", (skipped,)).ok


def test_the_global_random_states_are_left_alone():
    """Determinism is tried under several global states; a caller's own draws do not notice."""
    np.random.seed(3), torch.manual_seed(3)
    expected = np.random.random(), torch.rand(()).item()
    np.random.seed(3), torch.manual_seed(3)
    testing.check_strategy(Good)
    assert (np.random.random(), torch.rand(()).item()) == expected


def test_a_strategy_that_removes_nothing_has_to_say_so():
    """`dense` declares sparsity 0 in its plan; one that just returns an empty plan breaks the budget."""
    lazy = strategy(plan=lambda self, context: remove(self, context, []))
    assert "the plan removes 0" in why(testing.check_strategy(lazy))["budget"]

    def declared(self, context):
        context.budget = Budget(value=0.0)
        return remove(self, context, [])

    assert testing.check_strategy(strategy(plan=declared)).ok
