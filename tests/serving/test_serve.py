"""`kd serve`: right answers, refusals with a reason, and batches that change nothing."""

from __future__ import annotations

import base64
import io
import json
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from kd_lightning.serving import batching
from kd_lightning.serving.inputs import predict_samples
from kd_lightning.serving.network import LoadedNetwork, load_network
from kd_lightning.serving.serve_command import is_loopback
from kd_lightning.serving.server import Limits, create_app
from tests.runs import Kd, spawn

PNG = {"content-type": "image/png"}
LIMITS = Limits(max_bytes=20_000, max_pixels=10_000, max_wait_ms=20)


@pytest.fixture(scope="module")
def network(torch_export: Path) -> LoadedNetwork:
    return load_network(torch_export, [])


@pytest.fixture(scope="module")
def client(network: LoadedNetwork) -> Iterator[TestClient]:
    with TestClient(create_app(network, LIMITS)) as client:
        yield client


@pytest.fixture(scope="module")
def files(digits: Path) -> list[bytes]:
    folder = digits / "images"
    return [(folder / f"{number}.png").read_bytes() for number in range(10)]


def png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (width, height)).save(content, format="PNG")
    return content.getvalue()


def test_a_known_digit_gets_its_class(
    client: TestClient, network: LoadedNetwork, files: list[bytes]
) -> None:
    expected = network.predict(network.encode([files[3]]))[0]
    pixels = network.encode([files[3]])[0][0].tolist()
    encoded = base64.b64encode(files[3]).decode()

    answers = [
        client.post("/predict", content=files[3], headers=PNG),
        client.post("/predict", json={"image": encoded}),
        client.post("/predict", json={"array": pixels}),
        client.post("/predict", json={"arrays": {"inputs": pixels}}),
        client.post("/predict?top=2", content=files[3], headers=PNG),
    ]

    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json()["class"] == str(int(expected.argmax()))
        assert answer.json()["probability"] == pytest.approx(
            float(expected.max()), abs=1e-6
        )
    second = int(expected.argsort(descending=True)[1])
    assert answers[-1].json()["alternatives"][0]["class"] == str(second)
    assert len(answers[-1].json()["alternatives"]) == 2


@pytest.mark.parametrize(
    ("content", "media_type", "status", "reason"),
    [
        (png(9, 8), "image/png", 422, "the image is 9x8, the network reads 8x8"),
        (b"no image", "image/png", 422, "cannot be read as an image"),
        (b"", "image/png", 422, "the body is empty"),
        (b"x" * 20_001, "image/png", 413, "more than 20,000 bytes"),
        (png(200, 100), "image/png", 413, "more than 10,000 pixels"),
        (b"a film", "text/plain", 422, "this network reads images"),
        (b"\xff", "text/plain", 400, "not UTF-8"),
        (b"x", "video/mp4", 415, "video/mp4 is unknown; send image/png"),
        (b"{", "application/json", 400, "the body is not JSON"),
        (b"[" * 9_000, "application/json", 400, "the body is not JSON"),
        (b"[1]", "application/json", 400, "must be an object with one of the keys"),
        (b'{"pixels": 1}', "application/json", 400, "unknown key 'pixels'"),
        (b'{"image": "*"}', "application/json", 422, "image is not base64"),
        (b'{"array": [1, 2]}', "application/json", 422, "uint8 (1, 8, 8)"),
        (b'{"array": [[1], 2]}', "application/json", 422, "different lengths"),
        (b'{"array": "x"}', "application/json", 422, "must hold numbers"),
        (b'{"array": [[[300]]]}', "application/json", 422, "from 0 to 255"),
        (b'{"arrays": {"x": 1}}', "application/json", 422, "'inputs' is missing"),
        (b'{"row": {"a": 1}}', "application/json", 422, "this network reads images"),
        (b'{"row": {"a": []}}', "application/json", 422, "is nested"),
        (b'{"text": []}', "application/json", 422, "text must be a string"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_reason(
    content: bytes, media_type: str, status: int, reason: str, client: TestClient
) -> None:
    answer = client.post(
        "/predict", content=content, headers={"content-type": media_type}
    )

    assert answer.status_code == status, answer.text
    assert reason in answer.json()["detail"]
    assert "\n" not in answer.json()["detail"]


def test_a_body_without_a_declared_length_is_limited_too(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 1000

    answer = client.post("/predict", content=endless(), headers=PNG)

    assert answer.status_code == 413


def test_concurrent_requests_get_the_answers_of_single_ones(
    client: TestClient, files: list[bytes]
) -> None:
    alone = [client.post("/predict", content=one, headers=PNG) for one in files]
    assert {answer.headers["x-batch-size"] for answer in alone} == {"1"}
    order = [number % 10 for number in range(60)]
    # One of them does not fit, and its batch must not suffer.
    bodies = [*(files[number] for number in order), b"no image"]

    with ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(
                lambda body: client.post("/predict", content=body, headers=PNG), bodies
            )
        )

    assert answers.pop().status_code == 422
    for number, answer in zip(order, answers, strict=True):
        expected = alone[number].json()
        assert answer.json()["class"] == expected["class"]
        assert answer.json()["probability"] == pytest.approx(
            expected["probability"], abs=1e-5
        )
    sizes = [int(answer.headers["x-batch-size"]) for answer in answers]
    assert max(sizes) > 1, "no two requests met"
    assert max(sizes) <= LIMITS.max_batch


def test_a_full_queue_is_503_and_empties_again(
    network: LoadedNetwork, files: list[bytes]
) -> None:
    begun = threading.Event()
    may_end = threading.Event()

    def slow(raw: tuple[torch.Tensor, ...]) -> torch.Tensor:
        begun.set()
        assert may_end.wait(10)
        return network.predictor(raw)

    limits = replace(LIMITS, max_queue=1, max_wait_ms=0)
    app = create_app(replace(network, predictor=slow), limits)
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, "/predict", content=files[0], headers=PNG)
        assert begun.wait(10)
        refused = client.post("/predict", content=files[1], headers=PNG)
        health = client.get("/health")
        may_end.set()
        answered = first.result(10)
        after = client.post("/predict", content=files[1], headers=PNG)

    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "1 requests are in progress" in refused.json()["detail"]
    assert health.json()["in_progress"] == 1
    assert answered.status_code == 200
    assert after.status_code == 200


def test_a_defect_fails_its_request_and_not_the_service(
    network: LoadedNetwork, files: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise ZeroDivisionError
        return original(*arguments)  # type: ignore[arg-type]

    original = predict_samples
    monkeypatch.setattr(batching, "predict_samples", broken)
    app = create_app(network, LIMITS)
    with TestClient(app, raise_server_exceptions=False) as client:
        failed = client.post("/predict", content=files[0], headers=PNG)
        answered = client.post("/predict", content=files[0], headers=PNG)

    assert failed.status_code == 500
    assert answered.status_code == 200


def test_health_says_what_is_served(client: TestClient) -> None:
    health = client.get("/health")

    assert health.status_code == 200
    assert health.json() == {
        "status": "ok",
        "task": "classification",
        "classes": 10,
        "inputs": "inputs: uint8 (1, 8, 8)",
        "in_progress": 0,
    }


def test_the_command_serves_until_ctrl_c(
    torch_export: Path, files: list[bytes], tmp_path: Path
) -> None:
    process = spawn(["serve", str(torch_export), "--port=0"], tmp_path)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address is not None, line + process.communicate(timeout=10)[1]
        answer = httpx.post(
            f"{address[0]}/predict", content=files[0], headers=PNG, timeout=60
        )
        assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out == "stopped\n"
    assert err == ""


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.1.5", False),
        ("example.org", False),
    ],
)
def test_which_addresses_are_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "there is no run or checkpoint nowhere"),
        (["{export}", "--data.root=x"], "unknown option --data.root"),
        (["{export}", "--max-batch", "0"], "--max-batch must be at least 1"),
        (["{export}", "--max-wait", "nan"], "--max-wait must be 0 to 60000"),
        (["{export}", "--port", "70000"], "--port must be 0 to 65535"),
        (["{export}", "--host", "256.0.0.1"], "cannot listen at 256.0.0.1"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, torch_export: Path, kd: Kd
) -> None:
    outcome = kd("serve", *(one.format(export=torch_export) for one in arguments))

    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_a_damaged_export_is_one_line(torch_export: Path, kd: Kd) -> None:
    Path("broken").mkdir()
    described = json.loads((torch_export / "student.json").read_text())
    (Path("broken") / "student.json").write_text(json.dumps(described))
    (Path("broken") / "student.pt2").write_bytes(b"no archive")

    graph = kd("serve", "broken", "--trust", "torch_export")
    described.pop("inputs")
    (Path("broken") / "student.json").write_text(json.dumps(described))
    values = kd("serve", "broken")

    assert graph.code == values.code == 2
    assert "broken cannot be loaded" in graph.err
    assert "student.json is damaged; export the run again" in values.err
