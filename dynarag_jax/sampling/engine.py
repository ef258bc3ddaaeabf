"""Many requests through a pool of slots: waiting prompts enter as finished ones leave.

    engine = Engine(cfg, params, mesh, branches=8, max_tokens=60, lengths=(512, 1024), slots=64)
    for result in engine.run(requests):
        ...

A prompt is computed once and its cache stored once, whatever the number of its branches. Requests
are taken by padded length, one pool of slots a length. The loop decodes until enough slots are
free, so that one long answer holds back nobody; what a request gives depends on nothing but the
seed, its id and what it asks for (up to rounding: see docs/design.md).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import jax
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.models import decoding
from dynarag_jax.models.decoder import DecoderConfig, Params
from dynarag_jax.policy.grammar import Grammar
from dynarag_jax.policy.shared_scoring import common_prefix
from dynarag_jax.processes import ProcessTeam
from dynarag_jax.sampling.pool import Entering, Pool, fill_row, no_requests
from dynarag_jax.sampling.pool_sizes import (
    PoolShape,
    free_bytes,
    largest_pool,
    pool_shape,
    slot_bytes,
)
from dynarag_jax.sampling.requests import (
    EngineConfig,
    EngineCounts,
    Request,
    Sampled,
    why_refused,
)
from dynarag_jax.sampling.sampler import Mode
from dynarag_jax.sharding import batch_shards, require_whole_prompts


class Engine:
    """Samples a stream of requests on the mesh; see the module.

    In a run of several processes, each submits requests of its own and gets their results; all of
    them must call ``step`` equally often, as ``run`` does.

    Args:
      branches: continuations of a prompt at most.
      max_tokens: tokens of a branch at most, its end included.
      lengths: padded prompt lengths to choose from.
      slots: prompts in flight at most; rounded up to a multiple of the mesh's batch shards.
      grammar: of the requests that name how many ids they show.
      budget: bytes for caches over all devices; None decides by ``config`` and what is free.
      arrays: the layers' of ``decoding.unstack``, for engines that share them; None makes them
        when the first prompts enter.
    """

    def __init__(
        self,
        cfg: DecoderConfig,
        params: Params,
        mesh: Mesh,
        *,
        branches: int,
        max_tokens: int,
        lengths: Sequence[int],
        slots: int,
        config: EngineConfig | None = None,
        grammar: Grammar | None = None,
        seed: int = 0,
        budget: int | None = None,
        arrays: decoding.LayerArrays | None = None,
    ):
        require_whole_prompts(mesh, "sampling")
        self.cfg, self.params, self.mesh, self.grammar = cfg, params, mesh, grammar
        self.config = config or EngineConfig()
        self.branches, self.max_tokens, self.seed = branches, max_tokens, seed
        self.team = ProcessTeam(mesh)
        self.work = EngineCounts()
        shards = batch_shards(mesh)
        self.lengths = sorted(lengths)
        self._most = dict.fromkeys(self.lengths, -(-slots // shards) * shards)
        self._waiting: dict[int, deque[Request]] = {n: deque() for n in self.lengths}
        self._refused: list[Sampled] = []
        self._needs = [0, 0, 0, 0]
        self._budget, self._arrays = budget, arrays
        self._pools: dict[int, Pool] = {}
        self._pool: Pool | None = None
        self._length = self._rounds = 0
        self._others = False
        self._guests: list[Request | None] = []
        self._resident = np.zeros((0, 0), np.int32)

    # ------------------------------------------------------------------ in and out

    def submit(self, request: Request) -> None:
        """Queue a request; one that cannot be served is refused by the next ``step``."""
        size = len(request.prompt)
        ids = self.grammar.order.shape[0] if self.grammar is not None else 0
        limits = (self.cfg.vocab, self.lengths[-1], self.branches, self.max_tokens, ids)
        reason = why_refused(request, *limits)
        if reason:
            self._refused.append(Sampled(request.id, refused=reason))
            return
        needs = (
            request.shown is not None,
            request.shown is None,
            request.sampling.temperature > 0,
            request.sampling.filters,
        )
        self._needs = [int(a or b) for a, b in zip(self._needs, needs, strict=True)]
        self._waiting[min(n for n in self.lengths if n >= size)].append(request)

    def run(self, requests: Iterable[Request]) -> Iterator[Sampled]:
        """Sample all requests; yields results as they finish, refusals among them.

        Requests are taken as they are needed, some beyond those in flight, so that an endless
        stream may be given.
        """
        source, more = iter(requests), True
        ahead = 4 * max(self._most.values())
        while True:
            while more and sum(map(len, self._waiting.values())) < ahead:
                request = next(source, None)
                if request is None:
                    more = False
                else:
                    self.submit(request)
            yield from self.step()
            if not self.team.any(more or self.busy):
                return

    def cancel(self, request_id: str) -> None:
        """Stop working on a request, waiting or in flight, if it is there. One process only."""
        for length, waiting in self._waiting.items():
            self._waiting[length] = deque(r for r in waiting if r.id != request_id)
        self._refused = [one for one in self._refused if one.id != request_id]
        for slot, guest in enumerate(self._guests):
            if guest is not None and guest.id == request_id:
                self._guests[slot] = None
                self._require_pool().leave(slot)

    def written(self) -> dict[str, tuple[int, ...]]:
        """What the first branch of each request in flight has written so far, by request."""
        if self._pool is None or not any(self._guests):
            return {}
        tokens, written = self._pool.read("tokens", "written")
        return {
            guest.id: tuple(tokens[slot, 0, : written[slot, 0]].tolist())
            for slot, guest in enumerate(self._guests)
            if guest is not None
        }

    @property
    def busy(self) -> bool:
        """Whether this process has requests waiting, in flight or refused."""
        return bool(
            self._refused or any(self._waiting.values()) or any(g is not None for g in self._guests)
        )

    # ------------------------------------------------------------------ one turn

    def step(self) -> list[Sampled]:
        """Let prompts enter, decode a turn, and return what has finished."""
        results, self._refused = self._refused, []
        try:
            if self._choose_pool():
                self._refill()
                results += self._decode()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or self.team.several:
                raise
            self._shrink()
        results += self._refused
        self._refused = []
        return results

    def _choose_pool(self) -> bool:
        """Stay with the pool while it has work, then take the length that waits most.

        With ``patience`` stay only for so long where other lengths wait, and take one of these.
        """
        waiting = [len(self._waiting[n]) for n in self.lengths]
        guests = sum(g is not None for g in self._guests)
        *totals, occupied = self.team.sum([*waiting, guests])
        current = self.lengths.index(self._length) if self._pool else 0
        self._others = self._pool is not None and sum(totals) > totals[current]
        if self._pool and (occupied or (totals[current] and not self._leaving)):
            return True
        if self._leaving:
            totals[current] = 0
        self._let_go()
        # Among equals the longest, so that what does not fit is known early.
        best = max(range(len(totals)), key=lambda i: (totals[i], i))
        return bool(totals[best]) and self._open(self.lengths[best])

    @property
    def _leaving(self) -> bool:
        """Whether the pool has had its turn, and takes in no more prompts."""
        return self._others and 0 < self.config.patience <= self._rounds

    def _let_go(self) -> None:
        if self._pool is not None:
            self._pool.slots = None
        self._pool, self._guests = None, []

    def _open(self, length: int) -> bool:
        """Make the pool of a length as large as memory lets it be; refuse its requests if not."""
        shards = batch_shards(self.mesh)
        if self._arrays is None:  # before what is free is measured: they take of it
            with jax.set_mesh(self.mesh):
                self._arrays = jax.jit(decoding.unstack, static_argnums=0)(self.cfg, self.params)
        budget = self._budget
        if budget is None:
            budget = int(self.config.cache_gib * 2**30) or free_bytes(self.mesh)
        budget = self.team.min(budget)
        slots = largest_pool(
            self.cfg, self._most[length], budget, lambda n: self._shape(length, n), shards
        )
        if not slots:
            need = shards * slot_bytes(self.cfg, self._shape(length, shards)) / 2**30
            self._refuse_waiting(
                length,
                f"prompts of up to {length} tokens with {self.branches} branches of up to "
                f"{self.max_tokens} need {need:.3g} GiB for caches, and {budget / 2**30:.3g} GiB "
                f"are to be had; use fewer branches, shorter prompts or more memory",
            )
            return False
        pool = self._pools.get(length)
        if pool is None or pool.shape != self._shape(length, slots):
            pool = Pool(
                self.cfg, self.mesh, self._shape(length, slots), self.grammar, self.config.chunk
            )
        self._pools[length] = self._pool = pool
        self._length, self._rounds = length, 0
        self._guests = [None] * len(pool.local)
        self._resident = np.full((len(pool.local), length), -1, np.int32)
        pool.reset()
        return True

    def _shape(self, length: int, slots: int) -> PoolShape:
        refill, shards = self.config.refill, batch_shards(self.mesh)
        return pool_shape(slots, length, self.branches, self.max_tokens, refill, shards)

    def _refuse_waiting(self, length: int, reason: str) -> None:
        for request in self._waiting[length]:
            self._refused.append(Sampled(request.id, refused=reason))
        self._waiting[length].clear()

    def _shrink(self) -> None:
        """Memory ran out after all: begin the pool's requests again, half as many at a time."""
        length, shards = self._length, batch_shards(self.mesh)
        self._waiting[length].extendleft(g for g in reversed(self._guests) if g is not None)
        slots = self._pool.shape.slots if self._pool else self._most[length]
        self._let_go()
        self._pools.pop(length, None)
        if slots == shards:
            self._refuse_waiting(
                length,
                f"memory ran out on prompts of up to {length} tokens, {slots} at a time; use fewer "
                f"branches, shorter prompts or more memory",
            )
        else:
            self._most[length] = max(shards, slots // 2 // shards * shards)

    # ------------------------------------------------------------------ prompts enter

    def _refill(self) -> None:
        """Fill the free slots, some prompts at a time; equally often in every process."""
        pool = self._require_pool()
        while not self._leaving:
            entering, chosen = self._select(pool)
            most, shared = self.team.max([len(chosen), int(entering.start.max())])
            if not most:
                return
            self._rounds += 1
            for request, slot in chosen:
                self._guests[slot] = request
                self._resident[slot] = -1
                self._resident[slot, : len(request.prompt)] = request.prompt
                branches = request.branches or self.branches
                self.work.prompts += 1
                self.work.prompt_tokens += len(request.prompt)
                self.work.branch_prompt_tokens += branches * len(request.prompt)
            self.work.shared_tokens += int(entering.start.sum())
            pool.enter(self.params, entering, self._mode(), shared > 0)

    def _select(self, pool: Pool) -> tuple[Entering, list[tuple[Request, int]]]:
        """The requests that enter next, each with its slot (counted within this process)."""
        shards = batch_shards(self.mesh)
        size, rows = pool.shape.slots // shards, pool.shape.entering // shards
        own = len(pool.local) // size
        entering = no_requests(pool.shape, own * rows)
        chosen: list[tuple[Request, int]] = []
        waiting = self._waiting[self._length]
        later: list[Request] = []
        free = [
            [s for s in range(h * size, (h + 1) * size) if self._guests[s] is None][:rows]
            for h in range(own)
        ]
        used = [0] * own
        sharing = self.config.share and not pool.whole and self._length > pool.chunk
        while waiting and any(free) and len(later) < 4 * rows * own:
            request = waiting.popleft()
            # A prompt that begins as one about to enter waits until that one's cache is there.
            alike = [common_prefix(request.prompt, r.prompt) for r, _ in chosen] if sharing else []
            known = self._begins(request, size) if sharing else [(0, 0)] * own
            if alike and max(alike) >= max(self.config.share, 1 + max(n for n, _ in known)):
                later.append(request)
                continue
            best = max((h for h in range(own) if free[h]), key=lambda h: (known[h][0], -used[h]))
            slot = free[best].pop(0)
            asked = replace(
                request,
                branches=request.branches or self.branches,
                max_tokens=request.max_tokens or self.max_tokens,
            )
            row, into = best * rows + used[best], slot - best * size
            fill_row(entering, row, asked, self.seed, into, known[best])
            used[best] += 1
            chosen.append((request, slot))
        waiting.extendleft(reversed(later))
        return entering, chosen

    def _begins(self, request: Request, size: int) -> list[tuple[int, int]]:
        """For each shard, how many tokens of the prompt one of its slots holds, and which slot."""
        prompt = np.asarray(request.prompt, np.int32)
        differs = self._resident[:, : len(prompt)] != prompt
        common = np.where(differs.any(-1), differs.argmax(-1), len(prompt))
        common = np.minimum(common, len(prompt) - 1).reshape(-1, size)
        common[common < self.config.share] = 0
        return [(int(row.max()), int(row.argmax())) for row in common]

    def _mode(self) -> Mode:
        """What the requests so far need, in any process: what was compiled serves on."""
        lists, others, random, filters = (bool(x) for x in self.team.max(self._needs))
        return Mode(lists, others or not lists, random, filters)

    # ------------------------------------------------------------------ branches leave

    def _decode(self) -> list[Sampled]:
        pool, arrays = self._require_pool(), self._arrays
        assert arrays is not None
        slots = pool.shape.slots
        waiting, guests = self.team.sum(
            [len(self._waiting[self._length]), sum(g is not None for g in self._guests)]
        )
        want = slots - guests + max(1, math.ceil(slots * self.config.refill)) if waiting else slots
        pool.decode(self.params, arrays, self._mode(), min(want, slots), self.config.turn)
        done = np.all(pool.read("done")[0], axis=-1)
        finished = [s for s, g in enumerate(self._guests) if g is not None and done[s]]
        if not finished:
            return []
        tokens, logps, unconstrained, written, ended = pool.read(
            "tokens", "logps", "unconstrained", "written", "ended"
        )
        results = []
        for slot in finished:
            request = self._guests[slot]
            assert request is not None
            self._guests[slot] = None
            counts = written[slot, : request.branches or self.branches].tolist()
            self.work.tokens += sum(counts)
            whole = np.concatenate([unconstrained[slot, i, :n] for i, n in enumerate(counts)])
            if not np.isfinite(whole).all():
                reason = "the model's scores are NaN or infinite"
                results.append(Sampled(request.id, refused=reason))
                continue

            def cut(x: np.ndarray, slot: int = slot, counts: list[int] = counts) -> tuple:
                return tuple(tuple(x[slot, i, :n].tolist()) for i, n in enumerate(counts))

            results.append(
                Sampled(
                    id=request.id,
                    branches=cut(tokens),
                    finished=tuple(ended[slot, : len(counts)].tolist()),
                    token_logps=cut(logps),
                    unconstrained_logps=cut(unconstrained),
                )
            )
        return results

    def _require_pool(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("an engine works without a pool")
        return self._pool
