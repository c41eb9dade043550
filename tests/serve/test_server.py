"""The server as a process: who may listen where, what the command refuses, and how it stops."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from own_images import CLASSES
from serve_cases import Client

import bella
from bella.errors import BellaError, MissingExtraError
from bella.serve import make_app, serve
from bella.serve.server import check_token, is_local, listening, token_from

TOKEN = "0123456789abcdef"


def test_what_is_this_machine_s_alone():
    assert all(map(is_local, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_local, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_a_service_for_others_takes_a_token_that_cannot_be_guessed():
    check_token(None, True, "127.0.0.1")
    check_token(TOKEN, False, "0.0.0.0")
    with pytest.raises(BellaError, match="needs a token"):
        check_token(None, False, "0.0.0.0")
    for weak in ("short", "a token with an é in it", "line\nbreak-line\nbreak"):
        with pytest.raises(BellaError, match="at least 16 characters"):
            check_token(weak, True, "localhost")


def test_a_token_comes_from_a_file_or_the_environment(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert token_from(file, "another") == TOKEN
    assert token_from(None, TOKEN) == TOKEN
    assert token_from(None, "") is None
    file.write_text("\n")
    with pytest.raises(BellaError, match="is empty"):
        token_from(file, None)
    with pytest.raises(BellaError, match="cannot be read as a token"):
        token_from(tmp_path / "none", None)


def test_a_taken_port_and_a_strange_address_are_sentences():
    with listening("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        one.listen()
        with pytest.raises(BellaError, match=rf"127\.0\.0\.1:{port} cannot be listened at"):
            listening("127.0.0.1", port)
    with pytest.raises(BellaError, match="cannot be listened at"):
        listening("192.0.2.1", 0)  # of documentation, and of no machine
    with pytest.raises(BellaError, match="is no address here"):
        listening("no host", 0)


def test_bad_limits_and_places_are_refused_before_a_network_is_opened(tmp_path):
    with pytest.raises(BellaError, match="batch=0"):
        serve(tmp_path, limits={"batch": 0})
    with pytest.raises(BellaError, match="needs a token"):
        serve(tmp_path, host="0.0.0.0")
    with pytest.raises(BellaError, match=r"holds no model\.json"):
        serve(tmp_path, port=0)


def test_without_its_libraries_one_sentence_says_what_brings_them(monkeypatch, run):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"bella-bnn\[serve\]"):
        make_app(run)


def test_it_answers_what_it_accepted_when_it_is_asked_to_stop(pictures):
    """A process as it is deployed: SIGTERM while eight requests wait for their pass."""
    command = [sys.executable, "-m", "bella", "serve", str(pictures / "run"), "--port", "0"]
    environment = os.environ | {
        "PYTHONPATH": str(Path(bella.__file__).parents[1]),
        "BELLA_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [*command, "--wait-ms", "1500"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.search(r"answers at http://127\.0\.0\.1:(\d+)/", line)
        assert found, line + process.stderr.read()
        client = Client(int(found[1]), TOKEN)
        while True:
            try:
                if client.get("/readyz").status == 200:
                    break
            except OSError:
                time.sleep(0.05)
        images = sorted((pictures / "images").rglob("*.png"))[:8]
        told = []

        def ask(path):
            told.append(client.files("/v1/predict/files", [path.read_bytes()]))

        threads = [threading.Thread(target=ask, args=(path,)) for path in images]
        for thread in threads:
            thread.start()
        while b"bella_queue_examples 8.0" not in client.get("/metrics").content:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(30)
        assert [answer.status for answer in told] == [200] * 8
        assert {answer.json["predictions"][0]["class"] for answer in told} <= set(CLASSES)
        assert process.wait(30) == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", client.port), 1)
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()
