"""Sends requests to `kd serve` from several clients at once; see README.md."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx

WARM_UP_S = 1.0
"""How long clients run before the measurement begins."""

MEDIA_TYPES = {".json": "application/json", ".txt": "text/plain"}
"""By the suffix of the file; all other files are images."""


@dataclass
class Answers:
    """What the clients measured.

    Attributes:
        seconds: of each answered request.
        batch_sizes: how many requests were predicted together, for each answered
            request.
        failures: requests with another status than 200.
    """

    seconds: list[float] = field(default_factory=list)
    batch_sizes: list[int] = field(default_factory=list)
    failures: int = 0


@dataclass(frozen=True)
class Load:
    """The result for one number of clients.

    Attributes:
        clients: how many sent requests at once.
        per_second: answered requests per second.
        p50_ms, p95_ms: time of a request in milliseconds.
        mean_batch, largest_batch: requests that were predicted together.
        failures: requests with another status than 200.
    """

    clients: int
    per_second: float
    p50_ms: float
    p95_ms: float
    mean_batch: float
    largest_batch: int
    failures: int

    def __str__(self) -> str:
        return (
            f"{self.clients:>7} {self.per_second:>10.1f} {self.p50_ms:>8.2f} "
            f"{self.p95_ms:>8.2f} {self.mean_batch:>10.1f} {self.largest_batch:>13} "
            f"{self.failures:>8}"
        )


HEADING = "clients requests/s   p50 ms   p95 ms mean batch largest batch failures"


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The options of the script, and those for `kd serve`."""
    options = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    options.add_argument("network", help="folder of a run or an export")
    options.add_argument("file", type=Path, help="body of every request")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    options.add_argument("--seconds", type=float, default=10.0)
    options.add_argument("--url", help="of a service that runs already")
    options.add_argument("--output", type=Path, metavar="FILE.json")
    return options.parse_known_args()


@contextlib.contextmanager
def service(network: str, options: list[str]) -> Iterator[str]:
    """The address of a service that runs as long as the context.

    Args:
        network: folder of a run or an export.
        options: of `kd serve`.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "kd_lightning", "serve", network, "--port=0", *options],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = re.search(r"http://\S+:\d+", process.stdout.readline())
        if address is None:
            raise SystemExit("kd serve did not start")
        yield address[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


async def client(
    http: httpx.AsyncClient, body: bytes, media_type: str, end: float, answers: Answers
) -> None:
    """Send one request after the other until the end."""
    headers = {"content-type": media_type}
    while time.perf_counter() < end:
        began = time.perf_counter()
        answer = await http.post("/predict", content=body, headers=headers)
        took = time.perf_counter() - began
        if answer.status_code == 200:
            answers.seconds.append(took)
            answers.batch_sizes.append(int(answer.headers["x-batch-size"]))
        else:
            answers.failures += 1


async def run_clients(
    url: str, body: bytes, media_type: str, clients: int, seconds: float
) -> Answers:
    """Run all clients for some seconds."""
    answers = Answers()
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as http:
        end = time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client(http, body, media_type, end, answers))
    return answers


def measure(
    url: str, body: bytes, media_type: str, clients: int, seconds: float
) -> Load:
    """Measure the service with some clients, after a warm-up.

    Args:
        url: of the service.
        body: of every request.
        media_type: of the body.
        clients: that send requests at once.
        seconds: how long.
    """
    asyncio.run(run_clients(url, body, media_type, clients, WARM_UP_S))
    began = time.perf_counter()
    answers = asyncio.run(run_clients(url, body, media_type, clients, seconds))
    took = time.perf_counter() - began
    if not answers.seconds:
        raise SystemExit(f"all {answers.failures} requests failed; is the file right?")
    ordered = sorted(answers.seconds)
    return Load(
        clients=clients,
        per_second=len(ordered) / took,
        p50_ms=1000 * statistics.median(ordered),
        p95_ms=1000 * ordered[int(0.95 * (len(ordered) - 1))],
        mean_batch=statistics.mean(answers.batch_sizes),
        largest_batch=max(answers.batch_sizes),
        failures=answers.failures,
    )


def main() -> int:
    """Measure each number of clients; returns the exit code."""
    options, settings = parse()
    body = options.file.read_bytes()
    media_type = MEDIA_TYPES.get(options.file.suffix, "application/octet-stream")
    loads = []
    with contextlib.ExitStack() as stack:
        url = options.url or stack.enter_context(service(options.network, settings))
        print(HEADING)
        for clients in options.clients:
            load = measure(url, body, media_type, clients, options.seconds)
            loads.append(load)
            print(load, flush=True)
    if options.output is not None:
        rows = [asdict(load) for load in loads]
        options.output.write_text(json.dumps(rows, indent=2) + "\n")
    return 1 if any(load.failures for load in loads) else 0


if __name__ == "__main__":
    sys.exit(main())
