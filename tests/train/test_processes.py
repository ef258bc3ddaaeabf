"""Which environments mean several processes, and what a process takes of its node."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dynarag_jax.launch import distributed as processes


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),  # GKE, one host
        ({"TPU_WORKER_HOSTNAMES": "pod-0.job,pod-1.job"}, True),  # GKE, a slice of two
        ({"MEGASCALE_COORDINATOR_ADDRESS": "pod-0.job"}, True),  # several slices
        ({"JAX_COORDINATOR_ADDRESS": "host0:8476"}, True),
    ],
)
def test_the_environment_says_whether_there_are_others(env, expected):
    assert processes.several(env) == expected


@pytest.mark.parametrize(
    ("env", "files", "expected"),
    [
        ({}, 8, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x4)", "SLURM_GPUS_ON_NODE": "8"}, 0, list(range(8))),
        ({"SLURM_TASKS_PER_NODE": "1"}, 2, [0, 1]),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}, 0, None),  # nodes of CPUs
        ({"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_GPUS_ON_NODE": "8"}, 8, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x3),2", "SLURM_GPUS_ON_NODE": "8"}, 8, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "JAX_LOCAL_DEVICE_IDS": "3"}, 8, None),
    ],
)
def test_the_only_task_of_a_slurm_node_takes_all_its_gpus(tmp_path, env, files, expected):
    for number in range(files):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    assert processes.slurm_gpus(env, tmp_path) == expected


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}, (4, 3)),
        ({"JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "2"}, (4, 2)),  # a Kubernetes job
        ({"JOB_COMPLETION_INDEX": "2"}, (None, None)),  # a TPU slice, which knows better
    ],
)
def test_joining_says_what_the_environment_says(monkeypatch, env, expected):
    asked = {}
    monkeypatch.setattr(
        processes.jax.distributed, "initialize", lambda **given: asked.update(given)
    )
    processes.join(env)
    assert (asked["num_processes"], asked["process_id"]) == expected


def test_a_process_that_knows_no_others_is_told_what_to_set():
    program = "from dynarag_jax.launch.distributed import join; join({'JAX_NUM_PROCESSES': '2'})"
    # A process of its own: JAX joins before its first use only.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "InputError: this process cannot join the others" in done.stderr
    assert "set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID" in done.stderr
