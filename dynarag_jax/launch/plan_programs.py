"""``--plan`` of stages that sample or embed: what their programs will need.

    dynarag rollout configs/llama3_8b.py --plan --plan.compile v5e:2x4
    dynarag embed configs/wikipedia.py --plan --plan.compile v5e:2x4

A stage's file says what it computes with: ``to_plan(stage)`` gives its SamplingNeeds and
EmbeddingNeeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from dynarag_jax.compilers.topologies import Topology
from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.exchange.encoder_policies import is_encoder_policy
from dynarag_jax.exchange.encoders import EncoderShape, encoder_shape
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.launch.plan import Devices, PlanOptions, target_of
from dynarag_jax.launch.plan_compiled import (
    GIB,
    CompilerReport,
    attention_operations,
    compile_report,
    devices_for,
    head_line,
    kernel_operations,
    mesh_for,
    report_lines,
)
from dynarag_jax.launch.plan_models import shape_at
from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.decoder import count_parameters
from dynarag_jax.models.encoder import parameter_shapes
from dynarag_jax.models.kernels import Platform
from dynarag_jax.policy.grammar import build_grammar
from dynarag_jax.policy.model import list_grammar
from dynarag_jax.policy.spelling import plain_spelling
from dynarag_jax.retrieval.compiled import EmbeddingNeeds, embedded_batch, lower_batch
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.compiled import (
    LoweredPool,
    SamplingNeeds,
    WorkingBytes,
    Written,
    cache_bytes,
    lower_pool,
    open_shape,
    resident_bytes,
    working_bytes,
)
from dynarag_jax.sampling.pool_sizes import PoolShape
from dynarag_jax.sharding import (
    abstract_mesh,
    described,
    make_mesh,
    mesh_sizes,
    whole_prompts,
)
from dynarag_jax.training.flops import PaddedShape, step_work

Needs = SamplingNeeds | EmbeddingNeeds


def needs_of(stage: Any, module: Any) -> Sequence[Needs]:
    """What a stage computes with, as its file says; nothing where it says nothing."""
    asked = getattr(module, "to_plan", None)
    return asked(stage) if asked else ()


def print_programs(
    run: Run, stages: Mapping[str, Any], needs: Sequence[Needs], options: PlanOptions
) -> None:
    """Print what a stage that samples or embeds needs; what the compiler says, where it is asked.

    Raises:
      InputError: a model is not found or is no language model, or the mesh does not fit it.
      TooLarge: a program does not fit, as the compiler says.
    """
    if not needs:
        raise InputError("this stage, as configured, computes with no model of its own")
    devices, topology = target_of(run, options)
    for one in needs:
        if isinstance(one, SamplingNeeds):
            _print_sampling(run, stages, one, devices, topology, options.card)
        else:
            _print_embedding(one, devices, topology, options.card)


# ---------------------------------------------------------------------------- sampling


def written_by(needs: SamplingNeeds, tokenizer: Any = None) -> list[Written]:
    """The branches that are written; without a tokenizer, each id of a list is one token."""
    p, found = needs.prompts, []
    if needs.lists:
        if tokenizer is not None:
            spelling, grammar = list_grammar(tokenizer, p)
        else:
            spelling = plain_spelling(p.ids)
            grammar = build_grammar(spelling, min(p.max_list, p.ids))
        longest = spelling.longest(p.max_list)
        found.append(
            Written("lists", p.rerank_tokens, needs.lists, longest, grammar, needs.sampling)
        )
    if needs.answers:
        greedy = Sampling(temperature=0.0)
        found.append(Written("answers", p.answer_prompt_tokens, 1, p.answer_tokens, None, greedy))
    return found


def pool_work(cfg: DecoderConfig, shape: PoolShape, turn: int) -> tuple[float, float]:
    """Operations of the model, over all devices: of the prompts that enter, and of a turn."""
    entering = PaddedShape(shape.entering, shape.prompt, 1, 1)
    rows = PaddedShape(shape.slots, shape.prompt, shape.branches, turn + 1)
    before = dataclasses.replace(rows, branch=1)
    forward = [step_work(cfg, [one]).model / 3 for one in (entering, rows, before)]
    return forward[0], forward[1] - forward[2]


@dataclasses.dataclass(frozen=True)
class PoolPlan:
    """What a device holds while a model samples.

    Attributes:
      weights: bytes; ``layers``: of those once more, as decoding reads them.
      pools: by what is written: its pool and the bytes of its caches; None where not one prompt a
        device has room.
      working: by what is written, what its programs hold beside that.
    """

    weights: int
    layers: int
    pools: Mapping[str, tuple[PoolShape, int] | None]
    working: Mapping[str, WorkingBytes]

    @property
    def held(self) -> int:
        """Bytes beside what is at work, all pools' caches among them."""
        return self.weights + self.layers + sum(pool[1] for pool in self.pools.values() if pool)


def plan_pools(
    cfg: DecoderConfig,
    mesh: Any,
    needs: SamplingNeeds,
    written: Mapping[str, Written],
    memory: int | None,
    platform: Platform,
) -> PoolPlan:
    """The pools that a sampler opens on such devices of so much memory (None is not known).

    Raises:
      InputError: the mesh does not divide the model.
    """
    weights, layers = resident_bytes(cfg, mesh)
    free = memory - weights - layers if memory else None
    pools, working = {}, {}
    for name, one in written.items():
        pool = open_shape(cfg, mesh, needs, one, free)
        pools[name] = None if pool is None else (pool, cache_bytes(cfg, mesh, pool))
        if pool is not None:
            working[name] = working_bytes(cfg, mesh, pool, needs.engine.chunk, platform)
    return PoolPlan(weights, layers, pools, working)


def _print_sampling(
    run: Run,
    stages: Mapping[str, Any],
    needs: SamplingNeeds,
    devices: Devices,
    topology: Topology | None,
    card: str,
) -> None:
    place = needs.model.replace("{run}", run.directory)
    if is_encoder_policy(place):
        raise InputError(f"plans are of language models, and {place} is an encoder policy")
    cfg, directory = shape_at(run, stages, needs.model)
    cfg = dataclasses.replace(cfg, dtype=needs.dtype, param_dtype=needs.dtype, remat="none")
    try:
        tokenizer = load_tokenizer(str(directory)) if directory else None
    except InputError:
        tokenizer = None  # a directory of config.json alone
    m = run.mesh
    sizes = whole_prompts(mesh_sizes(m.data, m.fsdp, m.tensor, devices.count, m.sequence))
    mesh: Any = abstract_mesh(sizes) if topology is None else mesh_for(topology, card, sizes)
    written = {one.name: one for one in written_by(needs, tokenizer)}
    found = plan_pools(cfg, mesh, needs, written, devices.memory, devices.platform)
    print(f"{devices.count} x {devices.name}, mesh {described(sizes)}")
    print(
        f"{needs.model}: {count_parameters(cfg):,} parameters in {needs.dtype}; a device holds "
        f"{found.weights / GIB:.2f} GiB of them, and {found.layers / GIB:.2f} GiB of layers once "
        f"more, as decoding reads them"
    )
    if tokenizer is None:
        print("no tokenizer at hand: each id of a list taken as one token")
    for name, one in found.pools.items():
        if one is None:
            print(
                f"{name}: DOES NOT FIT: not one prompt of {written[name].prompt} tokens a device "
                f"has room for its cache"
            )
            continue
        pool, cache = one
        print(
            f"{name}: {pool.slots} prompts of {pool.prompt} tokens at once, {pool.branches} "
            f"branch(es) of {pool.branch} tokens each; caches of {cache / GIB:.2f} GiB a device"
        )
    print(f"in all {found.held / GIB:.2f} GiB a device, and at work about")
    for name, at_work in found.working.items():
        print(
            f"{name}: {at_work.prefill / GIB:.2f} GiB while prompts enter, "
            f"{at_work.decode / GIB:.2f} GiB while tokens are written"
        )
    for name, one in found.pools.items():
        if topology is not None and one is not None:
            lowered = lower_pool(cfg, mesh, one[0], needs.engine, written[name])
            _print_pool(cfg, name, lowered, topology, found.held)


class PoolProgram(NamedTuple):
    """One of a pool's two programs.

    Attributes:
      trips: of its loops; ``model``: the model's operations on one device; ``what``: one run of it.
    """

    lowered: jax.stages.Lowered
    trips: tuple[float, ...]
    model: float
    what: str


def pool_programs(cfg: DecoderConfig, lowered: LoweredPool, devices: int) -> dict[str, PoolProgram]:
    """A pool's programs by name, on so many devices."""
    shape, turn = lowered.shape, int(lowered.decode_trips[0])
    entering, writing = (of / devices for of in pool_work(cfg, shape, turn))
    prompts, tokens = f"for {shape.entering} prompts", f"for a turn of {turn} tokens a branch"
    return {
        "prefill": PoolProgram(lowered.prefill, lowered.prefill_trips, entering, prompts),
        "decode": PoolProgram(lowered.decode, lowered.decode_trips, writing, tokens),
    }


def compile_pool(
    cfg: DecoderConfig, lowered: LoweredPool, kind: str, topology: Topology
) -> CompilerReport:
    """What the compiler says of one of a pool's programs, by its name.

    Raises:
      TooLarge: it does not fit.
    """
    one = pool_programs(cfg, lowered, topology.devices)[kind]
    rows = {"": PaddedShape(lowered.at_once, lowered.shape.prompt, 1, 1)}
    return compile_report(
        one.lowered,
        topology,
        one.model,
        lambda kernels: attention_operations(cfg, rows, kernels, topology.devices),
        one.trips,
    )


def _print_pool(
    cfg: DecoderConfig, name: str, lowered: LoweredPool, topology: Topology, held: int
) -> None:
    for kind, one in pool_programs(cfg, lowered, topology.devices).items():
        print(f"compiling the {kind} of {name} for {topology.name} ...", flush=True)
        report = compile_pool(cfg, lowered, kind, topology)
        beside = max(0, held - report.found.arguments)
        print(f"{kind} of {name}, {head_line(report, topology)}")
        print("\n".join(report_lines(report, topology, held, one.what, beside)))


# ---------------------------------------------------------------------------- embedding


def batch_work(shape: EncoderShape, rows: int, length: int) -> float:
    """Operations of an encoder on a batch: the layers' matrices, and every position over all."""
    cfg = shape.config
    layers = jax.tree.leaves(
        parameter_shapes(cfg)["layers"], is_leaf=lambda x: isinstance(x, tuple)
    )
    matrices = sum(n * i * o for n, i, o in (size for size in layers if len(size) == 3))
    return rows * length * 2 * matrices + cfg.layers * layer_attention(shape, rows, length)


def layer_attention(shape: EncoderShape, rows: int, length: int) -> float:
    """Operations of one layer's attention on a batch, of every position over all."""
    return 4 * rows * shape.config.width * length**2


def _print_embedding(
    needs: EmbeddingNeeds, devices: Devices, topology: Topology | None, card: str
) -> None:
    shape = encoder_shape(needs.encoder)
    mesh: Any = abstract_mesh((devices.count, 1, 1))
    if topology is not None:
        # Each process embeds its own shards of a corpus, on its own devices.
        every = devices_for(topology, card)
        mesh = make_mesh(
            devices=[one for one in every if one.process_index == every[0].process_index]
        )
    batch = embedded_batch(shape, mesh, needs, devices.platform.name)
    print(
        f"{needs.encoder}: batches of {batch.rows} texts of {batch.length} word pieces over the "
        f"{mesh.size} device(s) of a process, each of which holds {batch.weights / GIB:.2f} GiB "
        f"of weights"
    )
    if topology is None:
        return
    print(f"compiling for {topology.name} ...", flush=True)
    model = batch_work(shape, batch.rows, batch.length) / mesh.size
    layer = layer_attention(shape, batch.rows, batch.length) / mesh.size
    report = compile_report(
        lower_batch(shape, mesh, needs, batch), topology, model, partial(kernel_operations, layer)
    )
    print(f"embedding, {head_line(report, topology)}")
    print("\n".join(report_lines(report, topology, batch.weights, f"for {batch.rows} texts")))
