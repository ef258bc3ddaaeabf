"""Peak memory of importing a checkpoint, beside the size of its parameters.

    python -m benchmarks.import_memory --parameters 1.24e9

Writes a random Llama checkpoint in bfloat16 (by the safetensors package, a shard at a time), then
imports it in a fresh process on each mesh (fsdp x tensor) of simulated devices, and prints the
resident memory beyond what the process held before: the parameters, and what was needed on top.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np

from dynarag_jax.exchange.configs import config_to_hf
from dynarag_jax.exchange.decoders import expected_tensors
from dynarag_jax.models.config import DecoderConfig, count_parameters

SHARD = 500_000_000

CHILD = """
import json, sys, time
import jax, jax.numpy as jnp
from dynarag_jax.exchange.decoders import load_decoder
from dynarag_jax.sharding import make_mesh
from dynarag_jax.models.layout import param_shardings

# Not ru_maxrss, which begins with the memory of the process that started this one.
def peak():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

mesh = make_mesh(1, int(sys.argv[2]), int(sys.argv[3]))
jax.block_until_ready(jax.jit(lambda x: x + 1)(jnp.zeros(8)))
before, start = peak(), time.perf_counter()
cfg, params = load_decoder(sys.argv[1], "bfloat16", lambda cfg: param_shardings(cfg, mesh))
jax.block_until_ready(params)
seconds = time.perf_counter() - start
held = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({"before": before, "peak": peak(), "held": held, "seconds": seconds}))
"""


def configuration(parameters: float) -> DecoderConfig:
    """A Llama of about so many parameters, in the proportions of Llama 3.2 1B."""
    width = max(256, round((parameters / 1.24e9) ** 0.5 * 2048 / 256) * 256)
    return DecoderConfig(
        vocab=128_256, width=width, layers=16, heads=width // 64, kv_heads=width // 256,
        head_size=64, mlp=4 * width, rope_base=5e5, tied=True,
    )  # fmt: skip


def write(cfg: DecoderConfig, directory: Path) -> int:
    """Write the random checkpoint; return the size of its largest tensor in bytes."""
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    shard: dict[str, np.ndarray] = {}
    where: dict[str, str] = {}
    files = largest = 0

    def flush() -> None:
        nonlocal files
        files += 1
        name = f"model-{files:05d}.safetensors"
        save_file(shard, directory / name, metadata={"format": "pt"})
        where.update(dict.fromkeys(shard, name))
        shard.clear()

    for name, shape in expected_tensors(cfg).items():
        bits = rng.integers(0, 1 << 15, shape, np.uint16) % 0x0400 + 0x3C00
        shard[name] = bits.view(ml_dtypes.bfloat16)
        largest = max(largest, shard[name].nbytes)
        if sum(x.nbytes for x in shard.values()) > SHARD:
            flush()
    flush()
    index = {"metadata": {}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text(json.dumps(config_to_hf(cfg, "bfloat16", {})))
    return largest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=1.24e9)
    parser.add_argument("--meshes", nargs="+", default=["1x1", "8x1", "4x2"])
    options = parser.parse_args()
    cfg = configuration(options.parameters)
    print(f"{count_parameters(cfg):,} parameters in bfloat16")
    with tempfile.TemporaryDirectory() as name:
        largest = write(cfg, Path(name))
        for mesh in options.meshes:
            fsdp, tensor = mesh.split("x")
            devices = str(int(fsdp) * int(tensor))
            env = os.environ | {"JAX_NUM_CPU_DEVICES": devices, "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(
                [sys.executable, "-c", CHILD, name, fsdp, tensor],
                env=env, capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                sys.exit(done.stderr)
            r = json.loads(done.stdout)
            beyond = r["peak"] - r["before"] - r["held"]
            print(
                f"fsdp x tensor {mesh}: parameters {r['held'] / 1e6:,.0f} MB, peak beyond the "
                f"process {(r['peak'] - r['before']) / 1e6:,.0f} MB, so {beyond / 1e6:,.0f} MB on "
                f"top = {beyond / largest:.2f} x the largest tensor ({largest / 1e6:,.0f} MB); "
                f"{r['seconds']:.1f} s"
            )


if __name__ == "__main__":
    main()
