"""Perplexity: against a plain loop in double precision, a closed form, and by hand where tables are made from it."""

from __future__ import annotations

import math

import pytest
import torch

from prunebench import dataset, evaluate_perplexity, leaderboard
from prunebench.adapter import LoadedModel
from prunebench.calibration.samples import Sample
from prunebench.comparison import group_records
from prunebench.errors import EvaluationError
from prunebench.evaluate_perplexity import PerplexityEvaluator, cut_windows, token_losses
from prunebench.findings import difference
from prunebench.measure.cost import describe
from prunebench.report.markdown import figure, spread
from prunebench.results import frame
from prunebench.stats import relative_score
from prunebench.suites import Task, builtin_suites_dir, load_suite
from tests.factories import make_dense, make_record, make_task
from tests.tiny_plugin import TinyLlama

VOCABULARY = 64


class Letters:
    """A tokenizer that knows ``w3 w4 ...``, with a beginning token where it is asked for one."""

    def __init__(self, beginning: bool) -> None:
        self.beginning = beginning

    def __call__(self, text, add_special_tokens=True):
        ids = [3 if word == "a" else int(word[1:]) for word in text.split()]
        return {"input_ids": [1, *ids] if self.beginning and add_special_tokens else ids}


class Book:
    """A dataset of one long text."""

    def __init__(self, tokens: int) -> None:
        random = torch.Generator().manual_seed(5)
        self.words = [f" w{int(i)}" for i in torch.randint(3, VOCABULARY, (tokens,), generator=random)]

    def samples(self, split, n, *, seed=0, domain=None):
        size = math.ceil(len(self.words) / n)
        parts = [self.words[i * size : (i + 1) * size] for i in range(n)]
        return [Sample(id=f"{split}/{i}", instruction="".join(part), kind="text") for i, part in enumerate(parts)]


@pytest.fixture
def loaded():
    adapter = TinyLlama()
    torch.manual_seed(0)
    model = adapter.build().eval()
    info = describe(model, adapter, name="tiny", revision="0", dtype="float32")
    return LoadedModel(model, adapter, info, torch.device("cpu"), Letters(beginning=False))


@pytest.fixture
def book(monkeypatch):
    found = Book(tokens=150)
    monkeypatch.setattr(dataset, "open_dataset", lambda plugins, name: found)
    return found


def task(**changes):
    values = {"id": "prose", "evaluator": "perplexity", "dataset": "book", "n": 3, "metric": "perplexity"}
    return Task(**{**values, "higher_is_better": False, "modality": "text", "options": {"context": 16}, **changes})


def plain_losses(model, tokens, context, beginning):
    """One window at a time, one token at a time, softmax in double precision."""
    found = []
    step = context - 1
    stream = tokens if beginning else tokens[1:]
    for start in range(0, len(stream) - step + 1, step):
        window = [1 if beginning else tokens[start], *stream[start : start + step]]
        logits = model(torch.tensor([window])).logits[0].double()
        losses = []
        for place in range(1, len(window)):
            exponentials = [math.exp(x) for x in logits[place - 1].tolist()]
            losses.append(-math.log(exponentials[window[place]] / sum(exponentials)))
        found.append(sum(losses) / len(losses))
    return found


@pytest.mark.parametrize("beginning", [False, True])
def test_against_a_plain_loop_in_double_precision(loaded, book, beginning):
    loaded.processor = Letters(beginning)
    result = PerplexityEvaluator(batch_size=4).evaluate(loaded, task())
    tokens = [int(word.strip()[1:]) for word in book.words]
    with torch.inference_mode():
        expected = plain_losses(loaded.model, tokens, 16, beginning)
    assert result.scores == pytest.approx(expected, abs=1e-5)
    assert result.score == pytest.approx(math.exp(sum(expected) / len(expected)), rel=1e-5)
    assert result.n == len(result.ids) == len(expected) == (149 if not beginning else 150) // 15
    assert result.kinds["token"] == (15 * result.n, pytest.approx(sum(expected) / len(expected), abs=1e-5))
    assert not result.higher_is_better and result.chance == VOCABULARY
    assert result.ci_low < result.score < result.ci_high and result.ci_method == "bootstrap"


def test_a_model_that_knows_nothing_has_the_size_of_the_vocabulary(loaded, book):
    loaded.model.lm_head.weight.data.zero_()
    result = PerplexityEvaluator().evaluate(loaded, task())
    assert result.score == pytest.approx(VOCABULARY, rel=1e-6)
    assert result.ci_low <= result.score <= result.ci_high


def test_batches_and_memory_limits_change_nothing(loaded, book, monkeypatch):
    whole = PerplexityEvaluator(batch_size=32).evaluate(loaded, task())
    monkeypatch.setattr(evaluate_perplexity, "LOGIT_BYTES", 1)
    monkeypatch.setattr(evaluate_perplexity, "CHUNK", 4)
    single = PerplexityEvaluator(batch_size=1).evaluate(loaded, task())
    assert single.scores == pytest.approx(whole.scores, abs=1e-5)


def test_half_precision_logits_are_summed_in_float32():
    ids = torch.tensor([[0, 1, 2, 3]])
    logits = torch.randn(1, 4, 50_000, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    expected = torch.nn.functional.cross_entropy(logits[0, :3].double(), ids[0, 1:], reduction="none")
    assert token_losses(logits, ids, 3)[0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("beginning", [False, True])
def test_every_token_is_predicted_once(beginning):
    tokens = list(range(3, 50))
    windows = cut_windows(Letters(beginning), " ".join(f"w{i}" for i in tokens), context=8)
    scored = windows.ids[:, -windows.scored :].flatten().tolist()
    first = 0 if beginning else 1
    assert scored == tokens[first : first + 7 * len(windows.ids)] and windows.ids.shape[1] == 8
    assert len(tokens) - first - len(scored) < 7  # only what fills no window is left out
    assert set(windows.ids[:, 0].tolist()) == ({1} if beginning else set(tokens[0:-7:7]))


def test_a_short_text_is_one_short_window():
    windows = cut_windows(Letters(False), "w3 w4 w5", context=512)
    assert windows.ids.tolist() == [[3, 4, 5]] and windows.scored == 2
    for text, context in (("w3", 512), ("", 512), ("w3 w4 w5", 1)):
        with pytest.raises(ValueError, match="window"):
            cut_windows(Letters(False), text, context)


def test_logits_that_are_not_finite_fail_with_a_line(loaded, book):
    loaded.model.lm_head.weight.data[5] = float("nan")
    with pytest.raises(EvaluationError, match=r"task 'prose': the model's logits are not finite \(window 0\)"):
        PerplexityEvaluator().evaluate(loaded, task())


def test_a_loss_beyond_any_number_fails_with_a_line(loaded, book):
    loaded.model.lm_head.weight.data.mul_(1e6)
    with pytest.raises(EvaluationError, match="perplexity is beyond any number"):
        PerplexityEvaluator().evaluate(loaded, task())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "exact_match"}, "write `metric: perplexity`"),
        ({"higher_is_better": True}, "higher_is_better: false"),
        ({"dataset": None}, "names no dataset"),
        ({"options": {"contxt": 4}}, "did you mean 'context'"),
        ({"options": {"context": 1}}, "a window needs at least 2 tokens"),
    ],
)
def test_tasks_that_make_no_sense(loaded, book, changes, message):
    with pytest.raises(EvaluationError, match=message) as caught:
        PerplexityEvaluator().evaluate(loaded, task(**changes))
    assert "\n" not in str(caught.value)


def test_a_model_without_a_tokenizer(loaded, book):
    loaded.processor = None
    with pytest.raises(EvaluationError, match="has no tokenizer"):
        PerplexityEvaluator().evaluate(loaded, task())


def test_the_suite_that_ships():
    suite = load_suite(builtin_suites_dir() / "text-ppl.yaml")
    (only,) = suite.tasks
    assert (only.evaluator, only.dataset, only.metric, only.higher_is_better) == (
        "perplexity", "text", "perplexity", False,
    )  # fmt: skip


# -- tables ------------------------------------------------------------------------------------------------------------

CHANCE = 1000.0


def perplexity(losses, name="prose"):
    """A task result whose windows have these losses."""
    mean = sum(losses) / len(losses)
    ids = tuple(f"window-{i}" for i in range(len(losses)))
    score = math.exp(mean)
    return make_task(
        name, 0, len(losses), metric="perplexity", score=score, ci_low=score * 0.9, ci_high=score * 1.1, chance=CHANCE,
        majority=None, ci_method="bootstrap", higher_is_better=False, ids=ids, scores=tuple(losses),
    )  # fmt: skip


def shifted(by):
    return perplexity([by + 0.1 * i for i in range(10)])


def test_relative_scores_of_a_perplexity_by_hand():
    found = relative_score({"p": 100.0}, {"p": 10.0}, {"p": CHANCE}, lower_is_better={"p"}, log_scale={"p"})
    assert found.plain == pytest.approx(0.1) and found.chance_corrected == pytest.approx(0.5)
    worse = relative_score({"p": 1e4}, {"p": 10.0}, {"p": CHANCE}, lower_is_better={"p"}, log_scale={"p"})
    assert worse.chance_corrected == pytest.approx(-0.5)
    no_better = relative_score({"p": 10.0}, {"p": CHANCE}, {"p": CHANCE}, lower_is_better={"p"}, log_scale={"p"})
    assert no_better.chance_corrected is None
    unknown = relative_score({"p": 20.0}, {"p": 10.0}, {"p": None}, lower_is_better={"p"}, log_scale={"p"})
    assert unknown.plain == pytest.approx(0.5) and unknown.chance_corrected is None


def everything():
    dense = make_dense({}, tasks=[shifted(1.0)])
    others = [make_record(name, tasks=[shifted(by)]) for name, by in (("good", 1.5), ("bad", 17.0), ("close", 1.5001))]
    band = [
        make_record("random", (1, seed), tasks=[shifted(by)], cell={"seed": seed}) for seed, by in ((2, 2.0), (3, 4.0))
    ]
    return [dense, *others, *band]


def test_lower_perplexity_ranks_first_and_differences_are_paired():
    (group,) = group_records(everything())
    (section,) = group.sections
    assert group.ranking == "chance_corrected"
    ranked = {row.label: row for row in section.ranked}
    assert [row.label for row in section.ranked] == ["good", "close", "bad"]
    whole = math.log(CHANCE) - 1.45  # nats that the dense model saves over guessing
    assert ranked["good"].relative[0].chance_corrected == pytest.approx((whole - 0.5) / whole)
    gap = difference(group, ranked["bad"], ranked["good"])
    assert gap.mean == pytest.approx(-15.5 / whole) and gap.high < 0 and gap.n == 10
    # The same windows are equally hard for both, so a difference of 1e-4 nats is told apart.
    assert difference(group, ranked["close"], ranked["good"]).mean == pytest.approx(-1e-4 / whole, rel=1e-3)


def test_tables_of_perplexities_can_be_read():
    text = leaderboard.build(everything())
    assert "3.8e7 [3.4e7, 4.2e7]" in text  # exp(17.45)
    assert "Perplexity of prose" not in text  # one budget: no table over budgets
    assert "| prose | perplexity, lower is better | 10 | 1,000 | — |" in text
    assert "compared by its logarithm" in text and "geometric" in text
    geometric = f"{math.exp(1.45 + 2.0):.1f} ({math.exp(2.45):.1f} to {math.exp(4.45):.1f})"
    assert geometric in text
    plain = 100 * math.exp(1.0 - 17.0)
    assert figure(plain) == "1.1e-5" and "| 1.1e-5 |" in text


def test_perplexities_over_budgets_have_a_table_of_their_own():
    more = [make_record("good", (1, 2, 3), tasks=[shifted(2.5)]), make_record("bad", (4, 5, 6), tasks=[shifted(9.0)])]
    text = leaderboard.build([*everything(), *more])
    head = text.index("Perplexity of prose, lower is better.")
    rows = {line.split(" | ")[0].strip("| `"): line for line in text[head:].splitlines()[2:9]}
    assert rows["good"] == f"| `good` | **{math.exp(1.95):.2f}** | **{math.exp(2.95):.1f}** |"
    assert rows["bad"] == f"| `bad` | 3.8e7 | {math.exp(9.45):,.0f} |"


def test_accuracies_are_shown_as_before():
    records = [make_dense({"look": 85}), make_record(right={"look": 55})]
    assert leaderboard.LOG_SCALE not in leaderboard.build(records)


def test_the_long_table_holds_the_same_relative_scores():
    table = frame(everything())
    row = table[table.strategy == "good"].iloc[0]
    assert row.relative == pytest.approx(math.exp(-0.5))
    assert row.relative_corrected == row.mean_relative_corrected == pytest.approx(1 - 0.5 / (math.log(CHANCE) - 1.45))


def test_a_plot_of_perplexities_has_a_logarithmic_axis(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from prunebench.report import curves

    (group,) = group_records(everything())
    axes = Figure().add_subplot()
    curves._panel(axes, group, "prose", {"good": 0, "bad": 1, "close": 2, "random": 3}, None)
    assert axes.get_yscale() == "log"
    assert curves.accuracy_curves(everything(), tmp_path / "p.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (22.556, "22.6"), (4948.3, "4,948"), (5.13e7, "5.1e7"), (99_999, "99,999"), (100_000, "1.0e5"), (9.996, "10.0"),
        (99.96, "100"), (1.2345, "1.23"), (0.5, "0.5"), (0.01234, "0.0123"), (3.4e-6, "3.4e-6"), (0.0, "0"),
    ],
)  # fmt: skip
def test_figures_of_any_size(value, text):
    assert figure(value) == text


def test_geometric_spread():
    assert spread([1.0, 100.0], form=figure, logs=True) == "10.0 (1.00 to 100)"
    assert spread([], form=figure, logs=True) == "—"
