"""What accelerators hold and how fast they multiply, as their makers state it.

Plans and utilization need two numbers of a device: its memory, and its peak rate of dense bfloat16
matrix products. Rooflines need two more: how fast it reads its memory, and how fast it sends to its
neighbors, over all of its links together and in one direction (NVIDIA states both together).
Sources: NVIDIA's data sheets (SXM forms, without sparsity; NVLink) and Google's pages on the TPU
versions (inter-chip interconnect).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from dynarag_jax.errors import InputError, nearest


@dataclass(frozen=True)
class Accelerator:
    """One device of a kind."""

    memory: int
    """bytes of device memory"""
    peak: float
    """dense bfloat16 operations a second, as stated by the maker"""
    bandwidth: float
    """bytes of device memory a second"""
    links: float
    """bytes a second that it sends to the devices around it"""
    kinds: tuple[str, ...]
    """how JAX's ``device_kind`` begins on it"""


_GB = 10**9

ACCELERATORS: Mapping[str, Accelerator] = {
    "a100-40": Accelerator(
        40 * _GB, 312e12, 1555e9, 300e9, ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB")
    ),
    "a100-80": Accelerator(
        80 * _GB, 312e12, 2039e9, 300e9, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB")
    ),
    "h100": Accelerator(80 * _GB, 989e12, 3350e9, 450e9, ("NVIDIA H100 80GB HBM3",)),
    "h200": Accelerator(141 * _GB, 989e12, 4800e9, 450e9, ("NVIDIA H200",)),
    "b200": Accelerator(180 * _GB, 2250e12, 8000e9, 900e9, ("NVIDIA B200",)),
    "v4": Accelerator(32 * 2**30, 275e12, 1228e9, 300e9, ("TPU v4",)),
    "v5e": Accelerator(16 * 2**30, 197e12, 819e9, 200e9, ("TPU v5 lite", "TPU v5e")),
    "v5p": Accelerator(95 * 2**30, 459e12, 2765e9, 600e9, ("TPU v5p", "TPU v5")),
    "v6e": Accelerator(32 * 2**30, 918e12, 1638e9, 400e9, ("TPU v6 lite", "TPU v6e")),
}
"""By short name; a v5e's kind also begins as a v5p's does, and stands before it."""

ALIASES: Mapping[str, str] = {"a100": "a100-80"}
"""Other names of accelerators; of several sizes the usual one."""


def accelerator(name: str) -> Accelerator:
    """The accelerator of a short name (``h100``, ``v5p``).

    Raises:
      InputError: it is not in the table.
    """
    name = ALIASES.get(name, name)
    if name not in ACCELERATORS:
        known = ", ".join(ACCELERATORS)
        raise InputError(f"accelerator '{name}' is not known{nearest(name, ACCELERATORS)}: {known}")
    return ACCELERATORS[name]


def measured_rate(size: int = 1024, tries: int = 20) -> float:
    """Operations a second of this machine in float32 matrix products; takes a fraction of a second.

    The best of some tries, since another program may be at work beside them.
    """
    a = jnp.ones((size, size))
    multiply = jax.jit(jnp.matmul)
    multiply(a, a).block_until_ready()
    best = float("inf")
    for _ in range(tries):
        began = time.perf_counter()
        multiply(a, a).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def of_kind(device_kind: str) -> Accelerator | None:
    """The accelerator behind JAX's ``device_kind``; None where the table has none (a CPU)."""
    for one in ACCELERATORS.values():
        if device_kind.startswith(one.kinds):
            return one
    return None
