"""A pool of slots on the devices: prompts enter, branches decode, finished slots are read.

Everything here has fixed shapes: slots S, branches N, prompt length P, branch length R. Slots lie
over the mesh's batch axes, heads over its tensor axis, and the parameters where training put them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dynarag_jax.models import decoding
from dynarag_jax.models.decoder import BranchCache, DecoderConfig, Params, TrunkCache
from dynarag_jax.policy.grammar import Grammar
from dynarag_jax.sampling.choice import Settings
from dynarag_jax.sampling.pool_sizes import PoolShape
from dynarag_jax.sampling.prefilling import (
    CHUNK,
    computes_whole,
    empty_trunks,
    on_own_slots,
    prompts_at_a_time,
    put_rows,
    put_trunks,
    read_whole,
    take_trunks,
)
from dynarag_jax.sampling.requests import Request, request_key
from dynarag_jax.sampling.sampler import Mode, SlotRows, Slots, decode, first_tokens, new_rows
from dynarag_jax.sharding import laid_out, named


class Entering(NamedTuple):
    """Requests about to enter, arrays [F]; ``into`` -1 is a row of padding."""

    trunk: Any
    """[F, P]"""
    lengths: Any
    seeds: Any
    """uint32"""
    shown: Any
    listed: Any
    limit: Any
    stops: Any
    """[F, J]"""
    branches: Any
    settings: Settings
    into: Any
    """the slot, counted within its shard"""
    source: Any
    """a slot of the same shard whose trunk begins alike"""
    start: Any
    """tokens it has in common"""


def no_requests(shape: PoolShape, rows: int) -> Entering:
    """Padding, as numpy arrays to be filled in."""
    zeros = np.zeros(rows, np.int32)
    settings = Settings(
        *(np.zeros(rows, t) for t in (np.float32, np.float32, np.int32, np.float32))
    )
    return Entering(
        trunk=np.zeros((rows, shape.prompt), np.int32),
        lengths=zeros + 1,
        seeds=np.zeros(rows, np.uint32),
        shown=zeros.copy(),
        listed=zeros > 0,
        limit=zeros.copy(),
        stops=np.full((rows, shape.stops), -1, np.int32),
        branches=zeros.copy(),
        settings=settings,
        into=zeros - 1,
        source=zeros.copy(),
        start=zeros.copy(),
    )


def fill_row(
    entering: Entering, row: int, request: Request, seed: int, into: int, known: tuple[int, int]
) -> None:
    """Write a request, its branches and tokens given, into a row of what is about to enter.

    Args:
      known: tokens it has in common with a slot of its shard, and that slot.
    """
    size, how = len(request.prompt), request.sampling
    entering.trunk[row, :size] = request.prompt
    entering.lengths[row] = size
    entering.seeds[row] = request_key(seed, request.key or request.id)
    entering.shown[row], entering.listed[row] = request.shown or 0, request.shown is not None
    entering.limit[row] = request.max_tokens
    entering.stops[row, : len(request.stops)] = request.stops
    entering.branches[row] = request.branches
    settings = Settings(how.temperature, how.top_p, how.top_k, how.min_p)
    for array, value in zip(entering.settings, settings, strict=True):
        array[row] = value
    entering.into[row], entering.start[row], entering.source[row] = into, *known


class Pool:
    """Slots on a mesh, and the compiled programs over them.

    Args:
      chunk: tokens of a prompt computed at a time; 0 computes prompts whole where the platform has
        a flash kernel for the model, and elsewhere ``CHUNK`` tokens at a time.

    Attributes:
      whole: whether prompts are computed whole; then none begins with another slot's trunk.
      each: of them, how many a device computes at a time.
      slots: the state; None until ``reset``, and after a program failed with it.
    """

    def __init__(
        self, cfg: DecoderConfig, mesh: Mesh, shape: PoolShape, grammar: Grammar | None, chunk: int
    ):
        self.cfg, self.mesh, self.shape, self.grammar = cfg, mesh, shape, grammar
        with jax.set_mesh(mesh):
            self.whole = computes_whole(cfg, chunk)
        self.chunk = min(chunk or CHUNK, shape.prompt)
        self.each = prompts_at_a_time(mesh, shape.entering, shape.prompt)
        self.slots: Slots | None = None
        self._rows = named(mesh, ("batch",))
        trunk = named(mesh, ("batch", "kv_heads", None, None))
        branch = named(mesh, ("batch", None, "kv_heads", None, None))
        layers = cfg.layers
        self._layout = Slots(
            TrunkCache((trunk,) * layers, (trunk,) * layers),
            BranchCache((branch,) * layers, (branch,) * layers),
            self._rows,  # type: ignore[arg-type] - a prefix of the tree
        )
        self._programs: dict[Any, Callable[..., Any]] = {}

    def _empty(self) -> Slots:
        shape, cfg = self.shape, self.cfg
        rows = self._fresh_rows(jax.tree.map(jnp.asarray, no_requests(shape, shape.slots)))
        return Slots(
            empty_trunks(cfg, shape.slots, shape.prompt),
            decoding.empty_branch_cache(cfg, shape.slots, shape.branches, shape.branch),
            rows,
        )

    def reset(self) -> None:
        """Empty slots; the earlier ones are let go first."""
        self.slots = None
        self.slots = self._run(self._jitted("reset", self._empty, out_shardings=self._layout))

    def shapes(self) -> tuple[Slots, Entering]:
        """The shapes of the slots and of the prompts that enter them, and where they lie."""
        slots = jax.eval_shape(self._empty)
        entering = no_requests(self.shape, self.shape.entering)
        return laid_out(slots, self._layout), laid_out(entering, self._rows)

    def _jitted(self, key: Any, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        """A jitted function, kept under ``key``."""
        if key not in self._programs:
            self._programs[key] = jax.jit(function, **options)
        return self._programs[key]

    def _run(self, jitted: Callable[..., Any], *arguments: Any) -> Any:
        with jax.set_mesh(self.mesh):
            return jitted(*arguments)

    def _fresh_rows(self, entering: Entering) -> SlotRows:
        wanted = jnp.arange(self.shape.branches) < entering.branches[:, None]
        return new_rows(
            lengths=entering.lengths,
            keys=jax.vmap(lambda seed: jax.random.key_data(jax.random.key(seed)))(entering.seeds),
            shown=entering.shown,
            listed=entering.listed,
            limit=entering.limit,
            stops=entering.stops,
            settings=entering.settings,
            done=~wanted | (entering.into < 0)[:, None],
            length=self.shape.branch,
            grammar=self.grammar,
        )

    def enter(self, params: Params, entering: Entering, mode: Mode, shared: bool) -> None:
        """Compute prompts and put them into their slots; branches write their first tokens.

        Args:
          shared: whether some row begins with another slot's trunk.
        """
        slots, self.slots = self.slots, None
        program = self.prefill(mode, shared)
        self.slots = self._run(program, params, slots, self._placed(entering), self.grammar)

    def prefill(self, mode: Mode, shared: bool) -> Callable[..., Slots]:
        """The jitted program of ``enter``: (params, slots, entering, grammar) -> slots."""
        cfg = self.cfg

        def read_prompts(params: Params, slots: Slots, entering: Entering, grammar: Any) -> Slots:
            rows = self._fresh_rows(entering)
            place = on_own_slots(self.mesh, put_rows, "rows", "rows", "rows")
            if self.whole:
                asked = entering.trunk, entering.lengths, entering.into
                hidden, trunks = read_whole(cfg, self.mesh, params, slots.trunk_cache, *asked)
                rows = first_tokens(cfg, params, hidden, rows, mode, grammar)
                return Slots(trunks, slots.branch_cache, place(slots.rows, rows, entering.into))
            cache = start = None
            if shared:
                start = entering.start
                take = on_own_slots(self.mesh, take_trunks, "trunk", "trunk", "stacked")
                cache = take(slots.trunk_cache.k, slots.trunk_cache.v, entering.source)
                cache = TrunkCache(*cache)
            hidden, computed = decoding.prefill(
                cfg, params, entering.trunk, entering.lengths, self.chunk, cache, start
            )
            rows = first_tokens(cfg, params, hidden, rows, mode, grammar)
            put = on_own_slots(self.mesh, put_trunks, "trunk", "stacked", "trunk")
            return Slots(
                TrunkCache(
                    put(slots.trunk_cache.k, computed.k, entering.into),
                    put(slots.trunk_cache.v, computed.v, entering.into),
                ),
                slots.branch_cache,
                place(slots.rows, rows, entering.into),
            )

        return self._jitted(
            ("enter", mode, shared),
            read_prompts,
            in_shardings=(None, self._layout, self._rows, None),
            out_shardings=self._layout,
            donate_argnums=1,
        )

    def decode(
        self, params: Params, arrays: decoding.LayerArrays, mode: Mode, want: int, steps: int
    ) -> None:
        """Decode until ``want`` slots have finished, but no more than ``steps`` tokens.

        Args:
          arrays: the layers' of ``decoding.unstack``.
        """
        slots, self.slots = self.slots, None
        limits = np.int32(want), np.int32(steps)
        self.slots = self._run(self.decoding(mode), params, slots, arrays, self.grammar, *limits)

    def decoding(self, mode: Mode) -> Callable[..., Slots]:
        """The jitted program of ``decode``.

        It takes (params, slots, arrays, grammar, want, steps) and gives the slots.
        """
        cfg = self.cfg

        def write_tokens(
            params: Params, slots: Slots, arrays: Any, grammar: Any, want: Any, steps: Any
        ) -> Slots:
            # All layers are in ``arrays``: the stacked ones are no part of this program.
            return decode(cfg, params, slots, mode, grammar, want, steps, arrays)

        return self._jitted(
            ("decode", mode),
            write_tokens,
            in_shardings=(None, self._layout, None, None, None, None),
            out_shardings=self._layout,
            donate_argnums=1,
        )

    def leave(self, slot: int) -> None:
        """End the branches of a slot: nothing waits for them any more."""

        def leave_slot(slots: Slots, slot: Any) -> Slots:
            done = slots.rows.done | (jnp.arange(self.shape.slots) == slot)[:, None]
            return slots._replace(rows=slots.rows._replace(done=done))

        slots, self.slots = self.slots, None
        program = self._jitted(
            "leave",
            leave_slot,
            in_shardings=(self._layout, None),
            out_shardings=self._layout,
            donate_argnums=0,
        )
        self.slots = self._run(program, slots, np.int32(slot))

    # ------------------------------------------------------------------ this process's part

    @functools.cached_property
    def local(self) -> list[int]:
        """The slots that lie on this process's devices, in order."""
        indices = self._rows.addressable_devices_indices_map((self.shape.slots,))
        ranges = {s[0].indices(self.shape.slots)[:2] for s in indices.values() if s is not None}
        return [slot for low, high in sorted(ranges) for slot in range(low, high)]

    def _placed(self, entering: Entering) -> Entering:
        if jax.process_count() == 1:
            return jax.device_put(entering, self._rows)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self._rows, x), entering
        )

    def read(self, *names: str) -> list[np.ndarray]:
        """Arrays of the rows, of this process's slots alone."""
        if self.slots is None:
            raise RuntimeError("a pool is read before it is reset")
        return [local_part(getattr(self.slots.rows, name)) for name in names]


def local_part(x: jax.Array) -> np.ndarray:
    """The rows of an array that this process holds, in order."""
    if x.is_fully_addressable:
        return np.asarray(x)
    parts = {s.index[0].indices(x.shape[0])[0]: s.data for s in x.addressable_shards}
    return np.concatenate([np.asarray(parts[at]) for at in sorted(parts)])
