"""How a program ends: 0 done, 2 a mistake in files, options or configuration, 130 and 143 stopped.

A mistake of the user's is one line on standard error that says which. Ctrl-C and SIGTERM let
training finish its step and save; the same command continues. 1, with a traceback, is a bug.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from dynarag_jax import processes
from dynarag_jax.errors import InputError
from dynarag_jax.launch import leaving, signals
from dynarag_jax.launch.compiling import compiling
from dynarag_jax.launch.stopping import Terminated

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


def guard(work: Callable[[], object]) -> int:
    """Call ``work`` and return the exit code; a mistake of the user's becomes one line."""

    def terminate(*_: object) -> None:
        raise Terminated

    def ends_now() -> None:
        # The others' word that they leave comes as a signal, and this one leaves by itself.
        if main_thread and processes.count() > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    # transformers reads tokenizers here, and its advice to install PyTorch helps nobody.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main_thread else None
    try:
        with signals.acknowledging(compiling):
            work()
    except InputError as error:
        ends_now()
        code = _complain(str(error))
        signals.fail_together(code, str(error))
        return code
    except KeyboardInterrupt:
        return _complain("stopped; run the same command again to continue", 130, prefix="")
    except Terminated as stop:
        code = _stopped()
        if main_thread and processes.count() > 1 and not stop.together:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signals.leave_others(code)
        return code
    except BrokenPipeError:
        # Who read our output has left; leave too, without Python's complaint at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        ends_now()
        if line := _explain(error):
            code = _complain(line)
            signals.fail_together(code, line)
            return code
        if processes.count() > 1:
            # Work in common fails where another process has left; what it said arrives beside.
            if leaving.await_stop(threading.Event(), 2.0):
                signals.leave_others(_stopped())
            traceback.print_exc()
            signals.fail_together(1, f"{type(error).__name__}: {error}")
            return 1
        raise
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, before)
    return 0


def _stopped() -> int:
    """Say that the process was stopped; by the failure of another, where there is one."""
    if why := leaving.failure_of_others():
        return _complain(f"stopped, since {why}")
    return _complain("stopped; run the same command again to continue", 143, prefix="")


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
        file = error.filename if isinstance(error, OSError) else None
        if code in FULL or "No space left on device" in text:
            return f"{file or 'run directory'}: the disk is full; make room and run again"
        if isinstance(error, OSError) and code in REFUSED:
            return f"{file or 'file'}: {error.strerror}; see who may read and write there"
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
            return (
                f"out of memory ({' '.join(text.split())[:160]}); use a smaller batch or length, "
                f"remat, or more devices"
            )
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""
