"""Operations counted from shapes, against the compiler's own count and by enumeration."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from dynarag_jax.errors import InputError
from dynarag_jax.hardware import ACCELERATORS, accelerator, of_kind
from dynarag_jax.models import decoder
from dynarag_jax.models.decoder import DecoderConfig
from dynarag_jax.models.lora import LoraConfig
from dynarag_jax.training.flops import PaddedShape, layer_matrices, step_work, visible_keys

CFG = DecoderConfig(
    vocab=512, width=256, layers=2, heads=4, kv_heads=2, head_size=64, mlp=512, unroll=2
)


def compiled_operations(cfg, rows, gradient):
    """What the compiler counts for the model's products, attention in full squares."""

    def loss(params, trunk, lengths, branches):
        _, hidden = decoder.trunk_and_branches(cfg, params, trunk, lengths, branches)
        return decoder.logits(cfg, params, hidden).sum()

    shapes = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32),
        decoder.parameter_table(cfg),
        is_leaf=decoder.is_parameter,
    )
    integers = (
        jax.ShapeDtypeStruct(shape, jnp.int32)
        for shape in (
            (rows.batch, rows.prompt),
            (rows.batch,),
            (rows.batch, rows.branches, rows.branch),
        )
    )
    run = jax.grad(loss) if gradient else loss
    analysis = jax.jit(run).lower(shapes, *integers).compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def test_the_count_is_the_compilers():
    rows = PaddedShape(batch=2, prompt=96, branches=3, branch=9)
    # The compiler multiplies masked scores, too: own keys of a branch and the trunk's in full.
    pairs = rows.prompt**2 + rows.branches * 8 * (rows.prompt + 8)
    masked = pairs * CFG.layers - visible_keys(CFG, rows)
    work = step_work(CFG, [rows])
    extra = 3 * 4 * rows.batch * CFG.heads * CFG.head_size * masked
    # Beside products it counts norms, rotations and softmax: a few percent at this width.
    assert compiled_operations(CFG, rows, True) == pytest.approx(work.model + extra, rel=0.06)
    forward = (work.model + extra) / 3
    assert compiled_operations(CFG, rows, False) == pytest.approx(forward, rel=0.06)


@pytest.mark.parametrize("window", [None, 1, 5, 40])
def test_visible_pairs_are_those_of_the_masks(window):
    cfg = DecoderConfig(layers=3, window=window, windowed=(True, False, True) if window else ())
    rows = PaddedShape(batch=7, prompt=11, branches=2, branch=5)
    seen = 0
    for windowed in cfg.windowed or (False,) * 3:
        reach = window if windowed else 1000
        seen += sum(q - reach < k <= q for q in range(11) for k in range(11))
        seen += 2 * sum(q - reach < k <= q for q in range(11, 15) for k in range(15))
    assert visible_keys(cfg, rows) == seen


def test_adapters_spare_the_gradients_of_frozen_matrices():
    rows = PaddedShape(batch=1, prompt=1, branches=1, branch=2)
    lora = LoraConfig(rank=4, targets=("query", "down"))
    plain, adapted = step_work(CFG, [rows]).model, step_work(CFG, [rows], lora).model
    tokens, matrices = 2, layer_matrices(CFG)
    frozen = 2 * CFG.layers * tokens * sum(i * o for i, o in matrices.values())
    frozen += 2 * CFG.width * CFG.vocab * 2
    trained = 6 * CFG.layers * tokens * 4 * (sum(matrices["query"]) + sum(matrices["down"]))
    assert plain - adapted == frozen - trained


def test_what_is_recomputed_is_a_forward_of_the_layers():
    rows = PaddedShape(batch=2, prompt=30, branches=1, branch=4, prompt_loss=True)
    full = step_work(DecoderConfig(remat="full"), [rows])
    assert step_work(DecoderConfig(), [rows]) == (full.model, 0)
    projection = 3 * 2 * 64 * 320 * (2 * 4 + 2 * 29)
    assert 3 * full.recomputed == full.model - projection
    assert 0 < step_work(DecoderConfig(remat="dots"), [rows]).recomputed < full.recomputed


def test_accelerators_are_found_by_name_and_by_kind():
    assert of_kind("TPU v5 lite") is ACCELERATORS["v5e"]
    assert of_kind("TPU v5") is ACCELERATORS["v5p"]
    assert of_kind("NVIDIA H100 80GB HBM3") is accelerator("h100")
    assert of_kind("cpu") is None
    with pytest.raises(InputError, match="did you mean 'h100'"):
        accelerator("h1000")
