"""Read a corpus and embed its passages.

python -m train.embed configs/wikipedia.py
python -m train.embed configs/wikipedia.py --corpus.files psgs_w100.tsv.gz --stored bfloat16
"""

from __future__ import annotations

from dynarag_jax.exchange.encoders import load_encoder
from dynarag_jax.stages import Embed
from train.corpus import PASSAGES, VECTORS, corpus_inputs, located, passage_vectors, store_of
from train.program import Context, main


def run(context: Context, stage: Embed) -> None:
    """Write passages/ and vectors/."""
    corpus = located(context, stage.corpus)
    context.manifest(inputs=corpus_inputs(corpus))
    encoder = load_encoder(stage.encoder, dtype=stage.dtype)
    store = store_of(context, corpus, context.stage_directory / PASSAGES)
    vectors = passage_vectors(
        context,
        encoder,
        store,
        context.stage_directory / VECTORS,
        "passages",
        stored=stage.stored,
        shard=stage.shard,
        batch_tokens=stage.batch_tokens,
    )
    context.log(
        f"{len(vectors)} vectors of {vectors.shape[1]} numbers in {len(vectors.parts)} shards"
    )


if __name__ == "__main__":
    main("embed", Embed, run)
