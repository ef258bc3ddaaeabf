"""The step that is compiled for machines that are not here, compiled for those that are."""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any, cast

import jax
import pytest

from dynarag_jax.compilers import topologies
from dynarag_jax.compilers.topologies import (
    CompilerFails,
    TooLarge,
    compile_program,
    read_topology,
)
from dynarag_jax.config import Run, inherit
from dynarag_jax.errors import InputError
from dynarag_jax.launch import plan_compiled
from dynarag_jax.launch.cli import main
from dynarag_jax.models.decoder import DecoderConfig, count_parameters
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.prompts import PromptConfig
from dynarag_jax.sharding import make_mesh
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.compiled import lower_step
from dynarag_jax.training.config import Stream
from dynarag_jax.training.flops import PaddedShape, step_work

CFG = DecoderConfig(
    vocab=512, width=64, layers=2, heads=4, kv_heads=2, head_size=16, mlp=128, tied=False
)
STREAMS = {"reranker": PaddedShape(8, 128, 1, 24), "generator": PaddedShape(8, 64, 1, 16)}
PROMPTS = PromptConfig(ids=6, max_list=4, rerank_tokens=128, answer_prompt_tokens=64)


def compiled(cfg=CFG, lora=None, accumulate=1, devices=4):
    stage = Sft(
        reranker=Stream(batch=8), generator=Stream(batch=8), model=cfg, accumulate=accumulate,
        lora=lora or LoraConfig(rank=0),
    )  # fmt: skip
    stage = inherit(Run(directory="r", prompts=PROMPTS), stage)
    mesh = make_mesh(1, devices, 1, devices=jax.devices()[:devices])
    return compile_program(lower_step(stage, cfg, STREAMS, mesh))


@pytest.mark.parametrize(
    ("lora", "remat"),
    [
        pytest.param(None, "none", marks=pytest.mark.slow),
        (None, "full"),
        pytest.param(LoraConfig(rank=4), "full", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_its_operations_are_those_that_the_plan_counts(lora, remat):
    """Within what the plan leaves out (attention's masked half) and recomputing spares."""
    cfg = dataclasses.replace(CFG, remat=remat)
    work = step_work(cfg, STREAMS.values(), lora)
    found = compiled(cfg, lora).costs.operations * 4
    assert 0.9 * (work.model + work.recomputed) < found < 1.3 * (work.model + work.recomputed)


@pytest.mark.slow
def test_a_device_holds_its_share_of_the_state():
    whole, half = compiled(devices=1), compiled(devices=2)
    assert whole.arguments > 4 * count_parameters(CFG)
    assert 0.5 < half.arguments / whole.arguments < 0.6
    assert {one.kind for one in half.costs.collectives} >= {"all-gather", "all-reduce"}
    assert not whole.costs.collectives


@pytest.mark.slow
def test_microbatches_compute_the_same_and_hold_less():
    once, twice = compiled(), compiled(accumulate=2)
    assert twice.costs.operations == pytest.approx(once.costs.operations, rel=0.02)


def test_kernels_count_by_their_shapes():
    rows = PaddedShape(8, 128, 1, 24)
    forward = 4 * 8 * CFG.heads * CFG.head_size * 128 * 129 / 2
    runs = {"splash_mha_fwd_residuals": 2 * 3, "splash_mha_dkv": 3, "splash_mha_dq": 3}
    found = plan_compiled.attention_operations(CFG, {"reranker": rows}, runs, 4)
    assert found == forward / 4 * (2 * 3 + 2.5 * 3)
    # As cuDNN's calls are named: tests/models/test_kernels.py lowers to them.
    cudnn = {"__cudnn$fmhaSoftmax": 2 * 3, "__cudnn$fmhaSoftmaxBackward": 3, "__cublas$gemm": 7}
    assert plan_compiled.attention_operations(CFG, {"reranker": rows}, cudnn, 4) == found
    assert plan_compiled.attention_operations(CFG, {"reranker": rows}, {}, 4) == 0


def test_what_a_compiler_made_is_kept_and_read_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    x = jax.ShapeDtypeStruct((8, 4), "float32")
    lowered = jax.jit(lambda x: x.T @ x).lower(x)
    topology = read_topology("v5e:2x2")
    first, kept = plan_compiled._compiled(lowered, topology, ())
    assert not kept
    assert first.costs.operations == 2 * 8 * 4 * 4
    monkeypatch.setattr(plan_compiled, "compile_text", lambda _: pytest.fail("compiled again"))
    assert plan_compiled._compiled(lowered, topology, ()) == (first, True)
    with monkeypatch.context() as told:
        told.setenv("LIBTPU_INIT_ARGS", "--xla_some_flag=true")
        with pytest.raises(pytest.fail.Exception, match="compiled again"):
            plan_compiled._compiled(lowered, topology, ())
    # Kept is the program's text: what is read otherwise needs no compiler.
    costs = dataclasses.replace(first.costs, operations=7.0)
    monkeypatch.setattr(topologies, "read_program", lambda *_: costs)
    assert plan_compiled._compiled(lowered, topology, ())[0].costs == costs


class Fails:
    """A lowered program whose compiler says why not."""

    def __init__(self, words: str) -> None:
        self.words = words

    def compile(self) -> None:
        raise jax.errors.JaxRuntimeError(self.words)


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("RESOURCE_EXHAUSTED: Used 20.0G of 15.75G hbm", TooLarge),
        ("INTERNAL: Couldn't find output tile sizes", CompilerFails),
    ],
)
def test_what_a_compiler_refuses_is_said_in_its_words(words, kind):
    with pytest.raises(kind, match=words[:20]):
        compile_program(cast(Any, Fails(words)))


def test_a_model_that_jax_lowers_on_its_gpu_alone_is_refused_by_name(monkeypatch):
    def lower(*_):
        raise NotImplementedError("The head dim must be <= 128")

    monkeypatch.setattr(plan_compiled, "mesh_for", lambda *_: None)
    monkeypatch.setattr(plan_compiled, "lower_step", lower)
    with pytest.raises(InputError, match=r"'h100:8'.*<= 128.*--model.attention plain"):
        plan_compiled.compile_step(
            read_topology("h100:8"), "", Sft(), CFG, STREAMS, (1, 8, 1), cast(Any, None)
        )


def plan(*arguments: str) -> None:
    main(["sft", "configs/quickstart.py", "--plan", *arguments])


@pytest.mark.slow  # three plans
def test_wrong_targets_end_with_2_and_one_line(capsys):
    for arguments, message in (
        (("--plan.compile", "v5e:2"), "slices of a v5e have two sizes"),
        (("--plan.compile", "v5e:2x2", "--plan.devices", "4"), "names the devices"),
        (("--plan.compile", "h100:2"), "set plan.card to a file"),
    ):
        with pytest.raises(SystemExit) as end:
            plan(*arguments)
        assert end.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_compiler_of_tpus_plans_a_stage_and_what_it_said_is_kept(capsys, tmp_path, monkeypatch):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: nothing is compiled for a TPU")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    plan("--plan.compile", "v5e:2x2")
    first = capsys.readouterr().out
    assert "; compiled in" in first and "all-reduce" in first and "bound by" in first
    plan("--plan.compile", "v5e:2x2")
    second = capsys.readouterr().out
    assert "; kept from before" in second
    assert second.splitlines()[-7:] == first.splitlines()[-7:]


def test_without_the_compiler_its_extra_is_named():
    if importlib.util.find_spec("libtpu") is not None:
        pytest.skip("libtpu is installed")
    with pytest.raises((InputError, SystemExit)):
        plan("--plan.compile", "v5e:2x2")
