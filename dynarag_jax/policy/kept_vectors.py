"""What a frozen encoder makes of questions' candidates: computed once, kept on disk, read again.

Training a head on a frozen encoder, sampling from it, training on the samples and evaluating read
the same vectors. They are kept in a run's ``.vectors`` by the encoder that made them and by the
word pieces it read, so that none is ever another's.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.atomic import atomic_write
from dynarag_jax.errors import InputError
from dynarag_jax.files import fingerprint
from dynarag_jax.models.config import Params
from dynarag_jax.policy.encoder_policy import CandidateBatch, EncoderPolicyConfig, vectors_of
from dynarag_jax.policy.pair_tokens import PairMaker, QuestionPairs, collate_pairs, padded_count
from dynarag_jax.records import Question
from dynarag_jax.sharding import batch_shards, named

Vectors = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Vectors [N, D] and scores [N] of a question's candidates, by its id."""

BATCH = 4096
"""Word pieces of pairs, times candidates, that a device encodes at once."""

SHARD = 256
"""Questions whose vectors are written together; a kill loses no more."""


def encoder_key(cfg: EncoderPolicyConfig, params: Params) -> str:
    """A hash of what a candidate's vector depends on besides its word pieces."""
    digest = hashlib.blake2b(digest_size=12)
    digest.update(repr((cfg.encoder, cfg.pooling, cfg.interaction)).encode())
    flat, _ = jax.tree_util.tree_flatten_with_path(params["encoder"])
    for path, leaf in flat:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


class VectorStore:
    """Vectors of one frozen encoder in a directory: NumPy archives, each written whole.

    Args:
      directory: of this encoder's vectors; need not exist.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._fresh: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for file in sorted(directory.glob("*.npz")) if directory.is_dir() else ():
            self._read(file)

    @classmethod
    def of_run(
        cls, run: Path, cfg: EncoderPolicyConfig, params: Params, create: bool
    ) -> VectorStore | None:
        """The store of an encoder in a run's directory; None if absent and not to be created.

        Of a run of several processes there is none: each would write beside the others.
        """
        place = run / ".vectors"
        if jax.process_count() > 1 or not (create or place.is_dir()):
            return None
        directory = place / encoder_key(cfg, params)
        return cls(directory) if create or directory.is_dir() else None

    def _read(self, file: Path) -> None:
        try:
            with np.load(file) as held:
                keys, counts, numbers = held["keys"], held["counts"], held["numbers"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{file}: holds no vectors ({error}); remove it") from error
        for key, rows in zip(keys, np.split(numbers, np.cumsum(counts)[:-1]), strict=True):
            self._known[str(key)] = rows[:, :-1], rows[:, -1]

    def get(self, pairs: QuestionPairs) -> tuple[np.ndarray, np.ndarray] | None:
        """The vectors and scores of these pairs, or None."""
        key, order = _as_a_set(pairs)
        if (kept := self._known.get(key)) is None:
            return None
        back = np.argsort(order)
        return kept[0][back], kept[1][back]

    def put(self, pairs: QuestionPairs, vectors: np.ndarray, scores: np.ndarray) -> None:
        """Keep vectors; on disk they are once ``SHARD`` questions have come, or at ``flush``."""
        key, order = _as_a_set(pairs)
        self._known[key] = self._fresh[key] = vectors[order], scores[order]
        if len(self._fresh) >= SHARD:
            self.flush()

    def flush(self) -> None:
        """Write what is not yet on disk."""
        if not self._fresh:
            return
        keys, fresh = list(self._fresh), list(self._fresh.values())
        name = hashlib.blake2b(" ".join(keys).encode(), digest_size=12).hexdigest()
        numbers = np.concatenate([np.concatenate([v, s[:, None]], axis=1) for v, s in fresh])
        self.directory.mkdir(parents=True, exist_ok=True)
        counts = np.array([len(s) for _, s in fresh])
        with atomic_write(self.directory / f"{name}.npz", "wb") as file:
            np.savez(file, keys=np.array(keys), counts=counts, numbers=numbers)
        self._fresh.clear()


def _as_a_set(pairs: QuestionPairs) -> tuple[str, list[int]]:
    """A hash of pairs in whatever order they stand, and their places in the order kept."""
    order = sorted(range(pairs.count), key=lambda i: pairs.tokens[i].tolist())
    return fingerprint([pairs.tokens[i].tolist() for i in order]), order


def frozen_vectors(
    cfg: EncoderPolicyConfig,
    params: Params,
    questions: Sequence[Question],
    maker: PairMaker,
    mesh: Mesh,
    heard: Callable[[int], object] = lambda n: None,
    store: VectorStore | None = None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The encoder's vectors of all candidates, computed once; every process gets all of them.

    They take D + 1 numbers of four bytes a candidate.

    Args:
      heard: hears how many questions are done.
      store: what it holds is not computed, and what is computed it keeps.
    """
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if store is not None:
        for question in questions:
            if (kept := store.get(maker.pairs(question))) is not None:
                found[question.id] = kept
        heard(len(found))
    run = _program(cfg, mesh)
    todo = [question for question in questions if question.id not in found]
    for group, size, n in _like(todo, cfg.pieces, batch_shards(mesh)):
        made = [maker.pairs(q) for q in group]
        padded = made + [made[-1]] * (size - len(made))
        pairs = collate_pairs(padded, n, cfg.pieces).pairs
        with jax.set_mesh(mesh):
            vectors, scores = run(params, jax.device_put(pairs, named(mesh, ("batch",))))
        vectors, scores = np.asarray(vectors), np.asarray(scores)
        for i, question in enumerate(group):
            count = len(question.passages)
            found[question.id] = vectors[i, :count], scores[i, :count]
            if store is not None:
                store.put(made[i], *found[question.id])
        heard(len(group))
    if store is not None:
        store.flush()
    return found


@functools.lru_cache(maxsize=4)
def _program(cfg: EncoderPolicyConfig, mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """``vectors_of`` on a mesh, compiled once for whoever asks again and again."""
    return jax.jit(
        lambda params, pairs: vectors_of(cfg, params, pairs),
        in_shardings=(None, named(mesh, ("batch",))),
        out_shardings=named(mesh, ()),
    )


def _like(
    questions: Sequence[Question], pieces: int, shards: int
) -> Iterator[tuple[list[Question], int, int]]:
    """Questions of like numbers of candidates together; rows and candidates they are padded to."""
    by_count: dict[int, list[Question]] = {}
    for question in questions:
        by_count.setdefault(padded_count(len(question.passages)), []).append(question)
    for n, group in sorted(by_count.items()):
        size = max(shards, BATCH // (n * pieces) // shards * shards)
        for at in range(0, len(group), size):
            yield group[at : at + size], size, n


def collate_vectors(
    pairs: Sequence[QuestionPairs], kept: Sequence[tuple[np.ndarray, np.ndarray]], n: int
) -> CandidateBatch:
    """As ``collate_pairs``, with vectors and scores in place of word pieces."""
    features = collate_pairs([_without_tokens(one) for one in pairs], n, 1)
    vectors = np.zeros((len(pairs), n, kept[0][0].shape[-1]), np.float32)
    scores = np.zeros((len(pairs), n), np.float32)
    for row, (one, (own, values)) in enumerate(zip(pairs, kept, strict=True)):
        vectors[row, : one.count], scores[row, : one.count] = own, values
    return features._replace(pairs=None, vectors=vectors, scores=scores)


def _without_tokens(pairs: QuestionPairs) -> QuestionPairs:
    bare = (np.zeros(1, np.int32),) * pairs.count
    none = np.zeros(pairs.count, np.int32)
    return QuestionPairs(bare, bare, none, pairs.retriever, none.astype(bool))
