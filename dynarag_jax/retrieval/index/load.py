"""A saved index read again, wherever its directory lies now, if it is what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.files import PathLike, read_json
from dynarag_jax.retrieval.index.base import Index, Recall, Speed
from dynarag_jax.retrieval.index.changes import apply_changes, changed_ids, live_count
from dynarag_jax.retrieval.index.exact import ExactIndex
from dynarag_jax.retrieval.index.manifest import check_files, read_manifest
from dynarag_jax.retrieval.index.rows import open_shards
from dynarag_jax.retrieval.index.scann import ScannIndex, ScannSettings, import_scann
from dynarag_jax.retrieval.index.sharded import ShardedIndex, shard_directories


def check_encoder(place: Path, made_by: str, encoder: str) -> None:
    """InputError if an index made by one encoder is to be searched by another."""
    if made_by != encoder:
        raise InputError(
            f"{place}: made by the encoder {made_by[:12]}, not by the one given, {encoder[:12]}; "
            f"build the index again"
        )


def load_index(
    directory: PathLike,
    encoder: str,
    ids: Sequence[str] | None = None,
    *,
    checksums: bool = True,
    process: int = 0,
    processes: int = 1,
) -> Index:
    """Load an index that ``Index.save`` or ``build_shards`` wrote, wherever it lies now.

    Args:
      encoder: fingerprint of the encoder that will embed the queries.
      ids: passage ids of the corpus that will be searched; compared with the index's.
      checksums: read all files and compare their checksums; sizes are compared in any case.
      process, processes: of an index in shards, load this process's share; all processes must then
        search together, with the same queries.

    Raises:
      InputError: no index, a damaged one, one made by another encoder, or of another corpus.
      MissingExtra: it is a ScaNN index and ScaNN is absent.
    """
    folder = Path(directory)
    if ids is not None:
        _check_ids(folder, load_ids(folder), ids)
    if shards := shard_directories(folder):
        manifests = [read_manifest(shard) for shard in shards]
        mine = range(process * len(shards) // processes, (process + 1) * len(shards) // processes)
        loaded = {i: _load_one(shards[i], encoder, checksums) for i in mine}
        for shard, manifest in zip(shards, manifests, strict=True):
            check_encoder(shard, manifest["encoder"], encoder)
        counts = [live_count(*pair) for pair in zip(shards, manifests, strict=True)]
        return ShardedIndex(loaded, counts, manifests[0]["dim"], processes)
    return _load_one(folder, encoder, checksums)


def load_ids(directory: PathLike) -> list[str]:
    """The passage ids of a saved index, by position; additions included, removed ones left out."""
    folder = Path(directory)
    if shards := shard_directories(folder):
        return [passage for shard in shards for passage in load_ids(shard)]
    manifest = read_manifest(folder)
    return changed_ids(folder, manifest, read_json(folder / manifest["ids"]))


def _check_ids(place: Path, stored: Sequence[str], given: Sequence[str]) -> None:
    if len(stored) != len(given):
        raise InputError(
            f"{place}: holds {len(stored)} passages, the corpus {len(given)}; build the index again"
        )
    for row, (mine, other) in enumerate(zip(stored, given, strict=True)):
        if mine != other:
            raise InputError(
                f"{place}: passage {row} is '{mine}', in the corpus '{other}'; "
                f"build the index again"
            )


def _load_one(place: Path, encoder: str, checksums: bool) -> Index:
    manifest = read_manifest(place)
    check_encoder(place, manifest["encoder"], encoder)
    check_files(place, manifest["files"], checksums)
    return apply_changes(place, manifest, _load_base(place, manifest))


def _load_base(place: Path, manifest: dict[str, Any]) -> Index:
    count, width = manifest["count"], manifest["dim"]
    recall = Recall(**manifest["recall"]) if manifest.get("recall") else None
    speed = Speed(**manifest["speed"]) if manifest.get("speed") else None
    index: Index
    if manifest["kind"] == "exact":
        rows = open_shards([place / "vectors.npy"])
        index = ExactIndex(rows, manifest.get("reason", ""), checked=True)
    elif manifest["kind"] == "scann":
        searcher = import_scann().load_searcher(str(place / "scann"))
        settings = ScannSettings(**manifest["settings"])
        index = ScannIndex(
            searcher, searcher.size(), width, settings, recall, speed, place / "scann"
        )
        # ScaNN does not say how many numbers its vectors have; a wrong query would crash it.
        if (rows_kept := index.rows()) is not None and rows_kept.shape[1] != width:
            raise InputError(
                f"{place}: manifest.json says {width} numbers a vector, the data have "
                f"{rows_kept.shape[1]}; build the index again"
            )
    else:
        raise InputError(f"{place}: field 'kind' is {manifest['kind']!r}, not exact or scann")
    if (index.count, index.width) != (count, width):
        raise InputError(
            f"{place}: manifest.json says {count} vectors of {width} numbers, "
            f"the data are {index.count} of {index.width}; build the index again"
        )
    index.duplicates, index.config = manifest.get("duplicates"), manifest.get("config")
    index.vectors = manifest.get("vectors")
    return index
