"""Tasks whose code asks a service about an answer: asked by name only, and no score without its answers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from prunebench_lmms_eval import judges

from prunebench.errors import EvaluationError
from prunebench.suites import Task
from tests.lmms.synthetic.case import Case, Document, write
from tests.lmms.synthetic.checks import ask
from tests.lmms.synthetic.fixtures import no_network  # noqa: F401
from tests.lmms.synthetic.media import picture
from tests.lmms.synthetic.table import CASES

pytest.importorskip("lmms_eval")
requests = pytest.importorskip("requests")
Completions = pytest.importorskip("openai.resources.chat.completions").Completions


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(judges, "PATIENCE", 2)


@pytest.fixture(scope="module")
def mathvista(tmp_path_factory):
    return write(CASES["mathvista_testmini_format"], tmp_path_factory.mktemp("mathvista"))


def unclear(written):
    """Right in words that the rules cannot read."""
    return [f"I think that it is {document.right}, all in all" for document in written.documents]


def verdict(text):
    choice = SimpleNamespace(message=SimpleNamespace(content=text))
    return SimpleNamespace(choices=[choice], model="made", usage=None)


def test_no_score_where_the_judge_cannot_be_reached(mathvista, no_network):  # noqa: F811
    """lmms-eval alone goes on, and reports 33.33 for answers of which none was read."""
    with pytest.raises(EvaluationError, match=r"judge gave no verdict.*OpenAI"):
        ask(mathvista, unclear(mathvista))
    assert any("api.openai.com" in host for host in no_network)
    no_network.clear()


def test_no_judge_is_asked_where_the_suite_names_none(mathvista):
    with pytest.raises(EvaluationError, match=r"asks OpenAI.*judge: none"):
        ask(mathvista, unclear(mathvista), judge="none")


def test_answers_that_rules_read_are_scored_without_a_judge(mathvista):
    result = ask(mathvista, [document.right for document in mathvista.documents], judge="none")
    assert result.score == 100


def test_the_verdicts_count(mathvista, monkeypatch):
    """The judge reads the answer out of the words; for the last document it reads another one."""
    asked = []

    def create(self, **request):
        asked.append(request["messages"][0]["content"])
        said = asked[-1].rpartition("I think that it is ")[2].partition(",")[0]
        return verdict("7" if said == "15" else said)

    monkeypatch.setattr(Completions, "create", create)
    result = ask(mathvista, unclear(mathvista))
    assert len(asked) == 6 and result.score == pytest.approx(100 * 5 / 6, abs=0.01)
    assert [value > 0 for value in result.scores] == [True] * 5 + [False]
    assert Completions.create is create  # put back


def test_a_judge_may_fail_once(mathvista, monkeypatch):
    """What is asked again and answered then is answered; what stays without an answer fails the task."""
    attempts: dict[str, int] = {}

    def create(self, **request):
        question = request["messages"][0]["content"]
        attempts[question] = attempts.get(question, 0) + 1
        if attempts[question] == 1:
            raise ConnectionError("busy")
        return verdict(question.rpartition("I think that it is ")[2].partition(",")[0])

    monkeypatch.setattr(Completions, "create", create)
    assert ask(mathvista, unclear(mathvista)).score == 100
    assert set(attempts.values()) == {2}


def _hallusion(_: Path) -> list[Document]:
    documents = []
    for i in range(4):
        fields = {
            "category": ("VD", "VS")[i % 2], "subcategory": "figure", "set_id": str(i), "figure_id": "1",
            "question_id": "0", "question": f"#{i} Is the left circle larger?", "gt_answer": "1", "visual_input": "1",
            "gt_answer_details": "The left circle is larger.", "image": picture(i), "filename": f"{i}.png",
        }  # fmt: skip
        documents.append(Document(fields, "Yes, it is larger.", "No, it is smaller."))
    return documents


@pytest.fixture(scope="module")
def hallusion(tmp_path_factory):
    case = Case("hallusion_bench_image", "aAcc", _hallusion, "image", scale=100, form="parquet", judge="openai")
    return write(case, tmp_path_factory.mktemp("hallusion"))


def test_a_task_that_is_judged_throughout(hallusion, monkeypatch):
    answers = [document.right if i else document.wrong for i, document in enumerate(hallusion.documents)]

    def request(self, method, url, **more):
        prompt = more["json"]["messages"][0]["content"]
        said = "correct" if "Yes, it is larger." in prompt else "incorrect"
        content = {"choices": [{"message": {"content": said}}]}
        return SimpleNamespace(status_code=200, raise_for_status=lambda: None, json=lambda: content)

    monkeypatch.setattr(requests.Session, "request", request)
    assert ask(hallusion, answers).score == 75


def test_a_judge_that_refuses(hallusion, monkeypatch):
    """A wrong key: lmms-eval alone would take every answer for unclear, and report 0."""

    def refuse():
        raise requests.HTTPError("401")

    def request(self, method, url, **more):
        return SimpleNamespace(status_code=401, raise_for_status=refuse)

    monkeypatch.setattr(requests.Session, "request", request)
    with pytest.raises(EvaluationError, match="HTTP status 401"):
        ask(hallusion, [document.right for document in hallusion.documents])


@pytest.mark.parametrize("judge", ["none", "openai"])
@pytest.mark.parametrize("answered", [True, False])
def test_a_judge_that_is_asked_from_an_event_loop(judge, answered, monkeypatch):
    """Several questions at a time, and errors taken for answers: as lmms-eval's asynchronous judges are used."""
    from openai.resources.chat.completions import AsyncCompletions

    async def create(self, **request):
        if not answered:
            raise ConnectionError("busy")
        return verdict("A")

    monkeypatch.setattr(AsyncCompletions, "create", create)

    async def ask_all() -> list:
        client = AsyncCompletions.__new__(AsyncCompletions)
        return await asyncio.gather(*(client.create(model=str(i)) for i in range(3)), return_exceptions=True)

    def run() -> list:
        with judges.guarded(Task(id="x", evaluator="lmms", metric="m", judge=judge)):
            return asyncio.run(ask_all())

    if judge == "openai" and answered:
        assert [one.choices[0].message.content for one in run()] == ["A"] * 3
    else:
        with pytest.raises(EvaluationError, match="asks OpenAI" if judge == "none" else "no verdict on . answers"):
            run()
    assert AsyncCompletions.create is create
