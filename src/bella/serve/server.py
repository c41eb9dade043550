"""The application and its server."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bella.errors import BellaError, Terminated, require
from bella.files import read_bytes, shortened
from bella.serve.limits import Limits
from bella.training.settings import checked

if TYPE_CHECKING:
    from fastapi import FastAPI

EXTRA = "serve"
SHORTEST_TOKEN = 16
"""Characters of a token at least."""


def make_app(
    run: Any,
    limits: Limits | None = None,
    *,
    token: str | None = None,
    local: bool = True,
    threshold: float | None = None,
    promise: str = "",
) -> FastAPI:
    """An ASGI application that answers for an opened run; any ASGI server runs it.

    Args:
        run: what `bella.runs.open_run` returned.
        limits: see `Limits`.
        token: which requests have to bear (``Authorization: Bearer``).
        local: whether only this machine can reach it; see `bella.serve.guard.Guard`.
        threshold: entropy in nats from which on an answer is for a person.
        promise: in words, what that threshold promises.

    Raises:
        BellaError: a run of a kind that is not served, or a threshold that is no number.
        MissingExtraError: fastapi, prometheus-client or python-multipart is not installed.
    """
    for module in ("fastapi", "prometheus_client", "python_multipart"):
        require(module, EXTRA)
    from bella.serve.app import build

    return build(run, limits or Limits(), token, local, threshold, promise)


def serve(
    folder: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | Mapping[str, Any] | None = None,
    token: str | None = None,
    device: str | None = None,
    own_code: bool = False,
    precision: str = "float32",
    calibrate: str | Path | None = None,
    risk: float | None = None,
    delta: float | None = None,
    refer_above: float | None = None,
    quiet: bool = False,
) -> None:
    """Answer for a run over HTTP until SIGTERM or Ctrl-C; what was accepted by then is answered.

    Args:
        folder: of the run.
        host: address to listen at; beyond this machine a token is needed.
        port: to listen at; 0 for any free one.
        limits: see `Limits`; of a mapping what is not there has the default of the run's kind.
        token: which requests have to bear.
        device: where to run; the accelerator if there is one.
        own_code: see `bella.runs.opened.open_run`.
        precision: of predictions, see `bella.predict`; ``auto`` decides on the calibration
            examples, or else on an example of its own. Language models write in float32.
        calibrate: labelled examples that the run was not trained on, to find the entropy from
            which on an answer is for a person (`bella.evaluation.abstention.promise`).
        risk: the share of wrong answers that is promised below it; .05 if it is not given.
        delta: the probability that the promise is wrong; .1 if it is not given.
        refer_above: such an entropy, in nats, by itself.
        quiet: whether requests are not logged.

    Raises:
        BellaError: no such run, a place that cannot be listened at or is open without a token, or
            calibration examples that promise nothing.
        MissingExtraError: a library of the extra ``serve`` is not installed.
    """
    uvicorn = require("uvicorn", EXTRA)
    asked = limits.model_dump() if isinstance(limits, Limits) else dict(limits or {})
    checked(Limits, asked)  # before a network is opened
    local = is_local(host)
    check_token(token, local, host)
    with listening(host, port) as listener:
        from bella.runs import open_run
        from bella.serve.referral import referral

        options: dict[str, Any] = {"own_code": True} if own_code else {}  # of images alone
        run = open_run(folder, device=device, precision=precision, **options)
        own: Limits = checked(Limits, {**defaults_of(run), **asked})
        threshold, promise = referral(run, calibrate, risk, delta, refer_above)
        app = make_app(run, own, token=token, local=local, threshold=threshold, promise=promise)
        config = uvicorn.Config(
            app,
            log_level="warning" if quiet else "info",
            access_log=not quiet,
            server_header=False,
            limit_concurrency=4 * own.queue,  # connections, which may all say nothing
            timeout_graceful_shutdown=int(own.seconds) + 5,
            # Behind a proxy its word for who asks is believed only where uvicorn is told to.
            forwarded_allow_ips="",
        )
        address = f"{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        if not quiet:
            print(f"{folder} answers at http://{address}/", flush=True)
        with contextlib.suppress(KeyboardInterrupt, Terminated):  # answered, and handed on
            uvicorn.Server(config).run(sockets=[listener])


def defaults_of(run: Any) -> dict[str, Any]:
    """Limits of a run's kind, where nobody says otherwise: a text is written token by token."""
    task = getattr(run, "task", None)
    return {"batch": 8, "seconds": 120.0} if getattr(task, "name", "") == "causal-lm" else {}


def token_from(file: Path | None, given: str | None) -> str | None:
    """The token in a file, or the one that is given.

    Raises:
        BellaError: the file cannot be read, or is empty.
    """
    if file is None:
        return given or None
    try:
        found = read_bytes(file, 4096).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BellaError(f"{file} cannot be read as a token ({shortened(error)}).") from None
    if not found:
        raise BellaError(f"{file} is empty: write a token into it (openssl rand -hex 32).")
    return found


def is_local(host: str) -> bool:
    """Whether an address is this machine's alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(token: str | None, local: bool, host: str) -> None:
    """Refuse a service that anybody could ask, and a token that can be guessed.

    Raises:
        BellaError: it is one.
    """
    if token is None and not local:
        raise BellaError(
            f"At {host} others can ask this service, so it needs a token: put one into the "
            'environment (export BELLA_TOKEN="$(openssl rand -hex 32)") or a file (--token-file).'
        )
    if token is None:
        return
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable():
        raise BellaError(
            f"The token must have at least {SHORTEST_TOKEN} characters, all of them ASCII: "
            "openssl rand -hex 32 makes one."
        )


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there: a taken port is refused before a network is opened.

    Raises:
        BellaError: the address is not this machine's, or taken.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise BellaError(f"{host} is no address here ({error.strerror or error}).") from None
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(place)
    except (OSError, OverflowError) as error:
        made.close()
        said = getattr(error, "strerror", None) or str(error)
        raise BellaError(f"{host}:{port} cannot be listened at ({said}): name another.") from None
    return made
