"""Tokenized prompts on disk, by content: what was tokenized once is read from then on.

A directory holds segments, files that one process each has written and nobody changes afterwards.
A record is a header and tokens:

    key [16]   shown u32   count u32   checksum u32   tokens u32 [count]

The checksum covers all the rest. Several processes share a directory: each reads every whole
record that stood there when it began, and appends to a segment of its own. The trace of a kill, a
record cut off at the end of a segment, ends the reading of that segment.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
import threading
import uuid
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from dynarag_jax.prompts import Prompt

FORMAT = 1
"""part of every key; to be raised when prompts are rendered or fitted in another way"""
SUFFIX = ".prompts"
_HEADER = struct.Struct("<16sIII")


def prompt_key(tokenizer: str, messages: Any, limit: int) -> bytes:
    """The key of a prompt: tokenizer, the wording over all passages, and the longest length.

    The messages hold question, passages, their order and the style, so that a change of any of
    these, or of the wording in the code, is another key.
    """
    text = json.dumps([FORMAT, tokenizer, messages, limit], ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


class TokenCache:
    """Prompts by key, from the segments of a directory; safe for threads and processes."""

    def __init__(self, directory: Path):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._index: dict[bytes, tuple[tuple[int, int], ...]] = {}
        """key -> (segment, place) of its records; segment -1 is this process's own"""
        self._maps: list[mmap.mmap] = []
        self._own: IO[bytes] | None = None
        self._end = 0
        self._lock = threading.Lock()
        for path in sorted(directory.glob(f"*{SUFFIX}")):
            self._scan(path)

    def __len__(self) -> int:
        return len(self._index)

    def _scan(self, path: Path) -> None:
        """Note where the records of a segment are; they are checked when they are read."""
        with path.open("rb") as stream:
            if not os.fstat(stream.fileno()).st_size:
                return
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        number, at = len(self._maps), 0
        self._maps.append(data)
        while at + _HEADER.size <= len(data):
            key, _, count, _ = _HEADER.unpack_from(data, at)
            end = at + _HEADER.size + 4 * count
            if end > len(data):
                break
            self._index[key] = (*self._index.get(key, ()), (number, at))
            at = end

    def get(self, key: bytes) -> tuple[np.ndarray, int] | None:
        """(tokens, passages shown), or None where no whole record has the key."""
        with self._lock:
            # More than one record where several processes made it, or where one is damaged.
            for segment, at in self._index.get(key, ()):
                if segment < 0 and self._own is not None:
                    self._own.flush()
                header = self._read(segment, at, _HEADER.size)
                stored_key, shown, count, checksum = _HEADER.unpack(header)
                raw = self._read(segment, at + _HEADER.size, 4 * count)
                if stored_key == key and _checksum(key, shown, raw) == checksum:
                    return np.frombuffer(raw, "<u4"), shown
        return None

    def _read(self, segment: int, at: int, size: int) -> bytes:
        if segment >= 0:
            return self._maps[segment][at : at + size]
        assert self._own is not None
        return os.pread(self._own.fileno(), size, at)

    def put(self, key: bytes, prompt: Prompt) -> None:
        """Append a prompt to this process's segment."""
        raw = np.asarray(prompt.tokens, "<u4").tobytes()
        checksum = _checksum(key, prompt.shown, raw)
        record = _HEADER.pack(key, prompt.shown, len(prompt.tokens), checksum) + raw
        with self._lock:
            if self._own is None:
                name = f"{uuid.uuid4().hex}{SUFFIX}"
                self._own = (self.directory / name).open("x+b", buffering=1 << 16)
            self._own.write(record)
            self._index[key] = (*self._index.get(key, ()), (-1, self._end))
            self._end += len(record)

    def flush(self) -> None:
        """Hand what was put to the operating system: other processes see it, kills spare it."""
        with self._lock:
            if self._own is not None:
                self._own.flush()

    def close(self) -> None:
        """Write out what was put; nothing can be asked for any more."""
        with self._lock:
            if self._own is not None:
                self._own.close()
                self._own = None
            self._index.clear()


def _checksum(key: bytes, shown: int, raw: bytes) -> int:
    return zlib.crc32(raw, zlib.crc32(key + struct.pack("<I", shown)))
