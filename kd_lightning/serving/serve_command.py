"""`kd serve RUN|EXPORT`: answers requests over HTTP."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kd_lightning.errors import UserError
from kd_lightning.escaping import plain

SHUTDOWN_S = 5
"""How long requests in progress may take after Ctrl-C."""


def parser() -> argparse.ArgumentParser:
    """The options of `kd serve`."""
    options = argparse.ArgumentParser(
        prog="kd serve",
        description="Serve a run or an export over HTTP. POST /predict takes an image, "
        "a text, or a JSON object with one of the keys image (base64), text, row, "
        "array and arrays. GET /health says what is served.",
        epilog="Further arguments are options of the run's data, such as "
        "--data.root=DIR. The service has no authentication and no encryption.",
        allow_abbrev=False,
    )
    options.add_argument(
        "network",
        metavar="RUN|EXPORT",
        help="folder of a run or an export, or a checkpoint",
    )
    options.add_argument(
        "--host", default="127.0.0.1", help="address; default: 127.0.0.1, this machine"
    )
    options.add_argument(
        "--port", type=int, default=8000, help="default: 8000; 0: any free one"
    )
    _add_limits(options)
    return options


def _add_limits(options: argparse.ArgumentParser) -> None:
    """Add the sizes and times that keep a busy service in bounds."""
    options.add_argument(
        "--max-batch",
        type=int,
        default=32,
        metavar="N",
        help="requests per forward pass, at most; default: 32",
    )
    options.add_argument(
        "--max-wait",
        type=float,
        default=5.0,
        metavar="MS",
        help="how long a request waits for others to share its forward pass, in "
        "milliseconds; default: 5",
    )
    options.add_argument(
        "--max-queue",
        type=int,
        default=256,
        metavar="N",
        help="requests in progress, at most; further ones get 503; default: 256",
    )
    options.add_argument(
        "--max-bytes",
        type=int,
        default=10_000_000,
        metavar="N",
        help="size of a request, at most; default: 10000000",
    )


def main(argv: Sequence[str]) -> None:
    """Run `kd serve` until Ctrl-C.

    Args:
        argv: the arguments.

    Raises:
        UserError: for a user's mistake, or if the address is not free.
    """
    options, settings = parser().parse_known_args(argv)
    _check(options)
    try:
        import uvicorn

        from kd_lightning.serving.server import Limits, create_app
    except ModuleNotFoundError as error:
        raise UserError(
            f"kd serve needs the package {error.name}; install it with "
            "pip install 'kd_lightning[serve]'"
        ) from error
    # After the options are checked, because these modules import torch.
    from kd_lightning.serving.network import load_network
    from kd_lightning.serving.results import check_task

    network = load_network(Path(options.network).expanduser(), settings)
    check_task(network)
    # The remaining limits have no option.
    limits = Limits(
        max_batch=options.max_batch,
        max_wait_ms=options.max_wait,
        max_queue=options.max_queue,
        max_bytes=options.max_bytes,
    )
    with _listening(options.host, options.port) as listener:
        config = uvicorn.Config(
            create_app(network, limits),
            log_level="warning",
            timeout_graceful_shutdown=SHUTDOWN_S,
            server_header=False,
        )
        _announce(options.host, listener.getsockname()[1], options.network)
        # After its shutdown, uvicorn raises the signal again that ended it.
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    Console().print("stopped")


def _check(options: argparse.Namespace) -> None:
    for name in ("max_batch", "max_queue", "max_bytes"):
        value = getattr(options, name)
        if value < 1:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} must be at least 1, got {value}")
    # Written so that NaN is refused, too.
    if not 0 <= options.max_wait <= 60_000:
        raise UserError(
            f"--max-wait must be 0 to 60000 milliseconds, got {options.max_wait:g}"
        )
    if not 0 <= options.port <= 65535:
        raise UserError(f"--port must be 0 to 65535, got {options.port}")


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        UserError: if the address is unknown or taken.
    """
    # The colon tells an IPv6 address from a name or an IPv4 address.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise UserError(
            f"cannot listen at {host} port {port} ({error.strerror}); choose another "
            "--port or --host"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address.

    Args:
        host: a name or an IP address.
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _announce(host: str, port: int, network: str) -> None:
    # Whoever reaches the service may use it.
    if not is_loopback(host):
        print(
            f"kd: warning: other machines can reach {host}, and the service has no "
            "authentication; leave out --host, or use a proxy that authenticates",
            file=sys.stderr,
        )
    shown = f"[{host}]" if ":" in host else host
    text = f"serving {network} at http://{shown}:{port}; Ctrl-C stops"
    Console().print(plain(text), soft_wrap=True)
