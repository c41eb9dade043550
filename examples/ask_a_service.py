"""A run over HTTP, and a program that asks it.

A small run on handwritten digits is served on this machine; a client that needs nothing of bella
sends two images, a digit of the trained ones and one that was left out.
"""

import io
import json
import socket
import subprocess
import sys
import time
from base64 import b64encode
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
command = [sys.executable, "-m", "bella"]


def bella(*words):
    """Run the command, as you would type it."""
    print("$ bella", *words)
    quiet = {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL}
    subprocess.run([*command, *words, "--quiet"], **quiet)


def ask(path, body=None):
    """JSON to a path of the service, and its answer."""
    content = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"http://127.0.0.1:{port}{path}", content, headers)) as answer:
        return json.load(answer)


def png(number):
    """A digit as a program would send it."""
    file = io.BytesIO()
    Image.fromarray(np.uint8(load_digits().images[number] * 255 / 16)).save(file, "PNG")
    return b64encode(file.getvalue()).decode()


bella("fit", "--data", "digits", "--left-out", "8,9", "--limit", "300", "--image-size", "64",
      "--epochs", "2", "--out", "run")  # fmt: skip
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
print("$ bella serve run")
service = subprocess.Popen([*command, "serve", "run", "--port", str(port), "--quiet"], cwd=folder)
try:
    for _ in range(300):
        try:
            ask("/readyz")
            break
        except (URLError, ConnectionError):
            time.sleep(0.2)
    # The first digits of the set are 0 to 9, in order.
    answers = ask("/v1/predict", {"images": [png(3), png(8)]})["predictions"]
    for number, said in zip((3, 8), answers, strict=True):
        shown = {name: said[name] for name in ("class", "probability", "entropy", "novelty")}
        print(f"a {number}:", json.dumps(shown))
finally:
    service.terminate()
    print("status of the service after SIGTERM:", service.wait())
