"""A saved index updated: passages added and removed, or built again where changes are many."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, read_json
from dynarag_jax.retrieval.index.build import IndexConfig, build_index
from dynarag_jax.retrieval.index.changes import changed_ids, read_changes, write_change
from dynarag_jax.retrieval.index.load import check_encoder, load_index
from dynarag_jax.retrieval.index.manifest import read_manifest
from dynarag_jax.retrieval.index.rows import Rows, look
from dynarag_jax.retrieval.index.sharded import shard_directories


def update_index(
    directory: PathLike,
    encoder: str,
    *,
    add: Any = None,
    add_ids: Sequence[str] = (),
    remove_ids: Sequence[str] = (),
    rebuild_at: float = 0.1,
    queries: np.ndarray | None = None,
) -> str:
    """Add passages to a saved index and remove others; whole or not at all.

    A passage that changed is named in both: it is removed, and added at the end. Where changes
    exceed a share of the index it is built again, with the configuration it was built with, if it
    keeps float32 vectors; ids are then in the same order as before.

    Args:
      encoder: fingerprint of the encoder that made ``add``.
      add: float [m, d] vectors.
      add_ids: their passages' ids.
      remove_ids: ids of passages to remove.
      rebuild_at: changes as a share of the index from which it is built again.
      queries: to measure recall on when it is built again.

    Returns:
      One line that says what was done.

    Raises:
      InputError: another encoder, an id that is there already or is not there, vectors that cannot
        be searched, an index in shards, or no room on the disk.
    """
    folder = Path(directory)
    if shards := shard_directories(folder):
        raise InputError(f"{folder}: holds shards; update one of them, such as {shards[-1]}")
    manifest = read_manifest(folder)
    check_encoder(folder, manifest["encoder"], encoder)
    added, more, removed = read_changes(folder, manifest)
    new = Rows(np.zeros((0, manifest["dim"]), np.float32) if add is None else add, "add")
    if len(new) != len(add_ids):
        raise InputError(f"add: {len(new)} vectors for {len(add_ids)} ids")
    if len(new):
        if new.shape[1] != manifest["dim"]:
            raise InputError(
                f"add: vectors have {new.shape[1]} numbers, those of the index {manifest['dim']}; "
                f"embed both with the same encoder"
            )
        look(new, "add")
    base_ids = read_json(folder / manifest["ids"])
    gone = set(removed.tolist())
    where = {p: i for i, p in enumerate([*base_ids, *more]) if i not in gone}
    for passage in remove_ids:
        if (position := where.pop(passage, None)) is None:
            raise InputError(f"{folder}: passage '{passage}' is not in the index")
        gone.add(position)
    for passage in add_ids:
        if passage in where:
            raise InputError(
                f"{folder}: passage '{passage}' is in the index already; remove it in the same "
                f"call to replace it"
            )
        where[passage] = -1
    ids = [*more, *add_ids]
    write_change(folder, manifest, Rows([*added.parts, *new.parts]), ids, sorted(gone))
    share = (len(ids) + len(gone)) / manifest["count"]
    done = f"{len(add_ids):,} passages added, {len(remove_ids):,} removed"
    if share <= rebuild_at:
        return f"{done}; changes are {100 * share:.1f} % of the index"
    index = load_index(folder, encoder)
    if (rows := index.rows()) is None:
        return (
            f"{done}; changes are {100 * share:.1f} % of an index that keeps no float32 vectors: "
            f"build it again"
        )
    names = {f.name for f in dataclasses.fields(IndexConfig)}
    config = IndexConfig(**{k: v for k, v in (index.config or {}).items() if k in names})
    left = changed_ids(folder, read_manifest(folder), base_ids)
    again = build_index(rows, config, queries)
    again.save(folder, left, encoder, overwrite=True)
    return f"{done}; built again: {again.description}"
