"""Published figures: read as they were printed, added up anew, shown beside ours without a rank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from prunebench import leaderboard
from prunebench.errors import UsageError
from prunebench.published import Paper, load_published, published_dir, same_model
from prunebench.recomputed import recompute, recompute_average
from prunebench.report.printed import decimals, disagreements, listing, read_options
from tests.commands import error_line, invoke
from tests.factories import make_dense, make_model, make_record, make_task
from tests.published_files import LLAVA_NEXT, SMALL, llava_next, of_task, write_small

PUBLISHED = Path(__file__).parents[1] / "baselines" / "published"
RAW = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(PUBLISHED.glob("*.yaml"))}
SHIPPED = load_published()


def raw_table(paper: str, name: str) -> dict:
    (found,) = [table for table in RAW[paper]["tables"] if table["name"] == name]
    return found


# -- what ships --------------------------------------------------------------------------------------------------------


def test_every_file_that_ships_is_read_and_none_is_forgotten():
    assert published_dir() == PUBLISHED and set(SHIPPED.papers) == set(RAW)
    assert {"topovlm", "tamp", "short_lvlm", "interlace", "shortgpt_lvlm"} <= set(RAW)
    for name, paper in SHIPPED.papers.items():
        assert paper.id and paper.url.startswith("https://"), name
        assert paper.tables or paper.not_found, name  # an empty file says why


@pytest.mark.parametrize("row", raw_table("short_lvlm", "Layers removed without training")["rows"], ids=str)
def test_short_lvlm_s_average_is_the_mean_with_mme_by_20(row):
    table = raw_table("short_lvlm", "Layers removed without training")
    rule = table["average"]
    tasks = [column["id"] for column in table["columns"] if column.get("what", "score") == "score"]
    scores = dict(zip(tasks, row["values"], strict=False))
    assert len(scores) == 6
    parts = [score / rule["divide"].get(task, 1) for task, score in scores.items()]
    # Half a unit of the last printed digit, and as much for the rounding of the six figures themselves.
    assert sum(parts) / len(parts) == pytest.approx(row["average"], abs=1.0 * 10 ** -rule["decimals"])
    plain = sum(scores.values()) / len(scores)
    assert abs(plain - row["average"]) > 100  # MME as it stands would be most of the average


@pytest.mark.parametrize(
    ("paper", "name", "row", "printed", "found"),
    [
        ("topovlm", "LLaVA-NeXT-8B at 50 %", 2, 91.6, 95.3),
        ("topovlm", "LLaVA-NeXT-8B at 50 %", 1, 90.9, 89.9),
        ("topovlm", "VideoLLaMA2-7B at 60 %", 2, 96.7, 98.8),
        ("topovlm", "VideoLLaMA2-7B at 60 %", 1, 95.0, 94.3),
        ("shortgpt_lvlm", "LLaVA-1.5-7B", 1, 72.22, 70.0),
        ("shortgpt_lvlm", "LLaVA-1.5-7B", 2, 69.18, 66.5),
    ],
)
def test_relative_scores_that_the_printed_columns_do_not_give(paper, name, row, printed, found):
    raw = raw_table(paper, name)  # a second reading of the file, without the code under test
    dense, own = raw["rows"][0], raw["rows"][row]
    ratios = [100 * value / full for value, full in zip(own["values"], dense["values"], strict=True)]
    mean = sum(ratios) / len(ratios)
    assert own["relative"] == printed and round(mean, 1) == found
    (table,) = [table for table in SHIPPED.papers[paper].tables if table.name == name]
    (one,) = [one for one in recompute(table) if one.row is table.rows[row]]
    assert one.mean_of_ratios == pytest.approx(mean) and one.agrees is False
    (said,) = [text for text in disagreements(table) if f"{printed} is printed" in text]
    assert "cannot be recomputed" in said and f"columns give {found:.1f}" in said
    assert said in listing(SHIPPED)


def test_the_derived_dense_row_is_the_only_one_that_fits():
    """One decimal of the dense row follows from the ratios that are quoted; TAMP's mean is a second witness."""
    _dense, tamp, ours = raw_table("topovlm", "VideoLLaMA2-7B at 60 %")["rows"]
    quoted = (99.2, 98.6, 98.6, 98.9)
    fits = [
        [d / 10 for d in range(1, 1001) if round(100 * value / (d / 10), 1) == ratio]
        for value, ratio in zip(ours["values"], quoted, strict=True)
    ]
    assert fits == [[85.6], [58.9], [48.7], [73.3]] == [[value] for value in _dense["values"]]
    assert round(sum(100 * t / d[0] for t, d in zip(tamp["values"], fits, strict=True)) / 4, 1) == 94.3
    assert "noted" in _dense["derived"]


def test_relative_scores_that_can_be_recomputed_are_not_called_wrong():
    (table,) = [t for t in SHIPPED.papers["replaceme"].tables if t.name.endswith("model card")]
    assert len(recompute(table)) == 6 and all(one.agrees for one in recompute(table))  # as the ratio of averages
    assert disagreements(table) == []
    for row in table.rows:
        assert recompute_average(table, row) == pytest.approx(row.average, abs=0.051)
    interlace = SHIPPED.papers["interlace"].tables[0]
    assert [one.row.method for one in recompute(interlace) if not one.agrees] == ["Dense"]  # 96.6 against 97.1


def test_figures_quoted_by_others_count_once():
    both = [(paper.id, table.name) for paper, table in SHIPPED.tables()]
    assert len(both) == len(set(both))
    tamp, ours = SHIPPED.papers["tamp"], SHIPPED.papers["topovlm"]
    assert not any(paper is tamp for paper, _ in SHIPPED.tables())
    for mine, theirs in zip(tamp.tables, ours.tables[:2], strict=True):
        (row,) = mine.rows
        (same,) = [other for other in theirs.rows if other.method == "TAMP"]
        assert (row.values, row.relative, row.removed) == (same.values, same.relative, same.removed)
        assert mine.columns == theirs.columns and "TopoVLM" in mine.via


def test_columns_name_tasks_that_shipped_suites_have():
    """Of the eight tasks of TopoVLM's tables each is found, with its metric, in the suites."""
    suites = [
        yaml.safe_load(path.read_text("utf-8")) for path in sorted((PUBLISHED.parents[1] / "suites").glob("*.yaml"))
    ]
    asked = {(task.get("task", task["id"]), task.get("metric")) for suite in suites for task in suite["tasks"]}
    for table in SHIPPED.papers["topovlm"].tables[:2]:
        for column in table.columns:
            assert {(task, column.metric) for task in column.tasks} & asked, column.id


# -- what a file may say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("values: [90.0, 400]", "values: [90.0]", "1 values for 2 columns"),
        ("values: [90.0, 400]", "values: [90.0, 4000]", "full marks are 800"),
        ("values: [90.0, 400]", "values: [90.0, .nan]", "finite"),
        ("values: [45.0, null]", "values: [45.0, null, 1]", "3 values for 2 columns"),
        ("model: Small-1B, method: half", "model: Big-9B, method: half", "Big-9B"),
        ("kind: layers", "kind: magic", "magic"),
        ("{share: 0.5, unit: layers}", "{share: 50, unit: layers}", "less than 1"),
        ("{share: 0.5, unit: layers}", "{unit: layers}", "share"),
        ("metric: exact_match, ", "", "tasks and metric"),
        ("relative: {to: dense}", "relative: {to: teacher}", "teacher"),
        ("kind: paper", "kind: rumour", "kind"),
        ("title: A small paper", "titel: A small paper", "title: Field required"),
        ("rows:", "rows: [", "not YAML"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(tmp_path, old, new, said):
    assert SMALL.count(old) >= 1
    (tmp_path / "small.yaml").write_text(SMALL.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UsageError) as error:
        load_published(tmp_path)
    assert said in str(error.value) and "small.yaml" in str(error.value) and "\n" not in str(error.value)


def test_missing_is_null_and_never_zero(tmp_path):
    paper = load_published(write_small(tmp_path)).papers["small"]
    (table,) = paper.tables
    assert table.rows[1].values == (45.0, None)
    assert recompute(table)[0].mean_of_ratios is None and recompute(table)[0].agrees is None
    assert disagreements(table) == []  # what cannot be worked out is not called wrong
    assert "| Small-1B | half | `layers` | 50 % of layers | — | 45 | — | 50 | — |" in listing(load_published(tmp_path))


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="RECORDS go before --published"):
        load_published(tmp_path)


def test_repeats_names_a_file(tmp_path):
    write_small(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL.replace("name: T1", "name: T1, repeats: nowhere", 1), encoding="utf-8")
    with pytest.raises(UsageError, match="nowhere"):
        load_published(tmp_path)


def test_models_are_known_by_their_last_part():
    assert same_model(["llava-hf/llama3-llava-next-8b-hf"], "/data/Llama3-LLaVA-NeXT-8B-hf/")
    assert not same_model(["llava-hf/llava-1.5-7b-hf"], "llava-hf/llava-1.5-13b-hf")
    assert not same_model([], "anything")


def test_printed_digits_are_kept():
    assert decimals([78, 77.9, None]) == 1 and decimals([28.10, 68.67]) == 2 and decimals([5422977024.0]) == 0
    assert decimals([]) == 0


def test_no_torch():
    code = (
        "import sys, prunebench.published, prunebench.gate, prunebench.report.published; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_papers_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        SHIPPED.papers["topovlm"].title = "other"
    assert Paper.model_config["extra"] == "forbid"


# -- beside our rows ---------------------------------------------------------------------------------------------------


def section_of(text: str, heading: str = "### Published, not ranked") -> str:
    """A section up to the next heading of the same depth or higher."""
    rest = text[text.index(heading) :]
    ends = [i for i in (rest.find(f"\n{mark} ", 4) for mark in ("#", "##", "###")) if i > 0]
    return rest[: min(ends)]


def rows_of(section: str, by: str) -> list[list[str]]:
    lines = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if "|" in line]
    return [cells for cells in lines if cells[0] == by]


def test_rows_of_the_same_weights_stand_beside_ours_without_a_rank():
    section = section_of(leaderboard.build(llava_next(), published=SHIPPED))
    ours, theirs = rows_of(section, "ours"), rows_of(section, "published")
    # By, row, kind, removed, recovery, MME, MMMU, MMBench, relative printed, mean of ratios
    assert [row[1:3] for row in ours] == [["`dense`", "`dense`"], ["`topo`", "`layers`"]]
    assert ours[0][5:8] == ["376.0", "40.1", "72.0"]  # shares of full marks in the printed unit
    assert ours[1][3].startswith("50 % of layers (16), ") and ours[1][5:8] == ["338.4", "36.1", "64.8"]
    assert [row[1] for row in theirs] == ["dense", "TAMP", "TopoVLM"]
    assert theirs[1][2:10] == ["`weights`", "50 % of weights", "—", "341.0", "35.7", "66.3", "90.9", "89.9"]
    assert theirs[2][2:10] == ["`layers`", "50 % of layers", "—", "353.1", "38.2", "69.8", "91.6", "95.3"]
    assert "Rank" not in section and "arXiv:2604.16502" in section
    assert "cannot be recomputed: 91.6 is printed, its 4 columns give 95.3" in section
    assert "Published on other models" not in section


def test_published_rows_change_no_rank_and_no_other_section():
    records = llava_next()
    plain, shown = leaderboard.build(records), leaderboard.build(records, published=SHIPPED)
    section = section_of(shown)
    body = lambda text: text[: text.index("---\n\nGenerated by")]  # noqa: E731
    assert body(shown).replace(f"{section}\n", "", 1) == body(plain)


def test_our_mean_of_ratios_stands_only_where_every_column_is_ours(tmp_path):
    model = make_model(name="org/small-1b")
    tasks = [of_task("look", "exact_match", 0.9), of_task("mme", "mme_cognition_score", 400, 800)]
    pruned = [of_task("look", "exact_match", 0.45), of_task("mme", "mme_cognition_score", 300, 800)]
    records = [make_dense({}, tasks=tasks, model=model), make_record("a", (1, 2), tasks=pruned, model=model)]
    published = load_published(write_small(tmp_path))
    ours = rows_of(section_of(leaderboard.build(records, published=published)), "ours")
    assert ours[1][5:9] == ["45.0", "300.0", "—", "62.5"]  # (45/90 + 300/400) / 2
    half = [record.model_copy(update={"tasks": record.tasks[:1]}) for record in records]
    ours = rows_of(section_of(leaderboard.build(half, published=published)), "ours")
    assert ours[1][5:8] == ["45.0", "—", "—"]


def test_other_models_on_the_same_tasks_stand_under_a_heading_of_their_own():
    records = llava_next(model=make_model(32, "org/unheard-of"))
    text = leaderboard.build(records, published=SHIPPED)
    assert "No published row is kept of the weights `org/unheard-of`" in section_of(text)
    assert "no published dense score of `org/unheard-of` is kept" in section_of(text)
    others = section_of(text, "### Published on other models, not ranked")
    assert {"TopoVLM, LLaVA-NeXT-8B", "dense, Qwen2-VL-2B"} <= {row[1] for row in rows_of(others, "published")}


def test_columns_of_shares_of_dense_take_our_share_of_dense():
    model = make_model(36, "Qwen/Qwen3-VL-8B-Instruct")
    tasks = [of_task("chartqa", "relaxed_overall", 0.8)], [of_task("chartqa", "relaxed_overall", 0.6)]
    records = [make_dense({}, tasks=tasks[0], model=model), make_record("a", (1, 2), tasks=tasks[1], model=model)]
    section = section_of(leaderboard.build(records, published=SHIPPED))
    assert [row[5] for row in rows_of(section, "ours")] == ["100.0", "75.0"]
    assert "86.5" in [row[5] for row in rows_of(section, "published")]
    assert "Percent of the dense score: ChartQA." in section


def test_nothing_that_is_shared_is_said_too():
    records = [make_dense({"look": 85}), make_record(right={"look": 55})]
    section = section_of(leaderboard.build(records, published=SHIPPED))
    assert "No published row is kept of the weights `toy` on these tasks." in section
    assert "| published" not in section


def test_a_model_on_tasks_that_no_table_has(tmp_path):
    model = make_model(name="small-1b")
    records = [make_dense({"count": 85}, model=model), make_record(right={"count": 55}, model=model)]
    section = section_of(leaderboard.build(records, published=load_published(write_small(tmp_path))))
    assert "share no task with this group: A small paper: T1" in section


# -- command line ------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    from prunebench.store import Store

    store = Store(tmp_path / "runs")
    for record in llava_next():
        store.write(record)
    return store.root


def test_shown_written_and_checked(stored, tmp_path):
    file = tmp_path / "table.md"
    shown = invoke("leaderboard", stored, "--published")
    assert shown.exit_code == 0 and "### Published, not ranked" in shown.stdout
    assert invoke("leaderboard", stored, "--published", "--out", file).exit_code == 0
    assert file.read_text("utf-8") == shown.stdout
    assert read_options(shown.stdout) == (None, "", False)
    assert invoke("leaderboard", stored, "--check", file).exit_code == 0  # the file's last line names the option
    assert invoke("leaderboard", stored, "--published", "--check", file).exit_code == 0
    file.write_text(shown.stdout.replace("| 353.1 |", "| 355.1 |"), encoding="utf-8")
    assert invoke("leaderboard", stored, "--check", file).exit_code == 1
    file.write_text(invoke("leaderboard", stored).stdout, encoding="utf-8")
    assert invoke("leaderboard", stored, "--check", file).exit_code == 0
    assert invoke("leaderboard", stored, "--published", "--check", file).exit_code == 1


def test_a_folder_of_one_s_own_with_a_highlight(stored, tmp_path):
    folder, file = write_small(tmp_path / "my figures"), tmp_path / "table.md"
    done = invoke("leaderboard", stored, "--highlight", "topo", "--published", folder, "--out", file)
    assert done.exit_code == 0
    text = file.read_text("utf-8")
    assert read_options(text) == ("topo", str(folder), False)
    assert "A small paper" not in section_of(text)  # it shares neither weights nor tasks but MME
    assert invoke("leaderboard", stored, "--check", file).exit_code == 0
    figures = folder / "small.yaml"
    figures.write_text(figures.read_text("utf-8").replace("90.0", "91.0"), encoding="utf-8")
    assert invoke("leaderboard", stored, "--check", file).exit_code == 1  # the content of the figures is named


def test_all_tables_without_records(tmp_path):
    shown = invoke("leaderboard", "--published")
    assert shown.exit_code == 0 and shown.stdout == listing(SHIPPED)
    for paper in SHIPPED.papers.values():
        assert f"## {paper.title}" in shown.stdout
    file = tmp_path / "published.md"
    assert invoke("leaderboard", "--published", "--out", file).exit_code == 0
    assert invoke("leaderboard", "--check", file).exit_code == 0
    assert invoke("leaderboard", "--published", "--check", file).exit_code == 0
    file.write_text(shown.stdout.replace("91.6", "95.3"), encoding="utf-8")
    assert invoke("leaderboard", "--published", "--check", file).exit_code == 1
    data = json.loads(invoke("leaderboard", "--published", "--json").stdout)
    assert data["topovlm"]["tables"][0]["rows"][2]["relative"] == 91.6


def test_as_json(stored):
    (group,) = json.loads(invoke("leaderboard", stored, "--published", "--json").stdout)
    assert [row["method"] for row in group["published"]["rows"]] == ["dense", "TAMP", "TopoVLM"]
    assert group["published"]["rows"][2]["values"]["MathVista"] == 34.6
    assert {finding["status"] for finding in group["published"]["gate"]} == {"ok"}
    (plain,) = json.loads(invoke("leaderboard", stored, "--json").stdout)
    assert "published" not in plain


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "name RECORDS"),
        (("--published", "--match", "bytes"), "name RECORDS"),
        (("--published", "--highlight", "topo"), "name RECORDS"),
        (("RUNS", "--allow-gap"), "--allow-gap goes with --published"),
        (("RUNS", "--published", "--match", "bytes"), "--published"),
        (("--published", "RUNS"), "RECORDS go before --published"),
        (("RUNS", "--published", "NOWHERE"), "no published figures"),
    ],
)
def test_words_that_do_not_go_together(stored, tmp_path, arguments, said):
    places = {"RUNS": str(stored), "NOWHERE": str(tmp_path / "nowhere")}
    assert said in error_line(invoke("leaderboard", *(places.get(word, word) for word in arguments)))


def test_llava_next_is_what_the_fixture_says():
    assert llava_next()[0].model.name == LLAVA_NEXT and make_task("x", 1).scale == 1.0
