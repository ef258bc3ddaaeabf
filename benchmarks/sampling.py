"""Lists per second of the sampling engine beside transformers' ``generate`` and vLLM.

    python -m benchmarks.sampling --threads 2
    python -m benchmarks.sampling --width 2048 --layers 16 --dtype bfloat16    # on an accelerator

One random Llama, the same weights and type everywhere, the same prompts; every system writes
exactly ``--tokens`` tokens a branch, sampled at temperature 1. ``generate`` gets the prompts of a
batch at once with ``num_return_sequences``; vLLM, where it is installed and has a device, its own
scheduler. In one run, in turn, ``--rounds`` times; printed are medians and the spread of ratios.

The last lines set the engine's decoding against the memory bandwidth that a sum over a large array
reaches in the same run: a step reads the weights once and each slot's caches once.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[500, 2000, 6000])
    parser.add_argument("--questions", type=int, default=2, help="prompts a measurement")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--chunk", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-generate", action="store_true")
    parser.add_argument(
        "--clock", default="wall", choices=CLOCKS,
        help="cpu counts the process's seconds of computing, for CPUs that others use, too",
    )  # fmt: skip
    return parser.parse_args()


def seconds_of(work: Callable[[], Any], clock: str = "wall") -> float:
    """Seconds of one call."""
    began = CLOCKS[clock]()
    work()
    return CLOCKS[clock]() - began


def bandwidth() -> float:
    """Bytes a second that a sum over 1 GiB reads from the device's memory."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros(1 << 28, jnp.float32)
    read = jax.jit(lambda x: x.sum())
    read(x).block_until_ready()
    return x.nbytes / min(seconds_of(lambda: read(x).block_until_ready()) for _ in range(5))


def main() -> None:
    """Measure and print."""
    options = arguments()
    import jax

    from dynarag_jax.exchange.decoders import save_decoder
    from dynarag_jax.exchange.tokenizers import load_tokenizer, train_bpe
    from dynarag_jax.models import decoder
    from dynarag_jax.models.decoder import DecoderConfig, count_parameters
    from dynarag_jax.sampling.engine import Engine
    from dynarag_jax.sampling.pool_sizes import slot_bytes, trunk_bytes
    from dynarag_jax.sampling.requests import EngineConfig, Request
    from dynarag_jax.sharding import make_mesh

    heads = max(2, options.width // 64)
    cfg = DecoderConfig(
        vocab=8192, width=options.width, layers=options.layers, heads=heads,
        kv_heads=max(1, heads // 2), head_size=64, mlp=3 * options.width, positions=8192,
        dtype=options.dtype, param_dtype=options.dtype,
    )  # fmt: skip
    params = decoder.init_params(cfg, jax.random.key(0))
    mesh = make_mesh(devices=jax.devices()[:1])
    print(f"{count_parameters(cfg):,} parameters, {options.dtype}, {jax.devices()[0].device_kind}")
    rng = np.random.default_rng(0)
    prompts = {p: rng.integers(0, 8192, (options.questions, p)).tolist() for p in options.prompts}

    engines: dict[tuple[int, int], Engine] = {}
    # Rounds repeat their prompts: none is to be taken from an earlier round's cache.
    whole = EngineConfig(chunk=options.chunk, share=0)

    def ours(p: int, n: int) -> None:
        if (p, n) not in engines:
            engines[p, n] = Engine(
                cfg, params, mesh, branches=n, max_tokens=options.tokens, lengths=(p,),
                slots=options.slots, config=whole,
            )  # fmt: skip
        requests = [Request(f"{i}", t) for i, t in enumerate(prompts[p])]
        assert all(not r.refused for r in engines[p, n].run(requests))

    systems: dict[str, Callable[[int, int], None]] = {"engine": ours}
    with tempfile.TemporaryDirectory() as place:
        model = f"{place}/model"
        train_bpe(["[1], [2] None"], f"{place}/tokenizer", 280)
        tokenizer = load_tokenizer(f"{place}/tokenizer")
        save_decoder(model, cfg, params, tokenizer, dtype=options.dtype)
        if not options.no_generate:
            systems["generate"] = transformers_generate(model, options, prompts)
        if vllm := vllm_generate(model, options, prompts):
            systems["vLLM"] = vllm
        seconds: dict[tuple[str, int, int], list[float]] = {}
        for p in options.prompts:
            for n in (1, 8):
                for name, system in systems.items():
                    if name != "generate":
                        system(p, n)  # compile, warm up
                for _ in range(options.rounds):
                    for name, system in systems.items():
                        took = seconds_of(lambda s=system, p=p, n=n: s(p, n), options.clock)
                        seconds.setdefault((name, p, n), []).append(took)
                report(seconds, systems, p, n, options.questions)
    for p in options.prompts:
        one, eight = seconds["engine", p, 1], seconds["engine", p, 8]
        ratios = [b / a for a, b in zip(one, eight, strict=True)]
        pool = {n: engines[p, n]._shape(p, options.slots) for n in (1, 8)}
        held = {n: slot_bytes(cfg, shape) for n, shape in pool.items()}
        print(
            f"{p} tokens: n = 8 takes {spread(ratios)} x the time of n = 1, and "
            f"{held[8] / held[1]:.2f} x its memory for caches ({held[8] / 2**20:.1f} MiB a prompt)"
        )

    # Decoding alone: the same prompts, twice as many tokens; the difference is decoding.
    rate, weights = bandwidth(), sum(x.nbytes for x in jax.tree.leaves(params))
    print(f"memory bandwidth here: {rate / 1e9:.1f} GB/s")
    for p in options.prompts:
        engine = engines[p, 8]
        requests = [Request(f"{i}", t) for i, t in enumerate(prompts[p])][: options.slots]
        few = [Request(r.id, r.prompt, max_tokens=2) for r in requests]
        for r in (few, requests):
            list(engine.run(r))
        gained = []
        for _ in range(3):
            short = seconds_of(lambda e=engine, r=few: list(e.run(r)))
            long = seconds_of(lambda e=engine, r=requests: list(e.run(r)))
            gained.append((long - short) / (options.tokens - 2))
        step = statistics.median(gained)
        slots = len(requests)
        read = weights + slots * (trunk_bytes(cfg, p) + 8 * trunk_bytes(cfg, options.tokens))
        print(
            f"{p} tokens, {slots} slots x 8: {8 * slots / step:,.0f} tokens/s, a step reads "
            f"{read / 2**20:.0f} MiB in {1e3 * step:.1f} ms: {read / step / 1e9:.1f} GB/s, "
            f"{100 * read / step / rate:.0f} % of the bandwidth"
        )


def spread(values: list[float]) -> str:
    """A median and its range."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def report(
    seconds: dict[tuple[str, int, int], list[float]],
    systems: dict[str, Any],
    p: int,
    n: int,
    questions: int,
) -> None:
    """One line for a prompt length and a number of branches."""
    parts = []
    for name in systems:
        took = seconds[name, p, n]
        text = f"{name} {questions * n / statistics.median(took):.2f} lists/s"
        if name != "engine":
            ours = seconds["engine", p, n]
            text += f" (engine {spread([b / a for a, b in zip(ours, took, strict=True)])} x)"
        parts.append(text)
    print(f"{p} tokens, n = {n}: " + ", ".join(parts), flush=True)


def transformers_generate(
    place: str, options: argparse.Namespace, prompts: dict[int, list[list[int]]]
) -> Callable[[int, int], None]:
    """``generate`` with all prompts in one batch, sampled, of a fixed length."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=options.dtype)
    model = model.to(device).eval()

    def run(p: int, n: int) -> None:
        tokens = torch.tensor(prompts[p], device=device)
        with torch.no_grad():
            model.generate(
                tokens, attention_mask=torch.ones_like(tokens), do_sample=True, top_k=0,
                temperature=1.0, num_return_sequences=n, max_new_tokens=options.tokens,
                min_new_tokens=options.tokens, pad_token_id=0, eos_token_id=None,
            )  # fmt: skip

    return run


def vllm_generate(
    place: str, options: argparse.Namespace, prompts: dict[int, list[list[int]]]
) -> Callable[[int, int], None] | None:
    """VLLM on the same directory; None where it is not installed."""
    if importlib.util.find_spec("vllm") is None:
        print("vLLM is not installed", file=sys.stderr)
        return None
    vllm: Any = importlib.import_module("vllm")
    # Prefixes shared between repetitions would skip what is measured.
    model = vllm.LLM(
        place, dtype=options.dtype, skip_tokenizer_init=True, enable_prefix_caching=False
    )

    def run(p: int, n: int) -> None:
        how = vllm.SamplingParams(
            n=n, temperature=1.0, max_tokens=options.tokens, ignore_eos=True, detokenize=False
        )
        model.generate([{"prompt_token_ids": t} for t in prompts[p]], how, use_tqdm=False)

    return run


if __name__ == "__main__":
    main()
