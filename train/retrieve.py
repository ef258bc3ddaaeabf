"""Fill questions with their most similar passages of a corpus.

python -m train.retrieve configs/quickstart.py --index exact
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dynarag_jax.exchange.encoders import LoadedEncoder, load_encoder
from dynarag_jax.files import atomic_write, fingerprint, write_json
from dynarag_jax.metrics.ranking import recall_at
from dynarag_jax.records import Question, read_passages, read_questions, write_questions
from dynarag_jax.retrieval.blocks import Blocks, default_block
from dynarag_jax.retrieval.embed import embed, passage_text
from dynarag_jax.retrieval.index import build_index
from dynarag_jax.retrieval.retrieve import check, retrieve
from dynarag_jax.stages import Retrieve
from train.program import Context, main


def embed_once(
    context: Context, encoder: LoadedEncoder, texts: Sequence[str], what: str, prompt: str
) -> np.ndarray:
    """Embed, or take what a run that was cut off had already embedded of these very texts."""
    key = fingerprint([encoder.fingerprint, prompt, list(texts)])
    path = context.stage_directory / "vectors" / f"{key}.npy"
    if path.is_file():
        return np.load(path)
    blocks = Blocks(path.with_suffix(".blocks"), default_block())
    with context.progress(len(texts), what) as bar:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            bar.update(count - done)
            done = count

        vectors = embed(encoder, texts, prompt=prompt, progress=advance, blocks=blocks)
    with atomic_write(path, "wb") as stream:
        np.save(stream, vectors)
    blocks.remove()
    return vectors


def recalls(questions: Sequence[Question]) -> dict[str, float]:
    """Mean recall of the needed passages in the first 1, 5 and 20, where they are known."""
    known = [q for q in questions if q.gold]
    ranked = [([p.id for p in q.passages], q.gold or ()) for q in known]
    return {
        f"recall@{k}": float(np.mean([recall_at(ids, gold, k) for ids, gold in ranked]))
        for k in (1, 5, 20)
        if known
    }


def run(context: Context, stage: Retrieve) -> None:
    """Embed, index, search; write each question file and recall.json."""
    context.require_one_process()
    corpus, files = context.path(stage.corpus), [context.path(p) for p in stage.questions]
    context.manifest(inputs={"corpus": corpus} | {path.name: path for path in files})
    passages, sets = read_passages(corpus), {path: read_questions(path) for path in files}
    for questions in sets.values():
        check(questions, passages, stage.passages, stage.keep_gold)
    encoder = load_encoder(stage.encoder)
    texts = [passage_text(p) for p in passages]
    vectors = embed_once(context, encoder, texts, "passages", encoder.passage_prompt)
    index = build_index(vectors, kind=stage.index, target_recall=stage.target_recall)
    context.log(index.description)
    found: dict[str, dict[str, float]] = {}
    for path, questions in sets.items():
        asked = [q.text for q in questions]
        queries = embed_once(context, encoder, asked, path.name, encoder.query_prompt)
        filled = retrieve(
            questions, passages, queries, vectors, index, stage.passages, stage.keep_gold
        )
        write_questions(context.stage_directory / path.name, filled)
        found[path.name] = recalls(filled)
        given = recalls(questions) if stage.compare_given else {}
        if given:
            found[f"{path.name}, as given"] = given
    for name, figures in found.items():
        shown = ", ".join(f"{k} {100 * v:.1f} %" for k, v in figures.items())
        context.log(f"{name}: {shown or 'no needed passages are marked'}")
    _note_given(context, stage, sets)
    write_json(context.stage_directory / "recall.json", found)


def _note_given(context: Context, stage: Retrieve, sets: dict[Path, list[Question]]) -> None:
    """Say it where the order given cannot be a retriever's: its needed passages have no score."""
    if not stage.compare_given:
        return
    for path, questions in sets.items():
        unscored = sum(
            any(p.id in (q.gold or ()) and p.score is None for p in q.passages) for q in questions
        )
        if unscored:
            context.log(
                f"{path.name}: in {unscored} of {len(questions)} questions the file gives the "
                f"needed passage no score; somebody placed it, no retriever ranked it, so the "
                f"recall of the order given says nothing about one"
            )


if __name__ == "__main__":
    main("retrieve", Retrieve, run)
