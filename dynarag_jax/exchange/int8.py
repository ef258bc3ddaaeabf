"""Weights in eight bits: a quarter of the bytes, for models that travel.

A matrix is stored as integers from -127 to 127 with one factor a row, the row's largest magnitude
over 127 (symmetric quantization, arXiv 1712.05877, section 2); everything else stays as it is. All
else reads float32, so such a file is unpacked once, into the user's cache, as GGUF files are.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.unpacked import cached_place, unpacked_once
from dynarag_jax.files import PathLike

WEIGHTS = "model.int8.safetensors"
PLAIN = "model.safetensors"
_FACTOR = ".int8_factor"
_FORMAT = 1
"""Raised where files are written otherwise."""


def quantized(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix [R, C] as int8 [R, C] and the float32 factors [R] of its rows."""
    largest = np.abs(matrix).max(axis=1)
    factors = (largest / 127).astype(np.float32)
    factors = np.where(factors > np.finfo(np.float32).tiny, factors, 1).astype(np.float32)
    return np.rint(matrix / factors[:, None]).astype(np.int8), factors


def write_int8(source: PathLike, target: PathLike) -> None:
    """Write a float32 safetensors file with its matrices in eight bits.

    Raises:
      InputError: a weight is no number, or no float32.
    """
    from safetensors.numpy import load_file, save_file

    found: dict[str, np.ndarray] = {}
    for name, tensor in load_file(source).items():
        if tensor.dtype != np.float32:
            raise InputError(f"{source}: {name} has type {tensor.dtype}, not float32")
        if not np.isfinite(tensor).all():
            raise InputError(f"{source}: {name} holds weights that are no numbers")
        if tensor.ndim == 2:
            found[name], found[name + _FACTOR] = quantized(tensor)
        else:
            found[name] = tensor
    save_file(found, target, {"dynarag_jax.int8": str(_FORMAT)})


def read_int8(path: PathLike) -> dict[str, np.ndarray]:
    """The tensors of such a file in float32.

    Raises:
      InputError: it is damaged, or not such a file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            said = (file.metadata() or {}).get("dynarag_jax.int8")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: no safetensors file that can be read ({error})") from None
    if said != str(_FORMAT):
        raise InputError(
            f"{path}: metadata 'dynarag_jax.int8' is {said!r}; this version reads '{_FORMAT}'"
        )
    found: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if name.endswith(_FACTOR):
            if tensors.get(name.removesuffix(_FACTOR), tensor).dtype != np.int8:
                raise InputError(f"{path}: {name} belongs to no tensor in eight bits")
            continue
        factors = tensors.get(name + _FACTOR)
        if tensor.dtype == np.int8:
            if factors is None or factors.shape != tensor.shape[:1]:
                raise InputError(f"{path}: {name} has no factor for each of its rows")
            tensor = tensor.astype(np.float32) * factors[:, None]
        elif tensor.dtype != np.float32:
            raise InputError(f"{path}: {name} has type {tensor.dtype}, neither int8 nor float32")
        found[name] = tensor
    return found


def unpack_int8(path: PathLike) -> Path:
    """The float32 directory that a directory with such a file makes, in the user's cache.

    Raises:
      InputError: the file is damaged.
    """
    from safetensors.numpy import save_file

    path = Path(path).resolve()

    def write(place: Path) -> None:
        save_file(read_int8(path), place / PLAIN, {"format": "pt"})
        for file in path.parent.iterdir():
            if file.is_file() and file != path and file.suffix != ".py":
                shutil.copyfile(file, place / file.name)

    files = sorted(path.parent.iterdir())
    states = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return unpacked_once(cached_place("int8", path.parent.name, [states, _FORMAT]), write)
