"""Kinds compared at equal achieved size or time, on records made by hand and numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunebench import leaderboard
from prunebench.cli.leaderboard import leaderboard as command
from prunebench.comparison import group_records
from prunebench.errors import BadParameter, StoreError, UnknownName, UsageError
from prunebench.findings import difference
from prunebench.match import left_out, matched
from prunebench.quantities import LEVELS, check_quantity, parse_levels, share_of
from prunebench.recovery.spec import parse_recovery
from prunebench.report import match
from prunebench.store import Memory, Store
from tests.factories import (
    make_dense,
    make_latency,
    make_memory,
    make_model,
    make_narrow,
    make_record,
    make_stored,
    make_task,
    make_thinned,
)

DENSE = {"look": 85, "count": 75}  # above chance (25): 60 and 50 points


def right(look: int) -> dict[str, int]:
    """Chance-corrected: (look − 25) / 120 + 1/2."""
    return {"look": look, "count": 75}


def layers(name, count, look, **changes):
    given = {"memory": make_stored(1 - 0.05 * count, 1 - 0.05 * count), **changes}
    return make_record(name, range(count), right(look), **given)


def contest():
    """Bytes on disk of the dense model: layers 90 and 80 %, masks 85 and 70 %, widths 80 %."""
    return [
        make_dense(DENSE, memory=make_stored(1.0, 1.0)),
        layers("drop", 2, 80),
        layers("drop", 4, 60),
        make_thinned("thin", 0.5, right(70)),
        make_thinned("thin", 0.9, right(30), memory=make_stored(1.0, 0.7)),
        make_thinned("thin", 0.5, right(65), kind="2:4"),
        make_narrow("narrow", 0.5, right(60)),
    ]


def only(records):
    (group,) = group_records(records)
    return group


def cells(found):
    """(label, kind) → what each level holds: chance-corrected score × 120 − 60, percent of the dense model, rank."""
    return {
        (method.label, method.kind): [
            (round(120 * cell.values[0] - 60 + 25), round(100 * cell.candidate.share), cell.rank)
            if (cell := level.cells.get(method))
            else None
            for level in found.levels
        ]
        for method in found.methods
    }


def rows_of(text: str, start: str) -> list[list[str]]:
    rows = [[c.strip() for c in line.strip("|").split(" | ")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0].startswith(start)]


# -- what is compared --------------------------------------------------------------------------------------------------


def test_each_method_is_seen_with_its_best_plan_that_is_small_enough():
    (found,) = matched(only(contest()), "bytes", (0.9, 0.85, 0.8, 0.75, 0.6))
    assert cells(found) == {
        ("drop", "layers"): [(80, 90, 1), (60, 80, 3), (60, 80, 1), None, None],
        ("thin", "weights"): [(70, 85, 2), (70, 85, 1), (30, 70, 3), (30, 70, 1), None],
        ("thin (pattern=2:4)", "2:4"): [(65, 85, 3), (65, 85, 2), None, None, None],
        ("narrow", "width"): [(60, 80, 4), (60, 80, 3), (60, 80, 1), None, None],
    }
    assert found.trained == "" and [len(level.best) for level in found.levels] == [1, 1, 2, 1, 0]


def test_nominal_sparsity_plays_no_part():
    """Half of the weights zeroed is 85 % of these bytes; four of eight layers are 80 %."""
    (found,) = matched(only(contest()), "bytes", (0.8,))
    best = {method.label for method in found.levels[0].best}
    assert best == {"drop", "narrow"} and "thin (pattern=2:4)" not in {m.label for m in found.levels[0].cells}


def test_ties_are_those_of_adjusted_tests_as_in_the_tables_by_budget():
    records = [
        *contest(),
        make_thinned("near", 0.5, right(69)),  # one question of 200 less than the best at 85 %
        make_thinned("far", 0.5, right(40)),
    ]
    group = only(records)
    (found,) = matched(group, "bytes", (0.85,))
    level = found.levels[0]
    by_label = {method.label: cell for method, cell in level.cells.items()}
    best = next(m for m in level.best)
    assert best.label == "thin" and by_label["near"].tied and not by_label["far"].tied
    expected = difference(group, by_label["near"].candidate.row, level.cells[best].candidate.row)
    assert by_label["near"].gap == expected and expected.is_tie
    assert level.cells[best].tied and level.cells[best].gap is None and level.cells[best].p is None
    # McNemar's exact test of 31, 10, 10, 5 and 1 answers that all went one way, and Holm's factors 5 to 1.
    p = {(m.label, m.kind): cell.p for m, cell in level.cells.items() if m is not best}
    expected = {"far": 5 * 2 / 2**30, "narrow": 4 * 2 / 2**10, "drop": 4 * 2 / 2**10, "thin (pattern=2:4)": 4 / 2**5}
    assert {label: p[label, kind] for label, kind in p if label != "near"} == pytest.approx(expected)
    assert p["near", "weights"] == 1.0
    text = match.build(records, "bytes", (0.85,))
    assert rows_of(text, "`near`")[0][-1] == f"{100 * (44 / 120 + 0.5):.1f} (85.0 %) #2 ≈"
    assert rows_of(text, "85 %")[0][5] == "`near` (weights) and `thin (pattern=2:4)` (2:4)"


def test_bands_have_no_rank_and_take_what_their_largest_draw_takes():
    draws = [
        make_record("random", (i, i + 1), right(look), cell={"seed": i}, memory=make_stored(size, size))
        for i, (look, size) in enumerate([(85, 0.7), (45, 0.8)])
    ]
    (found,) = matched(only([*contest(), *draws]), "bytes", (0.8, 0.75))
    method = next(m for m in found.methods if m.label == "random")
    cell = found.levels[0].cells[method]
    assert (cell.rank, cell.candidate.share, len(cell.values)) == (None, 0.8, 2)
    assert method not in found.levels[1].cells  # one of its draws is larger
    assert {m.label for m in found.levels[0].best} == {"drop", "narrow"}  # not the band, whose mean is above
    shown = rows_of(match.build([*contest(), *draws], "bytes", (0.8,)), "`random`")[0][-1]
    assert shown == "83.3 (66.7 to 100.0) (80.0 %)"


def test_rows_without_a_score_have_no_cell_and_stay_in_the_table():
    failed = make_narrow("broken", 0.5, status="failed", error="no room", memory=None)
    short = make_thinned("short", 0.5, {"look": 85})
    records = [*contest(), failed, short]
    (found,) = matched(only(records), "bytes")
    lost = {m.label: m.unscored for m in found.methods if not m.candidates}
    assert lost == {"broken": 1, "short": 1}
    rows = {label: rows_of(match.build(records, "bytes"), f"`{label}`")[0] for label in lost}
    assert rows["broken"] == ["`broken`", "width", *["—"] * 7] and rows["short"][1:3] == ["weights", "—"]


def test_trained_rows_stand_apart():
    def trained(record, tokens=1000):
        recovery = parse_recovery("tune", tokens)
        cell = record.cell.model_copy(update={"recovery": recovery})
        return record.model_copy(update={"cell": cell, "id": cell.id})

    closed = layers("drop", 2, 84)
    cell = closed.cell.model_copy(update={"recovery": parse_recovery("replaceme")})
    closed = closed.model_copy(update={"cell": cell, "id": cell.id})
    records = [
        *contest(),
        closed,
        trained(layers("drop", 2, 85)),
        trained(make_thinned("thin", 0.5, right(84))),
        trained(make_narrow("narrow", 0.5, right(83)), tokens=5000),
        trained(make_dense(DENSE, memory=make_stored(1.0, 1.0))),
    ]
    found = matched(only(records), "bytes", (0.9,))
    names = [[(m.label, one.levels[0].cells[m].rank) for m in one.methods] for one in found]
    assert [one.trained for one in found] == ["", "trained on 1,000 tokens", "trained on 5,000 tokens"]
    assert names[0][0] == ("drop + replaceme", 1) and ("drop", 2) in names[0]
    assert names[1:] == [[("drop + tune", 1), ("thin + tune", 2)], [("narrow + tune", 1)]]
    text = match.build(records, "bytes", (0.9,))
    assert "### Trained on 1,000 tokens\n\nBeside the dense model, recovered in the same way: `dense + tune`" in text
    assert rows_of(text, "`drop + replaceme`")[0][1:4] == ["layers", "closed-form compensation", "compressed"]


# -- the quantities ----------------------------------------------------------------------------------------------------


def test_bytes_are_compressed_where_that_was_counted():
    record = make_thinned("thin", 0.5, right(70))
    assert share_of(record, "bytes") == (0.85, "compressed")
    plain = record.model_copy(update={"memory": make_stored(0.9)})
    assert share_of(plain, "bytes") == (0.9, "plain")
    before = record.model_copy(update={"memory": make_memory(6144, 8192)})  # a record of an earlier version
    assert share_of(before, "bytes") == (0.75, "plain")
    assert share_of(record.model_copy(update={"memory": None}), "bytes") is None
    text = match.build([*contest(), make_thinned("thin", 0.3, right(75), memory=make_memory(6144, 8192))], "bytes")
    assert rows_of(text, "`thin`")[0][2] == "compressed / plain"


def test_masks_take_all_the_time_unless_a_sparse_kernel_was_timed():
    mask = make_thinned("thin", 0.5, right(70))
    assert share_of(mask, "latency") == (1.0, "dense kernels")
    timed = make_thinned("thin", 0.5, right(70), kind="2:4", latency=make_latency(30.0, 24.0))
    assert share_of(timed, "latency") == (pytest.approx(0.8), "measured")
    fast = layers("drop", 2, 60, latency=make_latency(30.0, 18.0))
    records = [make_dense(DENSE), mask, timed, fast, layers("untimed", 2, 80)]
    (found,) = matched(only(records), "latency", (1.0, 0.9, 0.7))
    assert cells(found) == {
        ("drop", "layers"): [(60, 60, 3), (60, 60, 2), (60, 60, 1)],
        ("thin (pattern=2:4)", "2:4"): [(70, 80, 1), (70, 80, 1), None],
        ("thin", "weights"): [(70, 100, 1), None, None],
        ("untimed", "layers"): [None, None, None],
    }
    assert left_out(only(records), "latency") == ["untimed (2 of 8 layers removed (kind `layers`))"]
    said = match.build(records, "latency").split("Left out: ")[1]
    assert "untimed (2 of 8 layers removed" in said and "do not say what `--match latency` needs" in said


def test_parameters_are_those_that_neither_go_nor_are_zero():
    # 400 of 2,000 are zero; 8 layers lose 50 each; two layers of 100 go.
    assert share_of(make_thinned("thin", 0.5), "params") == (pytest.approx(0.8), "counted")
    assert share_of(make_narrow("narrow", 0.5), "params") == (pytest.approx(0.8), "counted")
    assert share_of(make_record("drop", (1, 2)), "params") == (pytest.approx(0.9), "counted")
    assert share_of(make_record("drop", status="failed"), "params") is None


@pytest.mark.parametrize(("quantity", "says"), [("bytes", "holds the bytes"), ("latency", "was timed")])
def test_records_that_lack_the_quantity_are_refused_in_one_line(quantity, says):
    bare = [make_dense(DENSE), make_record("drop", right=DENSE)]
    with pytest.raises(UsageError, match=says) as error:
        match.build(bare, quantity)
    assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match=says):
        match.as_data(bare, quantity)


def test_times_that_nobody_measured_are_no_comparison():
    """A run without times: masks would stand alone at 100 %."""
    records = [make_dense(DENSE), make_thinned("thin", 0.5, right(70)), layers("drop", 2, 60)]
    with pytest.raises(UsageError, match="no record was timed"):
        match.build(records, "latency")


def test_levels_stand_as_they_were_asked_for():
    levels = (0.755, 0.75, 0.57, 0.1234567891)
    text = match.build(contest(), "bytes", levels)
    said = ["75.5 %", "75 %", "57 %", "12.34567891 %"]
    assert rows_of(text, "Method")[0][-4:] == [f"≤ {level}" for level in said]
    assert [rows_of(text, level)[0][0] for level in said] == said
    assert match.said_options(text) == ("bytes", "0.755,0.75,0.57,0.1234567891")
    assert match.is_match(text, contest())


def test_one_group_without_the_quantity_does_not_stop_the_others():
    other = make_model(name="other")
    bare = [make_dense(DENSE, model=other), make_record("drop", right=DENSE, model=other)]
    text = match.build([*contest(), *bare], "bytes")
    assert "2 groups of records" in text and "None of these records holds what `--match bytes` needs" in text
    assert "`thin`" in text


def test_without_a_dense_row_nothing_is_ranked():
    text = match.build([record for record in contest() if record.cell.strategy != "dense"], "bytes")
    assert "There is no complete dense row" in text and "#1" not in text


def test_levels_and_quantities_are_checked():
    assert parse_levels(None) == LEVELS and parse_levels("0.5, 0.9,0.5") == (0.9, 0.5) and parse_levels("1") == (1.0,)
    for bad in ("", "a", "0", "1.5", "90", "-0.1", "nan", "0.9,,0.5"):
        with pytest.raises(BadParameter, match=r"in \(0, 1\]"):
            parse_levels(bad)
    assert check_quantity("bytes") == "bytes"
    with pytest.raises(UnknownName, match="did you mean 'params'"):
        check_quantity("parms")


# -- the text and the command ------------------------------------------------------------------------------------------


def test_best_of_each_kind_at_each_level():
    text = match.build(contest(), "bytes", (0.9, 0.8, 0.6))
    assert rows_of(text, "At most")[0][6:] == [f"Best of `{kind}`" for kind in ("layers", "2:4", "weights", "width")]
    score = {look: f"{100 * ((look - 25) / 120 + 0.5):.1f}" for look in (80, 70, 65, 60, 30)}
    assert rows_of(text, "90 %")[0] == [
        *("90 %", "`drop`", "layers", score[80], "90.0", "—"),
        *(f"`drop` {score[80]}", f"`thin (pattern=2:4)` {score[65]}", f"`thin` {score[70]}", f"`narrow` {score[60]}"),
    ]
    assert rows_of(text, "80 %")[0][1:5] == ["`drop` and `narrow`", "layers and width", score[60], "80.0"]
    assert set(rows_of(text, "60 %")[0][1:]) == {"—"}
    for block in [block for block in text.split("\n\n") if block.startswith("|")]:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_same_records_same_bytes_in_any_order():
    records = contest()
    text = match.build(records, "params")
    assert match.build(records[::-1] + records[:2], "params") == text
    assert match.said_options(text) == ("params", "0.9,0.8,0.7,0.6,0.5,0.4")
    assert match.said_options(leaderboard.build(records)) is None


def test_perplexities_are_compared_too():
    def tasks(score):
        return [make_task("text", 0, score=score, ci_low=score, ci_high=score, chance=500.0, majority=None, scores=(),
                          ids=(), higher_is_better=False, metric="perplexity")]  # fmt: skip

    records = [make_dense({}, tasks=tasks(10.0), memory=make_stored(1.0, 1.0))]
    records += [make_thinned(name, 0.5, tasks=tasks(score)) for name, score in (("a", 20.0), ("b", 15.0))]
    (found,) = matched(only(records), "bytes", (0.9,))
    assert [(m.label, found.levels[0].cells[m].rank) for m in found.methods] == [("b", 1), ("a", 2)]
    assert not any(cell.tied for m, cell in found.levels[0].cells.items() if m.label == "a")  # nothing to pair


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "run")
    for record in contest():
        store.write(record)
    return store.root


def run(*words):
    return CliRunner().invoke(command, [str(word) for word in words])


def test_command_writes_checks_and_tells(folder, tmp_path):
    shown = run(folder, "--match", "bytes")
    assert shown.exit_code == 0 and shown.stdout == match.build(contest(), "bytes")
    out = tmp_path / "bytes.md"
    asked = (folder, "--match", "bytes", "--levels", "0.75,0.9")
    assert run(*asked, "--out", out).exit_code == 0
    assert out.read_text(encoding="utf-8") == match.build(contest(), "bytes", (0.9, 0.75))
    for words in ((folder,), asked, (folder, "--match", "bytes")):  # the file says its own levels
        assert "up to date" in run(*words, "--check", out).stderr
    for words in ((folder, "--match", "params"), (folder, "--match", "bytes", "--levels", "0.9")):
        found = run(*words, "--check", out)
        assert found.exit_code == 1 and "out of date" in found.stderr
    titled = run(*asked, "--title", "Mine", "--out", out)
    assert titled.exit_code == 0 and out.read_text(encoding="utf-8").startswith("# Mine\n")
    assert run(folder, "--check", out).exit_code == 1 and run(folder, "--title", "Mine", "--check", out).exit_code == 0
    out.write_text(out.read_text(encoding="utf-8").replace("--levels 0.9,0.75", "--levels 9"), encoding="utf-8")
    assert run(folder, "--title", "Mine", "--check", out).exit_code == 1
    plain = tmp_path / "plain.md"
    assert run(folder, "--out", plain).exit_code == 0 and run(folder, "--check", plain).exit_code == 0
    assert run(folder, "--match", "bytes", "--check", plain).exit_code == 1
    (data,) = json.loads(run(folder, "--match", "bytes", "--levels", "0.8", "--json").stdout)
    (level,) = data["tables"][0]["levels"]
    first = next(one for one in level["methods"] if one["label"] == "drop")
    assert (first["rank"], first["share"], first["known_by"]) == (1, 0.8, "compressed") and len(first["cells"]) == 1
    gone = next(one for one in level["methods"] if one["kind"] == "2:4")
    assert gone["scores"] is None and gone["rank"] is None and gone["tied"] is None


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--match", "size"), "unknown quantity to match 'size'"),
        (("--match", "bytes", "--levels", "90"), "a level is a share of the dense model"),
        (("--levels", "0.9"), "--levels goes with --match"),
        (("--match", "bytes", "--highlight", "thin"), "leave out --plot and --highlight"),
        (("--match", "latency"), "no record was timed"),
        (("--match", "bytes", "--check", "x.md", "--json"), "--check only compares"),
    ],
)
def test_bad_words_are_one_line(words, says, folder):
    if words[-1] == "latency":
        for path in (folder / "records").glob("*.json"):
            if '"kind":"layers"' not in path.read_text(encoding="utf-8"):
                path.unlink()  # masks need no time
    error = run(folder, *words).exception
    assert isinstance(error, UsageError) and says in str(error) and "\n" not in str(error)


def test_an_absent_file_is_one_line(folder, tmp_path):
    error = run(folder, "--match", "bytes", "--check", tmp_path / "absent.md").exception
    assert isinstance(error, StoreError) and "write it with --out" in str(error)


def test_memory_of_earlier_records_reads_as_it_did():
    before = '{"weights":1,"dense_weights":2,"kv_bytes_per_token":3,"torch_peak_allocated":null,' \
        '"dense_torch_peak_allocated":null,"torch_peak_reserved":null,"dense_torch_peak_reserved":null,' \
        '"nvml_process":null,"peak_rss":4}'  # fmt: skip
    assert Memory.model_validate_json(before).model_dump_json() == before
    now = make_stored(0.5, 0.25).model_dump()
    assert (now["stored"], now["stored_compressed"], now["dense_stored"]) == (4000, 2000, 8000)
    assert "kernels" not in make_latency().model_dump() and "untimed" not in make_dense(DENSE).model_dump()
