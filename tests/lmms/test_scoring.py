"""From lmms-eval's samples to per-question scores: by hand, and with the benchmarks' own code against hand counts."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("lmms_eval")

from prunebench_lmms_eval.aggregation import Aggregation
from prunebench_lmms_eval.call import Outcome
from prunebench_lmms_eval.override import PREFIX
from prunebench_lmms_eval.reported import fits, strata_weights
from prunebench_lmms_eval.samples import answer_of
from prunebench_lmms_eval.scoring import Scored, score_samples
from prunebench_lmms_eval.tasks_index import find

from prunebench.errors import EvaluationError
from prunebench.suites import Task


def lmms(name: str, metric: str, **settings) -> Task:
    return Task(**{"id": name, "evaluator": "lmms", "metric": metric, **settings})


def sample(doc_id: int, values: dict[str, Any], answer: str = "A", doc: dict | None = None) -> dict[str, Any]:
    return {
        "doc_id": doc_id,
        "doc": doc or {},
        "target": "A",
        "resps": [[answer]],
        "filtered_resps": [answer],
        **values,
    }


def outcome(
    name: str,
    results: dict[str, Any],
    samples: Sequence[dict[str, Any]] | dict[str, list],
    *,
    groups: dict[str, Any] | None = None,
    aggregation: dict[str, Callable] | None = None,
    unparsable: Sequence[int] = (),
) -> Outcome:
    """What `run_task` would give; names without our prefix."""
    members = samples if isinstance(samples, dict) else {name: samples}
    task = SimpleNamespace(aggregation=lambda: aggregation or {})
    return Outcome(
        name=PREFIX + name,
        results={PREFIX + key: value for key, value in results.items()},
        groups={PREFIX + key: value for key, value in (groups or {}).items()},
        samples={PREFIX + key: list(value) for key, value in members.items()},
        tasks={PREFIX + key: task for key in members},
        unparsable=frozenset((PREFIX + name, doc) for doc in unparsable),
        about={},
        warnings=(),
    )


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# ---------------------------------------------------------------- by hand


def test_numbers_as_they_are():
    rows = [sample(i, {"acc": float(i % 2)}, "AB"[i % 2]) for i in range(4)]
    got = score_samples(lmms("mme", "acc"), outcome("mme", {"mme": {"acc,none": 0.5}}, rows))
    assert got == Scored(score=0.5, ids=("0", "1", "2", "3"), scores=(0, 1, 0, 1), answers=("A", "B", "A", "B"))
    assert got.n == 4


def test_truth_values_and_another_scale():
    rows = [sample(i, {"acc": i < 3}) for i in range(4)]
    got = score_samples(lmms("mme", "acc", scale=100), outcome("mme", {"mme": {"acc,none": 75.0}}, rows))
    assert got.scores == (100, 100, 100, 0) and got.verdicts == () and not got.warnings


def test_the_first_fitting_key_of_a_table():
    """`score` is there but is not what is reported; `correct` is."""
    rows = [sample(i, {"m": {"score": 0.5, "correct": i % 2 == 0}}) for i in range(5)]
    got = score_samples(lmms("mme", "m"), outcome("mme", {"mme": {"m,none": 0.6}}, rows))
    assert got.scores == (1, 0, 1, 0, 1)


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ("right", (1, 0, 1)),
        (["absent", "right"], (1, 0, 1)),
        ({"equal": ["said", "gold"]}, (1, 0, 1)),
        (None, (1, 0, 1)),
    ],
)
def test_rules_read_the_same_thing(rule, wanted):
    rows = [sample(i, {"m": {"right": i != 1, "said": " b", "gold": "AB"[i != 1]}}) for i in range(3)]
    own = {"m": lambda values: sum(value["said"].strip().upper() == value["gold"] for value in values) / len(values)}
    options = {} if rule is None else {"score": rule}
    got = score_samples(
        lmms("mme", "m", options=options), outcome("mme", {"mme": {"m,none": 2 / 3}}, rows, aggregation=own)
    )
    assert got.scores == wanted and not got.warnings


def test_an_aggregation_with_args_is_used_only_when_asked_for():
    calls = []

    def own(values, args):
        calls.append(len(values))
        return mean([value["x"] == 1 for value in values])

    rows = [sample(i, {"m": {"x": i}}) for i in range(2)]
    made = outcome("mme", {"mme": {"m,none": 0.5}}, rows, aggregation={"m": own})
    got = score_samples(lmms("mme", "m"), made)
    assert calls == [] and got.scores == () and "no paired statistics" in got.warnings[0]
    got = score_samples(lmms("mme", "m", options={"score": "aggregate"}), made)
    assert calls == [1, 1] and got.scores == (0, 1)


def test_what_an_aggregation_writes_and_prints_is_thrown_away(tmp_path, monkeypatch, capsys):
    def own(values):
        print("table")
        random.seed(1)
        Path("submission.json").write_text("x")
        return 1.0

    monkeypatch.chdir(tmp_path)
    rows = [sample(0, {"m": {"x": 1}})]
    draws = random.getstate()
    got = score_samples(lmms("mme", "m"), outcome("mme", {"mme": {"m,none": 1.0}}, rows, aggregation={"m": own}))
    assert got.scores == (1,) and list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""
    assert random.getstate() == draws


def test_strata_weights_turn_a_mean_of_means_into_a_mean():
    rng = random.Random(1)
    labels = [(rng.choice("ab"), rng.choice("xyz")) for _ in range(40)]
    values = [rng.random() for _ in labels]

    def nested(level: int, chosen: list[int]) -> float:
        if level == 2:
            return mean([values[i] for i in chosen])
        names = sorted({labels[i][level] for i in chosen})
        return mean([nested(level + 1, [i for i in chosen if labels[i][level] == name]) for name in names])

    weights = strata_weights(labels)
    assert mean([v * w for v, w in zip(values, weights, strict=True)]) == pytest.approx(nested(0, list(range(40))))
    flat = [label[:1] for label in labels]
    total = sum(mean([v for v, one in zip(values, flat, strict=True) if one == (name,)]) for name in "ab")
    sums = strata_weights(flat, sums=True)
    assert mean([v * w for v, w in zip(values, sums, strict=True)]) == pytest.approx(total)
    assert strata_weights([(), ()]) == [1.0, 1.0]


def test_verdicts_where_scores_are_contributions():
    rows = [sample(i, {"m": {"score": float(i > 0), "kind": "ab"[i > 2]}}) for i in range(4)]  # a: 2/3, b: 1
    task = lmms("mme", "m", options={"strata": "kind", "kind": "kind"})
    got = score_samples(task, outcome("mme", {"mme": {"m,none": 5 / 6}}, rows))
    assert got.scores == pytest.approx((0, 4 / 6, 4 / 6, 2)) and mean(got.scores) == pytest.approx(5 / 6)
    assert got.verdicts == (0, 1, 1, 1) and got.shares == pytest.approx((2 / 3, 2 / 3, 2 / 3, 2))
    assert got.kinds == {"a": (3, pytest.approx(2 / 3)), "b": (1, 1.0)}


def test_units_ids_answers_and_counts():
    """Rows that are judged together are one question; blanks and unparsable answers are counted one by one."""
    said = ["A", " ", "B", "hm", "?", "A"]
    rows = [sample(i, {"m": {"index": i % 3 + 1000 * (i // 3), "ok": i in (0, 3, 4)}}, said[i]) for i in range(6)]
    options = {"unit": {"key": "index", "modulo": 1000}, "score": "ok", "answers": "^[AB]$"}
    task = lmms("mme", "m", options=options)
    got = score_samples(task, outcome("mme", {"mme": {"m,none": 1 / 3}}, rows, unparsable=[1, 2]))
    assert got.ids == ("0", "1", "2") and got.scores == (1, 0, 0)
    assert got.answers == ("A | hm", "  | ?", "B | A")
    assert (got.empty, got.unparsable) == (1, 3)  # " "; drawn for: "B"; no match: "hm", "?"


def test_graded_scores_have_no_verdicts():
    rows = [sample(i, {"anls": value}) for i, value in enumerate((0.0, 0.6, 1.0))]
    got = score_samples(lmms("mme", "anls"), outcome("mme", {"mme": {"anls,none": 1.6 / 3}}, rows))
    assert got.scores == (0, 0.6, 1) and got.verdicts == ()


def test_a_rounded_score_is_met_exactly():
    rows = [sample(i, {"m": float(i < 2)}) for i in range(3)]
    got = score_samples(lmms("mme", "m"), outcome("mme", {"mme": {"m,none": 0.66667}}, rows))
    assert got.score == 0.66667 and mean(got.scores) == pytest.approx(0.66667, rel=1e-12)
    assert got.verdicts == (1, 1, 0) and not got.warnings
    assert fits(2 / 3 * 100, 66.67, 100) and not fits(2 / 3, 0.67, 1) and not fits(0.54, 0.5, 1)


def test_what_is_no_mean_keeps_verdicts_and_says_so():
    rows = [sample(i, {"f1": {"score": float(i % 2)}}, "yes") for i in range(4)]
    got = score_samples(lmms("mme", "f1"), outcome("mme", {"mme": {"f1,none": 0.31}}, rows))
    assert got.score == 0.31 and got.scores == () and got.verdicts == (0, 1, 0, 1) and len(got.answers) == 4
    assert "do not average to it, f1 = 0.31: no paired statistics" in got.warnings[0]


def rate(values: Sequence[dict]) -> float:
    return 100 * sum(value["errors"] for value in values) / sum(value["words"] for value in values)


def test_verdicts_of_an_error_are_turned_over():
    rows = [sample(i, {"m": float(i > 0)}) for i in range(4)]
    made = outcome("mme", {"mme": {"m,none": 0.75}}, rows)
    got = score_samples(lmms("mme", "m", direction="lower"), made)
    assert got.scores == (0, 1, 1, 1) and got.verdicts == (1, 0, 0, 0) and got.shares == ()
    got = score_samples(lmms("mme", "m"), made)
    assert got.scores == (0, 1, 1, 1) and got.verdicts == ()


def test_a_ratio_of_sums_gets_its_first_order_parts():
    """Against the formula with the words known, and against the spread of resampled rates."""
    rng = random.Random(2)
    values = [{"words": words, "errors": rng.randint(0, words)} for words in rng.choices(range(3, 30), k=400)]
    rows = [sample(i, {"wer": value}) for i, value in enumerate(values)]
    made = outcome("mme", {"mme": {"wer,none": rate(values)}}, rows, aggregation={"wer": rate})
    for options in ({}, {"score": "aggregate"}):
        got = score_samples(lmms("mme", "wer", scale=100, options=options), made)
        words = sum(value["words"] for value in values)
        known = [
            rate(values) + (100 * value["errors"] - rate(values) * value["words"]) * len(values) / words
            for value in values
        ]
        assert got.scores == pytest.approx(known) and mean(got.scores) == pytest.approx(rate(values))
        assert got.verdicts == () and not got.warnings
    again = [rate(rng.choices(values, k=len(values))) for _ in range(2000)]
    spread = mean([(one - mean(got.scores)) ** 2 for one in got.scores]) ** 0.5 / len(values) ** 0.5
    resampled = mean([(one - mean(again)) ** 2 for one in again]) ** 0.5
    assert spread == pytest.approx(resampled, rel=0.08)


def test_a_ratio_at_its_bounds_and_what_is_no_ratio():
    perfect = [sample(i, {"wer": {"words": 3, "errors": 0}}) for i in range(3)]
    made = outcome("mme", {"mme": {"wer,none": 0.0}}, perfect, aggregation={"wer": rate})
    assert score_samples(lmms("mme", "wer", scale=100), made).scores == (0, 0, 0)

    def middle(values: Sequence[dict]) -> float:
        return median(value["x"] for value in values)

    rows = [sample(i, {"m": {"x": x}}) for i, x in enumerate((0.1, 0.2, 0.9, 0.95, 1.3))]
    got = score_samples(lmms("mme", "m"), outcome("mme", {"mme": {"m,none": 0.9}}, rows, aggregation={"m": middle}))
    assert got.scores == () and "no paired statistics" in got.warnings[0]


def test_an_average_that_fits_by_chance_is_no_reading():
    """F1 and accuracy are one number wherever as many `yes` as `no` are right, and their questions are not."""

    def f1(values: Sequence[dict]) -> float:
        found = sum(value["gold"] == "yes" and value["score"] for value in values)
        wrong = sum(not value["score"] for value in values)
        return 2 * found / (2 * found + wrong) if found else 0.0

    told = [("yes", 1), ("no", 0), ("yes", 1), ("no", 1), ("yes", 1), ("yes", 0), ("no", 1), ("no", 1)]
    values = [{"gold": gold, "score": score} for gold, score in told]
    assert f1(values) == mean([value["score"] for value in values]) == 0.75
    rows = [sample(i, {"f1": value}) for i, value in enumerate(values)]
    made = outcome("mme", {"mme": {"f1,none": f1(values)}}, rows, aggregation={"f1": f1})
    got = score_samples(lmms("mme", "f1"), made)
    weights = [2 if gold == "yes" and score else 0 if score else 1 for gold, score in told]
    parts = [0.75 + (score - 0.75) * weight for weight, (_, score) in zip(weights, told, strict=True)]
    assert got.scores == pytest.approx(parts) and got.verdicts == tuple(score for _, score in told)
    # and a mean stays one, in whatever order
    plain = outcome("mme", {"mme": {"acc,none": 0.75}}, [sample(i, {"acc": v["score"]}) for i, v in enumerate(values)],
                    aggregation={"acc": mean})  # fmt: skip
    assert score_samples(lmms("mme", "acc"), plain).scores == tuple(score for _, score in told)


def of_answered(values: Sequence[dict]) -> float:
    """As MVBench does it."""
    answered = [value["score"] for value in values if value["pred"] != ""]
    return 100 * sum(answered) / len(answered) if answered else 0


@pytest.mark.parametrize("options", [{}, {"score": "score"}, {"score": "aggregate"}])
@pytest.mark.parametrize("hits", [3, 2])
def test_silence_never_gets_the_score_of_those_who_answer(options, hits):
    said = [("B", i < hits) for i in range(3)] + [("", False)] * 2
    values = [{"pred": pred, "score": float(right)} for pred, right in said]
    rows = [sample(i, {"m": value}, value["pred"]) for i, value in enumerate(values)]
    made = outcome("mme", {"mme": {"m,none": of_answered(values)}}, rows, aggregation={"m": of_answered})
    got = score_samples(lmms("mme", "m", scale=100, options=options), made)
    assert got.score == pytest.approx(100 * hits / 3) and got.scores == () and got.empty == 2
    assert got.verdicts == tuple(float(right) for _, right in said)
    (warning,) = got.warnings
    assert "answers that are empty are left out of it" in warning and "no paired statistics" in warning


def test_a_score_at_its_bound_is_no_ratio_where_two_questions_show_another():
    """A median is the highest value here; in a ratio of sums, all lower ones would then weigh nothing."""
    rows = [sample(i, {"m": {"x": x}}) for i, x in enumerate((0.1, 0.2, 0.9, 0.9, 0.9))]
    made = outcome("mme", {"mme": {"m,none": 0.9}}, rows, aggregation={"m": lambda v: median([one["x"] for one in v])})
    got = score_samples(lmms("mme", "m"), made)
    assert got.scores == () and "do not average" in got.warnings[0]


def test_questions_that_the_task_s_code_leaves_out_are_counted():
    """Those that count for another metric of the task are not."""
    rows = [sample(0, {"m": 1.0}), sample(1, {"m": 1.0}), sample(2, {"other": 0.0}), sample(3, {})]
    made = outcome("mme", {"mme": {"m,none": 1.0, "other,none": 0.0}}, rows)
    got = score_samples(lmms("mme", "m"), made)
    assert got.scores == (1, 1) and got.warnings == ("the benchmark's code leaves 1 questions out of the score",)


def test_nobody_asks_a_judge_again_to_read_scores():
    """An aggregation that asks one would do so for every question, where no rule wants that."""
    rows = [sample(i, {"m": {"x": i}}) for i in range(3)]
    calls: list[int] = []
    made = outcome("mme", {"mme": {"m,none": 1.0}}, rows, aggregation={"m": lambda v: calls.append(1) or 1.0})
    assert score_samples(lmms("mme", "m", judge="openai"), made).scores == () and calls == []
    score_samples(lmms("mme", "m"), made)
    assert calls


def test_a_group_says_once_what_holds_for_all_its_members():
    names = ("mvbench_action_count", "mvbench_state_change", "mvbench_action_antonym")
    samples = {name: [sample(i, {"mvbench_accuracy": {"score": 1.0}}) for i in range(2)] for name in names}
    members = {name: {"mvbench_accuracy,none": 30.0 + i, "samples": 2} for i, name in enumerate(names)}
    made = outcome("mvbench", members, samples, groups={"mvbench": {"mvbench_accuracy,none": 31.0}})
    options = {"aggregate": "mean", "score": "score"}
    got = score_samples(lmms("mvbench", "mvbench_accuracy", scale=100, options=options), made)
    (warning,) = got.warnings
    assert warning.startswith("mvbench_action_count and 2 more of 3: the scores of single questions do not average to")


def test_a_field_that_is_not_there_costs_the_questions_not_the_score():
    rows = [sample(0, {"m": {"a": 1}}, doc={"video": "v"})]
    for options in ({"score": "b"}, {"unit": "b"}, {"strata": "b"}, {"score": {"equal": ["a", "b"]}}):
        got = score_samples(lmms("mme", "m", options=options), outcome("mme", {"mme": {"m,none": 0.5}}, rows))
        assert got.score == 0.5 and got.scores == ()
        assert "no field 'b'; there are a, video" in got.warnings[0]


def test_clusters_come_from_document_or_value():
    rows = [sample(i, {"m": {"score": 1.0, "clip": f"c{i // 2}"}}, doc={"video": i // 3}) for i in range(6)]
    made = outcome("mme", {"mme": {"m,none": 1.0}}, rows)
    assert score_samples(lmms("mme", "m", cluster="video"), made).clusters == ("0", "0", "0", "1", "1", "1")
    assert score_samples(lmms("mme", "m", cluster="clip"), made).clusters == ("c0", "c0", "c1", "c1", "c2", "c2")
    lost = score_samples(lmms("mme", "m", cluster="film"), made)
    assert lost.clusters == () and "no field 'film'" in lost.warnings[0] and lost.scores == (1,) * 6


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "none of the questions asked belongs to it"),
        (None, "is None: lmms-eval did not score it"),
        ("N/A", "is 'N/A', not a number; it needs the judge 'openai'"),
        ({"a": 1, "b": 2}, r"is a table \(a, b\)"),
        (float("nan"), "not a finite number"),
    ],
)
def test_no_number_is_never_zero(value, said):
    task = lmms("mme", "m", judge="openai")
    with pytest.raises(EvaluationError, match=said):
        score_samples(task, outcome("mme", {"mme": {"m,none": value}}, [sample(0, {"m": 0.0})]))


def test_a_missing_key_names_those_there_are():
    result = {"acc,none": 1.0, "acc_stderr,none": "N/A", "f1,strict": 1.0, "samples": 1, "alias": "mme"}
    with pytest.raises(EvaluationError, match=r"does not report 'm,none': it reports acc,none, f1,strict$"):
        score_samples(lmms("mme", "m"), outcome("mme", {"mme": result}, [sample(0, {"acc": 1.0})]))


def test_none_is_zero_only_where_every_question_scores_zero():
    task = lmms("mme", "m", scale=100, options={"score": "ok", "none_is_zero": True})
    wrong = [sample(i, {"m": {"ok": False}}) for i in range(3)]
    got = score_samples(task, outcome("mme", {"mme": {"m,none": None}}, wrong))
    assert got.score == 0.0 and got.scores == (0, 0, 0) and not got.warnings
    mixed = [sample(i, {"m": {"ok": i == 0}}) for i in range(3)]
    with pytest.raises(EvaluationError, match="do not all score 0"):
        score_samples(task, outcome("mme", {"mme": {"m,none": None}}, mixed))


@pytest.mark.parametrize("how", ["mean", "size"])
def test_groups_weigh_as_the_group_does(how):
    values = {"mvbench_action_count": [1, 0, 0, 0], "mvbench_state_change": [1, 1]}
    samples = {
        name: [sample(i, {"mvbench_accuracy": {"score": value}}) for i, value in enumerate(found)]
        for name, found in values.items()
    }
    members = {name: {"mvbench_accuracy,none": 100 * mean(v), "samples": len(v)} for name, v in values.items()}
    score = 62.5 if how == "mean" else 50.0
    task = lmms("mvbench", "mvbench_accuracy", scale=100, options={"aggregate": how})
    made = outcome("mvbench", members, samples, groups={"mvbench": {"mvbench_accuracy,none": score}})
    got = score_samples(task, made)
    assert got.score == score and mean(got.scores) == pytest.approx(score)
    assert got.ids[0] == "mvbench_action_count/0" and got.ids[-1] == "mvbench_state_change/1"
    if how == "mean":  # half of 6 questions' weight on each member
        assert got.scores == pytest.approx((75, 0, 0, 0, 150, 150)) and got.verdicts == (1, 0, 0, 0, 1, 1)
    else:
        assert got.scores == pytest.approx((100, 0, 0, 0, 100, 100)) and got.verdicts == ()
    wrong = outcome("mvbench", members, samples, groups={"mvbench": {"mvbench_accuracy,none": 70.0}})
    lost = score_samples(task, wrong)
    assert lost.score == 70 and lost.scores == () and lost.verdicts == (1, 0, 0, 0, 1, 1)
    assert "do not average" in lost.warnings[0]


def test_a_group_without_a_score():
    made = outcome("mvbench", {"mvbench": {" ": " "}}, {"mvbench_action_count": []})
    with pytest.raises(EvaluationError, match="a group without a score of its own"):
        score_samples(lmms("mvbench", "mvbench_accuracy"), made)


def test_answers_of_every_kind():
    assert answer_of({"resps": [["B"]]}) == "B" and answer_of({"resps": ["B"]}) == "B"
    assert answer_of({"resps": [[]], "filtered_resps": [""]}) == ""
    assert answer_of({"resps": [[(2.5, False)], [(0.5, True)], [(1.5, False)]]}) == "1"


# ---------------------------------------------------------------- the benchmarks' own code


def code_of(name: str, text: str) -> Callable:
    """The function that a shipped task's YAML names."""
    module, _, function = text.rpartition(".")
    path = find(name).path.parent / f"{module}.py"
    key = f"shipped_{path.parent.name}_{module}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, path)
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return getattr(sys.modules[key], function)


def shipped(name: str, metric: str, docs: Sequence[dict], said: Sequence[str]) -> Outcome:
    """An outcome as lmms-eval would make it: the task's own process_results and aggregation on documents of ours."""
    config = find(name).config
    process = code_of(name, config["process_results"])
    own = {}
    for one in config["metric_list"]:
        if "." in one["aggregation"]:
            own[one["metric"]] = code_of(name, one["aggregation"])
    rows = [
        sample(i, process(dict(doc), [answer]), answer, doc=dict(doc))
        for i, (doc, answer) in enumerate(zip(docs, said, strict=True))
    ]
    values = [row[metric] for row in rows if metric in row]
    extra = {"args": None} if metric in own and "args" in own[metric].__code__.co_varnames else {}
    value = own[metric](values, **extra) if metric in own else mean([float(value) for value in values])
    return outcome(name, {name: {f"{metric},none": value}}, rows, aggregation=own)


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Benchmarks' code writes where it stands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))


MME = {"unit": ["category", "question_id"], "strata": {"key": "category", "of": "sum"}, "full": 200, "kind": "category"}


def test_mme_counts_pairs_and_sums_categories():
    """Code: 3 pairs (200, 100, 0) → mean 100. Translation: 1 pair (200) → 200. Sum 300 of 400. OCR counts elsewhere."""
    pairs = [("code_reasoning", "1", 2), ("code_reasoning", "2", 1), ("code_reasoning", "3", 0)]
    pairs += [("text_translation", "1", 2), ("OCR", "1", 2)]
    docs, said = [], []
    for category, question, right in pairs:
        for which, gold in enumerate(("Yes", "No")):
            docs.append({"category": category, "question_id": question, "answer": gold})
            said.append(gold if which < right else "Maybe")
    task = lmms("mme", "mme_cognition_score", scale=400, options=MME)
    got = score_samples(task, shipped("mme", task.metric, docs, said))
    # one right of two: 50 (half right) + 0 (not both): 50; so code is (200 + 50 + 0) / 3
    assert got.score == pytest.approx(250 / 3 + 200)
    assert got.n == 4 and mean(got.scores) == pytest.approx(got.score)
    assert got.scores == pytest.approx((200 * 4 / 3, 50 * 4 / 3, 0, 800))
    assert got.verdicts == (1, 0, 0, 1) and not got.warnings
    assert got.ids[0] == "code_reasoning/1" and got.answers[1] == "Yes | Maybe"
    assert got.kinds == {"code_reasoning": (3, pytest.approx(250 / 3)), "text_translation": (1, 200.0)}
    broken = score_samples(task, shipped("mme", task.metric, docs, ["Maybe"] * len(docs)))
    assert broken.score == 0 and broken.verdicts == () and set(broken.scores) == {0.0}


def test_mmmu_by_its_own_judgement():
    choices = "['x', 'y', 'z']"
    docs = [
        {
            "id": f"validation_{subject}_{i}",
            "question_type": "multiple-choice",
            "options": choices,
            "answer": "B",
        }
        for subject in ("Art", "Math", "Physics")
        for i in range(1, 4)
    ]
    docs.append({"id": "validation_Math_9", "question_type": "open", "options": "[]", "answer": "42"})
    said = ["B", "A", "(B)", "B", "C", "C", "A", "A", "B", "so it is 42"]
    for options in ({"score": "aggregate"}, {}):
        task = lmms("mmmu_val", "mmmu_acc", options=options)
        got = score_samples(task, shipped("mmmu_val", "mmmu_acc", docs, said))
        assert got.score == pytest.approx(0.5) and got.scores == (1, 0, 1, 1, 0, 0, 0, 0, 1, 1)
        assert not got.warnings


def test_mmbench_static_judges_circular_rows_together():
    docs, said = [], []
    for index, right in ((3, (True, True)), (4, (True, False)), (7, (False, False))):
        for turn, good in enumerate(right):
            gold = "AB"[turn]
            doc = {"index": index + 1000000 * turn, "question": "q", "answer": gold, "hint": "nan", "source": "s"}
            docs.append(doc | {"split": "dev", "category": f"c{index}", "L2-category": "l", "A": "cat", "B": "dog"})
            said.append(gold if good else "BA"[turn])
    options = {"score": "aggregate", "unit": {"key": "index", "modulo": 1000000}, "kind": "category"}
    task = lmms("mmbench_en_dev_static", "gpt_eval_score", scale=100, options=options)
    pytest.importorskip("pandas")
    got = score_samples(task, shipped(task.id, task.metric, docs, said))
    assert got.score == pytest.approx(100 / 3) and got.ids == ("3", "4", "7")
    assert got.scores == pytest.approx((100, 0, 0)) and got.verdicts == () and not got.warnings


def test_videomme_with_clusters():
    docs = [
        {
            "question_id": f"{i}",
            "videoID": f"v{i // 3}",
            "answer": "C",
            "duration": "short",
            "domain": "Knowledge",
            "sub_category": "Humanity & History",
            "task_type": "Counting Problem",
        }
        for i in range(6)
    ]
    task = lmms("videomme", "videomme_perception_score", scale=100, cluster="videoID")
    got = score_samples(task, shipped("videomme", task.metric, docs, ["C", "A", "C.", "B", "(C)", ""]))
    assert got.score == pytest.approx(50) and got.scores == (100, 0, 100, 0, 100, 0)
    assert got.clusters == ("v0", "v0", "v0", "v1", "v1", "v1") and got.empty == 1


def test_mmstar_is_a_mean_over_second_level_categories():
    docs = [{"index": i, "answer": "A", "category": "x", "l2_category": "abb"[i % 3]} for i in range(9)]
    said = ["A", "A", "B"] * 3  # a: 3 of 3, b: 3 of 6
    task = lmms("mmstar", "average", options={"score": "score", "strata": "l2_category"})
    got = score_samples(task, shipped("mmstar", "average", docs, said))
    assert got.score == pytest.approx(0.75) and mean(got.scores) == pytest.approx(0.75)
    assert got.verdicts == (1, 1, 0) * 3


def test_pope_accuracy_is_a_mean_and_f1_a_ratio():
    docs = [{"question_id": i, "answer": "yes" if i < 4 else "no"} for i in range(8)]
    said = ["yes", "yes", "yes", "no", "no", "no", "yes", "yes"]
    right = (1, 1, 1, 0, 1, 1, 0, 0)
    got = score_samples(lmms("pope", "pope_accuracy"), shipped("pope", "pope_accuracy", docs, said))
    assert got.score == 0.625 and got.scores == right and got.verdicts == ()
    f1 = score_samples(lmms("pope", "pope_f1_score"), shipped("pope", "pope_f1_score", docs, said))
    # 3 found, 1 missed, 2 wrongly found: 6 / (6 + 1 + 2); weights: found 2, missed and wrong 1, the rest 0; sum 9
    assert f1.score == pytest.approx(2 / 3) and f1.verdicts == right and not f1.warnings
    hit, off, rest = 2 / 3 + (1 / 3) * 2 * 8 / 9, 2 / 3 - (2 / 3) * 8 / 9, 2 / 3
    assert f1.scores == pytest.approx((hit, hit, hit, off, rest, rest, off, off))


def test_mlvu_is_a_mean_over_its_seven_types():
    kinds = ["anomaly_reco", "count", "ego", "needle", "order", "plotQA", "topic_reasoning"]
    docs = [{"question": f"q{i}", "answer": "A", "task_type": kinds[i % 7], "video_name": f"v{i}"} for i in range(11)]
    said = ["A" if i % 3 else "B" for i in range(11)]
    by_kind = [mean([said[i] == "A" for i in range(11) if i % 7 == k]) for k in range(7)]
    options = {"score": {"equal": ["pred_answer", "answer"]}, "strata": "task_type"}
    task = lmms("mlvu_dev", "mlvu_percetion_score", scale=100, options=options)
    got = score_samples(task, shipped("mlvu_dev", task.metric, docs, said))
    assert got.score == pytest.approx(100 * mean(by_kind)) and mean(got.scores) == pytest.approx(got.score)
    assert got.verdicts == tuple(float(answer == "A") for answer in said)


def judged_by_rule(metric: str, docs: Sequence[dict], said: Sequence[str]) -> Outcome:
    """HallusionBench as its YAML has it in a comment: the shipped metrics ask a judge and need a command line."""
    own = {metric: code_of("hallusion_bench_image", f"evaluate_hb.hb_aggregation_result_{metric}_intern")}
    rows = [
        sample(i, {metric: doc | {"model_prediction": answer}}, answer, doc=doc)
        for i, (doc, answer) in enumerate(zip(docs, said, strict=True))
    ]
    score = own[metric]([row[metric] for row in rows])
    return outcome("hallusion_bench_image", {"hallusion_bench_image": {f"{metric},none": score}}, rows, aggregation=own)


def test_pairs_and_figures():
    docs = [{"Index": i + 1, "Correct Answer": "(a)", "Question": "q", "Options": "(a) x (b) y"} for i in range(6)]
    task = lmms("mmvp", "mmvp_pair_accuracy", options={"score": "is_correct", "unit": "pair_index"})
    got = score_samples(task, shipped("mmvp", task.metric, docs, ["A", "A", "A", "B", "B", "B"]))
    assert got.score == pytest.approx(1 / 3) and got.scores == (1, 0, 0)
    own = score_samples(
        task.model_copy(update={"options": {"unit": "pair_index"}}),
        shipped("mmvp", task.metric, docs, ["A", "A", "A", "B", "B", "B"]),
    )
    assert own.scores == got.scores
    figures = [
        {"category": "VD", "subcategory": "s", "set_id": 0, "figure_id": i // 2, "question_id": i % 2, "gt_answer": "1"}
        for i in range(4)
    ]
    for metric, unit, scores in (
        ("aAcc", None, (1, 1, 1, 0)),
        ("fAcc", ["category", "subcategory", "set_id", "figure_id"], (1, 0)),
        ("qAcc", ["category", "subcategory", "set_id", "question_id"], (1, 0)),
    ):
        options = {"score": "aggregate"} | ({"unit": unit} if unit else {})
        made = judged_by_rule(metric, figures, ["Yes", "yes.", "Yes", "No"])
        got = score_samples(lmms("hallusion_bench_image", metric, options=options), made)
        assert got.scores == scores and got.score == mean(scores)


def test_patience_ends():
    assert Aggregation(mean, patience=60).of([[1.0], [2.0]]) == [1.0, 2.0]
    assert Aggregation(mean, patience=0).of([[1.0], [2.0]] * 1000) is None


def test_logs_of_single_units_are_not_shown(capfd):
    docs = [{"Index": i + 1, "Correct Answer": "(a)", "Question": "q", "Options": "(a) x (b) y"} for i in range(4)]
    made = shipped("mmvp", "mmvp_pair_accuracy", docs, ["A"] * 4)
    capfd.readouterr()
    got = score_samples(lmms("mmvp", "mmvp_pair_accuracy", options={"unit": "pair_index"}), made)
    assert got.scores == (1, 1)
    assert capfd.readouterr() == ("", "")


def test_mathvista_none_at_zero_and_its_number_otherwise():
    """Its own aggregation takes its rows apart, so the questions are read from what each row says."""
    for name in ("pandas", "Levenshtein", "openai"):
        pytest.importorskip(name)
    docs = [
        {
            "pid": str(i),
            "query": "?",
            "question": "?",
            "choices": ["1", "2"],
            "answer": "2",
            "question_type": "multi_choice",
            "answer_type": "text",
            "precision": 0,
            "metadata": {"split": "testmini", "language": "en", "source": "s", "category": "c", "task": "t"}
            | {"context": "x", "grade": "g", "skills": ["k"]},
        }
        for i in range(3)
    ]
    task = lmms(
        "mathvista_testmini_format",
        "llm_as_judge_eval",
        scale=100,
        options={"score": "true_false", "none_is_zero": True},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "x")
        got = score_samples(task, shipped(task.id, task.metric, docs, ["2", "2", "1"]))
        assert got.score == 66.67 and mean(got.scores) == pytest.approx(66.67) and got.verdicts == (1, 1, 0)
        none = score_samples(task, shipped(task.id, task.metric, docs, ["1", "1", "1"]))
        assert none.score == 0 and none.scores == (0, 0, 0)


def test_seedbench_and_muirbench_by_equal_fields():
    docs = [{"answer": "B", "question_id": i, "data_type": "image"} for i in range(4)]
    options = {"score": {"equal": ["pred", "answer"]}}
    made = shipped("seedbench", "seed_all", docs, ["b", "B", "A", "B."])
    got = score_samples(lmms("seedbench", "seed_all", options=options), made)
    assert got.scores[:3] == (1, 1, 0) and mean(got.scores) == pytest.approx(got.score)


def test_vsibench_nests_its_strata():
    """Directions are one kind of question in three degrees; numbers are marked by nearness."""
    pytest.importorskip("pandas")
    kinds = ["object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard"]
    docs = [{"question_type": kind, "ground_truth": "A", "scene_name": f"s{i}"} for i, kind in enumerate(kinds * 2)]
    docs += [{"question_type": "object_counting", "ground_truth": "4", "scene_name": "s"} for _ in range(3)]
    said = ["A", "A", "B", "B", "A", "B", "4", "3", "0"]
    options = {
        "score": ["accuracy", "MRA:.5:.95:.05"],
        "strata": [{"key": "question_type", "strip": "_(easy|medium|hard)$"}, "question_type"],
    }
    task = lmms("vsibench", "vsibench_overall", options=options)
    made = shipped("vsibench", task.metric, docs, said)
    got = score_samples(task, made)
    # directions: easy 1/2, medium 1, hard 0 → 1/2; counting: 4 of 4 is 1, 3 and 0 are marked by their nearness
    marks = [row["vsibench_overall"]["MRA:.5:.95:.05"] for row in made.samples[PREFIX + "vsibench"][6:]]
    assert marks[0] == 1 and 0 < marks[1] < 1 and marks[2] == 0
    assert got.score == pytest.approx((0.5 + mean(marks)) / 2, abs=1e-6)
    assert mean(got.scores) == pytest.approx(got.score) and got.verdicts == () and not got.warnings
