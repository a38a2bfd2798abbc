"""From the body of an HTTP request to a sample."""

from __future__ import annotations

import base64
import binascii
import io
import json
import warnings
from collections.abc import Callable, Mapping

from PIL import Image
from torch import Tensor

from kd_lightning.data.images.picture import FORMATS
from kd_lightning.data.new_samples import Content
from kd_lightning.data.text.new_samples import TextReader
from kd_lightning.serving.arrays import tensor_of_values
from kd_lightning.serving.network import LoadedNetwork
from kd_lightning.values import Value, Values


class RefusedRequest(Exception):  # noqa: N818 - it becomes an answer
    """A request that cannot be answered with a prediction.

    Args:
        status: the HTTP status, such as 422.
        reason: one line for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def content_of(
    network: LoadedNetwork,
    media_type: str,
    body: bytes,
    max_pixels: int,
) -> Content:
    """The sample that a body holds.

    Args:
        network: that will predict it.
        media_type: of the body, without parameters.
        body: of the request.
        max_pixels: the most pixels of an image.

    Raises:
        RefusedRequest: if the body holds no sample.
    """
    # The content type decides, as a body has no file name.
    if media_type == "application/json":
        content = _content_of_json(network, body)
    elif media_type == "text/plain":
        content = _plain_text(network, body)
    elif media_type.startswith("image/") or media_type == "application/octet-stream":
        content = body
    else:
        raise RefusedRequest(
            415,
            f"the content type {media_type or 'none'} is unknown; send image/png, "
            "text/plain or application/json",
        )
    if isinstance(content, bytes):
        _check_pixels(content, max_pixels)
    return content


def _content_of_json(network: LoadedNetwork, body: bytes) -> Content:
    try:
        value: Value = json.loads(_text(body))
    except (ValueError, RecursionError) as error:
        raise RefusedRequest(400, f"the body is not JSON: {error}") from error
    # One key, so that there is never a question of which one counts.
    if not isinstance(value, Mapping) or len(value) != 1:
        raise RefusedRequest(
            400, f"the body must be an object with one of the keys {', '.join(_KEYS)}"
        )
    ((key, inner),) = value.items()
    if key not in _KEYS:
        raise RefusedRequest(
            400, f"unknown key {key[:40]!r}; valid keys: {', '.join(_KEYS)}"
        )
    return _KEYS[key](network, inner)


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RefusedRequest(400, "the body is not UTF-8") from error


def _plain_text(network: LoadedNetwork, body: bytes) -> Content:
    """One text, or the two of a pair with a tab between them."""
    text = _text(body).strip()
    if not text:
        raise RefusedRequest(422, "the text is empty")
    reader = network.reader
    is_pair = isinstance(reader, TextReader) and reader.pairs
    parts = text.split("\t", 1) if is_pair else [text]
    return tuple(part.strip() for part in parts)


def _image(network: LoadedNetwork, value: Value) -> Content:
    if not isinstance(value, str):
        raise RefusedRequest(422, "image must be a base64-encoded file")
    try:
        return base64.b64decode(value, validate=True)
    except (ValueError, binascii.Error) as error:
        raise RefusedRequest(422, "image is not base64") from error


def _texts(network: LoadedNetwork, value: Value) -> Content:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts:
        raise RefusedRequest(422, "text must be a string, or a list of two strings")
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise RefusedRequest(422, "text must be a string that is not empty")
    return tuple(texts)


def _row(network: LoadedNetwork, value: Value) -> Content:
    if not isinstance(value, Mapping):
        raise RefusedRequest(422, "row must be an object that maps columns to values")
    row = {}
    for name, cell in value.items():
        if isinstance(cell, Mapping | list):
            raise RefusedRequest(422, f"row: the value of {name[:40]!r} is nested")
        # As an empty cell of a CSV file.
        row[name] = "" if cell is None else str(cell)
    return row


def _array(network: LoadedNetwork, value: Value) -> Content:
    (first, *others) = network.inputs
    if others:
        names = ", ".join(described.name for described in network.inputs)
        raise RefusedRequest(422, f"this network reads the arrays {names}; send arrays")
    return (tensor_of_values(value, first),)


def _arrays(network: LoadedNetwork, value: Value) -> Content:
    if not isinstance(value, Mapping):
        raise RefusedRequest(422, "arrays must be an object that maps names to arrays")
    values: Values = value
    tensors: list[Tensor] = []
    for described in network.inputs:
        if described.name not in values:
            raise RefusedRequest(422, f"arrays: {described.name!r} is missing")
        tensors.append(tensor_of_values(values[described.name], described))
    return tuple(tensors)


_KEYS: dict[str, Callable[[LoadedNetwork, Value], Content]] = {
    "image": _image,
    "text": _texts,
    "row": _row,
    "array": _array,
    "arrays": _arrays,
}
"""What a body of JSON may hold, and what reads it."""


def _check_pixels(content: bytes, max_pixels: int) -> None:
    """Refuse a large image before it is decoded; its header tells the size.

    Raises:
        RefusedRequest: if it has too many pixels.
    """
    # Pillow warns about large images, which are refused here.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            pixels = image.width * image.height
    # Pillow's own limit, which is larger than ours.
    except Image.DecompressionBombError:
        pixels = max_pixels + 1
    except Exception:
        # The decoder says in its own words what is wrong.
        return
    if pixels > max_pixels:
        raise RefusedRequest(
            413, f"the image has more than {max_pixels:,} pixels; shrink it"
        )
