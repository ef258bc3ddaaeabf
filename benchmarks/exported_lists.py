"""Whether an exported reranker writes elsewhere the lists that it writes here.

    python -m benchmarks.exported_lists CONFIG MODEL QUESTIONS --count 20
    python -m benchmarks.exported_lists CONFIG MODEL QUESTIONS --llama_cpp PYTHON

The first questions of a file, the best list of each: by our sampler under its grammar, by
transformers' ``generate``, and by llama.cpp of the GGUF file that lies in MODEL (``dynarag export``
with ``gguf = "f16"``), in float32 and each from the tokens of the same prompt; what the others
write is text, without a grammar, and is read as a reply is. CONFIG says how prompts are made.
PYTHON has xllamacpp 2026.10.11549. Exit status 1 if a list differs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LLAMA_CPP = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_gpu_layers = sys.argv[1], int(sys.argv[2]), 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(params)
for line in sys.stdin:
    reply = server.handle_completions({
        "prompt": json.loads(line), "n_predict": int(sys.argv[3]), "temperature": 0.0})
    print("REPLY", json.dumps(reply["choices"][0]["text"]), flush=True)
"""


def by_transformers(model: Path, prompts: Sequence[Sequence[int]], tokens: int) -> list[str]:
    """What ``generate`` writes greedily after each prompt."""
    import torch
    import transformers

    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    texts = []
    for prompt in prompts:
        with torch.no_grad():
            out = theirs.generate(
                torch.tensor([list(prompt)]), max_new_tokens=tokens, do_sample=False
            )
        texts.append(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))
    return texts


def by_llama_cpp(
    python: str, model: Path, prompts: Sequence[Sequence[int]], tokens: int
) -> list[str]:
    """What llama.cpp writes greedily after each prompt."""
    files = sorted(model.glob("*.gguf"))
    if len(files) != 1:
        raise SystemExit(f"error: {model} holds {len(files)} GGUF files; export one (gguf = 'f16')")
    context = max(map(len, prompts)) + tokens + 8
    done = subprocess.run(
        [python, "-c", LLAMA_CPP, str(files[0]), str(context), str(tokens)],
        input="".join(json.dumps(list(prompt)) + "\n" for prompt in prompts),
        capture_output=True, text=True,
    )  # fmt: skip
    said = [x.removeprefix("REPLY ") for x in done.stdout.splitlines() if x.startswith("REPLY ")]
    if len(said) != len(prompts):
        raise SystemExit(f"error: {python}: {done.stderr[-2000:]}")
    return [json.loads(text) for text in said]


def main() -> None:
    """Write the lists and say which differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", help="its prompts are these")
    parser.add_argument("model", type=Path, help="the exported directory")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--llama_cpp", metavar="PYTHON", help="one with xllamacpp")
    options = parser.parse_args()
    import jax

    from dynarag_jax.launch.config_file import read_config
    from dynarag_jax.lists import parse_list_leniently
    from dynarag_jax.policy.model import load_policy
    from dynarag_jax.records import read_questions
    from dynarag_jax.sampling.policy_sampler import PolicySampler
    from dynarag_jax.sampling.sampler import Sampling
    from dynarag_jax.sharding import make_mesh

    prompts = read_config(options.config)[0].prompts
    questions = list(itertools.islice(read_questions(options.questions), options.count))
    policy = load_policy(options.model, make_mesh(devices=jax.devices()[:1]), prompts)
    sampler = PolicySampler(policy, prompts, batch=8, seed=0)
    ours = [found.lists[0] for found in sampler.lists(questions, Sampling(temperature=0.0))]
    made = [sampler.maker.rerank_prompt(question) for question in questions]
    tokens = policy.spelling.longest(prompts.max_list) + 8
    given = [prompt.tokens for prompt in made]
    written = {"transformers": by_transformers(options.model, given, tokens)}
    if options.llama_cpp:
        written["llama.cpp"] = by_llama_cpp(options.llama_cpp, options.model, given, tokens)
    sizes = Counter(map(len, ours))
    print(f"{len(ours)} lists of {options.model}, by their passages: {dict(sorted(sizes.items()))}")
    differ = 0
    for name, texts in written.items():
        same = 0
        for question, prompt, own, text in zip(questions, made, ours, texts, strict=True):
            read = parse_list_leniently(text, prompt.shown)[0]
            same += read == own
            if read != own:
                print(f"{name}: {question.id}: ours {list(own)}, theirs {list(read)}: {text!r}")
        print(f"{name}: {same} of {len(ours)} lists are the same")
        differ += len(ours) - same
    sys.exit(int(differ > 0))


if __name__ == "__main__":
    main()
