"""Embeddings on disk in shards: one safetensors file for some thousands of texts each.

    directory/
      00000.safetensors   "vectors" [rows, width], float32 or bfloat16
      ...
      shapes.json         the batch shapes planned for all shards
      manifest.json       written last: encoder, texts, count, width, type, shards with checksums

A shard is written under another name and renamed, so that one which is there is whole. Which texts
it holds and in which batches they run depends on nothing but the texts, the encoder, the shards'
size and the devices of a process, so that what a continued run makes is equal, bit for bit, to one
that was never stopped, in however many processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from dynarag_jax.atomic import atomic_write
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.safetensors import header_bytes, read_header
from dynarag_jax.fields import Fields
from dynarag_jax.files import PathLike, read_json, sha256_file, write_json

Stored = Literal["float32", "bfloat16"]
_TYPES = {"float32": ("F32", np.dtype(np.float32)), "bfloat16": ("BF16", ml_dtypes.bfloat16)}
_MANIFEST, _SHAPES = "manifest.json", "shapes.json"


def default_shard() -> int:
    """Texts a shard: minutes of work, and enough of them to be batched by length."""
    return 2048 if jax.default_backend() == "cpu" else 131_072


@dataclass(frozen=True)
class Plan:
    """What is embedded into a directory of shards.

    Attributes:
      encoder: fingerprint of the encoder and its prompt.
      texts: fingerprint of the texts in order.
      count: texts.
      width: numbers a vector.
      dtype: type in which vectors are stored.
      size: texts a shard.
    """

    encoder: str
    texts: str
    count: int
    width: int
    dtype: Stored = "float32"
    size: int = 2048

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.size)

    def rows(self, shard: int) -> range:
        """Which texts lie in a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))


def shard_path(directory: Path, shard: int) -> Path:
    """The file of a shard."""
    return directory / f"{shard:05}.safetensors"


def write_shard(directory: Path, plan: Plan, shard: int, vectors: np.ndarray) -> None:
    """Write one shard: float [rows, width]."""
    name, dtype = _TYPES[plan.dtype]
    data = np.ascontiguousarray(vectors, dtype)
    with atomic_write(shard_path(directory, shard), "wb") as stream:
        stream.write(header_bytes({"vectors": (name, data.shape)}))
        stream.write(data.view(np.uint8).data)


def read_shard(path: Path, rows: int, width: int, dtype: str) -> np.ndarray:
    """A shard's vectors [rows, width], mapped from disk.

    Raises:
      InputError: the file is missing, cut short, or of another shape or type.
    """
    if not path.is_file():
        raise InputError(f"{path}: this shard is missing; embed again")
    name, kind = _TYPES[dtype]
    try:
        entry = read_header(path).get("vectors")
    except InputError as error:
        reason = str(error).removesuffix("; fetch it again")
        raise InputError(f"{reason}; remove it and embed again") from None
    if entry is None:
        raise InputError(f"{path}: not a shard of vectors; remove it and embed again")
    if entry.shape != (rows, width) or entry.dtype != name:
        raise InputError(
            f"{path}: holds {entry.dtype} {list(entry.shape)}, expected {name} {[rows, width]}; "
            f"remove it and embed again"
        )
    return np.memmap(path, kind, "r", entry.start, (rows, width))


def standing(directory: Path, plan: Plan) -> set[int]:
    """The shards that are there and whole.

    Raises:
      InputError: a shard is damaged or of another shape.
    """
    parts = set()
    for shard in range(plan.shards):
        path = shard_path(directory, shard)
        if path.exists():
            read_shard(path, len(plan.rows(shard)), plan.width, plan.dtype)
            parts.add(shard)
    return parts


def load_shapes(directory: Path) -> set[tuple[int, int]] | None:
    """The batch shapes that were planned; None where nothing is."""
    path = directory / _SHAPES
    return {(int(a), int(b)) for a, b in read_json(path)} if path.is_file() else None


def save_shapes(directory: Path, shapes: set[tuple[int, int]]) -> None:
    """Keep the batch shapes for all shards and processes."""
    write_json(directory / _SHAPES, sorted(shapes))


def finish(directory: Path, plan: Plan) -> None:
    """Write the manifest of a directory whose shards are all there.

    Raises:
      InputError: a shard is missing or damaged.
    """
    files = {}
    for shard in range(plan.shards):
        path = shard_path(directory, shard)
        read_shard(path, len(plan.rows(shard)), plan.width, plan.dtype)
        files[path.name] = {"rows": len(plan.rows(shard)), "sha256": sha256_file(path)}
    write_json(directory / _MANIFEST, {**vars(plan), "files": files})


# ---------------------------------------------------------------------------- reading


class Vectors:
    """The vectors of a finished directory, mapped from disk shard by shard.

    Attributes:
      parts: the shards, each [rows, width].
      encoder, texts: fingerprints, as in ``Plan``.
    """

    def __init__(self, plan: Plan, parts: list[np.ndarray]):
        self.plan, self.parts = plan, parts
        self.encoder, self.texts = plan.encoder, plan.texts
        self.shape = (plan.count, plan.width)

    def __len__(self) -> int:
        return self.plan.count

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """The vectors at some positions, float32 [n, width]."""
        out = np.empty((len(positions), self.plan.width), np.float32)
        shards, places = np.divmod(np.asarray(positions), self.plan.size)
        for shard in np.unique(shards):
            here = shards == shard
            out[here] = self.parts[shard][places[here]]
        return out

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (first position, float32 [rows, width]) shard by shard."""
        for shard, part in enumerate(self.parts):
            yield shard * self.plan.size, np.asarray(part, np.float32)

    def array(self) -> np.ndarray:
        """All vectors, float32 [count, width]: one shard is mapped, several are copied."""
        if len(self.parts) == 1 and self.parts[0].dtype == np.float32:
            return self.parts[0]
        out = np.empty(self.shape, np.float32)
        for first, block in self.blocks():
            out[first : first + len(block)] = block
        return out


def open_vectors(
    directory: PathLike, encoder: str = "", texts: str = "", check: bool = False
) -> Vectors:
    """Open what was embedded.

    Args:
      encoder, texts: fingerprints that the vectors must be of; empty asks for none.
      check: also compare checksums, which reads all of it.

    Raises:
      InputError: not finished, damaged, or of another encoder or other texts.
    """
    folder = Path(directory)
    path = folder / _MANIFEST
    if not path.is_file():
        raise InputError(f"{folder}: no {_MANIFEST}; embedding has not finished there")
    manifest = read_json(path)
    fields = Fields(str(path), manifest if isinstance(manifest, dict) else {})
    dtype = fields.string("dtype")
    if dtype not in _TYPES:
        raise fields.fail("dtype", f"must be one of {', '.join(_TYPES)}")
    plan = Plan(
        encoder=fields.string("encoder"),
        texts=fields.string("texts"),
        count=fields.integer("count", 0, least=0),
        width=fields.integer("width", 0, least=1),
        dtype=dtype,  # type: ignore[arg-type]
        size=fields.integer("size", 0, least=1),
    )
    if encoder and plan.encoder != encoder:
        raise InputError(
            f"{folder}: made by the encoder {plan.encoder[:12]}, not by the one given, "
            f"{encoder[:12]}; embed again"
        )
    if texts and plan.texts != texts:
        raise InputError(f"{folder}: made of other texts than those given; embed again")
    files: dict[str, Any] = fields.mapping("files")
    parts = []
    for shard in range(plan.shards):
        file = shard_path(folder, shard)
        parts.append(read_shard(file, len(plan.rows(shard)), plan.width, plan.dtype))
        if check and sha256_file(file) != (files.get(file.name) or {}).get("sha256"):
            raise InputError(f"{file}: differs from its checksum in {_MANIFEST}; embed again")
    return Vectors(plan, parts)
