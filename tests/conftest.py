"""Settings of every test: simulated devices, no hub, compiled programs kept between runs."""

from __future__ import annotations

import os
from importlib.metadata import version
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
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Compiling takes as long as it takes; CI draws the same examples every time.
hypothesis.settings.register_profile("here", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("here")


def pytest_configure(config):
    """Compile the fast tests without optimization: most of their time would go into it.

    The slow ones, which run with ``make test-all``, have the compiler's own settings.
    """
    if config.option.markexpr == "not slow":
        flags = ["--xla_backend_optimization_level=0"]
        if version("jaxlib").startswith("0.10."):  # others may not know these
            flags += [
                "--xla_cpu_use_fusion_emitters=false",
                "--xla_cpu_parallel_codegen_split_count=1",
                "--xla_llvm_disable_expensive_passes=true",
            ]
        os.environ["XLA_FLAGS"] = " ".join([*flags, os.environ.get("XLA_FLAGS", "")]).strip()
