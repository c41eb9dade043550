"""Images over HTTP: answers are those of `bella predict`, whoever else asks; what is too much is
refused."""

from __future__ import annotations

import base64
import io
import json
import threading
import time

import pytest
import torch
from own_images import CLASSES
from PIL import Image
from serve_cases import Client, served

import bella
from bella.errors import BellaError
from bella.runs import RunConfig, open_run, train
from bella.serve import Limits, make_app
from bella.serve.referral import referral


@pytest.fixture(scope="module")
def client(run):
    with served(make_app(run)) as asked:
        yield asked


@pytest.fixture(scope="module")
def paths(pictures):
    return sorted((pictures / "images").rglob("*.png"))[::15]


def coded(content):
    return base64.b64encode(content).decode()


def png(size=(40, 30), colour=(200, 10, 10)):
    place = io.BytesIO()
    Image.new("RGB", size, colour).save(place, "PNG")
    return place.getvalue()


def same(answer, row):
    """An answer says what `bella predict` says of the same image."""
    assert answer["class"] == row["class"]
    for name in ("probability", "entropy", "mutual_information"):
        assert answer[name] == pytest.approx(row[name], abs=1e-6), name
    # Rounding decides which of equally near neighbours count, and what is usual for those.
    assert answer["novelty"] == pytest.approx(row["novelty"], abs=0.05)
    for name in CLASSES:
        assert answer["probabilities"][name] == pytest.approx(row[f"p({name})"], abs=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_a_service_in_another_precision_answers_as_predict_in_it(pictures, paths, precision):
    run = open_run(pictures / "run", precision=precision)
    weights = [p for n, p in run.posterior.network.named_parameters() if "lora" not in n]
    kept = [p.clone() for p in weights]
    expected = run.predict(paths[:1]).rows()
    with served(make_app(run)) as client:
        for _ in range(2):
            content = paths[0].read_bytes()
            (answer,) = client.post("/v1/predict", {"images": [coded(content)]}).json["predictions"]
            assert answer["probability"] == pytest.approx(expected[0]["probability"], abs=0.02)
            assert answer["class"] == expected[0]["class"]
        held = any(p.dtype == torch.bfloat16 for p in weights)
        assert held == (precision == "bf16")  # of so small a network auto casts nothing
    assert all(torch.equal(a, b) for a, b in zip(weights, kept, strict=True))


def test_answers_are_those_of_predict_in_json_and_as_files(client, run, paths):
    rows = run.predict(paths).rows()
    contents = [path.read_bytes() for path in paths]
    in_json = client.post("/v1/predict", {"images": list(map(coded, contents))})
    as_files = client.files("/v1/predict/files", contents)
    assert (in_json.status, as_files.status) == (200, 200)
    assert in_json.json == as_files.json
    for answer, row in zip(in_json.json["predictions"], rows, strict=True):
        same(answer, row)


def test_an_answer_says_what_each_member_says(client, run, paths):
    told = client.files("/v1/predict/files", [paths[0].read_bytes()])
    (answer,) = told.json["predictions"]
    said = run.predict([paths[0]]).predictive
    names = [f"particle {n}" for n in (1, 2, 3)]
    names += [f"readout {readout}" for readout in run.mixture.readouts]
    assert [vote["member"] for vote in answer["votes"]] == names
    top = said.particle_probs[:, 0].max(-1)
    assert [v["probability"] for v in answer["votes"]] == pytest.approx(
        top.values.tolist(), abs=1e-6
    )
    assert [v["class"] for v in answer["votes"]] == [CLASSES[k] for k in top.indices]
    expected = answer["expected_entropy"]
    assert expected == pytest.approx(float(said.expected_entropy[0]), abs=1e-6)


def test_many_at_once_share_passes_and_get_their_own_answers(run, pictures):
    paths = sorted((pictures / "images").rglob("*.png"))[:48]
    rows = run.predict(paths).rows()
    found = {}
    with served(make_app(run, Limits(wait=0.05, batch=16))) as client:

        def ask(i):
            (found[i],) = client.files("/v1/predict/files", [paths[i].read_bytes()]).json[
                "predictions"
            ]

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(paths))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        text = client.get("/metrics").content.decode()
    for i, row in enumerate(rows):
        same(found[i], row)
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures["bella_pass_examples_sum"]) == 48
    assert float(figures["bella_pass_examples_count"]) < 30
    answered = 'bella_requests_total{path="/v1/predict/files",status="200"}'
    assert float(figures[answered]) == 48
    assert float(figures["bella_entropy_nats_count"]) == 48
    assert float(figures["bella_queue_examples"]) == 0


def test_several_passes_at_a_time_of_one_posterior(run, pictures):
    paths = sorted((pictures / "images").rglob("*.png"))[:32]
    rows = run.predict(paths).rows()
    line = make_app(run, Limits(batch=1, passes=4, wait=0)).state.line
    inputs = [run.preprocess(Image.open(path)) for path in paths]
    jobs = [line.batcher.submit([x]) for x in inputs]
    for job, row in zip(jobs, rows, strict=True):
        same(job.result(60)[0], row)
    line.close()


def test_drawn_particles_answer_an_image_as_if_it_were_alone(pictures, tmp_path, paths):
    config = RunConfig(
        data=str(pictures / "images"),
        network=f"hf:{pictures / 'network'}",
        method="rank1",
        epochs=1,
        learning_rate=0.01,
    )
    train(config, tmp_path / "run", progress=False)
    run = open_run(tmp_path / "run")
    contents = [path.read_bytes() for path in paths[:3]]
    with served(make_app(run)) as client:
        together = client.files("/v1/predict/files", contents).json["predictions"]
        alone = [client.files("/v1/predict/files", [c]).json["predictions"][0] for c in contents]
    assert together == alone
    for path, answer in zip(paths, together, strict=False):
        (row,) = run.predict([path]).rows()
        assert answer["entropy"] == pytest.approx(row["entropy"], abs=1e-6)
        assert answer["mutual_information"] == pytest.approx(row["mutual_information"], abs=1e-6)
    assert answer["votes"][-1]["member"] == "particle 4, draw 4"


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "body.images: Field required"),
        ({"images": []}, "at least 1 item"),
        ({"images": ["?"]}, "Image 1 is no base64"),
        ({"images": [coded(b"no image")]}, "Image 1 cannot be read as an image"),
        ({"images": [coded(png()[:60])]}, "Image 1 cannot be read as an image"),
        ({"images": ["aGk="], "more": 1}, "body.more"),
        ({"images": "aGk="}, "valid list"),
        ({"images": [3]}, "valid string"),
        ("{", "JSON"),
        (b"\xff\xfe", ""),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_sentence(client, content, said):
    told = client.post("/v1/predict", content)
    assert told.status in (400, 422)
    assert said in told.json["detail"]
    assert told.headers["content-type"] == "application/json"


def test_half_a_surrogate_pair_is_no_image_and_no_failure(client):
    told = client.post("/v1/predict", '{"images": ["\\ud800"], "\\udfff": 1}')
    assert told.status == 422


def test_one_bad_image_does_not_hurt_those_beside_it(client, run, paths):
    found = {}
    contents = {"good": paths[0].read_bytes(), "bad": b"bad"}

    def ask(name):
        found[name] = client.files("/v1/predict/files", [contents[name]])

    threads = [threading.Thread(target=ask, args=(name,)) for name in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found["good"].status, found["bad"].status) == (200, 422)
    same(found["good"].json["predictions"][0], run.predict([paths[0]]).rows()[0])


def test_too_much_is_refused_before_it_is_read(run):
    limits = Limits(body=20_000, pixels=10_000, batch=2)
    with served(make_app(run, limits)) as client:
        large = client.post("/v1/predict", b" " * 2_000_000)
        assert (large.status, large.headers["connection"]) == (413, "close")
        assert "20,000 bytes" in large.json["detail"]
        many = client.files("/v1/predict/files", [png()] * 3)
        assert (many.status, many.json["detail"][:10]) == (413, "3 examples")
        wide = client.files("/v1/predict/files", [png((200, 100))])
        assert wide.status == 413
        assert "10,000 pixels" in wide.json["detail"]
        assert client.files("/v1/predict/files", [png((100, 100))]).status == 200


def test_a_body_without_a_length_is_counted(run):
    with served(make_app(run, Limits(body=20_000))) as client:
        connection = client.sent(b"Transfer-Encoding: chunked\r\n\r\n")
        for part in [b"x" * 8_000] * 10:
            connection.sendall(b"%x\r\n%b\r\n" % (len(part), part))
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
        connection.close()


def test_a_full_queue_and_a_late_answer_are_told_apart(run):
    """429 while the queue is full, 503 for who waited in vain; ready again afterwards."""
    app = make_app(run, Limits(queue=2, batch=1, seconds=1.0, wait=0))
    line, gate = app.state.line, threading.Event()
    answer = line.batcher.answer
    line.batcher.answer = lambda items, key: gate.wait(20) and answer(items, key)
    found = {}

    def ask(client, name):
        found[name] = client.files("/v1/predict/files", [png()])

    with served(app) as client:
        threads = [threading.Thread(target=ask, args=(client, name)) for name in "ab"]
        for thread in threads:
            thread.start()
        while line.batcher.held < 2:
            time.sleep(0.005)
        assert client.get("/readyz").status == 503
        full = client.files("/v1/predict/files", [png()])
        assert (full.status, full.headers["retry-after"]) == (429, "1")
        for thread in threads:
            thread.join()
        assert {told.status for told in found.values()} == {503}
        assert all(told.headers["retry-after"] == "1" for told in found.values())
        assert client.get("/healthz").json == {"status": "ok"}
        gate.set()
        while line.batcher.held:
            time.sleep(0.005)
        assert client.get("/readyz").json == {"status": "ready"}
        assert client.files("/v1/predict/files", [png()]).status == 200


def test_a_request_that_never_arrives_ends(run):
    with served(make_app(run, Limits(seconds=0.3))) as client:
        connection = client.sent(b"Content-Length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
        connection.close()


# ---------------------------------------------------------------- who may ask


def test_without_the_token_nothing_is_told_but_that_it_works(run, paths):
    token = "a-token-of-some-length"
    with served(make_app(run, token=token, local=False)) as client:
        for path in ("/v1/run", "/metrics", "/openapi.json", "/docs", "/nothing"):
            told = client.get(path)
            assert (told.status, told.headers["www-authenticate"]) == (401, "Bearer"), path
        for authorization in (token, f"Basic {token}", "Bearer", f"Bearer {token}x", "Bearer é"):
            assert client.get("/v1/run", Authorization=authorization).status == 401
        assert client.files("/v1/predict/files", [paths[0].read_bytes()]).status == 401
        for path in ("/", "/healthz", "/readyz"):
            assert client.get(path).status == 200
        assert not any(name in client.get("/").content.decode() for name in ("night", token))
        known = Client(client.port, token)
        assert known.get("/v1/run", Host="any.where").json["classes"] == list(CLASSES)
        assert known.files("/v1/predict/files", [paths[0].read_bytes()]).status == 200


def test_a_local_service_is_asked_by_this_machine_s_names_alone(client):
    for host in ("localhost", "LOCALHOST:1234", "127.0.0.1:80", "[::1]:80"):
        assert client.get("/healthz", Host=host).status == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "[::1", ""):
        assert client.get("/healthz", Host=host).status in (400, 421), host
    host = f"localhost:{client.port}"
    theirs = client.post("/v1/predict", {}, Host=host, Origin="http://evil.example")
    assert theirs.status == 403
    assert client.post("/v1/predict", {}, Host=host, Origin="http://[").status == 403
    assert client.post("/v1/predict", {}, Host=host, Origin=f"http://{host}").status == 422


def test_behind_a_proxy_the_token_stands_for_the_place(run):
    token = "a-token-of-some-length"
    with served(make_app(run, token=token, local=True), token) as client:
        told = client.post("/v1/predict", {}, Host="cells.example", Origin="https://cells.example")
        assert told.status == 422


def test_what_is_served_and_how_is_told(client, run):
    told = client.get("/v1/run").json
    assert told["kind"] == "images"
    assert told["network"] == "hf:network"  # and not in which folder
    assert told["classes"] == list(CLASSES)
    assert (told["particles"], told["posterior"]) == (3, "low_rank")
    assert told["version"] == bella.__version__
    assert told["limits"] == Limits().model_dump()
    assert told["threshold"] is None
    assert client.get("/nothing").status == 404
    assert client.ask("PUT", "/v1/predict").status == 405
    assert client.get("/v1/run").headers["cache-control"] == "no-store"


def test_the_description_is_whole_and_has_a_page(client):
    schema = client.get("/openapi.json").json
    paths = schema["paths"]
    assert set(paths) == {
        *("/v1/predict", "/v1/predict/files", "/v1/run", "/healthz", "/readyz", "/metrics"),
    }
    for told in (method for methods in paths.values() for method in methods.values()):
        assert {"200", "401", "413", "422", "429", "503"} <= set(told["responses"])
        assert told["description"].endswith(".")
    page = client.get("/docs").content.decode()
    assert all(path in page for path in paths)
    assert "curl http://localhost:8000/v1/predict --json" in page
    assert json.dumps({"images": ["..."]}).replace('"', "&quot;") in page
    assert "script-src 'none'" in client.get("/docs").headers["content-security-policy"]


# ---------------------------------------------------------------- when to ask a person


def test_a_threshold_from_calibration_marks_what_is_for_a_person(run, pictures):
    threshold, promise = referral(run, pictures / "others", risk=0.2)
    assert "most 20% of the answers are wrong" in promise
    assert promise.startswith("At most" if threshold is None else "Below it at most")
    paths = sorted((pictures / "others").rglob("*.png"))[::6]
    rows = run.predict(paths).rows()
    median = float(torch.tensor([row["entropy"] for row in rows]).median())
    with served(make_app(run, threshold=median, promise=promise)) as client:
        told = client.files("/v1/predict/files", [path.read_bytes() for path in paths]).json
        assert client.get("/v1/run").json["promise"] == promise
        assert b"bella_referred_total" in client.get("/metrics").content
    marked = [answer["refer"] for answer in told["predictions"]]
    assert marked == [answer["entropy"] >= median for answer in told["predictions"]]
    assert {True, False} == set(marked)


def test_a_calibration_that_promises_nothing_is_refused(run, pictures):
    with pytest.raises(BellaError, match=r"cannot promise a risk of 0\.001"):
        referral(run, pictures / "others", risk=0.001)
    with pytest.raises(BellaError, match="not both"):
        referral(run, pictures / "others", above=0.5)
    with pytest.raises(BellaError, match="no number"):
        referral(run, above=float("nan"))
    with pytest.raises(BellaError, match="name them by calibrate"):
        referral(run, risk=0.2, above=0.5)
    assert referral(run, above=0.5) == (0.5, "")
    assert referral(run) == (None, "")
