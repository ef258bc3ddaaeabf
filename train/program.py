"""The machinery of every program: command line, set-up of JAX, errors and exit codes.

A program is a module with a body and one line:

    def run(context: Context, stage: Sft) -> None:
        context.manifest(inputs={"questions": context.path(stage.questions)})
        ...

    if __name__ == "__main__":
        main("sft", Sft, run)

Exit codes: 0 done, 2 a mistake in files, options or configuration (one line says which), 130 and
143 stopped by Ctrl-C or SIGTERM (training finishes its step and saves first; the same command
continues), 1 with a traceback for a bug.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax

from dynarag_jax.config import Run
from dynarag_jax.errors import InputError
from dynarag_jax.stages import Train
from train import processes
from train.context import Context, StageDone
from train.options import load_config, load_stage, print_help, program_name
from train.plan import print_plan, take_plan
from train.stopping import Terminated

__all__ = ["Context", "guard", "load_config", "main", "main_pipeline", "run_stage", "start_jax"]

C = TypeVar("C")
Body = Callable[[Context, C], None]

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def main(
    name: str, config_type: type[C], body: Body[C], argv: Sequence[str] | None = None
) -> NoReturn:
    """Run one stage of a config file, ``python -m train.NAME CONFIG.py [--field value ...]``.

    Args:
      name: the stage to run; ``--stage`` picks another of the same ``config_type``; ``--plan``
        prints what a training stage will need instead of running it.
      config_type: the class of the stage's configuration.
      body: does the stage's work; the first thing it does is to call ``Context.manifest``.
      argv: the arguments; the process's own by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        path, rest = _config_path(arguments, config_type)
        chosen = _take_stage(rest)
        planned = take_plan(rest) if issubclass(config_type, Train) else None
        run, stages, stage = load_stage(path, name, config_type, rest, chosen)
        if planned is not None:
            print_plan(run, stages, stages[stage], planned)
            return
        start_jax(run)
        run_stage(Context(run, stages, stage), body)

    sys.exit(guard(work))


def main_pipeline(
    body: Callable[[Run, Mapping[str, Any]], None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Run ``body(run, stages)`` on a whole config file; overrides begin with a stage's name."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work() -> None:
        path, rest = _config_path(arguments, None)
        run, stages = load_config(path, rest)
        start_jax(run)
        body(run, stages)

    sys.exit(guard(work))


def run_stage(context: Context, body: Body[Any]) -> bool:
    """Run one stage; False if it was done already. Its directory says how it ended."""
    try:
        body(context, context.config)
    except StageDone:
        return False
    except BaseException:
        with contextlib.suppress(OSError):  # the disk may be what failed
            context.abandon()
        raise
    context.finish()
    return True


def _config_path(arguments: list[str], config_type: type | None) -> tuple[Path, list[str]]:
    if arguments[:1] in (["--help"], ["-h"]):
        print_help(config_type)
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        raise InputError(
            f"the config file comes first: {program_name()} CONFIG.py [--field value ...]"
        )
    return Path(arguments[0]), arguments[1:]


def _take_stage(arguments: list[str]) -> str:
    """Take ``--stage NAME`` out of the arguments."""
    for i, argument in enumerate(arguments):
        if argument.startswith("--stage="):
            del arguments[i]
            return argument.removeprefix("--stage=")
        if argument == "--stage":
            if i + 1 == len(arguments):
                raise InputError("--stage needs the name of a stage")
            del arguments[i]
            return arguments.pop(i)
    return ""


# ---------------------------------------------------------------------------- errors


def guard(work: Callable[[], object]) -> int:
    """Call ``work`` and return the exit code; a mistake of the user's becomes one line."""

    def terminate(*_: object) -> None:
        raise Terminated

    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main_thread else None
    try:
        work()
    except InputError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return _complain("stopped; run the same command again to continue", 130, prefix="")
    except Terminated:
        return _complain("stopped; run the same command again to continue", 143, prefix="")
    except BrokenPipeError:
        # Who read our output has left; leave too, without Python's complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        if line := _explain(error):
            return _complain(line)
        raise
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)
    return 0


def _complain(text: str, code: int = 2, prefix: str = "error: ") -> int:
    sys.stderr.write(f"{prefix}{' '.join(text.split())}\n")
    sys.stderr.flush()
    return code


def _explain(error: BaseException | None) -> str:
    """One line for an error that is the machine's, or empty for a bug.

    Libraries wrap such errors in their own, so that the causes are looked through, too.
    """
    while error is not None:
        text = str(error)
        code = error.errno if isinstance(error, OSError) else None
        place = error.filename if isinstance(error, OSError) else None
        if code in FULL or "No space left on device" in text:
            return f"{place or 'run directory'}: the disk is full; make room and run again"
        if isinstance(error, OSError) and code in REFUSED:
            return f"{place or 'file'}: {error.strerror}; see who may read and write there"
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
            return (
                f"out of memory ({' '.join(text.split())[:160]}); use a smaller batch or length, "
                f"remat, or more devices"
            )
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


# ---------------------------------------------------------------------------- JAX


def start_jax(run: Run) -> None:
    """Set JAX up before its first use: processes, simulated devices, compilation cache, quiet."""
    for name in ("absl", "orbax", "jax._src.xla_bridge", "jax._src.compilation_cache"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"orbax\..*")
    # What the user set in the environment stands.
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
    if processes.several(os.environ):
        processes.join(os.environ)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
