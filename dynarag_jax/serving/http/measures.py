"""What /metrics tells: counts and times under the names of vLLM's and TEI's servers."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
SIZES = (0, 1, 2, 3, 5, 8, 12, 20, 30, 50, 100, 200, 500, 1000)

PATHS = (
    "/rerank",
    "/v1/rerank",
    "/v2/rerank",
    "/tei/rerank",
    "/score",
    "/v1/chat/completions",
    "/v1/models",
)


class Measures:
    """The counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made = {"registry": self.registry, "namespace": "dynarag"}
        self.requests = Counter("request_count", "requests, by path", ["path"], **made)
        self.success = Counter(
            "request_success", "requests served, by path and finish reason",
            ["path", "finished_reason"], **made,
        )  # fmt: skip
        self.failure = Counter(
            "request_failure", "requests not served, by path and status (0: the client has gone)",
            ["path", "status"], **made,
        )  # fmt: skip
        self.duration = Histogram(
            "request_duration_seconds", "from a request's arrival to its reply's end", ["path"],
            buckets=TIMES, **made,
        )  # fmt: skip
        self.e2e = Histogram(
            "e2e_request_latency_seconds", "of chat completions", buckets=TIMES, **made
        )
        self.queue = Histogram(
            "request_queue_time_seconds", "until a batch had room", buckets=TIMES, **made
        )
        self.first = Histogram(
            "time_to_first_token_seconds", "of chat completions", buckets=TIMES, **made
        )
        self.documents = Histogram(
            "request_documents", "candidates of a request", buckets=SIZES, **made
        )
        self.chosen = Histogram(
            "request_chosen", "passages on a policy's list", buckets=SIZES, **made
        )
        self.prompt_tokens = Counter("prompt_tokens", "read by language models", **made)
        self.generation_tokens = Counter("generation_tokens", "written in answers", **made)

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """A gauge that is read when it is asked for."""
        gauge = Gauge(name, what, registry=self.registry, namespace="dynarag")
        gauge.set_function(value)

    def page(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
