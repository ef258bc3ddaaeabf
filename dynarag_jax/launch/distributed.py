"""Several processes as one: who says that there are more, and how they find each other.

TPU virtual machines, GKE's TPU slices and SLURM jobs need no configuration: their own environment
says how many processes there are and where the first one is. Everywhere else three variables do:

    JAX_COORDINATOR_ADDRESS=host0:8476 JAX_NUM_PROCESSES=4 JAX_PROCESS_ID=0 python -m train.sft ...

In an indexed Kubernetes job the third may be left out: it is the pod's index.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import jax

from dynarag_jax.errors import InputError


def several(env: Mapping[str, str]) -> bool:
    """Whether the environment says that this process is one of several."""
    counts = (env.get("SLURM_NTASKS"), env.get("OMPI_COMM_WORLD_SIZE"))
    if any(count and count.isdigit() and int(count) > 1 for count in counts):
        return True
    named = "JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS"
    if any(env.get(name) for name in named) or "," in env.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    # A TPU virtual machine may be one of a slice without saying so; JAX asks its metadata server.
    tpu = Path("/dev/accel0").exists() or any(Path("/dev/vfio").glob("[0-9]*"))
    return tpu and importlib.util.find_spec("libtpu") is not None


def join(env: Mapping[str, str] = os.environ) -> None:
    """Join the other processes, before JAX's first use.

    Raises:
      InputError: the environment does not say enough.
    """
    # Only training has steps to agree on and takes this service in; it would swallow SIGTERM.
    jax.config.update("jax_enable_preemption_service", False)
    count = env.get("JAX_NUM_PROCESSES")
    index = env.get("JAX_PROCESS_ID") or (env.get("JOB_COMPLETION_INDEX") if count else None)
    try:
        jax.distributed.initialize(
            num_processes=int(count) if count else None,
            process_id=int(index) if index else None,
            local_device_ids=slurm_gpus(env),
        )
    except ValueError as error:
        raise InputError(
            f"this process cannot join the others ({error}); set JAX_COORDINATOR_ADDRESS, "
            f"JAX_NUM_PROCESSES and JAX_PROCESS_ID, or start it by SLURM or on a TPU slice"
        ) from None


def slurm_gpus(env: Mapping[str, str], devices: Path = Path("/dev")) -> list[int] | None:
    """The GPUs of a SLURM task that has its node to itself: all of them.

    JAX gives every SLURM task one GPU, by its number on the node; a node's only task would leave
    the others idle. None leaves the choice to JAX.
    """
    # SLURM writes "1(x4),2" for four nodes of one task and one of two.
    tasks = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", ""))
    alone = all(part.split("(")[0] == "1" for part in tasks.split(","))
    if not alone or "JAX_LOCAL_DEVICE_IDS" in env:
        return None
    given = env.get("SLURM_GPUS_ON_NODE", "")
    count = int(given) if given.isdigit() else len(list(devices.glob("nvidia[0-9]*")))
    return list(range(count)) or None
