"""Two processes that hold one model between them: in, out, and a failure of one of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynarag_jax.exchange.decoders import expected_tensors
from dynarag_jax.exchange.tokenizers import train_bpe
from dynarag_jax.models.decoder import DecoderConfig

safetensors_numpy = pytest.importorskip("safetensors.numpy")
pytestmark = pytest.mark.slow  # processes that compile for themselves

ROOT = Path(__file__).parents[2]
CFG = DecoderConfig(vocab=280, width=32, layers=2, heads=4, kv_heads=2, head_size=8, mlp=48)

PROCESS = """
import sys
import jax
source, target, port, index, fault = sys.argv[1:]
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(index))
from dynarag_jax.errors import InputError
from dynarag_jax.exchange import tensors
from dynarag_jax.exchange.decoders import load_decoder, save_decoder
from dynarag_jax.exchange.tokenizers import load_tokenizer
from dynarag_jax.sharding import make_mesh
from dynarag_jax.training.step import param_shardings

assert jax.device_count() == 4 and jax.local_device_count() == 2
mesh = make_mesh(1, 2, 2)
cfg, params = load_decoder(source, shardings=lambda cfg: param_shardings(cfg, mesh))
assert not params["layers"]["query"].is_fully_addressable
if fault == index:
    def full(*_):
        raise OSError(28, "No space left on device")
    tensors._write_shard = full
try:
    save_decoder(target, cfg, params, load_tokenizer(source), shard_bytes=30_000)
except InputError as error:
    print("refused:", error)
else:
    print("written by", jax.process_index())
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    from dynarag_jax.exchange.configs import config_to_hf
    from dynarag_jax.files import write_json

    where = tmp_path_factory.mktemp("source") / "model"
    train_bpe(["[1], [2] None some words"] * 4, where, 275)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in expected_tensors(CFG).items()
    }
    safetensors_numpy.save_file(weights, where / "model.safetensors")
    write_json(where / "config.json", config_to_hf(CFG, "float32", {}))
    return where


def run_both(source: Path, target: Path, fault: str) -> list[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(source), str(target), port, str(i), fault],
            cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    done = [p.communicate(timeout=300) for p in both]
    for process, (_, errors) in zip(both, done, strict=True):
        assert process.returncode == 0, errors[-2000:]
    return [out.strip().splitlines()[-1] for out, _ in done]  # what Gloo says comes before


def test_each_process_writes_its_part(source, tmp_path):
    assert run_both(source, tmp_path / "out", "none") == ["written by 0", "written by 1"]
    before = safetensors_numpy.load_file(source / "model.safetensors")
    after: dict[str, np.ndarray] = {}
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        after |= safetensors_numpy.load_file(file)
    assert set(after) == set(before)
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)
    assert os.listdir(tmp_path) == ["out"]


def test_one_full_disk_stops_both(source, tmp_path):
    out = run_both(source, tmp_path / "out", "1")
    assert "another process could not write its part" in out[0]
    assert "No space left on device" in out[1]
    assert os.listdir(tmp_path) == []
