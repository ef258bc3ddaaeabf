"""JAX set up before its first use: processes, simulated devices, compilation cache, quiet."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path

import jax

from dynarag_jax import processes
from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.launch import distributed, signals
from dynarag_jax.launch.compiling import watch_compiling


def start_jax(run: Run) -> None:
    """Set JAX up as a run wants it. What the user set in the environment stands."""
    for name in ("absl", "orbax", "jax._src.xla_bridge", "jax._src.compilation_cache"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"orbax\..*")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags and (
        run.cpu_devices or "JAX_NUM_CPU_DEVICES" not in os.environ
    ):
        devices = run.cpu_devices or min(_cores(), 2)
        jax.config.update("jax_num_cpu_devices", devices)
        if devices > _cores():
            # XLA's pool has a thread a core; a device may hold two of them while it waits for the
            # others, and those that find none left would wait forever.
            os.environ.setdefault("NPROC", str(4 * devices))
    if run.compilation_cache == "off":
        jax.config.update("jax_enable_compilation_cache", False)
    elif run.compilation_cache or "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        directory = Path(run.compilation_cache or Path(cache) / "dynarag_jax")
        jax.config.update("jax_compilation_cache_dir", str(directory.expanduser().absolute()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if distributed.several(os.environ):
        distributed.join(os.environ)
        signals.watch_others()
    _require_platform()
    if processes.is_primary():
        watch_compiling()


def _require_platform() -> None:
    """Raise InputError where the accelerator that the environment asks for is not there."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = os.environ.get("JAX_PLATFORMS", "")
        if not wanted or wanted == "cpu":
            raise
        extra = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}.get(wanted.split(",")[0], "")
        mend = f"; its support is installed by pip install 'dynarag_jax[{extra}]'" if extra else ""
        says = " ".join(str(error).split())[:160]
        says = f" ({says})" if says else ""
        raise InputError(
            f"JAX_PLATFORMS={wanted}: JAX finds no such device{says}{mend}; "
            f"JAX_PLATFORMS=cpu computes without"
        ) from None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
