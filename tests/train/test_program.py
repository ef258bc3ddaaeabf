"""Programs as a user runs them: exit codes, stops and continuations, devices, processes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import jax.numpy as jnp
import pytest

from dynarag_jax.launch.exit_codes import guard
from tests.hosts import joined

ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    keep = {
        k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_", "SLURM_", "NPROC"))
    }
    return keep | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | more


def launch(*arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, env=environment(**env), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stderr
    return done


def one_line(text: str) -> str:
    """The only line of an error message."""
    assert text.startswith("error: "), text
    assert text.count("\n") == 1, text
    return text.removeprefix("error: ").strip()


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load(path: Path):
    return json.loads(path.read_text())


# ---------------------------------------------------------------------------- errors and exits


def test_trouble_of_the_machine_is_one_line_and_a_bug_keeps_its_traceback(capsys):
    def full():
        with open("/dev/full", "w") as stream:
            stream.write("x")

    def wrapped():
        try:
            full()
        except OSError as error:
            raise ValueError("a library's own words") from error

    def refused():
        Path("/sys/dynarag").mkdir()

    for work, expected in [
        (full, "the disk is full"),
        (wrapped, "the disk is full"),
        (refused, r"/sys/dynarag: (Operation not permitted|Permission denied|Read-only)"),
        (lambda: bytearray(1 << 62), "out of memory"),
        (lambda: jnp.zeros(1 << 46).block_until_ready(), "out of memory .*RESOURCE_EXHAUSTED"),
    ]:
        assert guard(work) == 2
        assert re.search(expected, one_line(capsys.readouterr().err))
    with pytest.raises(ZeroDivisionError):
        guard(lambda: print(1 / 0))
    before = signal.getsignal(signal.SIGTERM)
    assert guard(lambda: None) == 0
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_program_continues_where_it_was(place, kind, code):
    process = subprocess.Popen(
        [sys.executable, "count.py", "good.py"],
        env=environment(PAUSE_AT="2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests in the background of a shell are started with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "paused\n"
    process.send_signal(kind)
    _, said = process.communicate(timeout=300)
    assert process.returncode == code
    if kind != signal.SIGKILL:
        assert said.splitlines()[-1] == "stopped; run the same command again to continue"
        assert "Traceback" not in said
    stage = place / "runs/a/count"
    assert (stage / "counted.txt").read_text() == "0 one\n1 two\n"
    status = "running" if kind == signal.SIGKILL else "stopped"
    assert load(stage / "run.json")["status"] == status
    said = launch("count.py", "good.py").stderr
    assert "[count] continuing what was cut off" in said
    assert "4/4 (100 %)" in said
    assert (stage / "counted.txt").read_text() == "0 one\n1 two\n2 three\n3 one\n"
    assert [r["step"] for r in records(stage / "metrics.jsonl")] == [1, 2, 3, 4]
    assert "done already" in launch("count.py", "good.py").stderr


def test_on_a_terminal_progress_is_a_bar(place):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    try:
        subprocess.run(
            [sys.executable, "count.py", "good.py", "--steps", "3"],
            env=environment(),
            stderr=theirs,
            timeout=300,
            check=True,
        )
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
    finally:
        os.close(ours)
    assert "count: 100%|" in shown.decode()
    assert "3/3" in shown.decode()
    assert "word=three" in shown.decode()


# ---------------------------------------------------------------------------- JAX

DEVICES = """
import sys
import jax
from dynarag_jax.config import Run
from dynarag_jax.launch.start import start_jax

start_jax(Run(directory="runs/d", cpu_devices=int(sys.argv[1]), compilation_cache=sys.argv[2]))
print(jax.device_count(), jax.config.jax_compilation_cache_dir)
"""
CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("devices", "cache", "env", "expected"),
    [
        ("3", "mine", {}, ("3", "mine")),
        ("0", "off", {}, (f"{min(len(os.sched_getaffinity(0)), 2)}", "None")),
        # What the environment says stands.
        ("3", "", {"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, ("5", "home")),
        ("0", "", {"JAX_NUM_CPU_DEVICES": "4", "JAX_COMPILATION_CACHE_DIR": "y"}, ("4", "y")),
    ],
)
def test_jax_is_set_up_before_its_first_use(place, devices, cache, env, expected):
    (place / "devices.py").write_text(DEVICES)
    said = launch("devices.py", devices, cache, XDG_CACHE_HOME=str(place / "x"), **env).stdout
    count, directory = expected
    whole = {"mine": place / "mine", "home": place / "x/dynarag_jax"}
    assert said.split() == [count, str(whole.get(directory, directory))]


def test_more_devices_than_cores_get_threads_to_wait_in(place):
    """A device may hold two of the pool's threads while it waits for the others."""
    (place / "devices.py").write_text(DEVICES + "import os\nprint(os.environ.get('NPROC'))\n")
    few, many, mine = (
        launch("devices.py", str(count), "off", **env).stdout.split()[-1]
        for count, env in ((1, {}), (CORES + 1, {}), (CORES + 1, {"NPROC": "7"}))
    )
    assert (few, many, mine) == ("None", str(4 * (CORES + 1)), "7")


def test_compiled_programs_are_kept(place):
    (place / "devices.py").write_text(DEVICES + "jax.jit(jax.numpy.sin)(1.0)\n")
    launch("devices.py", "1", "mine", JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    assert any(path.stat().st_size for path in (place / "mine").iterdir())


@pytest.mark.slow
def test_of_several_processes_one_writes(place):
    for turn in ("makes it", "finds it done"):
        processes = [
            subprocess.Popen(
                [sys.executable, "count.py", "good.py", "--run.cpu_devices", "1"],
                env=environment(**own),
                stderr=subprocess.PIPE,
                text=True,
            )
            for own in joined(2)
        ]
        said = [process.communicate(timeout=300)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], said
        if turn == "makes it":
            assert "[count] done in" in said[0]
        else:
            assert "[count] done already" in said[0]
        assert "[count]" not in said[1]
    stage = place / "runs/a/count"
    assert [r["step"] for r in records(stage / "metrics.jsonl")] == [1, 2, 3, 4]
    devices = load(stage / "run.json")["devices"]
    assert (devices["count"], devices["processes"]) == (2, 2)
