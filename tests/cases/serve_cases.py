"""A service in a thread of its own, a client that needs nothing but Python, and runs on texts."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as hf
import uvicorn
from language_cases import WORDS, small_language_model, small_tokenizer

import bella
from bella.runs import TextConfig, TextRun
from bella.runs.texts import TASKS
from bella.runs.texts.base import Asked


class Told(NamedTuple):
    """What a service answered."""

    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    """Asks a service; every request on a connection of its own."""

    def __init__(self, port: int, token: str | None = None):
        self.port = port
        self.headers = {} if token is None else {"Authorization": f"Bearer {token}"}

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Told:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, self.headers | named)
        answer = connection.getresponse()
        told = Told(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return told

    def get(self, path: str, **headers: str) -> Told:
        return self.ask("GET", path, **headers)

    def post(self, path: str, content: Any, **headers: str) -> Told:
        body = content if isinstance(content, bytes | str) else json.dumps(content)
        return self.ask("POST", path, body, **({"Content_Type": "application/json"} | headers))

    def files(self, path: str, contents: list[bytes]) -> Told:
        """A form with image files."""
        parts = [
            b'--cut\r\nContent-Disposition: form-data; name="images"; filename="%d"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n%b\r\n" % (i, content)
            for i, content in enumerate(contents)
        ]
        form = "multipart/form-data; boundary=cut"
        return self.ask("POST", path, b"".join(parts) + b"--cut--\r\n", Content_Type=form)

    def sent(self, rest: bytes) -> socket.socket:
        """A connection on which a POST to ``/v1/predict`` was begun, with the rest of its head."""
        connection = socket.create_connection(("127.0.0.1", self.port), 20)
        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(head + rest)
        return connection


@contextmanager
def served(app: Any, token: str | None = None):
    """A client of an application that runs on a free port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
            assert thread.is_alive()
        yield Client(server.servers[0].sockets[0].getsockname()[1], token)
    finally:
        server.should_exit = True
        thread.join()


def write_networks(place: Path) -> dict[str, str]:
    """A small BERT and a small Llama with their tokenizers, by the names that open them."""
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        pad_token_id=0,
        initializer_range=0.3,
    )
    hf.BertModel(config).save_pretrained(place / "bert")
    small_language_model().save_pretrained(place / "llama")
    for name in ("bert", "llama"):
        small_tokenizer().save_pretrained(place / name)
    return {name: f"hf:{place / name}" for name in ("bert", "llama")}


def opened(networks, name, columns, facts, network="bert", **options) -> TextRun:
    """A run of a task, as `open_run` would open it, whose particles differ."""
    config = TextConfig(task=name, data="rows.csv", network=networks[network], **options)
    task = TASKS[name]
    made = task.open(config, facts)
    targets = ("query", "value") if network == "bert" else (r".*layers\.2\.self_attn\.q_proj",)
    posterior = bella.low_rank(made.network, 3, 2, targets, b_std=0.5, alpha=4).eval()
    asked = Asked(made.tokenizer, columns, facts, 64, config.options_by)
    return TextRun(posterior, task, asked, config.network)
