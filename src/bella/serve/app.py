"""The application: what a kind of run answers, what every service has, and the guard around it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request

import bella
from bella.prediction.predict import in_precision
from bella.serve.gauges import Gauges
from bella.serve.guard import Guard, problem
from bella.serve.kinds import kind_of
from bella.serve.limits import Limits
from bella.serve.line import Line
from bella.serve.pages import api_page, page
from bella.serve.shapes import About, Health, Problem

SAYS = {
    400: "No request that can be read.",
    401: "The token is missing, or another.",
    403: "A page of another site asks.",
    408: "The request did not arrive in time.",
    413: "Too many bytes, pixels, characters, examples or tokens.",
    421: "A local service was called by a name that is not this machine's.",
    422: "What is asked cannot be answered; the sentence says why.",
    429: "The queue is full: ask again later.",
    500: "The service failed.",
    503: "No answer in time, or the service is being stopped.",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text} for status, text in SAYS.items()
}


def build(
    run: Any,
    limits: Limits,
    token: str | None,
    local: bool,
    threshold: float | None,
    promise: str,
) -> FastAPI:
    """The application; see `bella.serve.make_app`."""
    kind = kind_of(run)(run, limits, threshold)
    kind.warm_up()
    network = public_name(run.network)
    gauges = Gauges({"network": network, "kind": kind.name, "posterior": kind.posterior.kind})
    line = Line(kind.passes, limits, gauges)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # What the trial, or calibration before it, has decided: the base is cast once for all.
        with in_precision(kind.predicts, run.precision):
            yield
            line.close()

    app = FastAPI(
        title=f"bella: {kind.name}",
        version=bella.__version__,
        description="Predictions with what the particles of a posterior dispute, in nats.",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
        lifespan=lifespan,
    )
    app.state.line = line
    app.include_router(kind.router(line), tags=["answers"])
    about = About(
        kind=kind.name,
        network=network,
        posterior=kind.posterior.kind,
        particles=kind.posterior.particles,
        classes=list(run.classes) if kind.name != "causal-lm" else [],
        threshold=threshold,
        promise=promise,
        version=bella.__version__,
        limits=limits.model_dump(),
        **kind.about,
    )

    @app.get("/v1/run", response_model=About, tags=["service"])
    async def what_is_served() -> Any:
        """The run, its classes, and the limits of the service."""
        return about

    @app.get("/healthz", response_model=Health, tags=["service"])
    async def whether_it_lives() -> Any:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=Health, tags=["service"])
    async def whether_it_is_ready() -> Any:
        """Whether a request would be accepted now."""
        if line.ready:
            return {"status": "ready"}
        raise HTTPException(503, "The queue is full, or the service is being stopped.")

    @app.get("/metrics", response_class=PlainTextResponse, tags=["service"])
    async def figures() -> Any:
        """Figures of the service, as Prometheus reads them."""
        return Response(gauges.text(), media_type="text/plain; version=1.0.0; charset=utf-8")

    for path, made in (("/", page), ("/docs", lambda: api_page(app.openapi()))):
        add_page(app, path, made)
    app.add_exception_handler(RequestValidationError, say_what_is_wrong)
    app.add_exception_handler(HTTPException, say_why)
    app.add_exception_handler(Exception, say_it_failed)
    app.add_middleware(Guard, limits=limits, gauges=gauges, token=token, local=local)
    return app


def public_name(network: str) -> str:
    """A network's name; of a folder its last part, as the others are nobody's business."""
    family, colon, rest = network.rpartition(":")
    return f"{family}{colon}{Path(rest).name}" if Path(rest).is_absolute() else network


def add_page(app: FastAPI, path: str, made: Any) -> None:
    """A page for people, which nothing but itself is loaded with."""
    found: list[tuple[str, str]] = []

    @app.get(path, response_class=HTMLResponse, include_in_schema=False)
    async def show() -> Any:
        if not found:
            found.append(made())
        text, policy = found[0]
        return HTMLResponse(text, headers={"content-security-policy": policy})


async def say_what_is_wrong(request: Request, error: Exception) -> Response:
    """Of a request that does not fit its shape: where, and what would."""
    assert isinstance(error, RequestValidationError)
    # Where there are several forms, the one that it came farthest in is the one that is meant.
    first = max(error.errors(), key=lambda found: len(found["loc"]))
    place = ".".join(str(part)[:60] for part in first["loc"])
    return Response(problem(f"{place}: {first['msg']}."), 422, media_type="application/json")


async def say_why(request: Request, error: Exception) -> Response:
    """Of a refusal: its sentence."""
    assert isinstance(error, HTTPException)
    return Response(
        problem(str(error.detail)),
        error.status_code,
        headers=error.headers,
        media_type="application/json",
    )


async def say_it_failed(request: Request, error: Exception) -> Response:
    """Of a mistake of ours: the log has it, and a stranger is not told."""
    return Response(problem(SAYS[500]), 500, media_type="application/json")
