"""A run's pipeline in one or several processes, and what it leaves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def joined(count: int) -> list[dict[str, str]]:
    """What each of some processes finds in its environment, to be one run; of one, nothing."""
    if count == 1:
        return [{}]
    all_of_them = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count),
    }  # fmt: skip
    return [all_of_them | {"JAX_PROCESS_ID": str(i)} for i in range(count)]


def start(
    arguments: Sequence[str], count: int, program: str = "train.pipeline"
) -> list[subprocess.Popen[str]]:
    """A program in some processes, which find each other."""
    env = {k: v for k, v in os.environ.items() if k not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    flags = os.environ.get("XLA_FLAGS", "").split()
    kept = [flag for flag in flags if "device_count" not in flag]
    env |= {"PYTHONPATH": str(ROOT)} | ({"XLA_FLAGS": " ".join(kept)} if kept else {})
    return [
        subprocess.Popen(
            [sys.executable, "-m", program, *arguments],
            env=env | own,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for own in joined(count)
    ]  # fmt: skip


def ended(processes: Sequence[subprocess.Popen[str]], code: int = 0) -> list[str]:
    """What they said, once all of them have ended with a code."""
    try:
        said = [process.communicate(timeout=1800)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code] * len(said), "\n".join(said)
    return said


def contents(directory: Path) -> dict[str, Any]:
    """All that stages made that is text, parsed where it is JSON; of models the names.

    Where a text names the directory, it says ``{run}``.
    """
    found: dict[str, Any] = {}

    def text(path: Path) -> str:
        return path.read_text().replace(str(directory), "{run}")

    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if not path.is_file() or path.name in ("run.json", "metrics.jsonl") or name.startswith("."):
            continue
        if path.name == "done.json":
            found[name] = sorted(json.loads(text(path))["outputs"])
        elif "/checkpoints/" in name or "/model/" in name or path.suffix in (".html", ".svg"):
            continue
        elif path.suffix == ".jsonl":
            found[name] = [json.loads(line) for line in text(path).splitlines()]
        elif path.suffix == ".json":
            found[name] = json.loads(text(path))
        elif path.suffix in (".md", ".trec", ".run", ".qrels", ".values"):
            found[name] = text(path)
        else:
            found[name] = None
    return found


def assert_alike(one: Any, other: Any, where: str, ignored: Collection[str] = ()) -> None:
    """Equal, but for the last digits of numbers.

    Args:
      ignored: keys of objects that are not compared.
    """
    if isinstance(one, float) or isinstance(other, float):
        assert one == pytest.approx(other, abs=1e-4), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in set(one).difference(ignored):
            assert_alike(one[key], other[key], f"{where}: {key}", ignored)
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_alike(a, b, f"{where}: {i}", ignored)
    else:
        assert one == other, where
