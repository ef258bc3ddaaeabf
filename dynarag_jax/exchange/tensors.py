"""Tensors one at a time from their files to their place on the mesh, and back."""

from __future__ import annotations

import functools
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
from dynarag_jax.exchange.safetensors import FLOATS, STORED, Tensors, header_bytes
from dynarag_jax.files import write_json
from dynarag_jax.models.lora import MergedMatrix

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
    def take(array: Any, i: Any) -> jax.Array:
        if inputs is None:
            return array
        if isinstance(array, MergedMatrix):
            layer = array.layer(i)
        else:
            layer = jax.lax.dynamic_index_in_dim(array, i, 0, keepdims=False)
        theirs = their_shape(layer.shape, inputs)
        return layer.reshape(theirs[::-1]).T if inputs else layer.reshape(theirs)

    return jax.jit(take, out_shardings=place)


def fetch(array: Any, inputs: int | None, i: int = 0) -> jax.Array:
    """One of Hugging Face's tensors out of an array of ours, whole on every process.

    A collective where the array spans processes: all of them must call it, in the same order.

    Args:
      array: of jax, or a matrix whose adapter is merged in as its layers are fetched.
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
    header = header_bytes(
        {p.name: (stored, p.shape) for p in shard}, {"format": "pt", **(metadata or {})}
    )
    with path.open("wb") as stream:
        stream.write(header)
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
