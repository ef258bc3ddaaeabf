"""Settings of every test: simulated devices, no hub, compiled programs kept between runs."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis

ROOT = Path(__file__).resolve().parent.parent

# Before JAX is imported: what the environment already says stands.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Threads of XLA's pool. One a device, the default, is too few: a device may wait in two collectives
# at once, and another is left without a thread, until XLA ends the process.
os.environ.setdefault("NPROC", "32")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Compiling takes as long as it takes; CI draws the same examples every time.
hypothesis.settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("here")
