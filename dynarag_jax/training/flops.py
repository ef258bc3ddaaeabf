"""Operations of a training step, counted from shapes.

These are *model* operations, multiplications and additions of the matrix products and of attention
over the padded shapes; what rematerialization computes twice is counted apart. Model FLOP
utilization (arXiv 2204.02311, appendix B) is their rate over the device's peak.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from dynarag_jax.models.config import DecoderConfig
from dynarag_jax.models.lora import MATRICES, LoraConfig


class StepOperations(NamedTuple):
    """Operations of one step over all devices."""

    model: float
    """forward and backward"""
    recomputed: float
    """what rematerialization adds"""


@dataclass(frozen=True)
class PaddedShape:
    """The padded shape of one stream's batch: what a step computes on."""

    batch: int
    prompt: int
    branches: int
    branch: int
    prompt_loss: bool = False
    """whether prompt positions are projected to the vocabulary as well"""

    @property
    def trunk_tokens(self) -> int:
        """Prompt positions that pass through the layers."""
        return self.batch * self.prompt

    @property
    def branch_tokens(self) -> int:
        """Branch positions that pass through the layers; a branch's last token predicts nothing."""
        return self.batch * self.branches * (self.branch - 1)

    @property
    def projected(self) -> int:
        """Positions projected to the vocabulary."""
        prompt = self.batch * (self.prompt - 1) if self.prompt_loss else 0
        return self.batch * self.branches * self.branch + prompt


def layer_matrices(cfg: DecoderConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of every matrix of a layer."""
    d, q, kv = cfg.width, cfg.heads * cfg.head_size, cfg.kv_heads * cfg.head_size
    sizes = {
        "query": (d, q), "key": (d, kv), "value": (d, kv), "output": (q, d),
        "gate": (d, cfg.mlp), "up": (d, cfg.mlp), "down": (cfg.mlp, d),
    }  # fmt: skip
    return {name: sizes[name] for name in MATRICES}


def visible_keys(cfg: DecoderConfig, rows: PaddedShape) -> int:
    """Pairs of query and key that attention sees in one row, summed over the layers."""
    local = cfg.windowed or (cfg.window is not None,) * cfg.layers
    total = 0
    for windowed in local:
        window = cfg.window if windowed and cfg.window is not None else rows.prompt + rows.branch
        full = min(window, rows.prompt)
        total += full * (full + 1) // 2 + (rows.prompt - full) * full
        for t in range(rows.branch - 1):
            total += rows.branches * min(window, rows.prompt + t + 1)
    return total


def step_work(
    cfg: DecoderConfig, streams: Iterable[PaddedShape], lora: LoraConfig | None = None
) -> StepOperations:
    """Operations of one update on these streams, whatever the number of microbatches."""
    matrices = layer_matrices(cfg)
    per_token = 2 * cfg.layers * sum(i * o for i, o in matrices.values())
    adapters = 0
    if lora is not None and lora.rank:
        adapters = 2 * cfg.layers * lora.rank * sum(sum(matrices[name]) for name in lora.names())
    model = recomputed = 0.0
    for rows in streams:
        tokens = rows.trunk_tokens + rows.branch_tokens
        attention = 4 * rows.batch * cfg.heads * cfg.head_size * visible_keys(cfg, rows)
        projection = 2 * cfg.width * cfg.vocab * rows.projected
        layers = tokens * (per_token + adapters) + attention
        # Twice the forward is its gradient: one product for the inputs, one for the weights, which
        # frozen weights spare.
        frozen = adapters > 0
        passes = 2 if frozen else 3
        model += passes * (tokens * per_token + projection) + 3 * (tokens * adapters + attention)
        if cfg.remat in ("full", "offload"):
            recomputed += layers
        elif cfg.remat in ("dots", "dots_offload"):
            recomputed += attention
    return StepOperations(model, recomputed)
