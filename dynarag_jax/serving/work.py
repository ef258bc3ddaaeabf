"""The one thread that has the models: coroutines hand it work and wait for what comes of it.

Requests wait in a queue with a bound and enter the workers as these have room, so that questions of
many clients share batches. A request whose client has gone leaves the queue, or the batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from dynarag_jax.errors import InputError
from dynarag_jax.records import Question
from dynarag_jax.sampling.policy_sampler import PolicySampler
from dynarag_jax.serving.answering import AnswerPart, AnswerRequest, AnswerWorker
from dynarag_jax.serving.policies import Chosen, ExplainedList, ListPolicy, RankedList

log = logging.getLogger("dynarag_jax.serving")


class Overloaded(Exception):
    """The queue is full.

    Attributes:
      retry_after: seconds after which to try again.
    """

    def __init__(self, reason: str, retry_after: int):
        super().__init__(reason)
        self.retry_after = retry_after


class ServingFailure(Exception):
    """A bug of ours: the reason stands in the log."""


class _Results(asyncio.Queue[Any]):
    """What came of a job; exceptions are raised where they are awaited."""

    async def get_or_raise(self) -> Any:
        result = await self.get()
        if isinstance(result, Exception):
            raise result
        return result


@dataclass
class Job:
    """One piece of work on its way."""

    key: str
    kind: str
    """list, answer or call"""
    what: Any
    loop: asyncio.AbstractEventLoop
    weight: int = 1
    """documents"""
    results: _Results = field(default_factory=_Results)
    came: float = field(default_factory=time.monotonic)
    began: float = 0.0
    """when a worker took it; 0 while it waits"""

    def tell(self, result: Any) -> None:
        """Hand a result, or an exception, to the coroutine; called by the thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self.loop.call_soon_threadsafe(self.results.put_nowait, result)


@dataclass
class WorkCounts:
    """What the thread has done so far."""

    jobs: int = 0
    turns: int = 0
    entered: int = 0
    """jobs that entered the workers at the last turn"""
    failures: int = 0


class Work:
    """The models' thread; see the module.

    Args:
      generator: writes answers; None where nobody does.
      most: requests that are in work or wait, at most.
      most_documents: of these, at most; a request alone may have more.
    """

    def __init__(
        self,
        policy: ListPolicy,
        generator: PolicySampler | None,
        most: int = 256,
        most_documents: int = 100_000,
    ):
        self.policy, self.generator = policy, generator
        self.counts = WorkCounts()
        self.ready = False
        """whether everything is compiled"""
        self._most, self._most_documents = most, most_documents
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: deque[Job] = deque()
        self._inside: OrderedDict[str, Job] = OrderedDict()
        self._jobs = self._documents = 0
        self._ended: deque[float] = deque(maxlen=64)
        self._number = 0
        self._lists = policy.worker()
        self._answers = AnswerWorker(generator) if generator is not None else None
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._closed = False

    # ------------------------------------------------------------------ for coroutines

    def start(self, warm: bool = True) -> None:
        """Begin to work; ``ready`` once everything is compiled."""
        self._inbox.put(self._warm if warm else self._make_ready)
        self._thread.start()

    def close(self) -> None:
        """End the thread; what is in work is given up."""
        self._closed = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    @property
    def healthy(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """Requests in work or waiting."""
        return self._jobs

    @property
    def queued(self) -> int:
        """Requests that no worker has taken yet."""
        return self._jobs - len(self._inside)

    async def rank(self, question: Question) -> tuple[RankedList, float]:
        """A question's list, and the seconds it waited for a worker.

        Raises:
          InputError: it cannot be ranked.
          Overloaded: the queue is full.
        """
        job = self._admit("list", question, len(question.passages))
        try:
            return await job.results.get_or_raise(), job.began - job.came
        finally:
            self._leave(job)

    async def answer(self, asked: AnswerRequest) -> AsyncGenerator[AnswerPart, None]:
        """An answer, part by part as it is written; the last is ``done``.

        Raises:
          InputError: there is no generator, or it cannot answer this.
          Overloaded: the queue is full.
        """
        if self._answers is None:
            raise InputError(f"a {self.policy.kind} writes no answers, and no generator is served")
        job = self._admit("answer", asked, len(asked.chosen))
        try:
            while True:
                part = await job.results.get_or_raise()
                yield part
                if part.done:
                    return
        finally:
            self._leave(job)

    async def explain(self, question: Question, chosen: Chosen | None) -> ExplainedList:
        """A list's log-probability and alternatives; the batches of others wait meanwhile.

        Raises:
          InputError: there is no such list.
          Overloaded: the queue is full.
        """
        call = partial(self.policy.explain, question, chosen)
        job = self._admit("call", call, len(question.passages))
        try:
            return await job.results.get_or_raise()
        finally:
            self._leave(job)

    def _admit(self, kind: str, what: Any, documents: int) -> Job:
        if self._jobs >= self._most:
            raise Overloaded(f"{self._jobs} requests are waiting already", self.retry_after())
        if self._jobs and self._documents + documents > self._most_documents:
            raise Overloaded(f"{self._documents} documents are waiting already", self.retry_after())
        self._number += 1
        job = Job(f"r{self._number}", kind, what, asyncio.get_running_loop(), documents)
        self._jobs += 1
        self._documents += documents
        self._inbox.put(lambda: self._waiting.append(job))
        return job

    def _leave(self, job: Job) -> None:
        """Whatever became of it, nobody waits for it any more."""
        self._jobs -= 1
        self._documents -= job.weight
        self._ended.append(time.monotonic())
        self._inbox.put(lambda: self._cancel(job))

    def retry_after(self) -> int:
        """Seconds until what waits now is likely done, from 1 to 60."""
        span = self._ended[-1] - self._ended[0] if len(self._ended) > 1 else 0.0
        if span <= 0:
            return 1
        return max(1, min(60, round(self._jobs * span / (len(self._ended) - 1))))

    # ------------------------------------------------------------------ in the thread

    def _warm(self) -> None:
        began = time.monotonic()
        try:
            self._lists.warm()
            if self._answers is not None:
                self._answers.warm()
        except Exception:
            log.exception("compiling at the start failed; it is tried again as requests come")
        log.info("ready", extra={"fields": {"seconds": round(time.monotonic() - began, 1)}})
        self._make_ready()

    def _make_ready(self) -> None:
        self.ready = True

    def _run(self) -> None:
        while not self._closed:
            self._hear()
            if self._closed:
                return
            self._feed()
            self._turn()

    @property
    def _busy(self) -> bool:
        return bool(
            self._waiting or self._lists.busy or (self._answers is not None and self._answers.busy)
        )

    def _hear(self) -> None:
        """Take in what the coroutines said; wait for it where there is nothing else to do."""
        wait = not self._busy
        while True:
            try:
                said = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            if said is None:
                return
            said()

    def _feed(self) -> None:
        """Let waiting jobs enter the workers that have room, in their order."""
        later: deque[Job] = deque()
        entered, called = 0, False
        while self._waiting:
            job = self._waiting.popleft()
            worker = self._lists if job.kind == "list" else self._answers
            # Of calls, which hold up the others, one a turn.
            full = called if job.kind == "call" else worker is not None and worker.full
            if full:
                later.append(job)
                continue
            job.began = time.monotonic()
            entered += 1
            self._inside[job.key] = job
            if job.kind == "call":
                called = True
                self._call(job)
            else:
                self._guarded((job,), partial(self._enter, job))
        self._waiting = later
        self.counts.entered = entered

    def _enter(self, job: Job) -> None:
        if job.kind == "list":
            self._lists.submit(job.key, job.what)
        elif self._answers is not None:
            self._answers.submit(job.key, job.what)

    def _call(self, job: Job) -> None:
        found = self._guarded((job,), job.what)
        if found is not None:
            self._finish(job.key, found)

    def _turn(self) -> None:
        self.counts.turns += 1
        for kind, worker in (("list", self._lists), ("answer", self._answers)):
            if worker is None or not worker.busy:
                continue
            jobs = tuple(job for job in self._inside.values() if job.kind == kind)
            for key, result in self._guarded(jobs, worker.step, fresh=kind) or ():
                job = self._inside.get(key)
                if job is None:
                    continue
                if isinstance(result, AnswerPart) and not result.done:
                    job.tell(result)
                else:
                    self._finish(key, result)

    def _guarded(self, jobs: tuple[Job, ...], work: Callable[[], Any], fresh: str = "") -> Any:
        """Run ``work``; what goes wrong is said to the jobs, and a broken worker is replaced."""
        try:
            return work()
        except InputError as error:
            for job in jobs:
                self._finish(job.key, error)
        except Exception:
            self.counts.failures += 1
            log.exception("a batch of %d requests failed", len(jobs))
            for job in jobs:
                self._finish(
                    job.key, ServingFailure("the server failed on this request; see its log")
                )
            if fresh == "list":
                self._lists = self.policy.worker()
            elif fresh and self.generator is not None:
                self._answers = AnswerWorker(self.generator)
        return None

    def _finish(self, key: str, result: Any) -> None:
        job = self._inside.pop(key, None)
        if job is not None:
            self.counts.jobs += 1
            job.tell(result)

    def _cancel(self, job: Job) -> None:
        """Take a job out wherever it is; one that has finished is nowhere."""
        if self._inside.pop(job.key, None) is None:
            if job.began == 0.0:
                self._waiting = deque(one for one in self._waiting if one is not job)
            return
        worker = self._lists if job.kind == "list" else self._answers
        if worker is not None and job.kind != "call":
            self._guarded((), lambda: worker.cancel(job.key))
