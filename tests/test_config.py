"""What a run is: cell ids, parameters and where they go, configuration files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge

from prunebench.budget import Budget
from prunebench.cli.options import build_spec
from prunebench.config import CalibrationSpec, Cell, LatencySpec, Spec, parse_params, split_params
from prunebench.errors import BadParameter, BudgetError, UnknownName, UsageError
from prunebench.strategy import Strategy

BASE = {
    "model": "toy",
    "model_revision": "r1",
    "dtype": "float32",
    "strategy": "alpha",
    "strategy_params": {"k": 3, "group": "all"},
    "strategy_version": "1",
    "budget": Budget(value=0.5),
    "seed": 0,
    "suite": "looks",
    "suite_digest": "d1",
    "limit": None,
    "calibration": CalibrationSpec(dataset="pictures", n=64),
    "calibration_revision": "c1",
    "latency": LatencySpec(),
}
MATTERS = {
    "model": "other",
    "model_revision": "r2",
    "dtype": "bfloat16",
    "loading": {"attn_implementation": "eager"},
    "strategy": "beta",
    "strategy_params": {"k": 4, "group": "all"},
    "strategy_version": "2",
    "budget": Budget(value=0.25),
    "seed": 1,
    "suite": "sounds",
    "suite_digest": "d2",
    "left_out": {"described": "judge openai"},
    "limit": 10,
    "calibration": CalibrationSpec(dataset="pictures", n=65),
    "calibration_revision": "c2",
    "latency": LatencySpec(rounds=8),
    "recovery": {"method": "replaceme"},
}


# -- identity ----------------------------------------------------------------------------------------------------------


def test_every_field_of_a_cell_changes_its_id():
    assert set(MATTERS) == set(Cell.model_fields) - {"schema_version"}
    ids = {Cell(**{**BASE, field: value}).id for field, value in MATTERS.items()}
    assert len(ids | {Cell(**BASE).id}) == len(MATTERS) + 1


def test_nothing_else_changes_it():
    cell = Cell(**BASE)
    turned = {**dict(reversed(BASE.items())), "strategy_params": {"group": "all", "k": 3}}
    assert Cell(**turned).id == cell.id
    assert Cell.model_validate_json(cell.model_dump_json()).id == cell.id
    assert Cell(**{**BASE, "budget": Budget(value=0.5, unit="sparsity")}).id == cell.id
    assert len(cell.id) == 16 and int(cell.id, 16) >= 0


def test_a_field_added_later_orphans_no_record():
    class Later(Cell):
        recover: str = "none"

    assert Later(**BASE).id == Cell(**BASE).id
    assert Later(**BASE, recover="tune").id != Cell(**BASE).id


def test_the_same_number_of_layers_asked_in_another_unit_is_another_cell():
    assert Cell(**{**BASE, "budget": Budget(value=8, unit="layers")}).id != Cell(**BASE).id
    assert (
        Cell(**{**BASE, "budget": Budget(value=8, unit="layers")}).id
        == Cell(**{**BASE, "budget": Budget(value=8.0, unit="layers")}).id
    )


# -- -P ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Typed(Strategy):
    """A strategy with one parameter of each type."""

    name = "typed"

    k: Annotated[int, Ge(1)] = 15
    alpha: float = 1.0
    zigzag: bool = True
    group: Literal["all", "visual"] = "all"
    note: str = ""

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise ValueError("alpha must not be negative")

    def plan(self, context): ...


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ({"k": "25"}, ("k", 25, int)),
        ({"alpha": "2"}, ("alpha", 2.0, float)),
        ({"alpha": "1e-3"}, ("alpha", 0.001, float)),
        ({"zigzag": "false"}, ("zigzag", False, bool)),
        ({"zigzag": "False"}, ("zigzag", False, bool)),
        ({"zigzag": "1"}, ("zigzag", True, bool)),
        ({"group": "visual"}, ("group", "visual", str)),
        ({"note": "25"}, ("note", "25", str)),
    ],
)
def test_text_gets_the_type_of_the_field(text, expected):
    name, value, kind = expected
    got = getattr(Typed.from_params(text), name)
    assert got == value and type(got) is kind


@pytest.mark.parametrize(
    "text",
    [
        {"k": "many"},
        {"k": "2.5"},
        {"k": "0"},
        {"k": "-3"},
        {"k": ""},
        {"alpha": "much"},
        {"alpha": "nan"},
        {"alpha": "inf"},
        {"alpha": "-1"},
        {"zigzag": "perhaps"},
        {"group": "audio"},
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_or_range_is_one_line(text):
    with pytest.raises(BadParameter) as caught:
        Typed.from_params(text)
    (name,) = text
    assert "typed" in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_parameter_names_the_nearest():
    with pytest.raises(UnknownName) as caught:
        Typed.from_params({"alfa": "1"})
    assert caught.value.suggestion == "alpha"


def test_parameters_are_read_at_the_first_equals_sign():
    assert parse_params(["k=25", " topo.alpha = 2 ", "note=a=b", "empty="]) == {
        "k": "25",
        "topo.alpha": "2",
        "note": "a=b",
        "empty": "",
    }
    for wrong in ("k", "=3", " =3"):
        with pytest.raises(BadParameter, match="name=value"):
            parse_params([wrong])


def test_parameters_go_to_those_that_have_them():
    known = {"topo": ["k", "alpha"], "cosine": ["group"], "depth": ["k"]}
    assert split_params({"k": "1", "topo.k": "2", "group": "text"}, known) == {
        "topo": {"k": "2"},
        "cosine": {"group": "text"},
        "depth": {"k": "1"},
    }
    # The narrower one wins in whatever order they were given.
    assert split_params({"topo.k": "2", "k": "1"}, known)["topo"] == {"k": "2"}


@pytest.mark.parametrize(
    ("params", "suggestion"), [({"kk": "1"}, "k"), ({"tpo.k": "1"}, "topo"), ({"alpa": "1"}, "alpha")]
)
def test_a_parameter_that_nobody_has_names_the_nearest(params, suggestion):
    with pytest.raises(UnknownName) as caught:
        split_params(params, {"topo": ["k", "alpha"], "cosine": ["group"]})
    assert caught.value.suggestion == suggestion


# -- files -------------------------------------------------------------------------------------------------------------


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


FULL = """
model: testbed
strategies: [topo, cosine]
sparsity: [0.25, 0.5]
params: {k: 25, topo.zigzag: false}
latency: {rounds: 3, warmup: 0}
seed: 4
"""


def test_a_file_says_all_that_flags_say(tmp_path):
    spec = Spec.read(write(tmp_path, FULL))
    assert spec.model == "testbed" and spec.strategies == ("topo", "cosine") and spec.seed == 4
    assert spec.budgets == (Budget(value=0.25), Budget(value=0.5))
    assert spec.latency.rounds == 3 and spec.latency.warmup == 0 and spec.latency.enabled
    assert spec.params["k"] == "25"
    assert Typed.from_params({"zigzag": spec.params["topo.zigzag"], "k": spec.params["k"]}) == Typed(k=25, zigzag=False)
    assert Spec.read(write(tmp_path, "model: testbed\nsparsity: 0.5")).budgets == (Budget(value=0.5),)


def options(**given):
    empty = {"strategies": (), "sparsity": (), "layers": (), "params": (), "model": None, "seed": None, "limit": None}
    return build_spec(**{**empty, "force": False, "controls": False, **given})


def test_flags_override_the_file(tmp_path):
    path = write(tmp_path, FULL)
    same = options(config=str(path))
    assert same == Spec.read(path)
    changed = options(config=str(path), strategies=("random",), layers=(3,), params=("k=9",), limit=7)
    assert changed.strategies == ("random",) and changed.params == {"k": "9"} and changed.limit == 7
    assert changed.budgets == (Budget(value=3, unit="layers"),)
    assert changed.seed == 4 and changed.model == "testbed"  # what no flag says comes from the file


def test_a_flag_of_zero_is_a_flag(tmp_path):
    assert options(config=str(write(tmp_path, FULL)), seed=0).seed == 0
    with pytest.raises(UsageError, match="limit"):
        options(model="testbed", limit=0)


def test_budgets_asked_twice_count_once():
    assert options(model="testbed", sparsity=(0.5, 0.25, 0.5)).budgets == (Budget(value=0.5), Budget(value=0.25))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: testbed\nstrategis: [topo]", "did you mean 'strategies'?"),
        ("model: testbed\nn_calibratoin: 3", "did you mean 'n_calibration'?"),
        ("model: testbed\nlatency: {round: 3}", "latency.round"),
        ("model: testbed\nsparsity: much", "sparsity must be a number or a list of numbers, got 'much'"),
        ("model: testbed\nsparsity: [0.5, {}]", "sparsity must be a number"),
        ("model: testbed\nseeds: 0", "seeds"),
        ("model: testbed\nlimit: few", "limit"),
        ("model: [a, b]", "model"),
        ("sparsity: 0.5", "model"),
        ("- topo", "must hold `key: value` lines"),
        ("model: [", "is not YAML"),
        ("", "model"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(tmp_path, text, words):
    with pytest.raises(UsageError) as caught:
        Spec.read(write(tmp_path, text))
    assert words in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_share_in_a_file_has_the_same_range(tmp_path):
    with pytest.raises(BudgetError, match=r"\[0, 1\)"):
        Spec.read(write(tmp_path, "model: testbed\nsparsity: 1.0"))


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        Spec.read(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot read"):
        Spec.read(tmp_path / "binary.yaml")
