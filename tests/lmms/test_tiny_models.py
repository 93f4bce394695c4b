"""Real tasks on tiny LLaVA and VideoLLaMA2 checkpoints with their own processors, dense and pruned."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from prunebench_lmms_eval.evaluator import LmmsEvaluator
from prunebench_models.hf.adapter import TransformersModel
from prunebench_models.videollama2.adapter import VideoLlama2

from prunebench import LoadOptions, Plan, Sample, pruned
from prunebench.media import AudioFile
from prunebench.suites import load_suite
from tests.commands import error_line, invoke, records_of, write_plugin
from tests.data.videollama2.weights import write_checkpoint
from tests.lmms.synthetic.case import write
from tests.lmms.synthetic.fixtures import no_network, skip_unless_installed  # noqa: F401
from tests.lmms.synthetic.table import CASES
from tests.models.family_processors import save_checkpoint

pytest.importorskip("lmms_eval")

TOKENS = 4
DROP = (1, 4)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}USER: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% elif c['type'] == 'text' %} {{ c['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
ASKED = {
    "llava": (
        "mme", "mmmu_val", "mmbench_en_dev_static", "docvqa_val", "seedbench", "mmstar", "chartqa", "textvqa_val",
        "ai2d", "scienceqa_img", "gsm8k",
    ),
    "videollama2": (
        "videomme", "nextqa_mc_test", "clotho_aqa_test", "muchomusic", "pope", "arc_easy", "mvbench_action_count",
    ),
}  # fmt: skip
SUITES = """
from pathlib import Path

@hookimpl
def prunebench_register_suites(register):
    register(Path(__file__).parent / "suites")
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "llava": save_checkpoint("Llava", root / "llava", chat_template=TEMPLATE),
        "videollama2": write_checkpoint(folder=root / "vl2", layers=6, variant="qwen2_av", num_frames=8),
    }


@pytest.fixture(scope="module")
def models(folders):
    """With layers that matter more than random ones of this size do, so that answers differ."""
    found = {
        "llava": TransformersModel().load(LoadOptions(name="hf", reference=str(folders["llava"]))),
        "videollama2": VideoLlama2().load(LoadOptions(path=str(folders["videollama2"]))),
    }
    for loaded in found.values():
        for parameter in loaded.layers.parameters():
            parameter.data.mul_(3.0) if parameter.dim() > 1 else None
    return found


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Name of a task → its documents on disk, written once."""
    root, made = tmp_path_factory.mktemp("questions"), {}

    def written(name):
        skip_unless_installed(name)
        if name not in made:
            made[name] = write(CASES[name], root / name)
        return made[name]

    return written


def entry(written, limit=None):
    """The suite's entry; options compared by likelihood take no limit of tokens."""
    short = {} if written.case.task == "arc_easy" else {"generation": {"max_new_tokens": TOKENS}}
    return written.task(**short, limit=limit)


@pytest.mark.parametrize("name", list(ASKED))
def test_dense_and_pruned(models, questions, name):
    """Every task has its score both times, some answers change, and undoing the plan gives the dense ones back."""
    loaded, evaluator, changed = models[name], LmmsEvaluator(), 0
    limit = 3 if name == "videollama2" else None  # a sound is 1,496 tokens
    plan = Plan.drop(loaded.info, DROP)
    for task in ASKED[name]:
        written = questions(task)
        dense = evaluator.evaluate(loaded, entry(written, limit))
        with pruned(loaded, plan):
            assert len(loaded.layers) == loaded.info.n_layers - len(DROP)
            small = evaluator.evaluate(loaded, entry(written, limit))
        again = evaluator.evaluate(loaded, entry(written, limit))
        assert again.model_dump(exclude={"seconds"}) == dense.model_dump(exclude={"seconds"})
        assert dense.ids == small.ids and dense.source == small.source
        for result in (dense, small):
            assert result.n == (limit or len(written.questions)) == len(result.answers)
            assert sum(result.scores) / result.n == pytest.approx(result.score)
            assert 0 <= result.score <= result.scale
        changed += dense.answers != small.answers
    assert changed >= len(ASKED[name]) - 1


def test_a_judged_task(models, questions, monkeypatch):
    """MathVista's code on a tiny LLaVA, dense and pruned, with a service of the test's that reads nothing."""
    chat = pytest.importorskip("openai.resources.chat.completions").Completions
    asked = []

    def create(self, **request):
        asked.append(str(request["messages"]))
        message = SimpleNamespace(content="nothing that counts")
        return SimpleNamespace(choices=[SimpleNamespace(message=message)], model="made", usage=None)

    monkeypatch.setattr(chat, "create", create)
    written = questions("mathvista_testmini_format")
    loaded, task = models["llava"], entry(written)
    plan = Plan.drop(loaded.info, DROP)
    dense = LmmsEvaluator().evaluate(loaded, task)
    assert dense.answers and any(dense.answers[0] in text for text in asked)
    with pruned(loaded, plan):
        small = LmmsEvaluator().evaluate(loaded, task)
    assert dense.ids == small.ids and dense.answers != small.answers
    for result in (dense, small):
        assert result.n == len(result.answers) == len(written.questions)
        assert 0 <= result.score <= 100


def test_the_model_hears_what_the_task_says(models, questions):
    """Prompt and sound put together by hand: the same answers."""
    loaded, written = models["videollama2"], questions("muchomusic")
    by_hand = []
    for document in written.documents[:3]:
        fields = document.fields
        prompt = (
            f"{fields['instruction']}\n{fields['choices']}\nAnswer with the option's letter from the given choices "
            "directly: "
        )
        sample = Sample("by hand", prompt, audio=AudioFile(fields["context"]))
        by_hand += loaded.generate(loaded.encode([sample]), TOKENS)
    assert list(LmmsEvaluator().evaluate(loaded, entry(written, 3)).answers) == by_hand
    assert len(set(by_hand)) > 1


def test_a_suite_file_with_data_of_ones_own(tmp_path, folders, questions):
    """Relative paths are relative to the file; the whole run, dense and pruned, leaves whole records."""
    (tmp_path / "suites").mkdir()
    for name, file in (("mmmu_val", "validation.parquet"), ("pope", "test.parquet")):
        (tmp_path / name).mkdir()
        source = Path(next(iter(questions(name).data.values())))
        (tmp_path / name / file).write_bytes(source.read_bytes())
    (tmp_path / "suites" / "own.yaml").write_text(
        "title: Questions of one's own\ndescription: Two tasks.\ntasks:\n"
        "  - {id: mmmu_val, evaluator: lmms, metric: mmmu_acc, data: {validation: ../mmmu_val},"
        f" generation: {{max_new_tokens: {TOKENS}}}, why: many pictures}}\n"
        "  - {id: yes or no, task: pope, evaluator: lmms, metric: pope_f1_score, data: {test: ../pope/test.parquet},"
        f" generation: {{max_new_tokens: {TOKENS}}}, limit: 6, why: no mean}}\n"
    )
    assert load_suite(tmp_path / "suites" / "own.yaml").tasks[0].data == {"validation": str(tmp_path / "mmmu_val")}
    result = invoke(
        "--plugin", write_plugin(tmp_path, SUITES), "run", "--model", f"hf:{folders['llava']}", "--suite", "own",
        "--strategy", "last_n", "--sparsity", "0.34", "--no-latency", "--out", tmp_path / "runs",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    records = {record.cell.strategy: record for record in records_of(tmp_path / "runs").values()}
    assert set(records) == {"dense", "last_n"}
    for record in records.values():
        assert record.status == "ok" and record.error is None
        mmmu, pope = record.tasks
        assert (mmmu.task, mmmu.n, len(mmmu.scores)) == ("mmmu_val", 5, 5)
        assert (pope.task, pope.metric, pope.n) == ("yes or no", "pope_f1_score", 6)
        assert {task.source["dataset"] for task in record.tasks} == {"own files"}
    assert len(records["last_n"].plan.removed_layers) == 2


def test_data_on_the_command_line(tmp_path, folders, questions):
    """A shipped suite on the user's own questions and clips; a split that the task does not have is refused."""
    data = questions("nextqa_mc_test").data
    task = "nextqa_mc_test"
    command = (
        "run", "--model", "videollama2", "--model-path", folders["videollama2"], "--suite", "topovlm-video-audio",
        "--strategy", "dense",
        "--task", task, "--no-latency", "--out", tmp_path / "runs", "--limit", "2",
    )  # fmt: skip
    result = invoke(*command, "--data", f"{task}={data['test']}", "--data", f"{task}:media={data['media']}")
    assert result.exit_code == 0, result.output
    (record,) = records_of(tmp_path / "runs").values()
    (found,) = record.tasks
    assert (record.status, found.task, found.n, found.source["dataset"]) == ("ok", task, 2, "own files")
    refused = invoke(*command, "--data", f"{task}:validation={data['test']}")
    assert "validation" in error_line(refused) and task in error_line(refused)
