"""Files as other projects leave them, each with what it must become; further members of each kind.

The ten cases are rebuilt small from public reports of pyserini, BEIR, MTEB, DPR, SQuAD, HotpotQA.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytrec_eval
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from dynarag_jax.data.conversion import ConvertData, convert_data
from dynarag_jax.data.formats import detect
from dynarag_jax.data.mapping import FieldPaths
from dynarag_jax.data.reading import (
    QuestionAccount,
    Reading,
    numbered_questions,
    read_questions,
)
from dynarag_jax.data.values import content_id
from dynarag_jax.delimited import decide, read_table
from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.predictions import read_predictions
from dynarag_jax.facts.expert import label_questions
from dynarag_jax.metrics.ranking import answer_recall_at
from dynarag_jax.records import Passage, Question, write_questions
from dynarag_jax.retrieval.bm25 import Bm25Config, build_bm25
from dynarag_jax.retrieval.corpora import CorpusAccount, CorpusConfig, read_corpus
from dynarag_jax.retrieval.embed import passage_text
from dynarag_jax.retrieval.judgments import read_qrels
from dynarag_jax.retrieval.scores import retrieval_scores
from dynarag_jax.retrieval.trec import falling, read_run, trec_lines

BOM = codecs.BOM_UTF8


def jsonl(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def corpus(*paths: Path, **fields) -> list[Passage]:
    return list(read_corpus(CorpusConfig(tuple(map(str, paths)), **fields)))


# ---------------------------------------------------------------------------- the ten cases


def test_squad_2_of_the_hub_says_impossible_by_absence(tmp_path):
    rows = [
        {"id": "s1", "title": "Rivers", "context": "The Orn flows north.", "question": "Where to?",
         "answers": {"text": ["north"], "answer_start": [14]}},
        {"id": "s2", "title": "Rivers", "context": "The Orn flows north.", "question": "Who?",
         "answers": {"text": [], "answer_start": []}},
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    for path in (jsonl(tmp_path / "x.jsonl", *rows), tmp_path / "x.parquet"):
        one, other = read_questions(path)
        assert one.gold == (one.passages[0].id,) and one.answers == ("north",)
        assert (other.answers, other.gold) == ((), ()) and other.passages == one.passages


def test_fullwiki_keeps_a_needed_page_that_was_not_retrieved(tmp_path):
    path = jsonl(tmp_path / "f.json", [
        {"_id": "a1", "question": "Where?", "answer": "Peru", "type": "bridge", "level": "hard",
         "supporting_facts": [["Blue Lantern (song)", 0], ["Ana Quispe", 1]],
         "context": [["Blue Lantern (song)", ["A song."]], ["Green Lantern", ["A comic."]]]},
        {"_id": "a2", "question": "Who?", "answer": "Tom", "supporting_facts": [["Red Hill", 0]],
         "context": [["Red Hill", ["By Tom."]]], "type": "bridge", "level": "easy"},
    ])  # fmt: skip
    account = QuestionAccount()
    one, two = (q for _, q in numbered_questions(path, Reading(), account))
    assert one.gold == (content_id("Blue Lantern (song)", "A song."), "title:Ana Quispe")
    assert one.gold_list() == (1,) and two.gold_list() == (1,) and account.needed == 1
    assert "1 questions need a passage that is not among their candidates" in account.notes()[-1]
    # Where the format can name it, it comes back; where it cannot, the loss is counted.
    for kind, gold, lost in (("hotpotqa", one.gold, {}), ("contexts", one.gold[:1], 1)):
        out = tmp_path / f"{kind}.jsonl"
        outcome = convert_data(ConvertData(str(path), str(out), to=kind))
        assert read_questions(out)[0].gold == gold
        assert bool(outcome.lost) == bool(lost)


@pytest.mark.parametrize("to", ["records", "contexts", "rankllm", "dpr"])
def test_an_empty_passage_goes_out_and_in(tmp_path, to):
    passages = (Passage("z", "Zed is a hill.", "Zed"), Passage("e", "", ""))
    write_questions(tmp_path / "q.jsonl", [Question("q1", "what is Zed", passages=passages)])
    convert_data(ConvertData(str(tmp_path / "q.jsonl"), str(tmp_path / "o.jsonl"), to=to))
    (again,) = read_questions(tmp_path / "o.jsonl")
    assert again.passages == passages


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_queries_and_judgments_of_the_hub(tmp_path, ending):
    def file(name: str, *rows: dict[str, object]) -> Path:
        if ending == "jsonl":
            return jsonl(tmp_path / f"{name}.jsonl", *rows)
        pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / f"{name}.parquet")
        return tmp_path / f"{name}.parquet"

    beir = file("beir", {"_id": "q1", "title": "", "text": "what is a lichen"})
    mteb = file("mteb", {"id": "q1", "text": "what is a lichen"})
    assert detect(beir).name == detect(mteb).name == "beir"
    assert read_questions(beir) == read_questions(mteb) == [Question("q1", "what is a lichen")]
    qrels = file("qrels", {"query-id": "q1", "corpus-id": "New York", "score": 1})
    assert read_qrels(qrels) == {"q1": {"New York": 1.0}}
    # Titles that are not empty are passages'.
    passages = file("passages", {"_id": "p", "title": "T", "text": "x"})
    with pytest.raises(InputError, match=r"is a corpus of passages.*--format beir"):
        detect(passages)


def test_trec_scores_fall_however_small(tmp_path):
    passages = tuple(Passage(n, "t", score=s) for n, s in (("a", 3e-7), ("b", 2e-7), ("c", 1e-7)))
    lines = list(trec_lines([Question("q1", "x?", passages=passages)]))
    run = pytrec_eval.parse_run(io.StringIO("".join(lines)))["q1"]
    assert run == {"a": 3e-7, "b": 2e-7, "c": 1e-7}


def test_contents_beside_a_title(tmp_path):
    path = jsonl(
        tmp_path / "c.jsonl",
        {"id": "1", "title": "Mars", "contents": "Mars is a red planet.\nIt has two moons."},
        {"id": "2", "title": "Venus", "contents": '"Venus"\nVenus is hot.'},
        {"id": "3", "contents": '"Weird Al" and "Normal Al"\nA pair of acts.'},
        {"id": "4", "contents": '""Heroes" (song)"\nBy Bowie.'},
        {"id": "5", "contents": '"Low"\nAn album.'},
    )
    assert corpus(path) == [
        Passage("1", "Mars is a red planet.\nIt has two moons.", "Mars"),
        Passage("2", "Venus is hot.", "Venus"),
        Passage("3", "A pair of acts.", '"Weird Al" and "Normal Al"'),
        Passage("4", "By Bowie.", '"Heroes" (song)'),
        Passage("5", "An album.", "Low"),
    ]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
def test_files_of_windows_under_any_name(tmp_path, pack):
    def file(name: str, *rows: object) -> Path:
        text = "".join(json.dumps(row) + "\r\n" for row in rows)
        (tmp_path / name).write_bytes(pack(BOM + text.encode()))
        return tmp_path / name

    asked = file("q.txt", {"id": "1", "question": "where?", "answers": ["Paris"], "task": "short"})
    assert read_questions(asked) == [Question("1", "where?", ("Paris",))]
    answers = file("p.jsonl", {"id": 1, "answer": "Paris"})
    ((system, said),) = read_predictions([("", answers)]).items()
    assert system == "p" and [p.answer for p in said.values()] == ["Paris"]
    passages = file("c", {"id": "1", "title": "t", "text": "x y z"})
    assert corpus(passages) == [Passage("1", "x y z", "t")]


AR = [
    ("Currington", "Currington's vocals range widely."),
    ("2003", "In the 2002\u20132003 season they won."),
    ("Paris", "A Paris-based firm made it."),
    ("Beyonc\u00e9", "Sung by Beyonce\u0301 in 2008."),
]


def test_answers_in_passages_are_found_as_dpr_finds_them():
    asked = [
        Question(f"q{i}", "?", (answer,), passages=(Passage("a", text), Passage("b", "Nothing.")))
        for i, (answer, text) in enumerate(AR)
    ]
    assert [q.expert for q in label_questions(asked, "answer")] == [(1,)] * 4
    assert all(answer_recall_at([text], [answer], 1) for answer, text in AR)
    assert retrieval_scores(asked, 5)["answer_recall@5"].mean == 1.0


def test_words_of_scripts_without_spaces_are_found():
    texts = [
        "\u4e1c\u4eac\u662f\u65e5\u672c\u7684\u9996\u90fd\uff0c\u4f4d\u4e8e\u5173\u4e1c\u5730\u533a\u3002",
        "\u5df4\u9ece\u662f\u6cd5\u56fd\u7684\u9996\u90fd\uff0c\u4f4d\u4e8e\u585e\u7eb3\u6cb3\u7554\u3002",
        "\u30bd\u30a6\u30eb\u306f\u97d3\u56fd\u306e\u9996\u90fd\u3067\u3042\u308b\u3002",
    ]
    index = build_bm25(texts, Bm25Config())
    found, _ = index.search(
        [
            "\u65e5\u672c\u7684\u9996\u90fd\u662f\u54ea\u91cc\uff1f",
            "\u6cd5\u56fd\u7684\u9996\u90fd",
        ],
        1,
    )
    assert found[:, 0].tolist() == [0, 1]
    assert "scripts without spaces" in index.description


# ---------------------------------------------------------------------------- judgments, tables

CELLS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"])
    | st.sampled_from('\t\n\r"\u202e\u0301'),
    max_size=6,
)
IDS = CELLS.filter(str.strip)


@settings(max_examples=150)
@given(st.lists(st.tuples(IDS, IDS, st.integers(0, 3)), min_size=1, max_size=6))
def test_judgments_go_out_as_beirs_and_in_again(tmp_path_factory, rows):
    """Written by the csv module as BEIR does, with ids of any characters."""
    path = tmp_path_factory.mktemp("qrels") / "test.tsv"
    wanted: dict[str, dict[str, float]] = {}
    for question, passage, grade in rows:
        wanted.setdefault(question, {}).setdefault(passage, float(grade))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter="\t", lineterminator="\n")
        writer.writerow(("query-id", "corpus-id", "score"))
        for question, grades in wanted.items():
            writer.writerows((question, passage, int(g)) for passage, g in grades.items())
    assert read_qrels(path) == wanted


@settings(max_examples=150)
@given(
    st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from("\t,;"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_a_table_that_csv_wrote_is_read_exactly(tmp_path_factory, rows, delimiter, quoting):
    path = tmp_path_factory.mktemp("table") / "x"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, delimiter=delimiter, quoting=quoting)
        writer.writerow(("id", "text", "title"))
        writer.writerows(rows)
    found = [list(row.values()) for _, row in read_table(path) if isinstance(row, dict)]
    assert found == rows


PLAIN = st.text(st.sampled_from("ab \"'\u0301\u05d0,\U0001f5fc"), max_size=6)


@settings(max_examples=150)
@given(st.lists(st.tuples(PLAIN.filter(str.strip), PLAIN), min_size=1, max_size=6))
def test_a_table_without_quoting_is_read_exactly_or_refused_by_its_line(tmp_path_factory, rows):
    """As MS MARCO's: quotes are text. Where they could be CSV's, the file is refused or says so."""
    path = tmp_path_factory.mktemp("table") / "x"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in rows), encoding="utf-8")
    columns = ("id", "text")
    wanted = [(a, b) for a, b in rows]
    exact = [tuple(row.values()) for _, row in read_table(path, columns, "none")]
    assert exact == wanted
    try:
        dialect = decide(path, columns)
    except InputError:
        with pytest.raises(InputError, match=r"x:\d+: .*quotes csv or quotes none"):
            decide(path, columns)
        return
    if dialect.quoted:  # then every line is CSV, and some field or a whole column shows it
        list(csv.reader(path.open(newline=""), delimiter="\t", strict=True))
    else:
        assert [tuple(row.values()) for _, row in read_table(path, columns)] == wanted


def test_one_lone_quote_makes_all_quotes_of_a_file_text(tmp_path):
    path = tmp_path / "c.tsv"
    path.write_text('id\ttext\ttitle\n1\t"Heroes" is a song.\tA\n2\t"Low"\tB\n3\t5" disk\tC\n')
    texts = [p.text for p in corpus(path)]
    assert texts == ['"Heroes" is a song.', '"Low"', '5" disk']
    # DPR's: quoted as CSV is, a text over several lines included.
    path.write_text('id\ttext\ttitle\n1\t"He said ""hi"".\nThen left."\tA\n2\tplain\tB\n')
    assert [p.text for p in corpus(path)] == ['He said "hi".\nThen left.', "plain"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("query-id\tcorpus-id\tscore\nq 1\tNew York\t1\n", {"q 1": {"New York": 1}}),
        ("q 1\t0\tNew York\t1\n", {"q 1": {"New York": 1}}),
        ("301 0  FBIS-1 \t2\n", {"301": {"FBIS-1": 2}}),
        ('query-id\tcorpus-id\tscore\nq1\t"Weird Al" songs\t1\n', {"q1": {'"Weird Al" songs': 1}}),
        ("corpus-id\tscore\tquery-id\nd1\t1\tq1\n", {"q1": {"d1": 1}}),
        ('[{"query_id": 1, "doc_id": 2.0, "relevance": "1"}]', {"1": {"2": 1}}),
    ],
)
def test_judgments_of_every_layout(tmp_path, text, wanted):
    path = tmp_path / "qrels"
    path.write_bytes(BOM + text.replace("\n", "\r\n").encode())
    assert read_qrels(path) == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("q1 0 d1 1\nq2 0 New York 1\n", ":2: has 5 fields"),
        ("q1 New York 1\n", ":1: the second of four fields must be TREC's iteration"),
        ("q1\t0\td1\t1\nq2 0 d1 1\n", ":2: has 1 fields"),
        ("query-id\tcorpus-id\tscore\nq1\td1\n", ":2: has 2 fields"),
        ('{"query-id": "q1", "score": 1}\n', ":1: no judgment"),
        ("query-id\tcorpus-id\tscore\nq1\td1\thigh\n", ":2: field 'score' must be a finite number"),
    ],
)
def test_judgments_that_cannot_be_decided_are_refused_by_line(tmp_path, text, says):
    path = tmp_path / "qrels"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        read_qrels(path)


FINITE = st.floats(-1e30, 1e30, allow_subnormal=False)


@given(st.lists(st.tuples(IDS, st.none() | FINITE), max_size=6, unique_by=lambda p: p[0]), IDS)
def test_a_run_goes_out_and_in_in_the_passages_order(tmp_path_factory, passages, name):
    path = tmp_path_factory.mktemp("run") / "x"
    question = Question(name, "?", passages=tuple(Passage(i, "t", score=s) for i, s in passages))
    path.write_text("".join(trec_lines([question])), encoding="utf-8")
    ids = [i for i, _ in passages]
    found = read_run(path, lambda one: ids.index(one) if one in ids else None)
    if not passages:
        assert found == {}
        return
    ((_, (positions, scores)),) = found.items()
    assert positions.tolist() == list(range(len(ids)))
    given_scores = [s for _, s in passages]
    if None not in given_scores and falling(given_scores) == given_scores:
        assert scores.tolist() == given_scores


@given(st.lists(st.none() | FINITE, max_size=8))
def test_scores_of_a_run_fall_in_32_bits(scores):
    found = pa.array(falling(scores), pa.float64()).cast(pa.float32(), safe=False).to_pylist()
    assert all(b < a for a, b in itertools.pairwise(found))


# ---------------------------------------------------------------------------- corpora


def test_corpora_of_other_names_tables_and_folders(tmp_path):
    wanted = [Passage("1", "a b", "T"), Passage("2", "", "U")]
    jsonl(tmp_path / "docid.jsonl", {"docid": 1, "segment": "a b", "title": "T"},
          {"docid": 2, "title": "U", "segment": None})  # fmt: skip
    (tmp_path / "head.csv").write_text("id,title,text\n1,T,a b\n2,U,\n")
    (tmp_path / "semi").write_text("pid;passage;title\r\n1;a b;T\r\n2;;U\r\n")
    (tmp_path / "bare.tsv").write_text("1\ta b\tT\n2\t\tU\n")
    pq.write_table(
        pa.table({"_id": [1, 2], "text": ["a b", None], "title": ["T", "U"],
                  "when": pa.array([1, 2], pa.timestamp("s")), "raw": [b"\xff", b"x"]}),
        tmp_path / "odd.parquet",
    )  # fmt: skip
    for name in ("docid.jsonl", "head.csv", "semi", "odd.parquet"):
        assert corpus(tmp_path / name) == wanted, name
    assert corpus(tmp_path / "bare.tsv", columns=("id", "text", "title")) == wanted
    with pytest.raises(InputError, match=r"bare.tsv:1: .*columns of a table without one"):
        corpus(tmp_path / "bare.tsv")
    docs = tmp_path / "docs"
    (docs / "more").mkdir(parents=True)
    (docs / "more" / "a.md").write_bytes(BOM + b"# Alpha #\r\n\r\nFirst.\r\n")
    (docs / "b.txt").write_text("Second.\n")
    (docs / ".hidden.md").write_text("no")
    assert corpus(docs) == [
        Passage("b.txt", "Second.", "b"), Passage("more/a.md", "First.", "Alpha")
    ]  # fmt: skip


def test_fields_of_a_corpus_that_are_not_read_are_named(tmp_path):
    path = jsonl(tmp_path / "c", {"id": 1, "text": "a", "abstract": "much", "metadata": {}})
    account = CorpusAccount()
    list(read_corpus(CorpusConfig((str(path),)), account))
    assert account.unread == {"abstract": 1} and "abstract (1)" in account.notes()[0]
    squad = jsonl(tmp_path / "s", {"id": "1", "title": "T", "context": "c", "question": "q"})
    with pytest.raises(InputError, match=r"s:1: a passage has 'id' and 'text'"):
        corpus(squad)


@pytest.mark.parametrize("hub", [False, True])
def test_directories_of_beir_and_mteb(tmp_path, hub):
    queries = [{"_id": "q1", "text": "first?"}, {"_id": "q2", "text": "unjudged?"}]
    passages = [{"_id": "d1", "title": "T", "text": "x"}]
    judged = [{"query-id": "q1", "corpus-id": "d1", "score": 1}]
    if hub:
        for name, rows in (("queries/queries-00000-of-00001", queries),
                           ("corpus/corpus-00000-of-00001", passages),
                           ("data/test-00000-of-00001", judged)):  # fmt: skip
            (tmp_path / name).parent.mkdir()
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    else:
        jsonl(tmp_path / "queries.jsonl", *queries)
        jsonl(tmp_path / "corpus.jsonl", *passages)
        jsonl(tmp_path / "qrels" / "test.jsonl", *judged)
    assert corpus(tmp_path) == [Passage("d1", "x", "T")]
    assert [q.id for q in read_questions(tmp_path)] == ["q1", "q2"]
    convert_data(ConvertData(str(tmp_path), str(tmp_path / "o.jsonl")))
    assert read_questions(tmp_path / "o.jsonl") == [Question("q1", "first?", gold=("d1",))]


# ---------------------------------------------------------------------------- questions by paths

NESTED = {
    "meta": {"query": "Who?"}, "gold": {"answers": ["Ann", 7, True]}, "nr": 5,
    "documents": [
        {"doc": {"text": "one"}, "title": "A", "used": 1},
        {"doc": {"text": "two"}, "title": None, "used": 0},
    ],
}  # fmt: skip
PATHS = FieldPaths(
    question="meta.query", answers="gold.answers[]", id="nr", passages="documents[].doc.text",
    titles="documents[].title", gold="documents[].used",
)  # fmt: skip


def test_any_file_is_read_by_paths(tmp_path):
    path = jsonl(tmp_path / "x.json", NESTED)
    with pytest.raises(InputError, match=r"of no known format.*--format fields"):
        detect(path)
    options = ConvertData(str(path), format="fields", fields=PATHS, dry_run=True)
    first = convert_data(options).first
    assert first is not None and list(tmp_path.iterdir()) == [path]
    assert first["answers"] == ["Ann", "7", "yes"] and first["id"] == "5"
    assert [p["text"] for p in first["ctxs"]] == ["one", "two"]
    assert first["gold"] == [content_id("A", "one")]
    columns = {"question": "q", "p": {"t": ["one", "two"], "s": [0.5, 0.25], "ok": [False, True]}}
    pq.write_table(pa.Table.from_pylist([columns]), tmp_path / "x.parquet")
    fields = FieldPaths("question", passages="p.t[]", scores="p.s[]", gold="p.ok[]")
    (question,) = read_questions(
        tmp_path / "x.parquet", reading=Reading(format="fields", fields=fields)
    )
    assert [p.score for p in question.passages] == [0.5, 0.25]
    assert question.gold == (content_id("", "two"),)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"question": ""}, "needs --fields.question"),
        ({"question": "meta.qery"}, "'meta.qery' must be one text"),
        ({"question": "mta.query"}, r"did you mean 'meta'\?"),
        ({"passages": "documents.text"}, "'text' is looked for in a list"),
        ({"titles": "gold.answers[]"}, "has 3 titles, and there are 2 passages"),
        ({"answers": "documents"}, "must be answers"),
        ({"passages": "documents[]..x"}, "is no path"),
    ],
)
def test_paths_that_lead_nowhere_are_refused(tmp_path, fields, says):
    path = jsonl(tmp_path / "x.json", NESTED)
    paths = FieldPaths(**(vars(PATHS) | fields))
    with pytest.raises(InputError, match=says):
        read_questions(path, reading=Reading(format="fields", fields=paths))


def test_tables_of_questions(tmp_path):
    """DPR's question files: no header, answers as Python writes a list."""
    (tmp_path / "nq.csv").write_text("who sang?\t['Ann', \"O'Hara\"]\nwhen?\t['1999']\n")
    reading = Reading(columns=("question", "answers"), quotes="none")
    one, two = read_questions(tmp_path / "nq.csv", reading=reading)
    assert (one.text, one.answers, two.answers) == ("who sang?", ("Ann", "O'Hara"), ("1999",))
    (tmp_path / "head.csv").write_text('question,answer\n"why, then?","[""so""]"\n')
    (question,) = read_questions(tmp_path / "head.csv")
    assert (question.text, question.answers) == ("why, then?", ("so",))


def test_what_pandas_writes_column_by_column_is_named(tmp_path):
    path = jsonl(tmp_path / "x", {"question": {"0": "a", "1": "b"}, "answer": {"0": "c", "1": "d"}})
    with pytest.raises(InputError, match=r"must be a string|pandas"):
        read_questions(path)
    path = jsonl(tmp_path / "x", {"q": {"0": "a"}, "a": {"0": "c"}})
    with pytest.raises(InputError, match="whole columns, as pandas' to_json"):
        detect(path)


# ---------------------------------------------------------------------------- other scripts

LANGUAGES = {
    "Chinese": (["长江是中国最长的河流。", "黄山位于安徽省。"], "中国最长的河流是哪条？", 0),
    "Japanese": (["富士山は日本で最も高い山です。", "琵琶湖は最大の湖です。"], "最大の湖はどこ", 1),
    "Thai": (["กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "แม่น้ำโขงไหลผ่านลาว"], "เมืองหลวงของไทย", 0),
    "Arabic": (["القاهرة عاصمة مصر", "نهر النيل أطول نهر"], "ما هو أطول نهر؟", 1),
    "Korean": (["서울은 한국의 수도이다", "한라산은 제주도에 있다"], "한국 수도", 0),
    "Hindi": (["दिल्ली भारत की राजधानी है", "गंगा एक नदी है"], "भारत की राजधानी", 0),
    "Khmer": (["ភ្នំពេញជារាជធានីនៃកម្ពុជា", "ទន្លេមេគង្គ"], "រាជធានី", 0),
    "English": (["The Seine flows through Paris.", "Berlin lies on the Spree."], "which river is in Berlin", 1),  # noqa: E501
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_bm25_finds_in_every_script_alone_and_mixed(language):
    texts, asked, best = LANGUAGES[language]
    alone, _ = build_bm25(texts, Bm25Config()).search([asked], 1)
    assert alone[0, 0] == best
    mixed = [text for each, _, _ in LANGUAGES.values() for text in each]
    found, _ = build_bm25(mixed, Bm25Config()).search([asked], 1)
    assert mixed[found[0, 0]] == texts[best]


def test_passages_of_the_index_are_texts_with_titles():
    assert passage_text(Passage("1", "b", "A")) == "A b"
