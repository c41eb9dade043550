"""The client of docs/peft.md against answers in the shape that vLLM's server gives."""

from __future__ import annotations

import copy
import json
import re
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import peft
import pytest
import torch
from zoo import ZOO

import bella

PAGE = Path(__file__).parents[2] / "docs" / "peft.md"
PROMPT = [7, 9, 12, 30, 6]
OPTIONS = [" 11", " 12", " 13"]


def client() -> dict:
    """The page's last Python block."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[-1]
    assert len([line for line in code.splitlines() if line.strip()]) < 40
    names: dict = {}
    exec(compile(code, "docs/peft.md", "exec"), names)
    return names


def completion(adapter: str, log_probs: torch.Tensor, count: int) -> dict:
    """The fields that vLLM answers to POST /v1/completions (OpenAI's legacy completions)."""
    best = log_probs.topk(count)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    top = {f" {token}": value for token, value in pairs}
    first = next(iter(top))
    return {
        "id": "cmpl-5f0a",
        "object": "text_completion",
        "created": 1764000000,
        "model": adapter,
        "choices": [
            {
                "index": 0,
                "text": first,
                "logprobs": {
                    "text_offset": [0],
                    "token_logprobs": [top[first]],
                    "tokens": [first],
                    "top_logprobs": [top],
                },
                "finish_reason": "length",
                "stop_reason": None,
                "prompt_logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 5, "total_tokens": 6, "completion_tokens": 1},
    }


@pytest.fixture
def served(tmp_path):
    """Adapters of a posterior, each run by PEFT behind HTTP."""
    base = ZOO["llama"].network("llama")
    posterior = bella.low_rank(copy.deepcopy(base), 3, 2, ("q_proj", "v_proj"), b_std=0.7).eval()
    networks = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for folder in bella.to_peft(posterior, tmp_path / "out", soup="none"):
            theirs = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder))
            networks[folder.name] = theirs.eval()

    class Server(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            tokens = torch.tensor([[int(word) for word in asked["prompt"].split()]])
            with torch.no_grad():
                logits = networks[asked["model"]](input_ids=tokens).logits[0, -1]
            answer = completion(asked["model"], logits.log_softmax(-1), asked["logprobs"])
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield posterior, f"http://127.0.0.1:{server.server_port}", list(networks)
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_client_averages_what_bella_predicts(served):
    posterior, address, adapters = served
    names = client()
    names["next_token"].__defaults__ = (40,)
    prompt = " ".join(map(str, PROMPT))
    average, dispute = names["ask"](address, adapters, prompt, OPTIONS)
    with torch.no_grad():
        logits = posterior(input_ids=torch.tensor([PROMPT])).logits[:, 0, -1, 11:14]
    probs = logits.double().softmax(-1)
    mean = probs.mean(0)
    torch.testing.assert_close(torch.tensor([*average.values()]).double(), mean, rtol=0, atol=1e-6)
    entropies = -(probs * probs.log()).sum(-1)
    expected = -(mean * mean.log()).sum() - entropies.mean()
    assert dispute == pytest.approx(float(expected), abs=1e-6)
    assert dispute > 1e-3


def test_an_option_that_the_server_does_not_list_is_an_error(served):
    _, address, adapters = served
    names = client()
    names["next_token"].__defaults__ = (1,)
    with pytest.raises(ValueError, match="particle-0 lists no"):
        names["ask"](address, adapters, " ".join(map(str, PROMPT)), OPTIONS)
