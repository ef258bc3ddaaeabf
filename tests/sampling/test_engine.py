"""The engine: results are nobody's neighbors', slots come free, memory is bounded."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.layout import param_shardings
from dynarag_jax.policy.grammar import Grammar, Spelling, build_grammar, read_list
from dynarag_jax.policy.logprobs import token_logps
from dynarag_jax.sampling import prefilling
from dynarag_jax.sampling.engine import Engine
from dynarag_jax.sampling.pool import Pool
from dynarag_jax.sampling.pool_sizes import pool_shape, slot_bytes
from dynarag_jax.sampling.requests import STOPS, EngineConfig, Request
from dynarag_jax.sampling.sampler import Sampling
from dynarag_jax.sharding import make_mesh

CFG = DecoderConfig(
    vocab=32, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=24, positions=64, window=9,
    windowed=(True, False),
)  # fmt: skip
SPELLING = Spelling(
    opening=(10,), ids=tuple((i,) for i in range(1, 7)), between=(20, 10), closing=(20,),
    none=(30,), end=31,
)  # fmt: skip
GRAMMAR = build_grammar(SPELLING)
R, N = SPELLING.longest(6), 3
ONE = make_mesh(1, 1, 1, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def params():
    return decoder.init_params(CFG, jax.random.key(2))


def engine(
    params,
    slots=4,
    mesh=ONE,
    seed=0,
    grammar: Grammar | None = GRAMMAR,
    lengths=(32,),
    cfg=CFG,
    **how,
):
    config = EngineConfig(**({"chunk": 8, "turn": 5, "share": 4} | how))
    return Engine(
        cfg, params, mesh, branches=N, max_tokens=R, lengths=lengths, slots=slots, seed=seed,
        grammar=grammar, config=config,
    )  # fmt: skip


def mixed(count=14):
    """Lists and free text, all lengths and settings, some prompts beginning alike."""
    rng = np.random.default_rng(0)
    begins = rng.integers(0, 31, 20).tolist()
    how = [Sampling(), Sampling(0.0), Sampling(0.7, top_p=0.8), Sampling(1.2, top_k=3, min_p=0.05)]
    requests = []
    for i in range(count):
        own = rng.integers(0, 31, int(rng.integers(1, 12))).tolist()
        requests.append(
            Request(
                f"q{i}", begins[: int(rng.integers(8, 21))] + own if i % 3 else own,
                shown=None if i % 4 == 3 else int(rng.integers(0, 7)), sampling=how[i % 4],
                stops=(31,) if i % 5 else (31, 4, 7), branches=0 if i % 2 else 1 + i % N,
                max_tokens=0 if i % 7 else 5,
            )
        )  # fmt: skip
    # A list needs room for its end.
    return [r if r.shown is None else dataclasses.replace(r, max_tokens=0) for r in requests]


@pytest.fixture(scope="module")
def found(params):
    return {r.id: r for r in engine(params).run(mixed())}


@pytest.mark.slow
def test_log_probabilities_are_the_training_forwards(params, found):
    """Of every token, under the grammar and without it; shared beginnings included."""

    @jax.jit
    def forward(params, trunk, tokens, n, is_list):
        lengths = jax.numpy.array([trunk.shape[1]])
        _, hidden = decoder.trunk_and_branches(CFG, params, trunk, lengths, tokens)
        return token_logps(CFG, params, hidden, tokens, GRAMMAR, is_list, n)

    assert len(found) == 14
    for request in mixed():
        sampled = found[request.id]
        assert not sampled.refused
        assert len(sampled.branches) == (request.branches or N)
        tokens = np.zeros((1, N, R), np.int32)
        for i, branch in enumerate(sampled.branches):
            tokens[0, i, : len(branch)] = branch
            if request.shown is not None:
                read_list(SPELLING, branch)
                assert sampled.finished[i]
            else:
                ends = [place for place, t in enumerate(branch) if t in request.stops]
                assert ends in ([], [len(branch) - 1])
                assert sampled.finished[i] == bool(ends)
                assert ends or len(branch) == (request.max_tokens or R)
        logps = forward(
            params, np.asarray([request.prompt]), tokens, np.array([request.shown or 0]),
            np.array([request.shown is not None]),
        )  # fmt: skip
        for i, branch in enumerate(sampled.branches):
            n = len(branch)
            np.testing.assert_allclose(
                sampled.unconstrained_logps[i], logps.unconstrained[0, i, :n], atol=1e-4
            )
            np.testing.assert_allclose(
                sampled.token_logps[i], logps.constrained[0, i, :n], atol=1e-4
            )


def same(first, second):
    """Equal tokens, and log-probabilities up to rounding."""
    assert first.keys() == second.keys()
    for name, one in first.items():
        other = second[name]
        assert one.branches == other.branches and one.finished == other.finished
        np.testing.assert_allclose(one.logps, other.logps, atol=2e-5)


@pytest.mark.parametrize(
    "how",
    [
        {"slots": 1, "turn": 1},
        pytest.param(
            {"slots": 16, "refill": 1.0, "share": 0, "lengths": (16, 32), "chunk": 64},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_results_do_not_depend_on_slots_order_chunks_or_sharing(params, found, how):
    again = {r.id: r for r in engine(params, **how).run(mixed()[::-1])}
    same(found, again)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param((1, 1, 1), id="alone"),
        pytest.param((1, 2, 2), id="on a mesh", marks=pytest.mark.slow),
    ],
)
def test_prompts_computed_whole_by_a_flash_kernel_give_the_same(monkeypatch, params, found, sizes):
    """Splash attention, interpreted here; a device computes two prompts of its four at a time."""
    monkeypatch.setattr(prefilling, "AT_ONCE", 64)
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    flash = dataclasses.replace(CFG, attention="splash")
    one = engine(params, slots=4 * sizes[1], mesh=mesh, cfg=flash, chunk=0, refill=1.0)
    again = {r.id: r for r in one.run(mixed())}
    same(found, again)
    assert one.work.shared_tokens == 0
    assert one.work.prompt_tokens == sum(len(r.prompt) for r in mixed())


def test_without_a_flash_kernel_prompts_come_in_chunks(params):
    made = {
        chunk: Pool(CFG, ONE, pool_shape(4, 512, N, R, 0.25, 1), GRAMMAR, chunk) for chunk in (0, 8)
    }
    assert not made[0].whole and made[0].chunk == 256
    assert not made[8].whole and made[8].chunk == 8


def test_the_seed_decides(params, found):
    other = {r.id: r for r in engine(params, seed=1).run(mixed())}
    assert any(other[k].branches != r.branches for k, r in found.items())
    greedy = [r.id for r in mixed() if r.sampling.temperature == 0]
    assert all(other[k].branches == found[k].branches for k in greedy)


def test_eight_devices_sample_what_one_does(params, found):
    mesh = make_mesh(2, 2, 2, devices=jax.devices()[:8])
    spread = jax.device_put(params, param_shardings(CFG, mesh))
    same(found, {r.id: r for r in engine(spread, slots=8, mesh=mesh).run(mixed())})


def test_beginnings_in_common_are_computed_once(params):
    rng = np.random.default_rng(3)
    begins = rng.integers(0, 31, 24).tolist()
    requests = [Request(f"r{i}", [*begins, *rng.integers(0, 31, 4)], 3) for i in range(8)]
    work = engine(params, slots=4)
    results = list(work.run(requests))
    assert len(results) == 8
    # The first computes the beginning, seven take it.
    assert work.work.shared_tokens >= 7 * 24
    whole = engine(params, slots=4, share=0)
    same({r.id: r for r in results}, {r.id: r for r in whole.run(requests)})
    assert whole.work.shared_tokens == 0
    assert whole.work.saved == pytest.approx(1 - 1 / N)


def test_one_long_answer_holds_back_nobody(params):
    """A slot that writes R tokens stays while many short ones pass through the other."""
    long = Request("long", [1, 2, 3], max_tokens=R)
    short = [Request(f"s{i}", [4, 5, i], max_tokens=1) for i in range(12)]
    work = engine(params, slots=2, turn=3, refill=0.5, grammar=None)
    order = [r.id for r in work.run([long, *short])]
    assert order.index("long") > 3


def test_an_endless_stream_is_taken_as_it_is_needed(params):
    taken = 0

    def stream():
        nonlocal taken
        while True:
            yield Request(f"e{taken}", [1, 2, taken % 30], 2)
            taken += 1

    for count, _ in enumerate(engine(params).run(stream()), 1):
        if count == 30:
            break
    assert 30 <= taken < 90


# ---------------------------------------------------------------------------- what cannot be served


def test_requests_that_make_no_sense_are_refused_by_name(params):
    requests = [
        Request("good", [1, 2], 3),
        Request("empty", []),
        Request("long", [1] * 40),
        Request("wide", [1], 7),
        Request("foreign", [1, 99]),
        Request("many", [1], branches=4),
        Request("endless", [1], max_tokens=R + 1),
        Request("stops", [1], stops=tuple(range(STOPS + 1))),
    ]
    reasons = {r.id: r.refused for r in engine(params).run(requests)}
    assert reasons.pop("good") == ""
    for name, says in {
        "empty": "the prompt is empty", "long": "40 tokens exceeds the longest of 32",
        "wide": "shows 7 passages, and the grammar has 6 ids", "foreign": "vocabulary of 32",
        "many": "4 branches, more than 3", "endless": f"{R + 1} tokens, more than {R}",
        "stops": f"{STOPS + 1} stop tokens, more than {STOPS}",
    }.items():  # fmt: skip
        assert says in reasons.pop(name)
    assert not reasons


def test_memory_is_predicted_and_bounds_the_slots(params):
    shapes = []

    class Watched(Engine):
        def _open(self, length):
            opened = super()._open(length)
            shapes.append((length, self._pool.shape.slots if opened and self._pool else 0))
            return opened

    probe = engine(params, slots=8)
    short = probe._shape(16, 2)
    budget = 3 * slot_bytes(CFG, short)
    work = Watched(
        CFG, params, ONE, branches=N, max_tokens=R, lengths=(16, 4096), slots=8, grammar=GRAMMAR,
        budget=budget,
    )  # fmt: skip
    requests = [Request(f"q{i}", [1, i], 3) for i in range(5)] + [Request("huge", [1] * 4000, 2)]
    results = {r.id: r for r in work.run(requests)}
    assert "need" in results["huge"].refused and "GiB" in results["huge"].refused
    assert all(not results[f"q{i}"].refused for i in range(5))
    slots = dict(shapes)[16]
    assert 1 <= slots <= 3 and slots * slot_bytes(CFG, work._shape(16, slots)) <= budget
    # The caches that exist are the ones that were counted.
    pool = Pool(CFG, ONE, work._shape(16, slots), GRAMMAR, 8)
    pool.reset()
    assert pool.slots is not None
    held = sum(x.nbytes for x in jax.tree.leaves((pool.slots.trunk_cache, pool.slots.branch_cache)))
    assert held <= slots * slot_bytes(CFG, work._shape(16, slots))


@pytest.mark.slow  # an engine of its own
def test_when_memory_runs_out_fewer_enter_and_nothing_is_lost(params, found, monkeypatch):
    """A device that holds no more than two slots, whatever was predicted."""
    seen = []
    enter = Pool.enter

    def full(pool, *arguments):
        seen.append(pool.shape.slots)
        if pool.shape.slots > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        enter(pool, *arguments)

    monkeypatch.setattr(Pool, "enter", full)
    same(found, {r.id: r for r in engine(params, slots=4).run(mixed())})
    assert {4, 2} == set(seen)

    def empty(pool, *arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(Pool, "enter", empty)
    results = list(engine(params, slots=2).run(mixed()))
    assert len(results) == 14 and all("memory ran out" in r.refused for r in results)


def test_scores_that_are_not_numbers_refuse_the_request(params):
    broken = dict(params)
    broken["final_norm"] = params["final_norm"] * np.nan
    results = list(engine(broken).run(mixed(2)))
    assert [r.refused for r in results] == ["the model's scores are NaN or infinite"] * 2


def test_a_request_that_nobody_waits_for_leaves_its_slot(params, found):
    """Waiting or in flight; what the others give stays, and what it had written could be read."""
    work = engine(params, slots=2, turn=1, share=0)
    requests = mixed()
    for request in requests:
        work.submit(request)
    results = {r.id: r for r in work.step()}
    begun = work.written()
    going = next(name for name in begun if name not in results)
    assert begun[going] == found[going].branches[0][: len(begun[going])]
    waiting = requests[-1].id
    work.cancel(going)
    work.cancel(waiting)
    work.cancel("nobody")
    assert going not in work.written()
    while work.busy:
        results |= {r.id: r for r in work.step()}
    assert set(results) == set(found) - {going, waiting}
    same(results, {name: found[name] for name in results})


@pytest.mark.slow
def test_no_length_waits_forever_behind_another(params):
    """Short prompts come without end; the long one has its turn all the same."""

    def steps_until_done(patience):
        work = engine(params, slots=2, lengths=(16, 32), patience=patience, turn=R)
        rng = np.random.default_rng(1)
        prompt = lambda n: rng.integers(0, 31, n).tolist()  # noqa: E731
        how = {"shown": 3, "sampling": Sampling(0.0), "stops": (31,)}
        for i in range(4):
            work.submit(Request(f"s{i}", prompt(5), **how))
        results = {r.id for r in work.step()}
        work.submit(Request("long", prompt(30), **how))
        for step in range(40):
            work.submit(Request(f"t{step}", prompt(5), **how))
            work.submit(Request(f"u{step}", prompt(5), **how))
            results |= {r.id for r in work.step()}
            if "long" in results:
                return step
        return None

    assert steps_until_done(0) is None
    assert steps_until_done(3) < 12


@pytest.mark.parametrize(
    "setting", [{"cache_gib": -1}, {"refill": 0}, {"chunk": -1}, {"share": -1}, {"patience": -1}]
)
def test_settings_without_sense_are_refused(setting):
    with pytest.raises(Exception, match="engine: "):
        EngineConfig(**setting)
