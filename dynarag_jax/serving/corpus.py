"""A corpus that is searched for one query at a time: by words, by embeddings, or both."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import load_encoder
from dynarag_jax.files import fingerprint
from dynarag_jax.records import Passage
from dynarag_jax.retrieval.bm25 import Bm25, Bm25Config
from dynarag_jax.retrieval.corpora import CorpusConfig, corpus_files
from dynarag_jax.retrieval.embed import MINILM, Embedder, embed_texts
from dynarag_jax.retrieval.fusion import Fusion, Ranking, fuse
from dynarag_jax.retrieval.index import Index, IndexConfig
from dynarag_jax.retrieval.materials import (
    INDEX,
    bm25_of,
    embedded,
    index_of,
    load_index_of,
    require_encoder,
    store_of,
)
from dynarag_jax.retrieval.store import Store
from dynarag_jax.retrieval.voice import Voice


@dataclass(frozen=True)
class CorpusOptions:
    """What questions without documents of their own are answered from."""

    files: tuple[str, ...] = ()
    """the corpus: files, patterns or directories, searched by words (BM25)"""
    embedded: str = ""
    """in their place, the directory of an embed stage: its passages and vectors"""
    index: str = ""
    """directory of the index stage made of it; empty searches all vectors exactly"""
    source: Literal["auto", "bm25", "dense", "hybrid"] = "auto"
    """auto is dense where there are vectors, else bm25; hybrid fuses both"""
    encoder: str = MINILM
    """embedding model of the vectors"""
    bm25: Bm25Config = Bm25Config()
    fusion: Fusion = Fusion()
    words: int = 0
    """cut texts of ``files`` into passages of so many words; 0 leaves them as they are"""
    cache: str = ""
    """directory of what is made of a corpus, kept for the next start; empty is the user's cache"""

    def __post_init__(self) -> None:
        if self.files and self.embedded:
            raise InputError("corpus: files and embedded are two corpora; give one of them")
        if self.index and not self.embedded:
            raise InputError("corpus: index needs embedded, the embed stage it was made of")
        if self.source in ("dense", "hybrid") and not self.embedded:
            raise InputError(f"corpus: source '{self.source}' needs embedded, an embed stage")

    @property
    def given(self) -> bool:
        """Whether there is a corpus at all."""
        return bool(self.files or self.embedded)


class CorpusSearch:
    """A corpus ready for queries; safe for threads, one query at a time."""

    def __init__(
        self,
        store: Store,
        words: Bm25 | None,
        index: Index | None,
        embedder: Embedder | None,
        fusion: Fusion,
    ):
        self._store, self._words, self._index = store, words, index
        self._embedder, self._fusion = embedder, fusion
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._store)

    def search(self, query: str, n: int) -> list[Passage]:
        """The ``n`` best passages for a query, best first; fewer where no more are found."""
        n = min(n, len(self._store))
        if n < 1:
            return []
        with self._lock:
            rankings: list[Ranking] = []
            depth = n
            if self._words is not None and self._index is not None:
                depth = min(max(n, self._fusion.depth), len(self._store))
            if self._index is not None and self._embedder is not None:
                prompt = self._embedder.encoder.query_prompt
                vector = embed_texts(self._embedder, [query], prompt)
                positions, scores = self._index.search(vector, depth)
                rankings.append((positions[0], np.asarray(scores[0])))
            if self._words is not None:
                positions, scores = self._words.search([query], depth)
                rankings.append((positions[0], scores[0]))
            if len(rankings) == 2:
                weights = (self._fusion.weight, 1 - self._fusion.weight)
                weights = weights if self._fusion.method == "weighted" else (1.0, 1.0)
                best = fuse(rankings, weights, self._fusion, n)
            else:
                best = rankings[0]
            rows = [int(p) for p in best[0] if p >= 0][:n]
            return [self._store[row] for row in rows]


def open_corpus(voice: Voice, options: CorpusOptions) -> CorpusSearch:
    """Open a corpus, or make it ready the first time.

    Raises:
      InputError: its files are not there or wrong, or its vectors are another encoder's.
    """
    source = options.source
    if source == "auto":
        source = "dense" if options.embedded else "bm25"
    index: Index | None = None
    embedder: Embedder | None = None
    if options.embedded:
        _, store, vectors = embedded(Path(options.embedded))
        place = _cache(options, store.fingerprint)
        if source in ("dense", "hybrid"):
            encoder = load_encoder(options.encoder)
            require_encoder(options.embedded, vectors, options.encoder, encoder)
            embedder = Embedder(encoder)
            if options.index:
                directory = Path(options.index)
                if (directory / INDEX).is_dir():
                    directory = directory / INDEX
                index = load_index_of(voice, store, vectors, directory)
            else:
                exact = IndexConfig(kind="exact")
                index = index_of(voice, store, vectors, place / INDEX, exact)
    else:
        corpus = CorpusConfig(files=options.files, words=options.words)
        stamps = [
            [str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns]
            for path in corpus_files(options.files)
        ]
        place = _cache(options, fingerprint([stamps, options.words]))
        store = store_of(voice, corpus, place / "passages")
    words = None
    if source in ("bm25", "hybrid"):
        name = f"bm25-{fingerprint(vars(options.bm25))[:12]}"
        words = bm25_of(voice, store, options.bm25, place / name)
    return CorpusSearch(store, words, index, embedder, options.fusion)


def _cache(options: CorpusOptions, name: str) -> Path:
    """Where what is made of a corpus lies."""
    root = Path(options.cache) if options.cache else None
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = Path(cache) / "dynarag_jax" / "served"
    place = root.expanduser() / name[:24]
    place.mkdir(parents=True, exist_ok=True)
    return place
