"""Two processes that hold one model between them: in, out, and a failure of one of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dynarag_jax.exchange.decoders import expected_tensors
from dynarag_jax.exchange.tokenizers import train_bpe
from dynarag_jax.models.decoder import DecoderConfig
from tests.hosts import free_port, joined

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
from dynarag_jax.models.layout import param_shardings

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


def together(*commands: list[str], found: Sequence[dict[str, str]] = ({}, {})) -> list[str]:
    """Run processes that find each other, by what they find in their environment or by themselves;
    the last line that each prints."""
    settings = os.environ | {
        "JAX_NUM_CPU_DEVICES": "2", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    both = [
        subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, text=True,
            env=settings | own,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for command, own in zip(commands, found, strict=True)
    ]  # fmt: skip
    done = [p.communicate(timeout=300) for p in both]
    for process, (_, errors) in zip(both, done, strict=True):
        assert process.returncode == 0, errors[-2000:]
    # What Gloo says comes before.
    return [(out.strip().splitlines() or [""])[-1] for out, _ in done]


def run_both(source: Path, target: Path, fault: str) -> list[str]:
    port = str(free_port())
    return together(
        *(["-c", PROCESS, str(source), str(target), port, str(i), fault] for i in range(2))
    )


def equal_tensors(source: Path, target: Path, least: int) -> None:
    """The same tensors in at least so many files."""
    before = safetensors_numpy.load_file(source / "model.safetensors")
    after: dict[str, np.ndarray] = {}
    files = sorted(target.glob("*.safetensors"))
    assert len(files) >= least
    for file in files:
        after |= safetensors_numpy.load_file(file)
    assert set(after) == set(before)
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor)


def test_each_process_writes_its_part(source, tmp_path):
    assert run_both(source, tmp_path / "out", "none") == ["written by 0", "written by 1"]
    equal_tensors(source, tmp_path / "out", 4)
    assert os.listdir(tmp_path) == ["out"]


def test_one_full_disk_stops_both(source, tmp_path):
    out = run_both(source, tmp_path / "out", "1")
    assert "No space left on device (in process 1)" in out[0]
    assert "No space left on device" in out[1] and "in process" not in out[1]
    assert os.listdir(tmp_path) == []


def test_the_programs_run_in_several_processes(source, tmp_path):
    """``convert --check`` and ``export``, as a job of two hosts starts them."""
    out = tmp_path / "out"
    shards = ["--shard_bytes", "30000"]
    command = ["-m", "train.convert", str(source), str(out), "--check", *shards]
    said = together(command, command, found=joined(2))
    assert said[0].split() == ["logits", "0.000e+00"]
    equal_tensors(source, out, 4)
    config = tmp_path / "config.py"
    config.write_text(
        "from dynarag_jax.config import Run\nfrom dynarag_jax.stages import Export\n"
        f"run = Run(directory={str(tmp_path / 'run')!r})\n"
        f"stages = {{'export': Export(model={str(source)!r}, dtype='float32')}}\n"
    )
    command = ["-m", "train.export", str(config), *shards]
    together(command, command, found=joined(2))
    equal_tensors(source, tmp_path / "run" / "export" / "model", 4)
    assert (tmp_path / "run" / "export" / "done.json").is_file()
