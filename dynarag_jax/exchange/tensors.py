"""Tensors of safetensors files, one at a time: from disk to their place on the mesh, and back.

Files are read and written directly, not through a memory map: mapped pages count as memory of the
process, and a writer that wants a whole shard at once holds it. So the peak is a few tensors,
whatever the model's size. The format: https://huggingface.co/docs/safetensors (8 bytes of header
length, a JSON header, the data).
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from dynarag_jax import processes
from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json, write_json

FLOATS: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""The types a weight may have on disk."""

STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""The types that are written, and their names on disk."""


# ---------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Entry:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


def _header(path: Path) -> dict[str, _Entry]:
    """The tensors of one file.

    Raises:
      InputError: the file is cut short or is no safetensors file.
    """
    size = path.stat().st_size
    damaged = f"{path}: damaged safetensors file"
    with path.open("rb") as stream:
        first = stream.read(8)
        length = int.from_bytes(first, "little")
        if len(first) < 8 or 8 + length > size:
            raise InputError(f"{damaged}: its header is cut short; fetch it again")
        try:
            header = json.loads(stream.read(length))
            entries, end = {}, 0
            for name, fields in header.items():
                if name != "__metadata__":
                    begin, stop = fields["data_offsets"]
                    shape = tuple(fields["shape"])
                    width = FLOATS.get(fields["dtype"])
                    if width is not None and stop - begin != math.prod(shape) * width.itemsize:
                        raise InputError(f"{damaged}: {name} does not have the size it states")
                    entries[name] = _Entry(path, fields["dtype"], shape, 8 + length + begin)
                    end = max(end, stop)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{damaged}: its header cannot be read; fetch it again") from None
    if 8 + length + end != size:
        raise InputError(
            f"{damaged}: it has {size} bytes, its header asks for {8 + length + end}; "
            f"fetch it again"
        )
    return entries


class Tensors:
    """The tensors of a model directory, read one at a time."""

    def __init__(self, directory: Path, stem: str = "model"):
        index = directory / f"{stem}.safetensors.index.json"
        single = directory / f"{stem}.safetensors"
        if index.is_file():
            try:
                files = sorted(set(read_json(index)["weight_map"].values()))
            except (KeyError, TypeError, AttributeError):
                raise InputError(f"{index}: no weight_map of tensor names to files") from None
        elif single.is_file():
            files = [single.name]
        elif pickles := sorted([*directory.glob("*.bin"), *directory.glob("*.pt")]):
            raise InputError(
                f"{pickles[0]}: a pickle checkpoint can run any code when it is read; "
                f"convert it to safetensors first"
            )
        else:
            raise InputError(f"{directory}: no {single.name} and no index of shards")
        missing = [name for name in files if not (directory / name).is_file()]
        if missing:
            raise InputError(
                f"{directory}: {len(missing)} of {len(files)} shards are missing: "
                f"{', '.join(missing)}"
            )
        self.directory = directory
        self.files = [directory / name for name in files]
        self._entries: dict[str, _Entry] = {}
        for name in files:
            self._entries |= _header(directory / name)

    def renamed(self, rename: Callable[[str], str]) -> Tensors:
        """The same tensors under the names that ``rename`` makes of theirs."""
        other = copy.copy(self)
        other._entries = {rename(name): entry for name, entry in self._entries.items()}
        return other

    def names(self) -> set[str]:
        """The tensors' names."""
        return set(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """Type of a tensor, as the file names it (``BF16``)."""
        return self._entries[name].dtype

    def read(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """A tensor, or some rows of its first axis, in the type it is stored in."""
        entry = self._entries[name]
        shape, dtype = entry.shape, FLOATS[entry.dtype]
        start, stop, _ = rows.indices(shape[0]) if shape else (0, 1, 1)
        row = math.prod(shape[1:]) * dtype.itemsize
        out = np.empty((stop - start, *shape[1:]) if shape else (), dtype)
        with entry.path.open("rb") as stream:
            stream.seek(entry.start + start * row)
            stream.readinto(out.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        return out

    def check(
        self,
        expected: Mapping[str, tuple[int, ...]],
        ignored: Callable[[str], bool],
        config: str = "config.json",
    ) -> None:
        """Compare with the tensors a configuration asks for.

        Args:
          expected: shape of every tensor.
          ignored: which tensors may be there though nobody expects them.
          config: the file that asks for them.

        Raises:
          InputError: lists every missing, unknown, misshapen or non-float tensor.
        """
        found = self.names()
        wrong = [f"missing {name}" for name in sorted(set(expected) - found)]
        extra = (name for name in sorted(found - set(expected)) if not ignored(name))
        wrong += [f"unknown {name}" for name in extra]
        for name in sorted(set(expected) & found):
            if self.shape(name) != expected[name]:
                wrong.append(
                    f"{name} has shape {list(self.shape(name))}, not {list(expected[name])}"
                )
            elif self.dtype(name) not in FLOATS:
                wrong.append(f"{name} has type {self.dtype(name)}, not a float type")
        if wrong:
            raise InputError(
                f"{self.directory}: the weights do not fit {config}: {'; '.join(wrong)}"
            )


# ---------------------------------------------------------------------------- onto the mesh


def target_dtype(name: str) -> np.dtype:
    """The numpy type of ``float32`` or ``bfloat16``."""
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)


def default_place() -> Sharding:
    """Where arrays go without a mesh: the first device of this process."""
    return SingleDeviceSharding(jax.local_devices()[0])


def place(tensors: Tensors, name: str, sharding: Sharding, dtype: np.dtype) -> jax.Array:
    """One tensor on the mesh; each process reads the rows its devices hold, and casts them."""
    shape = tensors.shape(name)
    rows_read: dict[Any, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        rows = index[0] if index else slice(None)
        key = (rows.start, rows.stop)
        if key not in rows_read:
            rows_read.clear()
            rows_read[key] = tensors.read(name, rows)
        rest = rows_read[key][(slice(None), *index[1:])] if index else rows_read[key]
        return rest.astype(dtype, copy=False)

    return jax.make_array_from_callback(shape, sharding, part)


def stack(
    tensors: Tensors,
    names: Iterable[str],
    shape: tuple[int, ...],
    inputs: int,
    sharding: Sharding,
    dtype: np.dtype,
) -> jax.Array:
    """Tensors of all layers as one array, each put straight into its place.

    Args:
      names: one a layer.
      shape: [L, in..., out...] of the array.
      inputs: how many axes are the input; 0 is a vector. Theirs is [out, in], axes merged.
    """
    array = jnp.zeros(shape, dtype, device=sharding)
    theirs = _their_sharding(sharding, inputs, len(shape))
    put = _putter(sharding, inputs > 0)
    for i, name in enumerate(names):
        # Without waiting, tensors would be read faster than they find their place, and pile up.
        array = put(array, place(tensors, name, theirs, dtype), i).block_until_ready()
    return array


def their_shape(shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    """The shape [out, in] or [out] that Hugging Face gives to one layer's array."""
    if not inputs:
        return (math.prod(shape),)
    return (math.prod(shape[inputs:]), math.prod(shape[:inputs]))


def _their_sharding(sharding: Sharding, inputs: int, ndim: int) -> Sharding:
    if not isinstance(sharding, NamedSharding):
        return sharding
    parts = (tuple(sharding.spec) + (None,) * ndim)[1:ndim]
    # Of axes that are merged only the first is ever sharded.
    spec = (parts[inputs], parts[0]) if inputs else (parts[0],)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


@functools.lru_cache(maxsize=64)
def _putter(sharding: Sharding, transposed: bool) -> Callable[..., jax.Array]:
    def put(array: jax.Array, tensor: jax.Array, i: Any) -> jax.Array:
        dtype = array.dtype
        layer = (tensor.T if transposed else tensor).reshape(array.shape[1:])
        if dtype.itemsize == 2:
            # XLA on CPU would convert the whole bfloat16 stack to float32 and back: move bits.
            array, layer = (jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (array, layer))
        array = jax.lax.dynamic_update_index_in_dim(array, layer, i, 0)
        return jax.lax.bitcast_convert_type(array, dtype)

    return jax.jit(put, out_shardings=sharding, donate_argnums=0)


# ---------------------------------------------------------------------------- off the mesh


@functools.lru_cache(maxsize=64)
def _taker(place: Sharding | None, inputs: int | None) -> Callable[..., jax.Array]:
    def take(array: jax.Array, i: Any) -> jax.Array:
        if inputs is None:
            return array
        layer = jax.lax.dynamic_index_in_dim(array, i, 0, keepdims=False)
        theirs = their_shape(layer.shape, inputs)
        return layer.reshape(theirs[::-1]).T if inputs else layer.reshape(theirs)

    return jax.jit(take, out_shardings=place)


def fetch(array: Any, inputs: int | None, i: int = 0) -> jax.Array:
    """One of Hugging Face's tensors out of an array of ours, whole on every process.

    A collective where the array spans processes: all of them must call it, in the same order.

    Args:
      inputs: as in ``stack``; None means that the array is the tensor.
      i: the layer.
    """
    sharding = getattr(array, "sharding", None)
    whole = None
    if isinstance(sharding, NamedSharding):
        whole = NamedSharding(sharding.mesh, PartitionSpec())
    return _taker(whole, inputs)(array, i)


@dataclass(frozen=True)
class Planned:
    """A tensor to be written: its name and shape, and how to get it."""

    name: str
    shape: tuple[int, ...]
    get: Callable[[], jax.Array]


def write_tensors(
    directory: Path,
    plan: list[Planned],
    dtype: str,
    shard_bytes: int,
    stem: str = "model",
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write tensors as safetensors, in shards with an index where they do not fit into one.

    With several processes each writes every n-th shard into the same (shared) directory.

    Raises:
      InputError: the type is unknown, or a weight is too large for it.
      OSError: the disk is full or the like.
    """
    if dtype not in STORED:
        raise InputError(f"export dtype {dtype!r} is unknown; choose one of {', '.join(STORED)}")
    kind = FLOATS[STORED[dtype]]
    shards = list(_split(plan, kind.itemsize, shard_bytes))
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    failure: OSError | InputError | None = None
    for number, (file, shard) in enumerate(zip(names, shards, strict=True)):
        arrays = (p.get() for p in shard)
        mine = number % processes.count() == processes.index()
        if mine and failure is None:
            try:
                _write_shard(directory / file, shard, arrays, kind, STORED[dtype], metadata)
            except (OSError, InputError) as error:
                failure = error
        if failure is None or processes.count() > 1:
            # Fetching is a collective: the others wait for this process's part in it.
            for _ in arrays:
                pass
    processes.raise_together(failure)
    if len(shards) > 1 and processes.is_primary():
        weights = {p.name: file for file, shard in zip(names, shards, strict=True) for p in shard}
        total = sum(math.prod(p.shape) for p in plan) * kind.itemsize
        write_json(
            directory / f"{stem}.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weights},
        )


def _split(plan: list[Planned], itemsize: int, limit: int) -> Iterator[list[Planned]]:
    shard, size = [], 0
    for tensor in plan:
        more = math.prod(tensor.shape) * itemsize
        if shard and size + more > limit:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += more
    yield shard


def _write_shard(
    path: Path,
    shard: list[Planned],
    arrays: Iterator[jax.Array],
    dtype: np.dtype,
    stored: str,
    metadata: Mapping[str, Any] | None,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    offset = 0
    for p in shard:
        end = offset + math.prod(p.shape) * dtype.itemsize
        header[p.name] = {"dtype": stored, "shape": list(p.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for p, tensor in zip(shard, arrays, strict=True):
            if tensor.shape != p.shape:
                raise ValueError(f"{p.name}: planned as {p.shape}, found {tensor.shape}")
            with np.errstate(over="ignore"):  # said below
                array = np.ascontiguousarray(np.asarray(tensor).astype(dtype, copy=False))
            if stored == "F16" and np.isinf(array).any():
                raise InputError(
                    f"{p.name} holds values beyond float16; export as bfloat16 instead"
                )
            stream.write(array.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())
