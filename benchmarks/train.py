"""Our training step beside PyTorch's doing the same work: same weights, data, type and threads.

    python -m benchmarks.train                                  # a small model on the CPU
    python -m benchmarks.train --size 135m --lora 16 --prompts 1700 --batch 4 --tasks sft
    python -m benchmarks.train --size 1b --prompts 2048 6144 --batch 4 --remat full   # on a GPU
    python -m benchmarks.train --size 8b --lora 16 --prompts 8192 --batch 1 --remat full --alone

Rows: SFT (one list a prompt), a DPO pair, a group of eight lists; questions a second as the median
over rounds in which both take turns, and the ratio's range over the rounds. TRL's DPOTrainer, with
reference log-probabilities precomputed and not, where it is installed. The matrix rate is measured
in the same run, and the model FLOP utilization is of that rate.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASKS = {"sft": 1, "dpo": 2, "group": 8}
"""Branches a prompt."""

SIZES = {
    "small": (4096, 256, 4, 4, 2, 64, 768),
    "135m": (49152, 576, 30, 9, 3, 64, 1536),
    "1b": (128256, 2048, 16, 32, 8, 64, 8192),
    "3b": (128256, 3072, 28, 24, 8, 128, 8192),
    "8b": (128256, 4096, 32, 32, 8, 128, 14336),
}
"""Vocabulary, width, layers, heads, key/value heads, head size, MLP: a small model, SmolLM2's, and
Llama 3's."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048])
    parser.add_argument("--branch", type=int, default=40, help="tokens of a list")
    parser.add_argument("--batch", type=int, default=1, help="questions a step")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="steps a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--remat", choices=("none", "full", "dots"), default="none")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of ours alone; else by the device"
    )
    parser.add_argument("--lora", type=int, default=0, help="rank; trains adapters, ours alone")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--trl", action="store_true", help="TRL's DPOTrainer as well")
    return parser.parse_args()


def main() -> None:
    """Run the rows and print them."""
    args = options()
    # Before either framework starts its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from dynarag_jax.exchange.decoders import load_decoder
    from dynarag_jax.models import kernels
    from dynarag_jax.models.decoder import DecoderConfig

    vocab, width, layers, heads, kv_heads, head_size, mlp = SIZES[args.size]
    gpu = jax.devices()[0].platform == "gpu"
    dtype = args.dtype or ("float32" if jax.devices()[0].platform == "cpu" else "bfloat16")
    alone = args.alone or args.lora > 0
    if args.dtype and not alone:
        raise SystemExit("--dtype is of our step: the peers compute in their own; add --alone")
    numerics = {"dtype": dtype, "remat": args.remat, "unroll": 1 if gpu else layers}
    with tempfile.TemporaryDirectory() as scratch:
        if alone:
            params = None
            cfg = DecoderConfig(
                vocab=vocab, width=width, layers=layers, heads=heads, kv_heads=kv_heads,
                head_size=head_size, mlp=mlp, tied=True, rope_base=500_000.0,
                param_dtype="bfloat16" if args.lora else "float32", **numerics,
            )  # fmt: skip
        else:
            import torch

            from benchmarks import train_peers

            torch.set_num_threads(args.threads)
            sizes = {
                "vocab_size": vocab, "hidden_size": width, "num_hidden_layers": layers,
                "num_attention_heads": heads, "num_key_value_heads": kv_heads,
                "head_dim": head_size, "intermediate_size": mlp,
            }  # fmt: skip
            train_peers.make_model(sizes, Path(scratch))
            cfg, params = load_decoder(Path(scratch), "float32", **numerics)
        rate = matrix_rate(dtype)
        device = jax.devices()[0]
        print(
            f"{args.size} Llama on {device.device_kind}, {dtype}, {args.threads} threads, remat "
            f"{args.remat}, {kernels.choose(cfg).reason}; matrix rate {rate / 1e12:.3f} TFLOP/s",
            flush=True,
        )
        for prompt in args.prompts:
            for task in args.tasks:
                report(args, cfg, params, Path(scratch), task, prompt, rate, alone)


def report(
    args: Any,
    cfg: Any,
    params: Any,
    scratch: Path,
    task: str,
    prompt: int,
    rate: float,
    alone: bool,
) -> None:
    """Measure and print one row."""
    import jax

    from dynarag_jax.models.lora import LoraConfig
    from dynarag_jax.training.flops import PaddedShape, step_work

    n = TASKS[task]
    batch = batches(cfg.vocab, args.batch, prompt, n, args.branch)
    lora = LoraConfig(rank=args.lora) if args.lora else None
    ours = our_step(cfg, params, task, lora)
    peer = None
    if not alone:
        from benchmarks import train_peers

        theirs = train_peers.Peer(scratch, 1e-5, args.remat != "none")
        reference = theirs.logps(*batch(0)).detach().cpu().numpy()
        peer = lambda number: theirs.step(task, batch(number), reference)  # noqa: E731
        first, other = ours(batch(0), reference), peer(0)
        if abs(first - other) > (2e-3 if cfg.dtype == "float32" else 5e-2) * abs(other):
            raise SystemExit(f"not the same work: our first loss is {first}, theirs {other}")
    else:
        reference = None
        ours(batch(0), reference)
    here, there = [], []
    for turn in range(args.rounds):
        here.append(timed(lambda i: ours(batch(i), reference), args.steps, turn))
        if peer is not None:
            there.append(timed(peer, args.steps, turn))
    seconds = statistics.median(here)
    rows = PaddedShape(args.batch, prompt, n, args.branch)
    used = step_work(cfg, [rows], lora).model / seconds / rate
    line = f"{task:>5}, prompt {prompt}: ours {args.batch / seconds:.4g} questions/s"
    line += f", MFU {used:.0%} of the measured rate"
    if there:
        ratios = [b / a for a, b in zip(here, there, strict=True)]
        line += (
            f"; PyTorch {args.batch / statistics.median(there):.4g}; ratio "
            f"{statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})"
        )
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        line += f"; peak {stats['peak_bytes_in_use'] / 2**30:.1f} GiB in this run so far"
    print(line, flush=True)
    if task == "dpo" and args.trl and not alone:
        report_trl(args, scratch, batch, seconds)


def report_trl(args: Any, scratch: Path, batch: Any, seconds: float) -> None:
    """TRL's trainer on the same pairs, timed after ours on the same machine."""
    if importlib.util.find_spec("trl") is None:
        print("       TRL is not installed: its rows are left out", flush=True)
        return
    from benchmarks import train_peers

    for precomputed in (True, False):
        with contextlib.redirect_stdout(io.StringIO()):
            times = train_peers.trl_dpo(
                scratch, batch, 1 + args.rounds * args.steps, 1e-5, precomputed
            )
        name = "precomputed" if precomputed else "not precomputed"
        ratios = [t / seconds for t in times]
        print(
            f"       TRL DPOTrainer, reference {name}: "
            f"{args.batch / statistics.median(times):.4g} questions/s; ratio "
            f"{statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def timed(step: Callable[[int], Any], steps: int, turn: int) -> float:
    """Seconds a step."""
    began = time.perf_counter()
    for i in range(steps):
        step(1 + turn * steps + i)
    return (time.perf_counter() - began) / steps


def batches(vocab: int, rows: int, prompt: int, n: int, branch: int) -> Callable[[int], Any]:
    """Random prompts [B, P] and branches [B, N, R] by the number of the step; no padding."""
    import numpy as np

    def make(number: int) -> tuple[Any, Any]:
        rng = np.random.default_rng(number)
        return rng.integers(2, vocab, (rows, prompt)), rng.integers(2, vocab, (rows, n, branch))

    return make


def our_step(cfg: Any, params: Any, task: str, lora: Any) -> Callable[[Any, Any], float]:
    """Our update of a task; it returns the loss, which waits for the device."""
    import jax

    from dynarag_jax.models import decoder
    from dynarag_jax.objectives.terms import Dpo, Objectives, TokenNll
    from dynarag_jax.policy.batches import BatchShape, Example, collate
    from dynarag_jax.policy.grammar import Spelling, build_grammar
    from dynarag_jax.sharding import make_mesh
    from dynarag_jax.training.optimizer import OptimizerConfig, make_optimizer
    from dynarag_jax.training.step import Adapting, StreamLoss, init_state, make_step

    grammar = build_grammar(Spelling((), ((2,), (3,)), (4,), (), (5,), 6))
    optimizer = OptimizerConfig(learning_rate=1e-5, schedule="constant", warmup=0.0)
    rule = make_optimizer(optimizer, 1000)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    dpo = Objectives(nll=TokenNll(weight=0.0), dpo=Dpo(weight=1.0, beta=0.1))
    part = StreamLoss(dpo if task == "dpo" else Objectives())
    adapting = None
    if lora is not None:
        base = jax.jit(lambda: decoder.init_params(cfg, jax.random.key(0)))()
        adapting = Adapting(lora, base)
    held = [init_state(cfg, mesh, rule, None if lora else params, lora=lora)]
    step = make_step(cfg, mesh, rule, grammar, {"x": part}, adapting=adapting)

    def run(data: tuple[Any, Any], reference: Any) -> float:
        prompts, branches = data
        n = branches.shape[1]
        there = [()] * len(prompts) if reference is None else reference.tolist()
        examples = [
            Example(
                str(i), p.tolist(), b.tolist(), supervised=[1.0] * n, reference=r,
                preferred=task == "dpo",
            )
            for i, (p, b, r) in enumerate(zip(prompts, branches, there, strict=True))
        ]  # fmt: skip
        batch = collate(examples, BatchShape(prompts.shape[1], n, branches.shape[2], 2))
        held[0], figures = step(held[0], {"x": batch})
        return float(figures["loss"])

    return run


def matrix_rate(dtype: str) -> float:
    """Operations a second of one large matrix product, the best of several."""
    import jax

    size = 8192 if dtype == "bfloat16" else 2048
    # Of ones a GPU multiplies faster than of numbers that differ: it draws less power.
    a = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
    multiply = jax.jit(lambda a, b: a @ b)
    multiply(a, a).block_until_ready()
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        multiply(a, a).block_until_ready()
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    main()
