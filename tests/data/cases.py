"""A record of each format as its source publishes it, and what its question is."""

from __future__ import annotations

from typing import Any

from dynarag_jax.data.values import content_id
from dynarag_jax.records import Passage

P1 = {"id": "1", "title": "Seine", "text": "The Seine is a river.", "score": "1.5"}
P2 = {"id": "2", "title": "Loire", "text": "The Loire is a river."}
SEINE = Passage("1", "The Seine is a river.", "Seine", 1.5)
LOIRE = Passage("2", "The Loire is a river.", "Loire")
ASKED = "Which river flows through Paris?"

# What it is, the format, the record, and fields of the question that it becomes.
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    (
        "Self-RAG", "contexts",
        {"id": 7, "question": ASKED, "answers": ["Seine"], "ctxs": [P1, P2]},
        {"id": "7", "answers": ("Seine",), "passages": (SEINE, LOIRE), "gold": None},
    ),
    (
        "Self-RAG by instruction", "contexts",
        {"instruction": ASKED, "answer": "Seine", "top_contexts": [P1], "dataset_name": "x"},
        {"answers": ("Seine",), "passages": (SEINE,), "extra": {"dataset_name": "x"}},
    ),
    (
        "DynamicRAG's training file", "contexts",
        {"id": "fever_nqx_1", "question": ASKED, "answer": "Seine", "docs": [
            P1 | {"rerank_label": "false"}, P2 | {"rerank_label": "true"}], "false_id": [1]},
        {"expert": (2,), "expert_source": "rerank_label", "answers": ("Seine",), "task": "label",
         "extra": {"false_id": [1], "dataset": "fever"}},
    ),
    (
        "DynamicRAG's training file with counted ids", "contexts",
        {"question": ASKED, "answer": ["Seine"], "docs": [P1, P2], "true_id": [2, 1]},
        {"expert": (2, 1)},
    ),
    (
        "DPR's retriever", "contexts",
        {"question": ASKED, "answers": ["Seine"], "ctxs": [P1 | {"has_answer": True}, P2]},
        {"extra": {"has_answer": ["1"]}},
    ),
    (
        "Lost in the Middle", "contexts",
        {"question": ASKED, "answers": ["Seine"],
         "ctxs": [{"title": "Seine", "text": "A river.", "isgold": True},
                  P2 | {"isgold": False}, P2 | {"isgold": False}]},
        {"gold": (content_id("Seine", "A river."),),
         "passages": (Passage(content_id("Seine", "A river."), "A river.", "Seine"), LOIRE)},
    ),
    (
        "DPR's training data", "dpr",
        {"question": ASKED, "answers": ["Seine"], "positive_ctxs": [{
            "title": "Seine", "text": "The Seine is a river.", "score": 1.5, "passage_id": "1"}],
         "hard_negative_ctxs": [{"title": "Loire", "text": "The Loire is a river.", "psg_id": 2}],
         "negative_ctxs": []},
        {"passages": (SEINE, LOIRE), "gold": ("1",)},
    ),
    (
        "RankLLM", "rankllm",
        {"query": {"text": ASKED, "qid": 3}, "candidates": [
            {"docid": "1", "score": 1.5,
             "doc": {"title": "Seine", "contents": "The Seine is a river."}}]},
        {"id": "3", "passages": (SEINE,), "answers": ()},
    ),
    (
        "NQ-open", "nq_open", {"question": ASKED, "answer": ["Seine", "the Seine"]},
        {"id": "q1", "answers": ("Seine", "the Seine"), "task": "short"},
    ),
    (
        "TriviaQA", "triviaqa",
        {"Question": ASKED, "QuestionId": "tc_1", "EntityPages": [], "Answer": {
            "Value": "The Seine", "NormalizedValue": "seine", "Aliases": ["The Seine"],
            "NormalizedAliases": ["seine", "river seine"], "HumanAnswers": ["la Seine"]}},
        {"answers": ("The Seine", "seine", "river seine", "la Seine"),
         "extra": {"dataset": "triviaqa"}},
    ),
    (
        "TriviaQA of the hub", "triviaqa",
        {"question": ASKED, "question_id": "tc_1", "entity_pages": {}, "answer": {
            "value": "Seine", "normalized_value": "x", "normalized_aliases": ["seine"]}},
        {"answers": ("seine",)},
    ),
    (
        "PopQA", "popqa",
        {"id": 5, "question": ASKED, "prop": "mouth", "possible_answers": '["Seine", "Sena"]'},
        {"id": "5", "answers": ("Seine", "Sena"), "type": "mouth", "extra": {"dataset": "popqa"}},
    ),
    (
        "HotpotQA", "hotpotqa",
        {"_id": "a", "question": ASKED, "answer": "Seine", "type": "bridge", "level": "hard",
         "supporting_facts": [["Seine", 1], ["Seine", 0]],
         "context": [["Loire", ["A river."]], ["Seine", ["One.", " Two."]]]},
        {"gold": (content_id("Seine", "One. Two."),), "type": "bridge", "task": "short"},
    ),
    (
        "2WikiMultihopQA of the hub", "2wikimultihopqa",
        {"id": "a", "question": ASKED, "answer": "Seine", "evidences": [],
         "answer_aliases": ["Sena"], "supporting_facts": [{"title": "Seine", "sent_id": 5}],
         "context": [{"title": "Seine", "content": ["One.", "Two."]}]},
        {"gold": (content_id("Seine", "One. Two."),), "answers": ("Seine", "Sena")},
    ),
    (
        "MuSiQue", "musique",
        {"id": "2hop__1_2", "question": ASKED, "answer": "Seine", "answer_aliases": ["Sena"],
         "answerable": True,
         "paragraphs": [
             {"idx": 0, "title": "A", "paragraph_text": "a", "is_supporting": True},
             {"idx": 1, "title": "B", "paragraph_text": "b", "is_supporting": False},
             {"idx": 2, "title": "C", "paragraph_text": "c", "is_supporting": True}],
         "question_decomposition": [{"id": 1, "paragraph_support_idx": 2},
                                    {"id": 2, "paragraph_support_idx": 0}]},
        {"gold": (content_id("C", "c"), content_id("A", "a")), "type": "2hop"},
    ),
    (
        "SQuAD of the hub", "squad",
        {"id": "s", "title": "The_Seine", "context": "A river.", "question": ASKED,
         "answers": {"text": ["Seine", "Seine"], "answer_start": [0, 0]}},
        {"answers": ("Seine",), "gold": (content_id("The Seine", "A river."),)},
    ),
    (
        "QED", "qed",
        {"example_id": -5, "title_text": "Seine", "question_text": ASKED, "paragraph_text": "x",
         "original_nq_answers": [[{"string": "a"}, {"string": "b"}], [{"string": "c"}]]},
        {"id": "-5", "answers": ("a, b", "c")},
    ),
    (
        "ASQA", "asqa",
        {"sample_id": "s", "ambiguous_question": ASKED, "qa_pairs": [
            {"question": "r1", "short_answers": ["a", "b"]}, {"short_answers": []}],
         "annotations": [{"long_answer": "long", "knowledge": []}]},
        {"answers": ("long",), "task": "paragraph",
         "extra": {"dataset": "asqa", "qa_pairs": [["a", "b"], []], "disambiguations": ["r1", ""]}},
    ),
    (
        "ASQA of ALCE", "asqa",
        {"question": ASKED, "qa_pairs": [{"short_answers": ["a"]}], "answer": "long",
         "docs": [P1]},
        {"answers": ("long",), "passages": (SEINE,)},
    ),
    (
        "ELI5", "eli5",
        {"q_id": "e", "title": ASKED, "selftext": "Please.", "answers": {"text": ["Because."]}},
        {"text": f"{ASKED}\nPlease.", "answers": ("Because.",), "task": "paragraph"},
    ),
    (
        "KILT", "kilt",
        {"id": "k", "input": ASKED, "output": [
            {"answer": "Seine"}, {"answer": "", "provenance": [{"title": "Seine"}]}]},
        {"answers": ("Seine",), "task": "short", "extra": {"provenance": [{"title": "Seine"}]}},
    ),
    (
        "KILT's FEVER", "kilt", {"id": "k", "input": "c", "output": [{"answer": "REFUTES"}]},
        {"answers": ("REFUTES",), "task": "label"},
    ),
    (
        "CLAP-NQ", "clapnq",
        {"id": "c", "input": ASKED, "passages": [P1], "output": [{"answer": ""}]},
        {"answers": (), "gold": (), "task": "paragraph", "passages": (SEINE,)},
    ),
    (
        "FlashRAG", "flashrag",
        {"id": "f", "question": ASKED, "golden_answers": ["Seine"], "metadata": {"type": "x"}},
        {"answers": ("Seine",), "extra": {"metadata": {"type": "x"}}},
    ),
    (
        "StrategyQA", "strategyqa",
        {"qid": "s", "question": ASKED, "answer": True, "facts": ["f"], "decomposition": ["d"],
         "evidence_paragraphs": {"Seine-1": "A river.", "Loire-3": "Another."},
         "evidence_ids": ["Loire-3"]},
        {"answers": ("yes",), "gold": ("Loire-3",), "passages": (
            Passage("Seine-1", "A river.", "Seine"), Passage("Loire-3", "Another.", "Loire"))},
    ),
    ("MTEB's queries", "beir", {"id": "b", "text": ASKED}, {"id": "b", "text": ASKED}),
    ("BEIR's queries of the hub", "beir", {"_id": "b", "title": "", "text": ASKED}, {"id": "b"}),
    (
        "passages beside the answer", "contexts",
        {"question": ASKED, "answer": "Seine", "passages": [P1, P2]},
        {"answers": ("Seine",), "passages": (SEINE, LOIRE)},
    ),
    ("yes or no", "nq_open", {"question": ASKED, "answer": False}, {"answers": ("no",)}),
    ("ours without a task", "records",
     {"id": "r", "question": ASKED, "ctxs": [], "gold": ["x"]}, {"gold": ("x",), "task": "short"}),
    (
        "HotpotQA fullwiki", "hotpotqa",
        {"_id": "a", "question": ASKED, "answer": "Seine", "supporting_facts": [["Oise", 0],
         ["Seine", 0]], "context": [["Seine", ["One."]]]},
        {"gold": ("title:Oise", content_id("Seine", "One."))},
    ),
    (
        "SQuAD 2 of the hub", "squad",
        {"id": "s", "title": "T", "context": "A river.", "question": ASKED,
         "answers": {"text": [], "answer_start": []}},
        {"answers": (), "gold": (), "passages": (Passage(content_id("T", "A river."), "A river.",
         "T"),)},
    ),
    ("BEIR", "beir", {"_id": "b", "text": ASKED, "metadata": {}}, {"id": "b", "answers": ()}),
    (
        "FEVER", "fever",
        {"id": 1, "claim": "c", "label": "NOT ENOUGH INFO", "verifiable": "x", "evidence": [[[]]]},
        {"answers": ("NOT ENOUGH INFO",), "task": "label", "text": "c"},
    ),
    (
        "FeverSymmetric", "fever_symmetric",
        {"id": "1", "claim": "c", "evidence": "e", "gold_label": "SUPPORTS"},
        {"gold": (content_id("", "e"),), "answers": ("SUPPORTS",)},
    ),
    (
        "Fool Me Twice", "foolmetwice",
        {"id": "1", "text": "c", "label": "REFUTES", "wikipedia_page": "P",
         "gold_evidence": [{"text": "g", "section_header": "S"}],
         "retrieved_evidence": [{"text": "r", "section_header": "S"}]},
        {"gold": (content_id("P | S", "g"),), "answers": ("REFUTES",), "task": "label",
         "passages": (Passage(content_id("P | S", "r"), "r", "P | S"),)},
    ),
    (
        "SciFact as published", "scifact",
        {"id": 1, "claim": "c", "cited_doc_ids": [4], "evidence": {
            "4": [{"sentences": [1], "label": "CONTRADICT"}]}},
        {"answers": ("REFUTES",), "gold": ("4",)},
    ),
    (
        "Alpaca", "alpaca",
        {"instruction": "Translate.", "input": "Seine", "output": "Sena"},
        {"text": "Translate.\n\nSeine", "answers": ("Sena",), "task": "paragraph"},
    ),
    (
        "DynamicRAG's reranker", "alpaca",
        {"system": "s", "input": "", "output": "[2], [1]", "instruction":
         f"Query: {ASKED}\n\nRetrieved Content:\n1. Topic: A\nContent: a\n2. Topic: B\nContent: b"},
        {"text": ASKED, "expert": (2, 1), "answers": (), "passages": (
            Passage(content_id("A", "a"), "a", "A"), Passage(content_id("B", "b"), "b", "B"))},
    ),
    (
        "DynamicRAG's generator, no passages", "alpaca",
        {"system": "s", "input": "", "output": "SUPPORTS", "instruction":
         "Please answer the question with “SUPPORTS”, “REFUTES” or “NEI” based on what you know.\n"
         f"Query: {ASKED}\n\nRetrieved Content: None"},
        {"text": ASKED, "answers": ("SUPPORTS",), "task": "label", "passages": (), "expert": None},
    ),
    (
        "DynamicRAG's reranker pairs", "alpaca",
        {"instruction": "system", "chosen": "None", "rejected": "[1]", "input":
         f"Query: {ASKED}\n\nRetrieved Content:\n3. Title: A.\nContent: a"},
        {"expert": (), "expert_source": "released chosen",
         "extra": {"chosen": "None", "rejected": "[1]"}},
    ),
    (
        "preference", "preference",
        {"prompt": [{"role": "user", "content": "q"}], "rejected": "b",
         "chosen": [{"role": "assistant", "content": "a"}]},
        {"text": "q", "answers": ("a",)},
    ),
    (
        "ours", "records",
        {"id": "r", "question": ASKED, "task": "label", "ctxs": [], "gold": []},
        {"id": "r", "task": "label", "gold": ()},
    ),
    (
        "rankings by title", "titles",
        {"_id": "t", "question": ASKED, "answer": "x", "gold_titles": ["A"]}, {"id": "t"},
    ),
]  # fmt: skip
