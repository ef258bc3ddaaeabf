"""Add passages to an indexed corpus and remove others.

    dynarag update configs/wikipedia_update.py --add new.jsonl --remove gone.txt

Writes passages/, vectors/ and index/ into RUN/update, which retrieve reads.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dynarag_jax.atomic import atomic_directory
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoders import load_encoder
from dynarag_jax.files import read_lines
from dynarag_jax.launch.context import Context
from dynarag_jax.processes import once
from dynarag_jax.records import Passage
from dynarag_jax.retrieval.corpora import CorpusAccount, CorpusConfig, CorpusFormat, located
from dynarag_jax.retrieval.embed import MINILM
from dynarag_jax.retrieval.index import update_index
from dynarag_jax.retrieval.materials import (
    INDEX,
    PASSAGES,
    VECTORS,
    corpus_inputs,
    embedded,
    load_index_of,
    passage_vectors,
    require_encoder,
    store_of,
)
from dynarag_jax.retrieval.shards import Plan, Vectors, finish, open_vectors, write_shard
from dynarag_jax.retrieval.store import Store, write_store


@dataclass(frozen=True)
class Update:
    """Add passages to an indexed corpus and remove others: a new embed and index stage in one."""

    embedded: str = "{run}/embed"
    """directory of an embed stage, or of another update"""
    indexed: str = "{run}/index"
    """directory of its index stage, or of that update"""
    add: tuple[str, ...] = ()
    """corpus files of what is added; a passage with a known id replaces that one"""
    format: CorpusFormat = "auto"
    """of the files to add"""
    remove: str = ""
    """file with an id a line of what is removed"""
    encoder: str = MINILM
    """the encoder that embedded the corpus"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type of the encoder's activations"""
    rebuild_at: float = 0.1
    """changes as a share of the index from which it is built again"""

    def __post_init__(self) -> None:
        if not self.add and not self.remove:
            raise InputError("update: there is nothing to do; name files to add or ids to remove")
        if not 0 <= self.rebuild_at <= 1:
            raise InputError(f"rebuild_at = {self.rebuild_at} must be a share from 0 to 1")


def run(context: Context, stage: Update) -> None:
    """Write passages/, vectors/ and index/."""
    embeddings, indexed = context.path(stage.embedded), context.path(stage.indexed) / INDEX
    added = None
    if stage.add:
        added = located(CorpusConfig(files=stage.add, format=stage.format), context.path)
    inputs = {"vectors": embeddings / VECTORS / "manifest.json"}
    inputs |= corpus_inputs(added) if added else {}
    inputs |= {"remove": context.path(stage.remove)} if stage.remove else {}
    context.manifest(inputs=inputs)
    _, store, vectors = embedded(embeddings)
    encoder = load_encoder(stage.encoder, dtype=stage.dtype)
    require_encoder(stage.embedded, vectors, stage.encoder, encoder)

    gone = removed_rows(store, inputs["remove"]) if stage.remove else set()
    directory = context.begin()
    work = directory / "added"
    new: Sequence[Passage] = ()
    fresh: Vectors | None = None
    if added:
        new = store_of(context, added, work / PASSAGES)
        fresh = passage_vectors(context, encoder, new, work / VECTORS, "added passages")
        known = [row for passage in new if (row := store.row(passage.id)) is not None]
        gone |= set(known)
        if known:
            context.log(f"{len(known)} passages are replaced")
    kept = np.array([row for row in range(len(store)) if row not in gone], np.int64)
    if not len(kept) + len(new):
        raise InputError("update: no passage is left; remove fewer")

    once(lambda: joined_store(store, kept, new, directory / PASSAGES))
    changed = Store(directory / PASSAGES)
    once(lambda: joined_vectors(vectors, kept, fresh, changed, directory / VECTORS))
    joined = open_vectors(directory / VECTORS, vectors.encoder, changed.fingerprint)
    target = directory / INDEX

    def change_index() -> None:
        if target.exists():
            return
        with atomic_directory(target) as temporary:
            shutil.copytree(indexed, temporary, dirs_exist_ok=True)
            said = update_index(
                temporary,
                encoder.fingerprint,
                add=None if fresh is None else fresh.array(),
                add_ids=[passage.id for passage in new],
                remove_ids=[store[row].id for row in sorted(gone)],
                rebuild_at=stage.rebuild_at,
            )
        context.log(said)

    once(change_index)
    load_index_of(context, changed, joined, target)
    once(lambda: shutil.rmtree(work, ignore_errors=True))


def removed_rows(store: Store, path: Path) -> set[int]:
    """The rows of the ids in a file, one a line.

    Raises:
      InputError: an id is not in the corpus.
    """
    rows = set()
    for number, raw in read_lines(path):
        name = raw.decode("utf-8", "replace").strip()
        if name:
            row = store.row(name)
            if row is None:
                raise InputError(f"{path}:{number}: passage '{name}' is not in the corpus")
            rows.add(row)
    return rows


def joined_store(store: Store, kept: np.ndarray, new: Sequence[Passage], directory: Path) -> None:
    """Write the passages that stay, and those that are new behind them, unless they stand."""
    if directory.exists():
        return

    def passages() -> Iterator[Passage]:
        yield from (store[int(row)] for row in kept)
        yield from new

    account = CorpusAccount(records=len(kept) + len(new))
    account.empty = sum(not passage.text.strip() for passage in passages())
    write_store(directory, passages(), account)


def joined_vectors(
    vectors: Vectors, kept: np.ndarray, new: Vectors | None, store: Store, directory: Path
) -> None:
    """Write the vectors of ``joined_store``'s passages, unless they stand."""
    old = vectors.plan
    plan = Plan(old.encoder, store.fingerprint, len(store), old.width, old.dtype, old.size)
    if not (directory / "manifest.json").is_file():
        directory.mkdir(parents=True, exist_ok=True)
        for shard in range(plan.shards):
            rows = np.arange(plan.rows(shard).start, plan.rows(shard).stop)
            parts = [vectors.rows(kept[rows[rows < len(kept)]])]
            if new is not None:
                parts.append(new.rows(rows[rows >= len(kept)] - len(kept)))
            write_shard(directory, plan, shard, np.concatenate(parts))
        finish(directory, plan)
