"""What an encoder policy costs beside its cross-encoder alone, on the same candidates.

    python -m benchmarks.encoder_policy --reranker runs/reranker
    python -m benchmarks.encoder_policy --reranker runs/reranker --onnx --repeats 50
    python -m benchmarks.encoder_policy --reranker runs/reranker --together 8

Lists over random candidates of so many words, a question at a time (or so many ``--together``):
the cross-encoder's scores alone; the policy with a list head on its vectors; with candidates that
see each other in the encoder (``interaction``); with the chosen passages read again
(``reencode``), beside all candidates or the eight best (``reread``). All are jitted, in this
process, in turn, and their weights are the reranker's with an untrained head, which costs what a
trained one does. With --onnx, the same as one ONNX file in onnxruntime, in float32 and int8, a
question at a time. Prints Markdown: the median, the spread, and the ratio to the cross-encoder.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynarag_jax.errors import InputError
from dynarag_jax.evaluation.tables import markdown
from dynarag_jax.exchange.encoder_policies import read_encoder_policy, save_encoder_policy
from dynarag_jax.models.list_head import ListHeadConfig, init_list_head
from dynarag_jax.policy.encoder_model import load_encoder_policy
from dynarag_jax.policy.encoder_policy import vectors_of
from dynarag_jax.policy.pair_tokens import collate_pairs
from dynarag_jax.records import Passage, Question
from dynarag_jax.sampling.choice import Sampling
from dynarag_jax.sampling.encoder_lists import draw_lists
from dynarag_jax.sharding import make_mesh

VARIANTS: dict[str, dict[str, Any]] = {
    "list head": {},
    "list head, interaction": {"interaction": True},
    "list head, reencode 32": {"reencode": 32},
    "list head, reencode 32, reread 8": {"reencode": 32, "reread": 8},
}


def question_of(candidates: int, words: int, seed: int) -> Question:
    """A question over random candidates of ``words`` words, all of them in BERT's vocabulary."""
    rng = random.Random(seed)
    known = "the of and in to was is for on as with by he at from his it an were are which".split()
    text = lambda n: " ".join(rng.choices(known, k=n))  # noqa: E731
    passages = tuple(Passage(str(i), text(words)) for i in range(candidates))
    return Question("q", text(12), passages=passages)


def measured(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Seconds of each run, taken in turn after one for warm-up."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: np.array(own) for name, own in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reranker", required=True, help="a cross-encoder's directory")
    parser.add_argument("--candidates", type=int, default=20, help="of a question")
    parser.add_argument("--words", type=int, default=100, help="of a candidate")
    parser.add_argument("--pieces", type=int, default=160, help="word pieces of a pair at most")
    parser.add_argument("--max-list", type=int, default=4, help="passages of a list at most")
    parser.add_argument("--repeats", type=int, default=20, help="of each measurement")
    parser.add_argument("--together", type=int, default=1, help="questions at once")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--onnx", action="store_true", help="also in onnxruntime")
    given = parser.parse_args()
    if given.onnx and (given.together, given.dtype) != (1, "float32"):
        raise InputError(
            "--onnx answers a question at a time in float32; leave --together, --dtype"
        )
    questions = [question_of(given.candidates, given.words, i) for i in range(given.together)]
    mesh = make_mesh(devices=jax.local_devices()[:1])
    stored = read_encoder_policy(given.reranker)
    shape = ListHeadConfig(vectors=stored.encoder.width)
    runs: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, fields in VARIANTS.items():
            directory = Path(place) / name.replace(" ", "-")
            settings = {"pieces": given.pieces, "max_list": given.max_list, **fields}
            policy = replace(
                stored, settings=settings, head=shape,
                head_params=init_list_head(shape, jax.random.key(0)),
            )  # fmt: skip
            save_encoder_policy(directory, policy)
            loaded = load_encoder_policy(directory, mesh, dtype=given.dtype)
            maker = loaded.pair_maker()
            pairs = [maker.pairs(question) for question in questions]
            batch = jax.device_put(collate_pairs(pairs, given.candidates, given.pieces))
            if not runs:
                alone = jax.jit(lambda p, b, c=loaded.cfg: vectors_of(c, p, b.pairs)[1])
                runs["cross-encoder"] = lambda f=alone, p=loaded.params, b=batch: (
                    jax.block_until_ready(f(p, b))
                )
            # Lists of full length: what a step costs is counted for every step.
            draw = jax.jit(
                lambda p, b, k, c=loaded.cfg: draw_lists(
                    c, p, b, k, lists=1, sampling=Sampling(temperature=0.0)
                )
            )
            keys = jax.random.split(jax.random.key(0), given.together)
            never = {**loaded.params["head"], "stop_bias": np.float32(-1e4)}
            params = {**loaded.params, "head": never}
            runs[name] = lambda f=draw, p=params, b=batch, k=keys: jax.block_until_ready(f(p, b, k))
        if given.onnx:
            import onnxruntime

            from dynarag_jax.exchange.onnx_policy import onnx_list, write_onnx

            feeds = {
                "tokens": np.asarray(batch.pairs.tokens[0], np.int64),
                "mask": np.asarray(
                    np.arange(given.pieces) < np.asarray(batch.pairs.lengths[0])[:, None], np.int64
                ),
                "types": np.asarray(batch.pairs.types[0], np.int64),
            }
            for int8 in (False, True):
                path = Path(place) / f"{int8}.onnx"
                write_onnx(Path(place) / "list-head", path, int8)
                session = onnxruntime.InferenceSession(str(path))
                kind = "int8" if int8 else "float32"
                runs[f"list head, onnxruntime {kind}"] = lambda s=session: onnx_list(
                    s, feeds, given.max_list
                )
        times = measured(runs, given.repeats)
    base = np.median(times["cross-encoder"])
    rows = [
        [
            name,
            f"{1000 * np.median(own):.0f}",
            f"{1000 * np.quantile(own, 0.1):.0f} to {1000 * np.quantile(own, 0.9):.0f}",
            f"{np.median(own) / base:.2f}",
            f"{given.together / np.median(own):.2f}",
        ]
        for name, own in times.items()
    ]
    print(
        f"{given.candidates} candidates of {given.words} words, {given.pieces} word pieces a pair, "
        f"lists of {given.max_list}, {given.together} questions at once, {given.dtype}; "
        f"{jax.devices()[0].device_kind}, {given.repeats} repeats\n"
    )
    print(markdown(["", "ms", "10 % to 90 %", "to the cross-encoder", "questions a second"], rows))


if __name__ == "__main__":
    from dynarag_jax.launch.exit_codes import guard

    raise SystemExit(guard(main))
