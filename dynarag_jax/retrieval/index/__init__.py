"""Search by inner product: exact in JAX, or ScaNN with its recall measured when it is built.

Vectors stand in corpus order; a search returns positions in that order. A saved index is one
directory that may be moved, or a directory of shards.

    index = build_index(vectors, IndexConfig(target_recall=0.95, at=50), queries)
    index.save(directory, ids, encoder.fingerprint)
    index = load_index(directory, encoder.fingerprint)
    positions, scores = index.search(queries, 50)
"""

from dynarag_jax.retrieval.index.base import Index, Recall, Speed
from dynarag_jax.retrieval.index.build import IndexConfig, Kind, build_index, estimate
from dynarag_jax.retrieval.index.build_shards import build_shards, shard_bounds
from dynarag_jax.retrieval.index.changes import ChangedIndex
from dynarag_jax.retrieval.index.exact import ExactIndex
from dynarag_jax.retrieval.index.load import load_ids, load_index
from dynarag_jax.retrieval.index.memory import Memory, machine_memory
from dynarag_jax.retrieval.index.rows import Rows, check_vectors, open_shards
from dynarag_jax.retrieval.index.scann import ScannIndex, ScannSettings
from dynarag_jax.retrieval.index.sharded import ShardedIndex, shard_directories
from dynarag_jax.retrieval.index.update import update_index

__all__ = [
    "ChangedIndex",
    "ExactIndex",
    "Index",
    "IndexConfig",
    "Kind",
    "Memory",
    "Recall",
    "Rows",
    "ScannIndex",
    "ScannSettings",
    "ShardedIndex",
    "Speed",
    "build_index",
    "build_shards",
    "check_vectors",
    "estimate",
    "load_ids",
    "load_index",
    "machine_memory",
    "open_shards",
    "shard_bounds",
    "shard_directories",
    "update_index",
]
