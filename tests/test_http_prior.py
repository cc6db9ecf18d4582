"""The value model's HTTP endpoint and the prior that asks it: real server, real client, loopback only."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

from tests.faults.statement import fault  # noqa: E402
from value_model.serving.http import connection_limits, create_app, main  # noqa: E402
from value_model.serving.http_settings import LIMITS, ServerSettings, read_token  # noqa: E402
from verl_v05.prior import Outcome, Query  # noqa: E402
from verl_v05.prior import http as prior_http  # noqa: E402
from verl_v05.prior.http import HttpPrior, HttpPriorError  # noqa: E402
from verl_v05.rollout.allocator import Allocator  # noqa: E402
from verl_v05.settings import PriorSettings, SupportSettings, V05Settings  # noqa: E402

TOKEN = "s3cret-token"
CONTEXT = [Outcome(Query("a", "easy", "s"), 1.0, 4), Outcome(Query("b", "hard", "s"), 0.0, 4)]
BODY = {"context": [{"prompt": "easy", "score": 1.0}, {"prompt": "hard", "score": -1.0}], "prompts": ["x", "y"]}


class HashModel:
    """Answers a hash of prompt and context, so that any mix-up of either shows."""

    def __init__(self, hook: Callable[[Sequence[str]], None] = lambda prompts: None):
        self.hook = hook
        self.asked: list[tuple[list[str], list[float], list[str]]] = []
        self.running = self.most_running = 0

    def predict(self, context_prompts: Any, context_scores: Any, prompts: Any) -> np.ndarray:
        self.asked.append((list(context_prompts), list(context_scores), list(prompts)))
        if len({score >= 0 for score in context_scores}) < 2:
            raise ValueError("the context must hold both classes")
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            self.hook(prompts)
        finally:
            self.running -= 1
        return np.array([value_of(context_prompts, context_scores, prompt) for prompt in prompts])


class Answers:
    """A model that answers whatever it is given."""

    def __init__(self, answer: Any):
        self.answer = answer

    def predict(self, context_prompts: Any, context_scores: Any, prompts: Any) -> Any:
        return self.answer


def value_of(context_prompts: Sequence[str], context_scores: Sequence[float], prompt: str) -> float:
    if prompt == "unknown":
        return math.nan
    digest = hashlib.sha256(repr((list(context_prompts), list(context_scores), prompt)).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


@contextmanager
def serving(app: Any, port: int = 0, **kwargs: Any) -> Iterator[str]:
    """The app behind uvicorn in a thread; its base url."""
    kwargs |= {"log_level": "critical", "lifespan": "off", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(app, port=port, **kwargs))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"{'https' if kwargs.get('ssl_certfile') else 'http'}://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def served(model: Any = None, port: int = 0, **limits: Any) -> AbstractContextManager[str]:
    settings = ServerSettings(**limits)
    app = create_app(HashModel() if model is None else model, settings)
    return serving(app, port, **connection_limits(settings))


def answering(status: int, body: bytes, counted: list[int] | None = None, **headers: str) -> Any:
    """An app that gives one answer to everything."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if counted is not None:
            counted.append(status)
        pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send({"type": "http.response.body", "body": body})

    return app


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


def queries(*texts: str) -> list[Query]:
    return [Query(f"id of {text}", text, "source") for text in texts]


def expected(*texts: str) -> list[float]:
    return [value_of(["easy", "hard"], [1.0, -1.0], text) for text in texts]


HTTP = httpx.Client(timeout=30, verify=False, trust_env=False)


def ask(url: str, *texts: str, **kwargs: Any) -> np.ndarray:
    return HttpPrior(url, **{"retries": 0, **kwargs}).predict(queries(*texts), CONTEXT, 1)


def predict(url: str, body: Any = BODY, **kwargs: Any) -> Any:
    return HTTP.post(f"{url}/v1/predict", json=body, **kwargs)


def metrics(url: str, **kwargs: Any) -> dict[str, float]:
    lines = HTTP.get(f"{url}/metrics", **kwargs).text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[str, HashModel]]:
    """A server of default limits for tests that leave no trace in it; its url and model."""
    model = HashModel()
    with served(model) as url:
        yield url, model


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prior_http, "BACKOFF_S", 0.01)


@pytest.fixture(autouse=True)
def no_token_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_V05_PRIOR_TOKEN", raising=False)


# Round trip


def test_answers_equal_the_models_own_to_the_last_bit() -> None:
    texts = ["x", "", "längere Frage \U0001f600 \x00 \u2028", "z" * 5000]
    with served() as url:
        assert ask(url, *texts).tolist() == expected(*texts)


def test_success_rates_are_sent_as_scores() -> None:
    model, shares = HashModel(), [0.0, 0.25, 1 / 3, 0.5, 0.1 + 0.2, 1.0]
    context = [Outcome(q, np.float64(s), 4) for q, s in zip(queries(*"abcdef"), shares, strict=True)]
    with served(model) as url:
        HttpPrior(url).predict(queries("x"), context, 1)
    assert model.asked == [(list("abcdef"), [2 * s - 1 for s in shares], ["x"])]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 23, 24, 100])
def test_answers_come_in_the_order_of_the_queries_whatever_the_batch_size(shared: Any, batch_size: int) -> None:
    url, model = shared
    model.asked.clear()
    rng = np.random.default_rng(batch_size)
    texts = [f"prompt {i}" for i in rng.integers(0, 15, size=23)]  # some of them twice
    assert ask(url, *texts, batch_size=batch_size).tolist() == expected(*texts)
    assert [p for _, _, prompts in model.asked for p in prompts] == texts
    assert len(model.asked) == math.ceil(23 / batch_size)


def test_what_the_model_does_not_know_is_missing() -> None:
    with served() as url:
        answer = ask(url, "x", "unknown", "y")
        assert predict(url, {**BODY, "prompts": ["unknown", "x"]}).json()["probabilities"][0] is None
    np.testing.assert_array_equal(answer, [*expected("x"), math.nan, *expected("y")])


def test_infinite_answers_are_null_not_broken_json() -> None:
    with served(Answers([math.inf, -math.inf])) as url:
        assert predict(url).json()["probabilities"] == [None, None]


def test_without_context_everything_is_missing_and_nobody_is_asked() -> None:
    prior = HttpPrior("http://127.0.0.1:1")  # nobody listens there
    assert np.isnan(prior.predict(queries("x", "y"), None, 1)).all()
    assert prior.predict([], CONTEXT, 1).shape == (0,)


@fault(
    "the V0 endpoint is started again",
    happens="the next question is answered",
    do="nothing",
)
def test_a_restarted_server_is_found_again() -> None:
    port = free_port()
    prior = HttpPrior(f"http://127.0.0.1:{port}/", retries=0)
    for _ in range(3):
        with served(port=port):
            assert prior.predict(queries("x"), CONTEXT, 1).tolist() == expected("x")
        with pytest.raises(HttpPriorError, match=rf"http://127.0.0.1:{port}/v1/predict did not answer: ConnectError"):
            prior.predict(queries("x"), CONTEXT, 1)


def test_a_server_that_starts_late_is_waited_for(no_backoff: None) -> None:
    port = free_port()
    prior = HttpPrior(f"http://127.0.0.1:{port}", retries=500)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(prior.predict, queries("x"), CONTEXT, 1)
        time.sleep(0.2)
        with served(port=port):
            assert answer.result(20).tolist() == expected("x")


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with served() as url:
        url = url.replace("127.0.0.1", "localhost")
        assert ask(url, "x").tolist() == expected("x")


# Refusals of the server


def refusal(url: str, **changes: Any) -> str:
    answer = predict(url, {**BODY, **changes})
    assert answer.status_code == 422 and list(answer.json()) == ["detail"]
    return answer.json()["detail"]


@pytest.mark.parametrize("context", [[], BODY["context"][:1], BODY["context"][1:] * 3])
def test_a_context_without_both_classes_is_refused_in_the_models_words(shared: Any, context: list[Any]) -> None:
    assert refusal(shared[0], context=context) == "the context must hold both classes"


def test_limits_are_named_and_the_largest_allowed_request_passes() -> None:
    example = BODY["context"][0]
    with served(max_prompts=2, max_context=3, max_prompt_chars=5) as url:
        fits = {"context": [*BODY["context"], {"prompt": "äöüßé", "score": 0}], "prompts": ["12345", "x"]}
        assert predict(url, fits).status_code == 200
        assert refusal(url, prompts=["x"] * 3) == (
            "prompts has 3 entries, allowed are at most 2 (max_prompts of the server)"
        )
        assert refusal(url, context=[example] * 4) == (
            "context has 4 entries, allowed are at most 3 (max_context of the server)"
        )
        for changes in ({"prompts": ["x", "123456"]}, {"context": [example, {"prompt": "123456", "score": 0}]}):
            assert refusal(url, **changes) == (
                f"{next(iter(changes))}[1] has 6 characters, allowed are at most 5 (max_prompt_chars of the server)"
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "body.prompts: List should have at least 1 item"),
        ({"prompts": "x"}, "body.prompts: Input should be a valid list"),
        ({"prompts": ["x", 3]}, "body.prompts.1: Input should be a valid string"),
        ({"prompts": ["x", None]}, "body.prompts.1: Input should be a valid string"),
        ({"prompts": None}, "body.prompts: Input should be a valid list"),
        ({"step": 3}, "body.step: Extra inputs are not permitted"),
        ({"context": [{"prompt": "x"}]}, "body.context.0.score: Field required"),
        ({"context": [{"prompt": "x", "score": 0, "n": 4}]}, "body.context.0.n: Extra inputs are not permitted"),
        *[
            ({"context": [BODY["context"][0], {"prompt": "x", "score": score}]}, f"body.context.1.score: {message}")
            for score, message in [
                (1.0000001, "Input should be less than or equal to 1"),
                (-1.5, "Input should be greater than or equal to -1"),
                (True, "Input should be a valid number"),
                ("1", "Input should be a valid number"),
                (None, "Input should be a valid number"),
            ]
        ],
    ],
)
def test_malformed_requests_are_refused_with_the_place(shared: Any, changes: dict[str, Any], message: str) -> None:
    url, model = shared
    model.asked.clear()
    assert refusal(url, **changes).startswith(message)
    assert model.asked == []


@pytest.mark.parametrize("score", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_scores_that_are_no_numbers_are_refused(shared: Any, score: str) -> None:
    text = '{"context": [{"prompt": "x", "score": SCORE}], "prompts": ["x"]}'.replace("SCORE", score)
    answer = HTTP.post(f"{shared[0]}/v1/predict", content=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422 and answer.json()["detail"].startswith("body.context.0.score: Input should be")


def test_what_is_not_a_json_object_is_refused_without_an_echo() -> None:
    with served() as url:
        for content in (b"{", b"\xff\xfe", b"[]", b"3", b"", b"[" * 100_000, b'"\\ud800"', b'{"secret": "\xff"}'):
            answer = HTTP.post(f"{url}/v1/predict", content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422) and "secret" not in answer.text
        form = HTTP.post(f"{url}/v1/predict", content=b"{}", headers={"Content-Type": "text/plain"})
        assert form.status_code == 422  # a page in a browser could send this without asking first
        assert len(predict(url, {**BODY, "x" * 10_000: 1}).text) < 600
        assert predict(url).status_code == 200


@fault(
    "a request to the V0 endpoint is too large",
    happens="refused before it is read",
    do="see the limits in its `--help`",
    within_s=30,
)
@pytest.mark.parametrize("header", [b"Content-Length: 16777216", b"Transfer-Encoding: chunked"])
def test_bodies_over_the_limit_are_refused_before_they_have_ended(header: bytes) -> None:
    model, chunk = HashModel(), b"%x\r\n%s\r\n" % (2**16, b" " * 2**16)
    with served(model, max_body_bytes=2**18) as url:
        with socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=10) as raw:
            raw.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
            raw.sendall(header + b"\r\n\r\n" + chunk * 5)
            assert raw.recv(1000).startswith(b"HTTP/1.1 413")
        assert metrics(url)['value_model_requests_total{status="413"}'] == 1
        with pytest.raises(HttpPriorError, match="answered 413: .*Content Too Large"):
            ask(url, "x" * 2**18)
        assert ask(url, "x").tolist() == expected("x")
    assert len(model.asked) == 1


def test_the_body_limit_counts_to_the_byte() -> None:
    content = httpx.Request("POST", "http://x", json=BODY).content
    with served(max_body_bytes=len(content)) as url:
        headers = {"Content-Type": "application/json"}
        assert HTTP.post(f"{url}/v1/predict", content=content, headers=headers).status_code == 200
        assert HTTP.post(f"{url}/v1/predict", content=content + b" ", headers=headers).status_code == 413


@pytest.mark.parametrize(
    "model", [Answers([0.5]), Answers([[0.5, 0.5]]), Answers(None), HashModel(lambda prompts: 1 / 0)]
)
def test_a_failing_model_is_logged_and_not_explained_to_strangers(model: Any, caplog: Any) -> None:
    with served(model) as url:
        answer = predict(url)
        assert metrics(url)["value_model_prompts_total"] == 0
    assert answer.status_code == 500
    assert answer.json() == {"detail": "the model failed; the server's log says why"}
    assert "prediction of 2 prompts failed" in caplog.text and "Traceback" in caplog.text


# Token


def test_every_route_but_health_needs_the_token() -> None:
    model = HashModel()
    with served(model, token=TOKEN) as url:
        for wrong in ("", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", "Bearer"):
            headers = {"Authorization": wrong} if wrong else {}
            for method, path in [("POST", "/v1/predict"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/")]:
                answer = HTTP.request(method, url + path, headers=headers)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
            assert HTTP.get(f"{url}/health", headers=headers).status_code == 200
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert predict(url, headers=right).status_code == 200
        assert metrics(url, headers=right)['value_model_requests_total{status="401"}'] == 6
    assert len(model.asked) == 1


def test_a_request_without_the_token_is_refused_before_its_body_is_read() -> None:
    with served(token=TOKEN) as url, socket.create_connection(("127.0.0.1", httpx.URL(url).port), timeout=10) as raw:
        raw.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n{")
        assert raw.recv(1000).startswith(b"HTTP/1.1 401")


def test_the_prior_sends_the_token_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(token=TOKEN) as url:
        with pytest.raises(HttpPriorError, match="answered 401: .*bearer token"):
            ask(url, "x")
        monkeypatch.setenv("VERL_V05_PRIOR_TOKEN", TOKEN)
        assert ask(url, "x").tolist() == expected("x")
        monkeypatch.setenv("OTHER", "wrong")
        with pytest.raises(HttpPriorError, match="answered 401") as caught:
            ask(url, "x", token_env="OTHER")
        assert "wrong" not in str(caught.value)


def test_a_token_is_not_sent_in_clear_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    HttpPrior("http://10.0.0.1:80")  # no token yet
    monkeypatch.setenv("VERL_V05_PRIOR_TOKEN", TOKEN)
    for url in ("http://10.0.0.1:80", "http://value-model", "http://localhost.evil.org", "http://[2001:db8::1]:80"):
        with pytest.raises(ValueError, match=r"algorithm\.v05\.prior\.kwargs\.url='http:.*must be https") as caught:
            HttpPrior(url)
        assert TOKEN not in str(caught.value)
        HttpPrior(url, allow_insecure=True)
        HttpPrior(url.replace("http", "https"))
    for url in ("http://127.0.0.1:80", "http://127.0.0.2:80", "http://localhost", "http://[::1]:80"):
        HttpPrior(url)


@pytest.mark.parametrize("token", ["line\nbreak", "schlüssel"])
def test_a_token_that_is_no_header_value_is_refused_and_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_V05_PRIOR_TOKEN", token)
    with pytest.raises(
        ValueError, match="kwargs.token_env='VERL_V05_PRIOR_TOKEN' is not allowed: it must be"
    ) as caught:
        HttpPrior("http://127.0.0.1")
    assert token not in str(caught.value)
    with pytest.raises(ValueError, match="token is not allowed") as caught:
        ServerSettings(token=token)
    assert token not in str(caught.value)


def test_certificates_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = self_signed(tmp_path)
    monkeypatch.setenv("VERL_V05_PRIOR_TOKEN", TOKEN)
    app = create_app(HashModel(), ServerSettings(token=TOKEN))
    with serving(app, ssl_certfile=cert, ssl_keyfile=key) as url:
        assert ask(url, "x", verify=cert).tolist() == expected("x")
        assert ask(url, "x", verify=False).tolist() == expected("x")
        with pytest.raises(HttpPriorError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(url, "x")


# Load


def test_one_prediction_at_a_time_and_nobody_waits_beyond_the_queue() -> None:
    go = threading.Event()
    model = HashModel(lambda prompts: go.wait(20))
    with served(model, max_waiting=2, retry_after_s=7) as url, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, url, str(i)) for i in range(3)]
        wait_until(lambda: metrics(url)["value_model_in_flight"] == 3)
        answer = predict(url)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "7")
        assert answer.json()["detail"] == "busy: 2 requests are waiting already (max_waiting)"
        with pytest.raises(HttpPriorError, match="answered 503: .*busy"):
            ask(url, "x")
        assert HTTP.get(f"{url}/health").status_code == 200  # alive while it predicts
        go.set()
        assert [w.result(20).tolist() for w in waiting] == [expected(str(i)) for i in range(3)]
        counted = metrics(url)
    assert model.most_running == 1 and counted["value_model_in_flight"] == 0
    assert counted['value_model_requests_total{status="503"}'] == 2


def test_a_busy_server_is_asked_again_when_it_says(no_backoff: None) -> None:
    go = threading.Event()
    model = HashModel(lambda prompts: go.wait(20))
    with served(model, max_waiting=0, retry_after_s=1) as url, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, url, "x")
        wait_until(lambda: model.running)
        second = pool.submit(ask, url, "y", retries=1)
        wait_until(lambda: metrics(url).get('value_model_requests_total{status="503"}') == 1)
        go.set()
        assert first.result(20).tolist() == expected("x") and second.result(20).tolist() == expected("y")


@fault(
    "the V0 endpoint hangs",
    happens="given up after `timeout_s`; the batch's priors are missing",
    do="see the endpoint's log",
)
def test_a_slow_server_is_given_up_in_time(no_backoff: None) -> None:
    go = threading.Event()
    with served(HashModel(lambda prompts: go.wait(20))) as url:
        for retries in (0, 2):
            started = time.monotonic()
            with pytest.raises(HttpPriorError, match="/v1/predict did not answer: ReadTimeout"):
                ask(url, "x", timeout_s=0.3, retries=retries)
            assert 0.3 * (retries + 1) <= time.monotonic() - started < 0.3 * (retries + 1) + 2
        go.set()


def test_requests_given_up_while_waiting_are_not_predicted() -> None:
    go = threading.Event()
    model = HashModel(lambda prompts: go.wait(20))
    with served(model) as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, url, "x")
        wait_until(lambda: model.running)
        with pytest.raises(HttpPriorError, match="ReadTimeout"):
            ask(url, "given up", timeout_s=0.2)
        go.set()
        assert first.result(20).tolist() == expected("x")
        assert ask(url, "y").tolist() == expected("y")
    assert [prompts for _, _, prompts in model.asked] == [["x"], ["y"]]


# A server that answers without an end


@contextmanager
def dripping(port: int, *, status_line: bool) -> Iterator[None]:
    """A server that sends an answer of one byte every 0.05 s, from its first line or only from its body on."""
    over = threading.Event()
    start = b"HTTP/1.1 200 OK\r\n"
    start += b"X-Long: " if status_line else b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n"

    def drip(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"" if status_line else start)
            for byte in start if status_line else ():
                connection.sendall(bytes([byte]))
                over.wait(0.05)
            while not over.wait(0.05):
                connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", port)) as listener, ThreadPoolExecutor(16) as pool:
        listener.settimeout(0.05)

        def accept() -> None:
            while not over.is_set():
                with suppress(TimeoutError):
                    pool.submit(drip, listener.accept()[0])

        pool.submit(accept)
        try:
            yield
        finally:
            over.set()


@fault(
    "the V0 endpoint drips a byte a second",
    happens="given up after `deadline_s`, and asked again in the next step",
    do="see the endpoint's log",
)
@pytest.mark.parametrize("status_line", [True, False])
def test_a_server_that_drips_is_given_up_in_time_and_asked_again_when_it_has_recovered(
    status_line: bool, no_backoff: None
) -> None:
    port = free_port()
    prior = HttpPrior(f"http://127.0.0.1:{port}", timeout_s=0.4, retries=1)
    for _ in range(2):
        with dripping(port, status_line=status_line):
            started = time.monotonic()
            with pytest.raises(HttpPriorError, match="did not answer: ReadTimeout: no whole answer in 0.4 s"):
                prior.predict(queries("x"), CONTEXT, 1)
            assert 0.8 <= time.monotonic() - started < 3
        with served(port=port):
            assert prior.predict(queries("x"), CONTEXT, 1).tolist() == expected("x")


def one_prompt_steps(url: str, **kwargs: Any) -> Callable[[int], Any]:
    """A run whose steps are one prompt of one rollout: the record of a step of this number."""
    support, source = SupportSettings(capacity=2, sample=2), PriorSettings("http", {"url": url, **kwargs})
    allocator = Allocator(V05Settings(schedule="fixed", k_init=1, support=support, prior=source))
    allocator.support.add(CONTEXT)

    async def step(number: int) -> Any:
        await allocator.open_batch(number, ["u"], queries("x"))
        await allocator.settle("u", {0: 1.0})
        return await allocator.close_step(number)

    return lambda number: asyncio.run(step(number))


def test_a_step_whose_server_drips_counts_a_failure_and_the_next_has_its_priors(no_backoff: None) -> None:
    port = free_port()
    step = one_prompt_steps(f"http://127.0.0.1:{port}", timeout_s=0.4, retries=0)
    with dripping(port, status_line=False):
        record = step(1)
        assert record.prior_failures == 1 and math.isnan(record.groups[0].probability)
    with served(port=port):
        record = step(2)
        assert record.prior_failures == 0 and 0 <= record.groups[0].probability <= 1


@fault(
    "the V0 endpoint answers NaN, infinity or no number",
    happens="the batch's priors are missing and counted",
    do="see the endpoint's log",
    within_s=30,
)
@pytest.mark.parametrize("value", [b"NaN", b"Infinity", b"1.5", b"-0.1", b'"0.5"', b"0.5, 0.5"])
def test_a_value_that_is_no_probability_is_missing_and_counted(value: bytes) -> None:
    with serving(answering(200, b'{"probabilities": [' + value + b"]}")) as url:
        record = one_prompt_steps(url)(1)
    assert record.prior_failures == 1 and math.isnan(record.groups[0].probability)


def test_a_batch_of_many_requests_ends_at_its_deadline(no_backoff: None) -> None:
    model = HashModel(lambda prompts: time.sleep(0.3))
    with served(model) as url:
        started = time.monotonic()
        with pytest.raises(HttpPriorError, match="deadline_s=0.8 is over|no whole answer"):
            ask(url, *map(str, range(20)), batch_size=1, deadline_s=0.8)
        assert time.monotonic() - started < 2


# Clients that send half a request

HALVES = [b"", b"POST", b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{"]


@contextmanager
def half_open(url: str, count: int) -> Iterator[list[socket.socket]]:
    """Connections that send nothing, half a header, or half a body."""
    with ExitStack() as stack:
        connections = []
        for number in range(count):
            connections.append(stack.enter_context(socket.create_connection(("127.0.0.1", httpx.URL(url).port), 10)))
            with suppress(OSError):  # one that was closed to make room
                connections[-1].sendall(HALVES[number % len(HALVES)])
        yield connections


def is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(1000):
            pass  # the refusal of a request without a token
        return True
    except TimeoutError:
        return False
    except OSError:
        return True


@fault(
    "220 half-open connections to the V0 endpoint",
    happens="clients are answered; above `--max-connections` the oldest are closed, all after `--request-timeout-s`",
    do="nothing",
)
def test_clients_are_answered_beside_220_connections_without_a_whole_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_V05_PRIOR_TOKEN", TOKEN)
    with served(token=TOKEN, max_connections=100) as url, half_open(url, 220) as connections:
        for _ in range(5):
            started = time.monotonic()
            assert ask(url, "x").tolist() == expected("x")
            assert time.monotonic() - started < 2
        for connection in connections:
            connection.settimeout(0.01)
        closed = [is_closed(connection) for connection in connections]
        assert closed.count(False) <= 100 and all(closed[:60])
        assert not any(closed[-1::-3]) or closed[-1::-3].index(True) > 20  # the newest that sent nothing are left


def test_files_run_out_for_nobody_however_many_connect() -> None:
    """A process of its own that may open 200 files; without limits it can accept no client any more."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))\n"
        "from tests.test_http_prior import *\n"
        "with served() as url: print(url, flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    server = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1], **pipes)
    assert server.stdin is not None and server.stdout is not None
    try:
        url = server.stdout.readline().strip()
        with half_open(url, 220):
            started = time.monotonic()
            assert ask(url, "x", timeout_s=10).tolist() == expected("x")
            assert time.monotonic() - started < 2
    finally:
        server.stdin.close()
        server.wait(20)


def test_a_request_that_does_not_arrive_is_given_up_in_time_however_it_drips() -> None:
    go = threading.Event()
    with served(HashModel(lambda prompts: go.wait(20)), request_timeout_s=1) as url, ThreadPoolExecutor(1) as pool:
        slow_answer = pool.submit(ask, url, "x")  # a request that is whole may take its time
        with half_open(url, 6) as connections:
            started = time.monotonic()
            for connection in connections:
                connection.settimeout(0.01)
            left = list(connections)
            while left:
                for connection in left:
                    with suppress(OSError):
                        connection.sendall(b"x")
                left = [connection for connection in left if not is_closed(connection)]
                time.sleep(0.05)
                assert time.monotonic() - started < 5
            assert time.monotonic() - started > 0.8
        go.set()
        assert slow_answer.result(20).tolist() == expected("x")


def test_more_requests_at_a_time_than_connections_are_refused_not_closed() -> None:
    go = threading.Event()
    with served(HashModel(lambda prompts: go.wait(20)), max_connections=3) as url, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(ask, url, str(i)) for i in range(3)]
        wait_until(lambda: len([w for w in waiting if w.running()]) == 3)
        time.sleep(0.3)
        with pytest.raises(HttpPriorError, match="answered 503"):
            ask(url, "x")
        go.set()
        assert [w.result(20).tolist() for w in waiting] == [expected(str(i)) for i in range(3)]


# Errors the prior reports


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 422, 500, 502])
def test_other_statuses_are_errors_at_once(status: int, no_backoff: None) -> None:
    tries: list[int] = []
    with serving(answering(status, b"because " + b"x" * 9999, tries, location="http://127.0.0.1:1/")) as url:
        with pytest.raises(HttpPriorError, match=rf"^{url}/v1/predict answered {status}: because x+$") as caught:
            ask(url, "x", retries=5)
    assert len(tries) == 1 and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("retry_after", "waits"),
    [
        (None, [0.5, 1, 2, 4, 8, 16, 30, 30]),
        ("7", [7] * 8),
        ("0", [0] * 8),
        ("999999", [30] * 8),
        ("-1", [0.5, 1, 2, 4, 8, 16, 30, 30]),
        ("Wed, 21 Oct 2015 07:28:00 GMT", [0.5, 1, 2, 4, 8, 16, 30, 30]),
    ],
)
def test_503_is_tried_again_so_often_and_after_so_long(
    retry_after: str | None, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries, waited = [], []
    monkeypatch.setattr(prior_http, "time", SimpleNamespace(sleep=waited.append, monotonic=time.monotonic))
    headers = {} if retry_after is None else {"retry_after": retry_after}
    with serving(answering(503, b"later", tries, **headers)) as url, pytest.raises(HttpPriorError, match="503: later"):
        ask(url, "x", retries=8)
    assert len(tries) == 9 and waited == waits


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[0.5, 0.5]",
        b"null",
        b"{}",
        b'{"probabilities": 0.5}',
        b'{"probabilities": {"0": 0.5, "1": 0.5}}',
        b'{"probabilities": [0.5]}',
        b'{"probabilities": [0.5, 0.5, 0.5]}',
        b'{"probabilities": [0.5, "0.5"]}',
        b'{"probabilities": [0.5, true]}',
        b'{"probabilities": [0.5, [0.5]]}',
        b'{"probabilities": [0.5, NaN]}',
        b'{"probabilities": [Infinity, 0.5]}',
        b'{"probabilities": [0.5, -Infinity]}',
        b'{"probabilities": [0.5, 1e999]}',
        b'{"probabilities": [0.5, ' + b"[" * 200_000,
    ],
)
def test_nonsense_answers_are_errors(body: bytes) -> None:
    with serving(answering(200, body)) as url, pytest.raises(HttpPriorError, match="answered 200: .*must be 2 numbers"):
        ask(url, "x", "y")


def test_a_wrong_address_or_token_is_found_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(token=TOKEN) as url:
        with pytest.raises(HttpPriorError, match="answered 401"):
            HttpPrior(url).start()
        with pytest.raises(HttpPriorError, match="answered 404"):
            monkeypatch.setenv("VERL_V05_PRIOR_TOKEN", TOKEN)
            HttpPrior(f"{url}/elsewhere").start()
        prior = HttpPrior(url)
        prior.start()
        prior.close()
    with pytest.raises(HttpPriorError, match="did not answer: ConnectError"):
        HttpPrior(url, retries=0).start()


def test_failures_of_a_later_batch_fail_the_whole_question() -> None:
    model = HashModel(lambda prompts: 1 / ("bad" not in prompts))
    with served(model) as url, pytest.raises(HttpPriorError, match="answered 500"):
        ask(url, "x", "y", "bad", batch_size=2)


# Settings


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("url", u) for u in ("", "127.0.0.1:80", "ftp://x", "http://", "http://u:p@x", "http://x?a=1", None, 3)],
        *[("token_env", e) for e in ("", None)],
        *[(k, t) for k in ("timeout_s", "deadline_s") for t in (0, -1, math.nan, math.inf, "60", None, True)],
        *[("batch_size", b) for b in (0, -1, 1.5, "3", True, None)],
        *[("retries", r) for r in (-1, 0.5, True, None)],
        *[("verify", v) for v in ("/no/such/file.pem", None, 3.5)],
        *[("allow_insecure", a) for a in ("yes", 1, None)],
    ],
)
def test_impossible_settings_of_the_prior_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ValueError) as caught:
        HttpPrior(**{"url": "http://127.0.0.1", key: value})
    assert str(caught.value).startswith(f"algorithm.v05.prior.kwargs.{key}={value!r} is not allowed: it must be ")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.evil.org", "", "127.0.0.1.org"]
)
def test_open_hosts_are_refused_without_a_token(host: str) -> None:
    with pytest.raises(ValueError, match="is not allowed without a token"):
        ServerSettings(host=host)
    assert TOKEN not in repr(ServerSettings(host=host, token=TOKEN))


@pytest.mark.parametrize("name", [name for name in LIMITS if name != "max_waiting"])
def test_impossible_limits_of_the_server_are_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 is not allowed: it must be at least 1"):
        replace(ServerSettings(), **{name: 0})
    with pytest.raises(ValueError, match="max_waiting=-1"):
        ServerSettings(max_waiting=-1)


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "empty").write_text("\n")
    assert read_token(None, None) is None
    assert read_token(None, tmp_path / "token") == TOKEN
    for env, file in (("UNSET_VARIABLE", None), (None, tmp_path / "empty")):
        with pytest.raises(ValueError, match="no token in"):
            read_token(env, file)
    monkeypatch.setenv("VERL_V05_PRIOR_TOKEN", "of-default")
    monkeypatch.setenv("MINE", "of-mine")
    assert (read_token(None, None), read_token("MINE", None)) == ("of-default", "of-mine")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--host", "0.0.0.0"], "host='0.0.0.0' is not allowed without a token"),
        (["--token-env", "UNSET_VARIABLE"], "no token in the environment variable UNSET_VARIABLE"),
        (["--token-file", "/no/such/file"], "No such file"),
        (["--max-prompts", "0"], "max_prompts=0 is not allowed"),
        (["--token", TOKEN], "unrecognized arguments|ambiguous option"),
    ],
)
def test_the_command_refuses_before_it_loads_a_model(argv: list[str], message: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|"))


def test_health_and_metrics_tell_who_answers_and_how_often() -> None:
    with served(model_name="mine") as url:
        health = HTTP.get(f"{url}/health").json()
        assert health.keys() == {"model", "version"} and health["model"] == "mine"
        assert predict(url).json().keys() == {"probabilities", "model", "seconds"}
        ask(url, "a", "b", "c")
        refusal(url, prompts=[])
        counted = metrics(url)
    assert counted['value_model_requests_total{status="200"}'] == 2
    assert counted['value_model_requests_total{status="422"}'] == 1
    assert counted["value_model_prompts_total"] == 5 and counted["value_model_seconds_count"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("which", ["tiny", "small"])
def test_the_value_model_answers_over_http_as_in_process(which: str, tmp_path: Path) -> None:
    model = value_model(which, tmp_path)
    context = [Outcome(q, float(i % 2), 4) for i, q in enumerate(queries(*(f"What is {i} + 1?" for i in range(8))))]
    asked = [f"What is {i} * 7?" for i in range(5)]
    own = model.predict([o.query.text for o in context], [2 * o.success - 1 for o in context], asked)
    with served(model) as url:
        prior = HttpPrior(url, batch_size=2)
        prior.start()
        np.testing.assert_allclose(prior.predict(queries(*asked), context, 1), own, atol=1e-5)
        with pytest.raises(HttpPriorError, match="answered 422: .*it must hold both classes"):
            prior.predict(queries(*asked), [replace(o, success=1.0) for o in context], 1)


def value_model(which: str, folder: Path) -> Any:
    """A tiny model of random weights, or the small one of the package."""
    pytest.importorskip("tabpfn")
    from tests.tiny_value_model import build_model, write_encoder
    from value_model.model import ValueModel

    return build_model(write_encoder(folder / "backbone")) if which == "tiny" else ValueModel.from_pretrained()


def self_signed(folder: Path) -> tuple[str, str]:
    """Certificate and key of 127.0.0.1."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    cert = builder.add_extension(address, critical=False).sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(cert.public_bytes(serialization.Encoding.PEM))
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return str(folder / "cert.pem"), str(folder / "key.pem")
