"""Training of an encoder policy from its configuration: streams of lists into one sharded step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.errors import InputError
from dynarag_jax.exchange.cards import ModelCard
from dynarag_jax.exchange.encoder_policies import (
    StoredPolicy,
    read_encoder_policy,
    save_encoder_policy,
)
from dynarag_jax.models.config import Params
from dynarag_jax.models.list_head import init_list_head
from dynarag_jax.models.packed import Room
from dynarag_jax.policy.batches import process_rows
from dynarag_jax.policy.encoder_model import (
    config_of,
    policy_shardings,
    settings_to_store,
)
from dynarag_jax.policy.encoder_policy import EncoderPolicyConfig
from dynarag_jax.policy.list_batches import (
    ListBatch,
    ListExample,
    ListShape,
    collate_lists,
    place_rows,
)
from dynarag_jax.policy.pair_tokens import PairMaker, padded_count
from dynarag_jax.sharding import batch_shards
from dynarag_jax.training.bucketing import BucketedStream, LengthBuckets
from dynarag_jax.training.checkpoints import Best, Checkpoints
from dynarag_jax.training.config import Train
from dynarag_jax.training.encoder_step import (
    encoder_state_shapes,
    encoder_state_shardings,
    init_encoder_state,
    make_encoder_step,
    slower_encoder,
    whole_policy,
)
from dynarag_jax.training.loop import Watch
from dynarag_jax.training.optimizer import make_optimizer
from dynarag_jax.training.sources import ExampleSource, require_batches, total_steps
from dynarag_jax.training.staged import fit_stage
from dynarag_jax.training.update import StreamLoss

# Bucketing measures lengths in steps of eight; candidates are told apart one by one.
_GRAIN = 8


@dataclass(frozen=True)
class EncoderStart:
    """What training of an encoder policy begins with.

    Attributes:
      params: of the whole policy, on the mesh.
      stored: the directory they were read from.
    """

    cfg: EncoderPolicyConfig
    params: Params
    stored: StoredPolicy

    def pair_maker(self) -> PairMaker:
        """What tokenizes its pairs."""
        return PairMaker(self.stored.tokenizer, self.cfg.pieces, self.cfg.encoder.types)


def begin_encoder_policy(
    stage: Train, init: Path, mesh: Mesh, seed: int, log: Callable[[str], None]
) -> EncoderStart:
    """Load the policy to go on training, or put an untrained list head on an encoder.

    Raises:
      InputError: no such model, or what the stage says does not fit it.
    """
    options = stage.encoder
    stored = read_encoder_policy(init, "bfloat16" if stage.model.dtype == "bfloat16" else "float32")
    max_list = min(stage.prompts.max_list, stage.prompts.ids)
    if stored.head is not None:
        cfg = replace(config_of(stored), max_list=max_list)
        log(f"{init}: an encoder policy; its head, pooling and way of reading stand")
        if options.trained.part == "frozen" and cfg.reencode:
            raise InputError(
                f"{init}: reads what was chosen anew each step (reencode = {cfg.reencode}), which "
                f"a frozen encoder's vectors cannot; set encoder.trained.part to last, lora or full"
            )
        head = stored.head_params
    else:
        shape = replace(options.head, vectors=stored.encoder.width)
        cfg = EncoderPolicyConfig(
            stored.encoder, shape, options.pooling, options.interaction, options.reencode,
            options.reread, options.pieces, max_list,
        )  # fmt: skip
        head = init_list_head(shape, jax.random.key(seed))
    remat: Any = stage.model.remat
    cfg = replace(cfg, encoder=replace(cfg.encoder, remat=remat, unroll=stage.model.unroll))
    params = {"encoder": stored.encoder_params, "head": head}
    params = jax.device_put(params, policy_shardings(cfg, mesh))
    return EncoderStart(cfg, params, stored)


class ListInput:
    """The input of every step of a run: this process's rows, on the mesh.

    Batches hold questions of like numbers of candidates, padded to one of a few. On a CPU, and
    where ``models.packed`` can, they hold questions as they come, whose pairs are computed without
    padding, those that a device reads together in one room. How many word pieces a state has says
    how much was chosen: batches of like lengths would learn now to stop, now to go on. With one
    length (``lengths``) all are padded.

    Attributes:
      packs: whether pairs are computed without padding.
    """

    def __init__(
        self,
        stage: Train,
        cfg: EncoderPolicyConfig,
        sources: Sequence[ExampleSource],
        mesh: Mesh,
        seed: int,
        steps: int,
        packs: bool | None = None,
    ):
        """Args:
        packs: False pads all pairs; None is as above.
        """
        self._sources, self._mesh, self._cfg = sources, mesh, cfg
        self._on_cpu = mesh.devices.flat[0].platform == "cpu"
        self.packs = (
            packs is not False
            and self._on_cpu
            and stage.lengths > 1
            and stage.encoder.trained.part != "frozen"
            and cfg.encoder.family == "bert"
            and not cfg.interaction
        )
        self._groups = {s.name: self._together(s, stage.accumulate) for s in sources}
        self._mixtures = {s.name: s.mixture(seed) for s in sources}
        self._most = {s.name: _most(s) for s in sources}
        streams = {
            s.name: BucketedStream(
                self._mixtures[s.name].size,
                s.stream.batch,
                self._limit(s),
                lambda position, s=s: self._length(s, position),
                groups=self._groups[s.name] if self.packs else (),
            )
            for s in sources
        }
        self.buckets = LengthBuckets(streams, stage.lengths, seed, steps)

    def _together(self, source: ExampleSource, accumulate: int) -> tuple[tuple[int, ...], ...]:
        """The rows of a batch that one device reads at once, which share a room; of lists whose
        steps are readings of their own, each row by itself."""
        batch, shards = source.stream.batch, batch_shards(self._mesh)
        rows = batch // shards // accumulate
        if self._cfg.reencode and not source.shape.states:
            return tuple((row,) for row in range(batch))
        # Microbatch i takes every ``accumulate``-th row of a shard (``update.make_update``).
        return tuple(
            tuple(shard * (batch // shards) + i + accumulate * row for row in range(rows))
            for i in range(accumulate)
            for shard in range(shards)
        )

    def _limit(self, source: ExampleSource) -> int:
        most = self._most[source.name]
        if not self.packs:
            return most * _GRAIN
        cfg = self._cfg
        inserted = (source.shape.steps - 1) * (cfg.reencode + 1) if cfg.reencode else 0
        rows = len(self._groups[source.name][0])
        return rows * most * min(cfg.pieces + inserted, cfg.encoder.positions)

    def _example(self, source: ExampleSource, position: int) -> ListExample:
        return source.example(self._mixtures[source.name].at(position))

    def _length(self, source: ExampleSource, position: int) -> int:
        example = self._example(source, position)
        if not self.packs:
            return example.pairs.count * _GRAIN
        cfg = self._cfg
        lists = example.lists if cfg.reencode else ((),)
        return max(
            example.pairs.word_pieces(one, cfg.reencode, cfg.encoder.positions) for one in lists
        )

    def __call__(self, step: int) -> tuple[dict[str, ListBatch], list[str]]:
        """A step's batches, and the ids of this process's records in them."""
        batches, ids, bucket = {}, [], self.buckets.bucket(step)
        for source in self._sources:
            name = source.name
            positions = self.buckets.positions(name, step)
            examples = [
                self._example(source, int(positions[row]))
                for row in process_rows(self._mesh, source.stream.batch)
            ]
            length = self.buckets.lengths[name][bucket]
            shape = self._shape(source, positions)
            if self.packs:
                shape = replace(shape, room=Room(len(self._groups[name][0]), length))
                shown = max(self._example(source, int(p)).pairs.count for p in positions)
                count = min(padded_count(shown, coarse=True), self._most[name])
            else:
                count = -(-length // _GRAIN)
            batch = collate_lists(examples, shape, count)
            batches[name] = place_rows(self._mesh, batch)
            ids += [e.id for e in examples]
        return batches, ids

    def _shape(self, source: ExampleSource, positions: np.ndarray) -> ListShape:
        """The batch's shape, alike in all processes: pairs of states only as long as these want.

        Packed pairs cost no more in a wider array, and an accelerator pads them all to the longest,
        which costs it less than compiling for more.
        """
        if not source.shape.states or not self._on_cpu or self.packs:
            return source.shape
        longest = max(len(self._example(source, int(p)).lists[0]) for p in positions)
        # To 0, 1, 2, 4, ...: each is compiled for itself.
        longest = 1 << (longest - 1).bit_length() if longest else 0
        return replace(source.shape, steps=min(longest + 1, source.shape.steps))


def _most(source: ExampleSource) -> int:
    """The most candidates of any example of a source and those mixed into it."""
    own = max(source.make(0, i).pairs.count for i in range(source.size))
    return max([own, *(_most(other) for other, _ in source.others)])


def train_encoder_policy(
    stage: Train,
    start: EncoderStart,
    sources: Sequence[ExampleSource],
    mesh: Mesh,
    seed: int,
    directory: Path,
    *,
    watch: Watch,
    card: ModelCard | None = None,
) -> None:
    """Train, with checkpoints under ``directory``, and write the policy to ``directory/model``.

    A directory that holds checkpoints of the same stage continues where they end.

    Raises:
      Stopped: ``watch.stop`` said so.
      InputError: the batches do not divide, or what the figures say cannot be trained on.
    """
    log, sources = watch.log, require_batches(stage, sources, mesh)
    cfg, trained = start.cfg, stage.encoder.trained
    steps = total_steps(stage, sources)
    optimizer = slower_encoder(make_optimizer(stage.optimizer, steps), stage.encoder.rate)
    best = Best(stage.best, stage.best_is == "highest", stage.keep_best) if stage.best else None
    checkpoints = Checkpoints(directory / "checkpoints", stage.keep, best)
    layout = encoder_state_shardings(cfg, trained, mesh, optimizer)
    shapes = encoder_state_shapes(cfg, trained, optimizer)
    state = checkpoints.restore(layout, shapes, log)
    if state is None:
        state = init_encoder_state(cfg, trained, mesh, optimizer, start.params, seed)
    count = sum(x.size for x in jax.tree.leaves(state.params))
    log(f"{trained.part} encoder: {count:,} parameters are trained")
    if int(state.step):
        log(f"continuing at step {int(state.step)} of {steps}")
    base: Any = start.params["encoder"]
    step = make_encoder_step(
        cfg,
        trained,
        mesh,
        optimizer,
        base,
        {s.name: StreamLoss(s.stream.objectives, s.stream.weight) for s in sources},
        stage.accumulate,
        seed,
        skip_nonfinite=stage.nonfinite == "skip",
    )
    data = ListInput(stage, cfg, sources, mesh, seed, steps)

    state = fit_stage(stage, state, step, data, steps, checkpoints, directory, watch)
    params = state.params
    if stage.final == "best" and (chosen := checkpoints.best_steps()):
        checkpoints.wait()
        log(f"the policy is that of step {chosen[0]}, the best by {stage.best}")
        params = checkpoints.restore_params(layout.params, shapes.params, chosen[0])[1]
    save_policy(directory / "model", start, stage, params, card)
    checkpoints.close()


def save_policy(
    directory: Path, start: EncoderStart, stage: Train, part: Params, card: ModelCard | None
) -> None:
    """Write what was trained, with the rest, as a policy's directory.

    Raises:
      InputError: the directory cannot be written.
    """
    whole = whole_policy(start.cfg, stage.encoder.trained, part, start.params["encoder"], True)
    whole = jax.tree.map(_here, whole)
    save_encoder_policy(
        directory,
        replace(
            start.stored,
            encoder_params=whole["encoder"],
            head=start.cfg.head,
            head_params=whole["head"],
            settings=settings_to_store(start.cfg),
        ),
        card=card,
        overwrite=True,
    )


def _here(x: Any) -> np.ndarray:
    """An array of the mesh, whole, on this host."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(x, tiled=True))
    return np.asarray(x)
