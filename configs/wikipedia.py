"""All of Wikipedia: 21 million passages embedded, indexed and searched for your questions.

    python -m train.pipeline configs/wikipedia.py \
        --embed.corpus.files psgs_w100.tsv.gz --retrieve.questions train.jsonl evaluation.jsonl

The paper's retriever, Contriever-MSMARCO, over DPR's passages of 100 words. Vectors are stored in
bfloat16 (32 GB), and so does the index keep them. docs/retrieval.md says what it takes.
"""

from dynarag_jax.config import Run
from dynarag_jax.retrieval.corpora import CorpusConfig
from dynarag_jax.retrieval.index import IndexConfig
from dynarag_jax.stages import BuildIndex, Embed, Retrieve

run = Run(directory="runs/wikipedia", seed=0)

ENCODER = "facebook/contriever-msmarco"

stages = {
    "embed": Embed(
        corpus=CorpusConfig(files=("psgs_w100.tsv.gz",)),
        encoder=ENCODER,
        dtype="bfloat16",
        stored="bfloat16",
    ),
    "index": BuildIndex(index=IndexConfig(at=50, target_recall=0.95, reorder_type="bfloat16")),
    "retrieve": Retrieve(
        embedded="{run}/embed",
        indexed="{run}/index",
        questions=("train.jsonl", "evaluation.jsonl"),
        encoder=ENCODER,
        passages=45,
        evaluate=True,
    ),
}
