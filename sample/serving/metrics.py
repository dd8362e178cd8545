"""Numbers of a running server, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .worker import Worker

SECONDS = (0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Of one server, all its models together: it has a registry of its own."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter("unitok_requests", "Requests answered", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "unitok_request_seconds", "Time of a request", ["path"], buckets=SECONDS, registry=registry
        )
        self.pictures = Counter("unitok_pictures", "Pictures sent", registry=registry)
        numbers = {
            "unitok_open_jobs": (
                "Pictures and texts asked for and not finished",
                lambda: sum(one.open for one in workers),
            ),
            "unitok_running_jobs": ("Pictures and texts being written", lambda: sum(one.running for one in workers)),
            "unitok_steps": ("Steps of the engine since the start", lambda: sum(one.steps for one in workers)),
        }
        for name, (what, value) in numbers.items():
            Gauge(name, what, registry=registry).set_function(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)
