"""Safetensors files, the only place that reads and writes their headers.

Files are read and written directly, not through a memory map: mapped pages count as memory of the
process, and a writer that wants a whole shard at once holds it. So the peak is a few tensors,
whatever the model's size. The format: https://huggingface.co/docs/safetensors (8 bytes of header
length, a JSON header, the data).
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.files import read_json

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

# What wrappers put before the names of all tensors: DataParallel, PEFT.
_WRAPPERS = ("module.", "base_model.model.")
# What torch.compile, FSDP and checkpointing put between the parts of a name.
_INNER = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

_SHOWN = 5
"""Misfit tensors that a message names; of the others it gives the number."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: ``start`` is its first byte in the file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


def read_header(path: Path) -> dict[str, Entry]:
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
                    entries[name] = Entry(path, fields["dtype"], shape, 8 + length + begin)
                    end = max(end, stop)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{damaged}: its header cannot be read; fetch it again") from None
    if 8 + length + end != size:
        raise InputError(
            f"{damaged}: it has {size} bytes, its header asks for {8 + length + end}; "
            f"fetch it again"
        )
    return entries


def header_bytes(
    tensors: Mapping[str, tuple[str, Sequence[int]]], metadata: Mapping[str, Any] | None = None
) -> bytes:
    """The beginning of a file that holds ``tensors``, name -> (type, shape), in this order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    offset = 0
    for name, (dtype, shape) in tensors.items():
        end = offset + math.prod(shape) * FLOATS[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    # Without metadata, as the safetensors package writes it: no spaces.
    text = json.dumps(header, separators=None if metadata is not None else (",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Tensors:
    """The tensors of a model directory, read one at a time.

    Where a directory holds one file and an index of shards, the one file is read, as transformers
    does. Wrappers' prefixes that all names share are taken off.

    Raises:
      InputError: there are none, they are damaged or incomplete, or the index and its shards
        disagree.
    """

    def __init__(self, directory: Path, stem: str = "model"):
        beside = directory / "adapter_config.json"
        if stem == "model" and beside.is_file():
            raise InputError(
                f"{beside}: adapters stand beside the model, and transformers would load them into "
                f"it; move adapter_config.json and adapter_model.safetensors to a directory of "
                f"their own, and merge them with train.convert --adapters"
            )
        index = directory / f"{stem}.safetensors.index.json"
        single = directory / f"{stem}.safetensors"
        listed: dict[str, str] | None = None
        if single.is_file():
            files = [single.name]
        elif index.is_file():
            listed = _weight_map(index)
            files = sorted(set(listed.values()))
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
        self._entries: dict[str, Entry] = {}
        for name in files:
            entries = read_header(directory / name)
            if twice := self._entries.keys() & entries.keys():
                one = min(twice)
                raise InputError(
                    f"{directory}: {one} is in {self._entries[one].path.name} and in {name}, "
                    f"{len(twice)} such tensors in all; remove the stale shard"
                )
            self._entries |= entries
        if listed is not None:
            _compare_index(index, listed, self._entries)
        plain = {_INNER.sub("", name): entry for name, entry in self._entries.items()}
        if len(plain) < len(self._entries):
            raise InputError(f"{directory}: some weights stand twice, wrapped and not")
        inside = next((n for n in sorted(plain) if ".lora_" in n or ".base_layer." in n), None)
        if inside and stem == "model":
            raise InputError(
                f"{directory}: {inside} belongs to a PEFT model with its adapters inside; save it "
                f"after merge_and_unload()"
            )
        prefix = _shared_prefix(plain) if stem == "model" else ""
        self._entries = {name.removeprefix(prefix): entry for name, entry in plain.items()}

    def renamed(self, rename: Callable[[str], str]) -> Tensors:
        """The same tensors under the names that ``rename`` makes of theirs.

        Raises:
          InputError: two tensors get one name.
        """
        other = copy.copy(self)
        other._entries = {rename(name): entry for name, entry in self._entries.items()}
        if len(other._entries) < len(self._entries):
            raise InputError(f"{self.directory}: some weights stand twice, under two names")
        return other

    def divided(self, name: str, rows: Mapping[str, int]) -> Tensors:
        """The same tensors, one of them cut along its first axis: name of a part -> its rows."""
        other = copy.copy(self)
        whole = self._entries[name]
        other._entries = {n: entry for n, entry in self._entries.items() if n != name}
        at, size = whole.start, math.prod(whole.shape[1:]) * FLOATS[whole.dtype].itemsize
        for part, count in rows.items():
            other._entries[part] = Entry(whole.path, whole.dtype, (count, *whole.shape[1:]), at)
            at += count * size
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
        ignored: Callable[[str], bool] = lambda _: False,
        copies: Mapping[str, str] | None = None,
        config: str = "config.json",
    ) -> None:
        """Compare with the tensors a configuration asks for: each is used, or refused by name.

        Args:
          expected: shape of every tensor.
          ignored: which tensors may be there though nobody expects them, and change nothing.
          copies: tensors that may be there if they equal another one, and that other one.
          config: the file that asks for them.

        Raises:
          InputError: a tensor is missing, unknown, misshapen, of no float type, or no copy of what
            it must be a copy of; the first few are named, and how many there are.
        """
        names, copies = self.names(), copies or {}
        wrong = [f"missing {name}" for name in sorted(set(expected) - names)]
        extra = [n for n in sorted(names - set(expected)) if n not in copies and not ignored(n)]
        wrong += [f"unknown {name}{_hint(name)}" for name in extra]
        for name in sorted(set(expected) & names):
            if self.shape(name) != expected[name]:
                wrong.append(
                    f"{name} has shape {list(self.shape(name))}, not {list(expected[name])}"
                )
            elif self.dtype(name) not in FLOATS:
                more = " (quantized?)" if self.dtype(name) in ("U8", "I8") else ""
                wrong.append(f"{name} has type {self.dtype(name)}, not a float type{more}")
        wrong += [
            f"{name} is not equal to {other}, and {config} ties them"
            for name, other in copies.items()
            if name in names and other in names and not self._equal(name, other)
        ]
        if wrong:
            more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise InputError(
                f"{self.directory}: the weights do not fit {config}: "
                f"{'; '.join(wrong[:_SHOWN])}{more}"
            )

    def _equal(self, a: str, b: str) -> bool:
        if self.shape(a) != self.shape(b) or not {self.dtype(a), self.dtype(b)} <= FLOATS.keys():
            return False
        rows = max(1, self.shape(a)[0] if self.shape(a) else 1)
        block = max(1, (64 << 20) // max(1, math.prod(self.shape(a)[1:])))
        for at in range(0, rows, block):
            part = slice(at, at + block)
            x, y = self.read(a, part), self.read(b, part)
            if not np.array_equal(x.astype(np.float32), y.astype(np.float32)):
                return False
        return True


def _weight_map(index: Path) -> dict[str, str]:
    """The tensors of an index and the files they are in."""
    content = read_json(index)
    unknown = set(content) - {"metadata", "weight_map"} if isinstance(content, dict) else set()
    if unknown:
        raise InputError(f"{index}: field '{min(unknown)}' is not known; remove it")
    try:
        weights = dict(content["weight_map"])
        if not all(isinstance(f, str) and Path(f).name == f for f in weights.values()):
            raise TypeError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"{index}: no weight_map of tensor names to files") from None
    return weights


def _compare_index(index: Path, listed: Mapping[str, str], found: Mapping[str, Entry]) -> None:
    """Raise InputError where an index says otherwise than the shards it lists."""
    wrong = [f"{n} is in no shard" for n in sorted(listed.keys() - found.keys())]
    wrong += [f"{n} is not in the index" for n in sorted(found.keys() - listed.keys())]
    wrong += [
        f"{n} is in {found[n].path.name}, not in {file}"
        for n, file in sorted(listed.items())
        if n in found and found[n].path.name != file
    ]
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise InputError(
            f"{index}: does not fit its shards: {'; '.join(wrong[:_SHOWN])}{more}; the index or a "
            f"shard is stale"
        )


def _shared_prefix(names: Mapping[str, Any]) -> str:
    """The wrappers' prefixes that all names begin with."""
    rest, prefix = list(names), ""
    while rest and (
        wrapper := next((w for w in _WRAPPERS if all(n.startswith(w) for n in rest)), "")
    ):
        prefix += wrapper
        rest = [name.removeprefix(wrapper) for name in rest]
    return prefix


_HINTS = {
    r"\.(qweight|qzeros|scales|g_idx|weight_scale\w*|weight_packed|absmax|quant_map)\b": (
        " (quantized weights are not supported: save the model dequantized)"
    ),
    r"^(module|base_model\.model)\.": " (a wrapper's prefix, which not all tensors have)",
}


def _hint(name: str) -> str:
    """What a tensor nobody expects comes from, where its name says so."""
    return next((hint for pattern, hint in _HINTS.items() if re.search(pattern, name)), "")
