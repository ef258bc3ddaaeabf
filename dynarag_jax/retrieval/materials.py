"""A corpus ready to be searched: passages, vectors and an index, each in a directory.

Each function makes what is not there yet and opens what is. Process 0 writes what there is one of,
and the others wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import LoadedEncoder
from dynarag_jax.processes import once, wait
from dynarag_jax.retrieval.bm25 import Bm25, Bm25Config, build_bm25, load_bm25
from dynarag_jax.retrieval.corpora import CorpusAccount, CorpusConfig, corpus_files, read_corpus
from dynarag_jax.retrieval.embed import Embedder, PassageTexts, embed_shards
from dynarag_jax.retrieval.index import (
    Index,
    IndexConfig,
    build_index,
    build_shards,
    load_index,
    shard_directories,
)
from dynarag_jax.retrieval.shards import (
    Plan,
    Stored,
    Vectors,
    default_shard,
    finish,
    open_vectors,
    standing,
)
from dynarag_jax.retrieval.store import Store, write_store
from dynarag_jax.retrieval.voice import Voice

PASSAGES, VECTORS, INDEX, BM25 = "passages", "vectors", "index", "bm25"
"""Names of their directories."""


def corpus_inputs(corpus: CorpusConfig) -> dict[str, Path]:
    """The files of a corpus, for the stage's record of its inputs."""
    return {f"corpus {path.name}": path for path in corpus_files(corpus.files)}


def index_inputs(directory: Path) -> dict[str, Path]:
    """What tells one index from another, for the stage's record of its inputs."""
    if shards := shard_directories(directory):
        return {f"index {shard.name}": shard / "manifest.json" for shard in shards}
    return {"index": directory / "manifest.json"}


def store_of(voice: Voice, corpus: CorpusConfig, directory: Path) -> Store:
    """The corpus' passages on disk."""

    def write() -> None:
        if directory.exists():
            return
        account = CorpusAccount()
        with voice.progress(None, "reading passages") as bar:

            def counted():
                for passage in read_corpus(corpus, account):
                    bar.update(1)
                    yield passage

            store = write_store(directory, counted(), account)
        kinds = ", ".join(sorted(set(account.formats.values())))
        voice.log(f"{len(store)} passages of {account.records} records ({kinds})")
        for line in account.notes():
            voice.log(line)
        if account.empty:
            voice.log(f"{account.empty} passages have no text; they are kept and marked")
        if account.rejected:
            voice.log(f"{len(account.rejected)} records were left out; the first: "
                        f"{account.rejected[0]}")  # fmt: skip

    once(write)
    return Store(directory)


def vectors_of(
    voice: Voice,
    encoder: LoadedEncoder,
    texts: Sequence[str],
    prompt: str,
    directory: Path,
    what: str,
    fingerprint: str,
    *,
    stored: Stored = "float32",
    shard: int = 0,
    batch_tokens: int = 0,
) -> Vectors:
    """Embed texts into shards, or go on where a run was cut off, or open what is there.

    Args:
      prompt: put before every text.
      fingerprint: of the texts.
      what: shown beside the progress.
    """
    plan = Plan(
        encoder=encoder.fingerprint,
        texts=fingerprint,
        count=len(texts),
        width=encoder.config.width,
        dtype=stored,
        size=shard or default_shard(),
    )
    if not (directory / "manifest.json").is_file():
        process, processes = jax.process_index(), jax.process_count()
        mine = lambda part: part % processes == process  # noqa: E731
        parts = [part for part in range(plan.shards) if mine(part)]
        there = standing(directory, plan)
        total = sum(len(plan.rows(part)) for part in parts)
        with voice.progress(total, f"embedding {what}") as bar:
            bar.start_at(sum(len(plan.rows(part)) for part in parts if part in there), total)
            embedder = Embedder(encoder, batch_tokens or None)
            embed_shards(embedder, texts, prompt, directory, plan, mine, bar.update)
        wait(f"{what} are embedded")
        once(lambda: finish(directory, plan))
    return open_vectors(directory, plan.encoder, plan.texts)


def passage_vectors(
    voice: Voice, encoder: LoadedEncoder, store: Store, directory: Path, what: str, **how: Any
) -> Vectors:
    """The vectors of a corpus' passages; ``how`` as of ``vectors_of``."""
    texts, prompt = PassageTexts(store), encoder.passage_prompt
    return vectors_of(voice, encoder, texts, prompt, directory, what, store.fingerprint, **how)


def index_of(
    voice: Voice,
    store: Store,
    vectors: Vectors,
    directory: Path,
    config: IndexConfig,
    queries: np.ndarray | None = None,
    shards: int = 0,
) -> Index:
    """The index over a corpus' vectors.

    Args:
      queries: float32 [q, d] on which recall is measured; None takes passages.
      shards: 0 for one index, which process 0 builds; else each process builds its share.
    """
    if shards:
        build_shards(
            directory,
            vectors.parts,
            list(store.ids()),
            vectors.encoder,
            shards,
            config,
            queries,
            process=jax.process_index(),
            processes=jax.process_count(),
            done=lambda number, text: voice.log(f"shard {number}: {text}"),
        )

    def build() -> bool:
        if shards or directory.exists():
            return False
        index = build_index(vectors.parts, config, queries)
        index.save(directory, list(store.ids()), vectors.encoder)
        voice.log(index.describe())
        return True

    built = once(build)
    return load_index_of(voice, store, vectors, directory, described=bool(built))


def load_index_of(
    voice: Voice, store: Store, vectors: Vectors, directory: Path, described: bool = False
) -> Index:
    """The index that was built of a corpus' vectors; of one in shards, this process's share.

    Args:
      described: what it is was said already.
    """
    index = load_index(
        directory,
        vectors.encoder,
        list(store.ids()),
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    if not described:
        voice.log(index.description)
    return index


def require_encoder(place: str, vectors: Vectors, source: str, encoder: LoadedEncoder) -> None:
    """Refuse vectors that another encoder has made.

    Raises:
      InputError: they are of another one.
    """
    if vectors.encoder != encoder.fingerprint:
        raise InputError(
            f"{place}: embedded by another encoder (fingerprint {vectors.encoder[:12]}) "
            f"than {source} ({encoder.fingerprint[:12]}); name that one with --encoder"
        )


def bm25_of(voice: Voice, store: Store, config: Bm25Config, directory: Path) -> Bm25:
    """Build or open the BM25 index."""

    def write() -> None:
        if directory.exists():
            return
        with voice.progress(len(store), "counting words") as bar:

            def counted():
                for text in PassageTexts(store):
                    bar.update(1)
                    yield text

            build_bm25(counted(), config, store.fingerprint).save(directory)

    once(write)
    index = load_bm25(directory, store.fingerprint)
    voice.log(index.description)
    return index


def embedded(directory: Path) -> tuple[Path, Store, Vectors]:
    """Open what an embed stage has made.

    Raises:
      InputError: nothing is there.
    """
    if not (directory / VECTORS).is_dir() or not (directory / PASSAGES).is_dir():
        raise InputError(f"{directory}: no embedded corpus; run the stage embed first")
    store = Store(directory / PASSAGES)
    return directory, store, open_vectors(directory / VECTORS, texts=store.fingerprint)
