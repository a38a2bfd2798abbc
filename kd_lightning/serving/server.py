"""The HTTP service: `POST /predict` and `GET /health`."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from kd_lightning import __version__
from kd_lightning.errors import UserError, printable
from kd_lightning.serving.batching import Batcher, QueueFull
from kd_lightning.serving.inputs import Prediction
from kd_lightning.serving.masks import mask_png
from kd_lightning.serving.network import LoadedNetwork
from kd_lightning.serving.requests import RefusedRequest, content_of
from kd_lightning.serving.results import Result, has_masks, result_of


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes:
        max_batch: the most samples of a forward pass.
        max_wait_ms: how long the first sample of a batch waits for others.
        max_queue: the most requests in progress; further ones get 503.
        max_bytes: the largest body; larger ones get 413.
        max_pixels: the most pixels of an image; larger ones get 413.
        read_s: how long a client may take to send its body; slower ones get 408.
    """

    max_batch: int = 32
    max_wait_ms: float = 5.0
    max_queue: int = 256
    max_bytes: int = 10_000_000
    max_pixels: int = 25_000_000
    read_s: float = 30.0


def create_app(network: LoadedNetwork, limits: Limits) -> FastAPI:
    """The service for a network.

    Args:
        network: that predicts.
        limits: what a request may cost.
    """
    batcher = Batcher(
        network, limits.max_batch, limits.max_wait_ms / 1000, limits.max_queue
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await batcher.stop()

    # The pages with documentation would load scripts from elsewhere.
    app = FastAPI(
        title="kd serve",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )

    @app.get("/health")
    async def health() -> dict[str, str | int]:
        """That the service runs, and what it serves."""
        return {
            "status": "ok",
            "task": network.task,
            "classes": len(network.classes),
            "inputs": "; ".join(map(str, network.inputs)),
            "in_progress": batcher.in_progress,
        }

    @app.post("/predict")
    async def predict(request: Request, top: int = 0) -> JSONResponse:
        """The prediction of one image, text, row or array; `top` alternatives."""
        return await answer(request, batcher, limits, top)

    return app


async def answer(
    request: Request, batcher: Batcher, limits: Limits, top: int
) -> JSONResponse:
    """The answer to a request: a prediction, or why there is none.

    Args:
        request: with one sample.
        batcher: that predicts it.
        limits: what the request may cost.
        top: how many further classes to name.
    """
    network = batcher.network
    try:
        with batcher.admitted():
            body = await _body(request, limits)
            media_type = _media_type(request)
            content = content_of(network, media_type, body, limits.max_pixels)
            prediction, batch = await batcher.predict(content)
        result = _result(network, prediction, top)
    except RefusedRequest as refusal:
        return _refused(refusal.status, refusal.reason)
    except UserError as error:
        return _refused(422, str(error))
    except ClientDisconnect:
        # Nobody reads this answer.
        return _refused(400, "the client has disconnected")
    except QueueFull:
        reason = f"{limits.max_queue} requests are in progress; try again later"
        return JSONResponse(
            {"detail": reason}, status_code=503, headers={"Retry-After": "1"}
        )
    return JSONResponse(result, headers={"X-Batch-Size": str(batch)})


def _refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": printable(reason)}, status_code=status)


def _media_type(request: Request) -> str:
    media_type, _, _ = request.headers.get("content-type", "").partition(";")
    return media_type.strip().lower()


async def _body(request: Request, limits: Limits) -> bytes:
    """The body of a request, as far as it is allowed.

    Raises:
        RefusedRequest: if it is empty, too large, or too slow.
    """
    too_large = RefusedRequest(
        413, f"the body has more than {limits.max_bytes:,} bytes, which is the limit"
    )
    declared = request.headers.get("content-length", "0")
    # Refused before a byte is read.
    if declared.isdecimal() and int(declared) > limits.max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.read_s):
            # A client may declare no length, or a wrong one.
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_bytes:
                    raise too_large
    except TimeoutError as error:
        raise RefusedRequest(
            408, f"the body took more than {limits.read_s:g} seconds"
        ) from error
    if not body:
        raise RefusedRequest(422, "the body is empty; send an image, a text or JSON")
    return bytes(body)


def _result(network: LoadedNetwork, prediction: Prediction, top: int) -> Result:
    """The answer to a request.

    Raises:
        RefusedRequest: if the sample does not fit the network.
    """
    if prediction.values is None:
        raise RefusedRequest(422, prediction.line)
    # JSON has no bytes, so the PNG travels as text.
    if has_masks(network):
        png = base64.b64encode(mask_png(prediction.values))
        return {"mask": png.decode()}
    return result_of(network, prediction.values, max(0, top))
