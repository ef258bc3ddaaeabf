"""Train a byte-level BPE tokenizer on a corpus and its questions.

    dynarag tokenizer configs/nq_litm.py

Writes tokenizer/ into RUN/tokenizer, in seconds for ten thousand passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynarag_jax.data.reading import read_questions
from dynarag_jax.exchange.tokenizers import train_bpe
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import once
from dynarag_jax.prompts import answer_messages, rerank_messages
from dynarag_jax.retrieval.corpora import CorpusConfig, read_corpus


@dataclass(frozen=True)
class TrainTokenizer:
    """Train a byte-level BPE tokenizer on a corpus and its questions."""

    corpus: str = "{run}/gather/corpus.jsonl"
    questions: tuple[str, ...] = ("{run}/gather/train.jsonl",)
    vocabulary: int = 4096
    """tokens in all"""


def run(context: Context, stage: TrainTokenizer) -> None:
    """Train on passages, questions, answers and the prompts' own words."""
    corpus, files = context.path(stage.corpus), [context.path(p) for p in stage.questions]
    context.manifest(inputs={"corpus": corpus} | {path.name: path for path in files})
    texts = once(lambda: texts_of(context, corpus, files))
    directory = context.begin()

    def write() -> None:
        assert texts is not None
        train_bpe(texts, directory / "tokenizer", stage.vocabulary, overwrite=True)
        context.log(f"vocabulary of {stage.vocabulary} tokens from {len(texts)} texts")

    once(write)


def texts_of(context: Context, corpus: Path, files: Sequence[Path]) -> list[str]:
    """What the tokenizer is trained on."""
    passages = read_corpus(CorpusConfig((str(corpus),)))
    texts = [f"{p.title}: {p.text}" if p.title else p.text for p in passages]
    for path in files:
        for question in read_questions(path, context.log):
            texts += [question.text, *question.answers]
            for make in (rerank_messages, answer_messages):
                texts += [m["content"] for m in make(question, (), "instruct")]
    return texts
