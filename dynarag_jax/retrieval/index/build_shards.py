"""An index in shards: built one after the other, by one process or several, and resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, read_json
from dynarag_jax.retrieval.index.build import IndexConfig, build_index
from dynarag_jax.retrieval.index.manifest import MANIFEST, check_files, read_manifest
from dynarag_jax.retrieval.index.rows import Rows, look
from dynarag_jax.retrieval.index.sharded import shard_name


def shard_bounds(count: int, shards: int) -> list[tuple[int, int]]:
    """First and last row of each shard: equal shares, in corpus order."""
    if not 1 <= shards <= count:
        raise InputError(f"index: {count} vectors cannot be cut into {shards} shards")
    return [(i * count // shards, (i + 1) * count // shards) for i in range(shards)]


def build_shards(
    directory: PathLike,
    vectors: Any,
    ids: Sequence[str],
    encoder: str,
    shards: int,
    config: IndexConfig | None = None,
    queries: np.ndarray | None = None,
    *,
    process: int = 0,
    processes: int = 1,
    done: Callable[[int, str], None] | None = None,
) -> None:
    """Build an index as ``shards`` indexes, this process's share of them; ``load_index`` reads it.

    Only one shard is in memory at a time. Shards that stand already, of these vectors, ids, encoder
    and configuration, are kept: a run that was cut off continues.

    Args:
      directory: for all shards; processes that do not share it search what they built.
      vectors, ids: of the whole corpus, of which a process reads its own shards' rows only.
      encoder: fingerprint of the encoder.
      config, queries: as of ``build_index``, for every shard.
      process, processes: this one, and how many share the work.
      done: called with a shard's number and its description.

    Raises:
      InputError: as ``build_index`` and ``Index.save``.
    """
    rows, folder, config = Rows(vectors), Path(directory), config or IndexConfig()
    if len(ids) != len(rows):
        raise InputError(f"{folder}: {len(ids)} ids for {len(rows)} vectors")
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder}: holds an index already; choose another directory")
    bounds = shard_bounds(len(rows), shards)
    for number in range(process * shards // processes, (process + 1) * shards // processes):
        first, last = bounds[number]
        path, part = folder / shard_name(number, shards), rows.cut(first, last)
        shard_ids = list(ids[first:last])
        if _stands(path, part, shard_ids, encoder, config):
            note = "stands already"
        else:
            index = build_index(part, config, queries)
            index.save(path, shard_ids, encoder, overwrite=path.exists())
            note = index.describe()
        if done is not None:
            done(number, note)


def _stands(path: Path, rows: Rows, ids: Sequence[str], encoder: str, config: IndexConfig) -> bool:
    if not (path / MANIFEST).is_file():
        return False
    try:
        manifest = read_manifest(path)
        check_files(path, manifest["files"])
    except InputError:
        return False
    return (
        manifest["encoder"] == encoder
        and manifest["config"] == dataclasses.asdict(config)
        and not manifest.get("changes")
        and read_json(path / manifest["ids"]) == ids
        and manifest["vectors"] == look(rows).fingerprint
    )
