"""Optional HTTP endpoint of the value model: ``python -m value_model.serving.http``.

    POST /v1/predict {"context": [{"prompt", "score"}], "prompts": [...]} -> {"probabilities", "model", "seconds"}
    GET  /health     name of the model and version of the package; the port opens once the model is loaded
    GET  /metrics    prometheus text

Error responses are JSON ``{"detail": message}`` (413 may be plain text). With a token, every route but /health needs
``Authorization: Bearer <token>``; without one only loopback addresses are served.
"""

from __future__ import annotations

import argparse
import hmac
import logging
import math
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import uvicorn
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from value_model.config_loader import config_from_dict
from value_model.serving.connections import connection_class
from value_model.serving.http_settings import LIMITS, TOKEN_ENV, ServerSettings, read_token

logger = logging.getLogger(__name__)

COMMAND = "python -m value_model.serving.http"
PREDICT = "/v1/predict"
HEALTH = "/health"
SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CLIENT_CLOSED_REQUEST = 499  # nginx's code; the client is gone, but the metrics count it


class ServedModel(Protocol):
    """The part of :class:`value_model.model.ValueModel`'s interface that the endpoint uses."""

    def predict(
        self, context_prompts: Sequence[str], context_scores: Sequence[float], prompts: Sequence[str]
    ) -> np.ndarray: ...


class StrictModel(BaseModel):
    """JSON without unknown keys and without conversions between types."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Example(StrictModel):
    """A prompt and its mean outcome."""

    prompt: str
    score: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]


class PredictRequest(StrictModel):
    context: list[Example]
    prompts: Annotated[list[str], Field(min_length=1)]


class PredictResponse(StrictModel):
    probabilities: list[float | None]  # in the order of the prompts; null where the prediction is not finite
    model: str
    seconds: float  # of the prediction, without the time in the queue


class Metrics:
    """Counters of one app, in its own registry, because metric names must be unique in a registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        name = "value_model"
        self.requests = Counter(f"{name}_requests", "predict requests by status", ["status"], registry=self.registry)
        self.prompts = Counter(f"{name}_prompts", "prompts answered", registry=self.registry)
        self.seconds = Histogram(f"{name}_seconds", "prediction time", buckets=SECONDS, registry=self.registry)
        self.in_flight = Gauge(f"{name}_in_flight", "predict requests running or waiting", registry=self.registry)


class AuthenticationMiddleware:
    """Outermost middleware: responds 401 to a wrong token without reading the body; counts responses of predict."""

    def __init__(self, app: ASGIApp, token: str | None, metrics: Metrics):
        self._app = app
        self._expected = None if token is None else f"Bearer {token}".encode()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        app = self._app if self._is_authorized(scope) else _unauthorized_response()
        if scope["path"] != PREDICT:
            return await app(scope, receive, send)

        async def counting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.requests.labels(message["status"]).inc()
            await send(message)

        await app(scope, receive, counting_send)

    def _is_authorized(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] == HEALTH:
            return True
        # Constant-time comparison: response times reveal nothing about the token.
        return hmac.compare_digest(dict(scope["headers"]).get(b"authorization", b""), self._expected)


class PredictionQueue:
    """One prediction at a time in a worker thread, because a model is not thread-safe."""

    def __init__(self, model: ServedModel, settings: ServerSettings, metrics: Metrics):
        self._model = model
        self._settings = settings
        self._metrics = metrics
        self._limiter = CapacityLimiter(1)

    async def predict(self, body: PredictRequest, request: Request) -> PredictResponse:
        """Wait in the queue, then predict.

        Raises:
            HTTPException: 503 the queue is full, 422 the model rejects the context, 500 the prediction fails.
        """
        now = self._limiter.statistics()
        if now.borrowed_tokens + now.tasks_waiting > self._settings.max_waiting:
            detail = f"busy: {self._settings.max_waiting} requests are waiting already (max_waiting)"
            raise HTTPException(503, detail, headers={"Retry-After": str(self._settings.retry_after_s)})
        # Counted when admitted, not on arrival: the gauge is the number that the queue's limit is compared with.
        with self._metrics.in_flight.track_inprogress():
            async with self._limiter:
                if await request.is_disconnected():  # timed out in the queue; its retry is a new request
                    raise HTTPException(CLIENT_CLOSED_REQUEST, "the client closed the connection")
                return await run_sync(self._predict, body)

    def _predict(self, body: PredictRequest) -> PredictResponse:
        started = time.perf_counter()
        try:
            prompts, scores = [e.prompt for e in body.context], [e.score for e in body.context]
            answer = np.asarray(self._model.predict(prompts, scores, body.prompts), dtype=np.float64)
            if answer.shape != (len(body.prompts),):
                raise RuntimeError(f"the model answered shape {answer.shape} to {len(body.prompts)} prompts")
        except ValueError as error:
            logger.warning("the model refused a request", exc_info=True)
            raise HTTPException(422, str(error)) from error
        except Exception as error:
            logger.exception("prediction of %d prompts failed", len(body.prompts))
            raise HTTPException(500, "the model failed; the server's log says why") from error
        seconds = time.perf_counter() - started
        self._metrics.seconds.observe(seconds)
        self._metrics.prompts.inc(len(answer))
        probabilities = [p if math.isfinite(p) else None for p in answer.tolist()]
        return PredictResponse(probabilities=probabilities, model=self._settings.model_name, seconds=seconds)


def create_app(model: ServedModel, settings: ServerSettings) -> FastAPI:
    """The endpoint around a loaded model."""
    metrics = Metrics()
    queue = PredictionQueue(model, settings, metrics)
    app = FastAPI(title="value model", docs_url=None, redoc_url=None)
    app.add_middleware(AuthenticationMiddleware, token=settings.token, metrics=metrics)
    app.exception_handler(RequestValidationError)(_validation_error_response)

    # Set on the route: older versions of fastapi silently ignore unknown arguments of FastAPI().
    @app.post(PREDICT, max_body_size=settings.max_body_bytes)
    async def predict(body: PredictRequest, request: Request) -> PredictResponse:
        _check_request_limits(body, settings)
        return await queue.predict(body, request)

    @app.get(HEALTH)
    async def health() -> dict[str, str]:
        return {"model": settings.model_name, "version": _package_version()}

    @app.get("/metrics")
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def connection_limits(settings: ServerSettings) -> dict[str, Any]:
    """uvicorn's arguments."""
    return {
        "http": connection_class(settings.request_timeout_s, settings.max_connections),
        # Reached only when as many requests are being answered; further ones get status 503.
        "limit_concurrency": settings.max_connections + 1,
    }


def _check_request_limits(body: PredictRequest, settings: ServerSettings) -> None:
    context = [e.prompt for e in body.context]
    for name, texts, most in (("prompts", body.prompts, "max_prompts"), ("context", context, "max_context")):
        _check_size(name, len(texts), "entries", most, settings)
        for index, text in enumerate(texts):
            _check_size(f"{name}[{index}]", len(text), "characters", "max_prompt_chars", settings)


def _check_size(where: str, size: int, unit: str, most: str, settings: ServerSettings) -> None:
    limit = getattr(settings, most)
    if size > limit:
        raise HTTPException(422, f"{where} has {size} {unit}, allowed are at most {limit} ({most} of the server)")


async def _validation_error_response(request: Request, error: RequestValidationError) -> JSONResponse:
    """Location and reason of the first error. fastapi's own response repeats the input, and fails if that holds NaN."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{where}: {first['msg']}"[:500]}, status_code=422)


def _unauthorized_response() -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"}
    return JSONResponse({"detail": "a valid bearer token is needed"}, status_code=401, headers=headers)


def _package_version() -> str:
    try:
        return version("verl-v05")
    except PackageNotFoundError:
        return "not installed"


def main(argv: Sequence[str] | None = None) -> None:
    """Load a model and serve it until interrupted."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=main.__doc__, allow_abbrev=False)
    parser.add_argument("--model", help="directory or hub id of a saved value model; the embedded one if left out")
    parser.add_argument("--backbone", help="hub id or directory of its encoder, if not where the checkpoint says")
    parser.add_argument("--host", default=ServerSettings.host, help="needs a token if not loopback (%(default)s)")
    parser.add_argument("--port", type=int, default=ServerSettings.port)
    parser.add_argument("--token-env", help=f"environment variable with the token ({TOKEN_ENV} if that is set)")
    parser.add_argument("--token-file", type=Path, help="file with the token")
    parser.add_argument("--tls-cert", help="PEM certificate chain, to serve https")
    parser.add_argument("--tls-key", help="PEM key of the certificate")
    for name in LIMITS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(ServerSettings, name))
    args = parser.parse_args(argv)
    try:
        token = read_token(args.token_env, args.token_file)
        limits = {name: getattr(args, name) for name in LIMITS}
        values = {"host": args.host, "port": args.port, "token": token, "model_name": _model_name(args.model)}
        settings = config_from_dict(ServerSettings, values | limits)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    # Imported late: torch takes seconds to import, and the errors above are reported without it.
    from value_model.checkpoint import CheckpointError
    from value_model.model import ValueModel

    try:
        app = create_app(ValueModel.from_pretrained(args.model, args.backbone), settings)
    except CheckpointError as error:
        parser.error(f"--model {args.model}: {error}")
    tls = {"ssl_certfile": args.tls_cert, "ssl_keyfile": args.tls_key}
    uvicorn.run(app, host=args.host, port=args.port, timeout_graceful_shutdown=30, **tls, **connection_limits(settings))


def _model_name(model: str | None) -> str:
    """Name in the responses; for a local model only the folder's name, so that the path is not disclosed."""
    if model is None:
        return ServerSettings.model_name
    return Path(model).resolve().name if Path(model).exists() else model


if __name__ == "__main__":
    main()
