"""``--plan``: counted against a state that is really laid out, and printed without a device."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import pytest

from benchmarks.compile import FAMILIES
from dynarag_jax.launch.program import main
from dynarag_jax.models.decoder import DecoderConfig, init_params, trunk_and_branches
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.flops import PaddedShape
from dynarag_jax.training.optimizer import OptimizerConfig, make_optimizer
from dynarag_jax.training.plan import plan
from dynarag_jax.training.step import init_state

CFG = DecoderConfig(
    vocab=64, width=16, layers=2, heads=4, kv_heads=2, head_size=8, mlp=24, positions=64
)
ROWS = [PaddedShape(batch=16, prompt=40, branches=2, branch=8)]
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256,
    "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 8192,
    "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip


def bytes_of(tree):
    """What one device holds of a tree of arrays."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)], ids=["whole", "adapters"])
def test_weights_and_moments_are_those_of_a_state_on_the_mesh(lora):
    sizes, optimizer = (2, 2, 2), OptimizerConfig()
    planned = plan(CFG, ROWS, sizes, optimizer, lora=lora)
    rule = make_optimizer(optimizer, 100)
    mesh = make_mesh(*sizes, devices=jax.devices()[: planned.devices])
    whole = init_state(CFG, mesh, rule)
    state = init_state(CFG, mesh, rule, lora=lora) if lora else whole
    adapters = bytes_of(state.params) if lora else 0
    assert planned.weights == bytes_of(whole.params) + adapters
    assert planned.gradients == bytes_of(state.params)
    assert planned.moments == bytes_of(state.optimizer)
    assert planned.trained == sum(x.size for x in jax.tree.leaves(state.params))


def test_what_is_offloaded_leaves_the_device():
    here = plan(CFG, ROWS, (2, 1, 1), OptimizerConfig())
    there = plan(CFG, ROWS, (2, 1, 1), OptimizerConfig(offload=True))
    assert (there.moments, there.host) == (0, here.moments)
    full, offload = (
        plan(dataclasses.replace(CFG, remat=remat), ROWS, (2, 1, 1), OptimizerConfig())
        for remat in ("full", "offload")
    )
    assert full.activations - offload.activations == offload.host
    assert here.activations > full.activations


@pytest.mark.parametrize("prompt", [40, 160])
@pytest.mark.parametrize("post_norms", [False, True])
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_what_layers_keep_is_what_jax_keeps(remat, post_norms, prompt):
    cfg = dataclasses.replace(
        CFG, layers=3, width=48, positions=256, remat=remat, post_norms=post_norms
    )
    rows = PaddedShape(batch=2, prompt=prompt, branches=2, branch=8)
    params = jax.eval_shape(lambda key: init_params(cfg, key), jax.random.key(0))
    tokens = [
        jax.ShapeDtypeStruct(shape, "int32") for shape in ((2, prompt), (2,), (2, 2, rows.branch))
    ]

    def kept(params, *tokens):
        return jax.vjp(lambda params: trunk_and_branches(cfg, params, *tokens), params)[1]

    own = {x.shape for x in jax.tree.leaves(params)}
    left = jax.tree.leaves(jax.eval_shape(kept, params, *tokens))
    # One of each layer, and no parameter.
    stacked = [x for x in left if x.shape[:1] == (cfg.layers,) and x.shape not in own]
    outside = 2 * 4 * cfg.width * 2 * (prompt + 2 * (rows.branch - 1))
    planned = plan(cfg, [rows], (1, 1, 1), OptimizerConfig()).activations - outside
    assert planned == sum(x.size * x.dtype.itemsize for x in stacked)


def test_time_is_the_work_over_the_rate():
    planned = plan(CFG, ROWS, (2, 2, 1), OptimizerConfig())
    assert planned.seconds(1e12, 0.25) == pytest.approx(planned.work.model / 1e12)


def planned(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main("sft", ["configs/llama3_8b.py", *arguments])
    said = capsys.readouterr()
    return ended.value.code, said.out + said.err


def test_an_8b_model_is_planned_from_its_config_alone(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    asked = ["--init", str(tmp_path), "--plan", "--plan.device", "h100", "--plan.devices"]
    code, said = planned(capsys, *asked, "8")
    assert code == 0
    assert "8,030,261,248 parameters" in said  # as Meta counts them
    assert "8 x h100, mesh data x fsdp x tensor = 1 x 8 x 1" in said
    assert re.search(r"weights +3\.74 GiB", said)  # a float32 eighth of them
    assert "\nfits: " in said
    assert " s a step at 40% of 989 TFLOP/s each" in said
    code, said = planned(capsys, *asked, "1")
    assert (code, "\nDOES NOT FIT: " in said) == (0, True)
    # Nothing of the run was begun.
    assert not any(path.name != "config.json" for path in tmp_path.iterdir())


def test_prompts_in_parts_are_planned(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    asked = ["--init", str(tmp_path), "--plan", "--plan.device", "v5p", "--plan.devices", "64"]
    asked += ["--reranker.batch", "16", "--generator.batch", "16", "--accumulate", "1"]
    code, said = planned(capsys, *asked, "--run.mesh.sequence", "4")
    assert code == 0
    assert "64 x v5p, mesh data x fsdp x sequence x tensor = 1 x 16 x 4 x 1" in said
    assert re.search(r"weights +0\.47 GiB", said)  # a 64th of them
    assert " GB of keys and values that a device sends a step, over the sequence axis\n" in said
    assert "splash attention" in said
    code, said = planned(capsys, *asked)
    assert code == 2
    assert "reranker.batch = 16 does not divide over 64 batch shards" in said


@pytest.mark.parametrize("stage", ["sft", "feedback"])
@pytest.mark.parametrize(
    ("config", "family", "device", "count"),
    [
        ("gemma3_1b", "gemma3-1b", "v5e", 8),
        ("llama3_70b", "llama3-70b", "v5p", 512),
        ("llama3_8b", "llama3-8b", "h100", 8),
        ("llama3_8b_lora", "llama3-8b", "v5e", 8),
        ("llama3_8b_v5p", "llama3-8b", "v5p", 64),
        ("qwen3_4b", "qwen3-4b", "v6e", 8),
    ],
)
def test_a_config_fits_the_machines_that_it_names(
    config, family, device, count, stage, tmp_path, capsys
):
    shape = FAMILIES[family] | {"max_position_embeddings": 16384}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    with pytest.raises(SystemExit) as ended:
        main(
            stage,
            [
                *(f"configs/{config}.py", "--init", str(tmp_path)),
                *("--plan", "--plan.device", device, "--plan.devices", str(count)),
            ],
        )
    said = capsys.readouterr()
    assert (ended.value.code, "\nfits: " in said.out) == (0, True), said.out + said.err


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_a_part_of_a_prompt_is_a_part_of_its_activations(remat):
    # Heads as wide as a TPU's lanes, to which smaller ones are padded, and the rest in proportion.
    cfg = dataclasses.replace(CFG, remat=remat, positions=4096, head_size=128, width=512, mlp=1408)
    rows = [PaddedShape(batch=2, prompt=4096, branches=2, branch=8, prompt_loss=True)]
    whole, parts = (
        plan(cfg, rows, sizes, OptimizerConfig(), kernel="splash")
        for sizes in ((1, 2, 1), (1, 2, 4, 1))
    )
    assert parts.devices == 4 * whole.devices
    assert whole.weights / 4 < parts.weights < whole.weights / 3.5  # norms are whole
    assert 0.24 < parts.activations / whole.activations < 0.27
    assert parts.working < 0.6 * whole.working
    assert parts.work == whole.work
    assert (parts.sent > 0, whole.sent) == (True, 0)
    assert parts.cache == whole.cache  # one row of two on each of eight devices, rounded up


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "--plan.device", "h1000"], "accelerator 'h1000' is not known"),
        (["--plan", "--plan.devices", "many"], "Error parsing --plan.devices: invalid literal"),
        (["--plan", "--plan.mfu", "40"], "plan.mfu = 40.0 must lie in (0, 1]"),
        (["--plan.memory", "3"], "Unrecognized options: --plan.memory"),
        (
            "--plan --plan.devices 3 --reranker.batch 6 --generator.batch 6".split(),
            "the mesh does not divide these arrays",
        ),
        (["--plan", "--plan.devices", "16", "--accumulate", "4"], "nearest sizes are 64"),
        (
            "--plan --plan.devices 8 --prompts.rerank_tokens 9000".split(),
            "reranker: prompts of 9000 tokens are more than the model's 8192 positions",
        ),
        (["--init", "nowhere/", "--plan"], "nowhere/: no such model directory"),
    ],
)  # fmt: skip
def test_plans_that_cannot_be_made_say_why(tmp_path, capsys, arguments, message):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    code, said = planned(capsys, "--init", str(tmp_path), "--plan.device", "h100", *arguments)
    assert code == 2
    assert message in " ".join(said.replace("│", " ").split())
    assert said.count("\n") == 1 or "For full helptext" in said
