"""`dynarag serve` as a program: its options, a config file's, its corpus, and what is wrong."""

from __future__ import annotations

import json
import sys

import pytest

from dynarag_jax.errors import InputError, MissingExtra
from dynarag_jax.launch.console import Console
from dynarag_jax.launch.options import load_program
from dynarag_jax.launch.pipeline import run_all
from dynarag_jax.launch.table import program
from dynarag_jax.records import Passage
from dynarag_jax.serving.corpus import CorpusOptions
from dynarag_jax.serving.cutting import Cutter, bare_tokenizer
from dynarag_jax.serving.keys import KeyOptions
from dynarag_jax.serving.limits import Limits
from dynarag_jax.stages.serve import Serve, run

CONFIG = """
from dynarag_jax.config import Run
from dynarag_jax.serving.rules import CutOff
from dynarag_jax.serving.loading import ServedModel
from dynarag_jax.stages import Serve

run = Run(directory="runs/mine", compilation_cache="off")
stages = {
    "serve": Serve(
        model="{run}/sft/model", how=ServedModel(rule=CutOff("threshold", threshold=0.25)), port=9
    )
}
"""


def test_a_config_file_holds_the_options(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    arguments = ["--mode", "all", "--how.rule.threshold", "0.5"]
    settings, options = load_program(path, program("serve"), arguments, "dynarag serve")
    assert settings.directory == "runs/mine"
    assert (options.model, options.port, options.mode) == ("runs/mine/sft/model", 9, "all")
    assert (options.how.rule.name, options.how.rule.threshold) == ("threshold", 0.5)
    path.write_text(CONFIG.split("stages =")[0] + 'stages = {"a": CutOff()}\n')
    with pytest.raises(InputError, match="none of its stages is a Serve; it has a"):
        load_program(path, program("serve"), [], "dynarag serve")


def test_a_run_leaves_its_server_out(tmp_path, capsys):
    from dynarag_jax.config import Run

    run_all(Run(directory=str(tmp_path)), {"serve": Serve(model="nowhere")})
    assert "every stage stood already" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_its_packages_the_server_names_its_extra(monkeypatch):
    for package in ("starlette", "uvicorn", "prometheus_client"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'dynarag_jax\[serve\]'"):
        run(Console("serve"), Serve(model="somewhere"))


def test_wrong_options_are_said_in_one_line(tmp_path, monkeypatch):
    empty = tmp_path / "keys"
    empty.write_text("# none\n\n")
    monkeypatch.delenv("DYNARAG_API_KEY", raising=False)
    wrong = [
        (lambda: run(Console("serve"), Serve()), "name the model"),
        (lambda: Serve(port=70_000), "port = 70000 must lie in 0..65535"),
        (lambda: Serve(passages=0), "passages = 0 must be positive"),
        (lambda: Limits(documents=0), "documents = 0 must be positive"),
        (lambda: Limits(drain_seconds=-1), "drain_seconds = -1 must not be negative"),
        (lambda: CorpusOptions(files=("a",), embedded="b"), "two corpora"),
        (lambda: CorpusOptions(index="b"), "index needs embedded"),
        (lambda: CorpusOptions(files=("a",), source="dense"), "needs embedded"),
        (lambda: KeyOptions(file=str(empty)).read(), "holds no key"),
        (lambda: KeyOptions(file=str(tmp_path / "none")).read(), "no such file of keys"),
    ]
    for call, message in wrong:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_keys_come_from_a_file_and_the_environment(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text("# ours\none\n  two \none\n")
    monkeypatch.setenv("DYNARAG_API_KEY", "three")
    assert KeyOptions(file=str(file)).read() == ("three", "one", "two")
    assert KeyOptions(variable="").read() == ()


def test_texts_are_cut_at_their_tokens(language_model):
    tokenizer = bare_tokenizer(language_model)
    cutter = Cutter(tokenizer, 20)
    long = "port 7 lies on the river " * 100
    count = lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)  # noqa: E731
    given = [Passage("a", "short"), Passage("b", long), Passage("c", long, long), Passage("d", "")]
    found, cut = cutter.passages(given)
    assert cut == 2 and found[0] is given[0] and found[3] is given[3]
    assert count(found[1].text) == 20 and long.startswith(found[1].text)
    assert count(found[2].title) <= 5 and count(found[2].text) <= 15
    assert cutter.passages(given, 3)[0][1].text == cutter.passages([given[1]], 3)[0][0].text
    assert count(cutter.passages(given, 3)[0][1].text) == 3
    assert cutter.longer(long, 10) and not cutter.longer("port", 10)
    # Beyond what could be read nothing is tokenized.
    assert count(cutter.passages([Passage("e", "x" * 3_000_000)])[0][0].text) <= 20


def test_questions_without_documents_are_answered_from_the_corpus(start, language_model, tmp_path):
    pytest.importorskip("bm25s", reason="bm25s is not installed (extra [retrieval])")
    lines = [
        {"id": f"p{i}", "title": f"port {i}", "text": f"port {i} lies on the river {i * 7 % 10}"}
        for i in range(30)
    ]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = CorpusOptions(files=(str(corpus),), cache=str(tmp_path / "cache"))
    server = start(language_model, corpus=options, passages=10, name="corpus")
    asked = {"messages": [{"role": "user", "content": "where is port 17 on the river?"}]}
    status, found = server.post("/v1/chat/completions", asked)
    assert status == 200
    own = server.served.search.search("where is port 17 on the river?", 10)
    assert own[0].id == "p17" and len(own) == 10
    given = [{"id": p.id, "title": p.title, "text": p.text} for p in own]
    _, same = server.post("/v1/chat/completions", asked | {"documents": given})
    assert found["choices"] == same["choices"]
    assert [p["id"] for p in found["passages"]] == [p["id"] for p in same["passages"]]
    texts = {line["id"]: line["text"] for line in lines}
    assert all(p["text"] == texts[p["id"]] for p in found["passages"])
    _, none = server.post("/v1/chat/completions", asked | {"documents": []})
    assert none["passages"] == []
    status, wrong = server.post("/v1/chat/completions", asked | {"passages": 5000})
    assert status == 400 and "5000 documents" in wrong["error"]["message"]


def test_a_corpus_without_a_generator_is_refused(start, cross_encoder, tmp_path):
    pytest.importorskip("bm25s", reason="bm25s is not installed (extra [retrieval])")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "a", "text": "port"}\n')
    options = CorpusOptions(files=(str(corpus),), cache=str(tmp_path / "cache"))
    with pytest.raises(InputError, match="name a language model with --generator"):
        start(cross_encoder, corpus=options)
