"""Build the index of an embedded corpus.

python -m train.index configs/wikipedia.py
python -m train.index configs/wikipedia.py --index.target_recall 0.99
"""

from __future__ import annotations

from dynarag_jax.exchange.encoders import load_encoder
from dynarag_jax.records import stream_questions
from dynarag_jax.retrieval.embed import embed
from dynarag_jax.stages import BuildIndex
from train.corpus import INDEX, VECTORS, embedded, index_of, require_encoder
from train.program import Context, main


def run(context: Context, stage: BuildIndex) -> None:
    """Write index/."""
    manifest = context.path(stage.embedded) / VECTORS / "manifest.json"
    asked = {"queries": context.path(stage.queries)} if stage.queries else {}
    context.manifest(inputs={"vectors": manifest} | asked)
    _, store, vectors = embedded(context, stage.embedded)
    queries = None
    if stage.queries:
        encoder = load_encoder(stage.encoder)
        require_encoder(stage.embedded, vectors, stage.encoder, encoder)
        texts = [question.text for question in stream_questions(asked["queries"])]
        queries = embed(encoder, texts, prompt=encoder.query_prompt)
    place = context.stage_directory / INDEX
    index_of(context, store, vectors, place, stage.index, queries, stage.shards)


if __name__ == "__main__":
    main("index", BuildIndex, run)
