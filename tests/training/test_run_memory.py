"""What a training run keeps on the devices: parameters, two moments of Adam, and little else."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dynarag_jax.exchange.decoders import save_decoder
from dynarag_jax.exchange.tokenizers import train_word_level
from dynarag_jax.models.decoder import DecoderConfig, init_params
from dynarag_jax.prompts import COMPACT_WORDS, PromptConfig
from dynarag_jax.records import Passage, Question
from dynarag_jax.sharding import make_mesh
from dynarag_jax.stages.sft import Sft
from dynarag_jax.training.checkpoints import Checkpoints, latest_step
from dynarag_jax.training.config import Stream
from dynarag_jax.training.loop import Watch
from dynarag_jax.training.run import begin, behavior_source, example_maker, train

PROMPTS = PromptConfig(
    style="compact", ids=2, max_list=2, rerank_tokens=32, answer_prompt_tokens=32, answer_tokens=4
)
CFG = DecoderConfig(
    vocab=16_384, width=64, layers=1, heads=2, kv_heads=1, head_size=8, mlp=16, positions=64
)


def held() -> int:
    """Bytes of all arrays that live."""
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.fixture(scope="module")
def init(tmp_path_factory):
    """A model's directory, nearly all of it one large embedding."""
    where = tmp_path_factory.mktemp("model")
    tokenizer = train_word_level(["w0", "w1", *COMPACT_WORDS], where / "tokenizer", 2)
    save_decoder(where / "init", CFG, init_params(CFG, jax.random.key(0)), tokenizer)
    return where / "init"


def run(init, directory, steps: int) -> list[int]:
    """Train, and say how many bytes were added: after the start, and after every step."""
    mesh = make_mesh(1, devices=jax.devices()[:1])
    stage = Sft(
        init=str(init), prompts=PROMPTS, model=CFG, steps=steps, checkpoint_every=2, log_every=1,
        reranker=Stream(batch=1), generator=Stream(batch=0),
    )  # fmt: skip
    passages = tuple(Passage(str(i), "w0") for i in range(2))
    questions = [Question("q", "w0 w1", ("w1",), passages=passages, expert=(1,))]
    before = held()
    start = begin(stage, init, None, mesh)
    source = behavior_source(stage, start, questions, example_maker(stage, start), 0)
    seen = []
    train(
        stage, start, [source], mesh, 0, directory,
        watch=Watch(
            on_begin=lambda *_: seen.append(held() - before),
            on_step=lambda: seen.append(held() - before),
        ),
    )  # fmt: skip
    return seen


@pytest.fixture
def size(init) -> int:
    return sum(np.prod(x.shape) * 4 for x in jax.tree.leaves(jax.eval_shape(
        lambda: init_params(CFG, jax.random.key(0))
    )))  # fmt: skip


def test_a_run_holds_three_times_its_parameters_also_when_it_goes_on(
    init, size, tmp_path, monkeypatch
):
    # After the first step. (Where devices are CPUs, what is being saved is read where it lies.)
    assert max(run(init, tmp_path, 2)[:2]) < 3.1 * size
    # A checkpoint is read where nothing lies: its state is the first thing that is held.
    restore, at_restore = Checkpoints.restore, []

    def watched(self, *arguments, **options):
        at_restore.append(held())
        return restore(self, *arguments, **options)

    monkeypatch.setattr(Checkpoints, "restore", watched)
    before = held()
    assert max(run(init, tmp_path, 4)[:2]) < 3.1 * size
    assert at_restore[0] - before < 0.1 * size


def test_weights_stay_on_disk_where_a_checkpoint_holds_them(init, size, tmp_path):
    assert latest_step(tmp_path / "checkpoints") is None
    run(init, tmp_path, 2)
    assert latest_step(tmp_path / "checkpoints") == 2
    stage = Sft(init=str(init), prompts=PROMPTS, model=CFG)
    before = held()
    start = begin(stage, init, None, make_mesh(1, devices=jax.devices()[:1]), weights=False)
    assert start.params is None and held() - before < 0.1 * size
