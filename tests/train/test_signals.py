"""Signals are acknowledged in a second, also inside a compiler, and compiling is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dynarag_jax.launch.compiling import CompileWatch

ROOT = Path(__file__).resolve().parents[2]

# A call in C that looks at no signal, as a compilation does.
BLOCKED = """
import hashlib, sys
from dynarag_jax.launch import exit_codes, signals

rounds, compiles = int(sys.argv[1]), sys.argv[2]
signals.SignalWatch.__init__.__defaults__ = (2.0,)


def work():
    signals.on_leaving(lambda: print("abandoned", flush=True))
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", rounds)
    print("went on", flush=True)


exit_codes.compiling = lambda: compiles
sys.exit(exit_codes.guard(work))
"""


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_inside_the_compiler_is_acknowledged_and_leaves(kind, code):
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, "1000000000", "the step"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(1)  # it is inside the call now
    process.send_signal(kind)
    assert process.stderr.readline() == "stopping (compiling the step)\n"
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (code, "abandoned\n")
    assert err == "stopped while compiling the step; run the same command again to continue\n"


def test_a_signal_elsewhere_is_acknowledged_and_waits_for_the_handler():
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, "8000000", ""],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(1)  # it is inside the call now
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (143, "")
    assert err.splitlines() == ["stopping ...", "stopped; run the same command again to continue"]


def test_what_is_compiled_for_long_is_said():
    said: list[str] = []
    watch = CompileWatch(said.append, patience=0.01)
    watch.start()

    def unrolled(x):
        for _ in range(40):
            x = jnp.tanh(x @ x.T) @ x
        return x

    # A shape of its own, which no cache of compiled programs knows.
    jax.jit(unrolled)(
        jnp.ones((3 + time.time_ns() % 97, 5 + time.time_ns() % 89))
    ).block_until_ready()
    end = time.monotonic() + 5
    while not any(line.startswith("compiled unrolled in ") for line in said):
        assert time.monotonic() < end, said
        time.sleep(0.01)
    assert "compiling unrolled ..." in said
    assert watch.name == ""


def test_a_platform_that_is_not_there_is_one_line():
    program = "import sys; from dynarag_jax.launch.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, "sft", "configs/quickstart.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cuda"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "error: JAX_PLATFORMS=cuda: JAX finds no such device" in done.stderr
    assert "()" not in done.stderr
    assert "pip install 'dynarag_jax[cuda]'" in done.stderr and "Traceback" not in done.stderr
