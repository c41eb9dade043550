"""The page: a person drops an image or types a text, and sees what is said; in a real browser."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html import unescape

import pytest
from fastapi.responses import HTMLResponse
from report_cases import BROWSERS, contrast
from serve_cases import opened, served

from bella.runs.writing import Writer
from bella.serve import guard, make_app
from bella.serve.pages import page

DRIVER = """<!doctype html><title>a person</title><pre id="seen"></pre>
<iframe id="frame" src="/" width="1000" height="1400"></iframe>
<script>
const seen = (x) => { document.getElementById("seen").textContent += x + "\\n"; };
async function until(find) {
  for (;;) {
    const x = find();
    if (x) return x;
    await new Promise((f) => setTimeout(f, 20));
  }
}
(async () => {
  const frame = document.getElementById("frame");
  await until(() => frame.contentWindow && frame.contentDocument.getElementById("form"));
  const page = frame.contentDocument, win = frame.contentWindow;
  const $ = (id) => page.getElementById(id);
  win.addEventListener("error", (event) => seen("ERROR " + event.message));
  page.addEventListener("securitypolicyviolation", (e) => seen("ERROR " + e.violatedDirective));
  SCRIPT
  seen("DONE");
})().catch((error) => seen("ERROR " + error.message));
</script>"""

DROP = """
  const drop = await until(() => $("drop"));
  const bytes = Uint8Array.from(atob("CONTENT"), (c) => c.charCodeAt(0));
  const data = new win.DataTransfer();
  data.items.add(new win.File([bytes], "<i>dark</i>.png", { type: "image/png" }));
  const event = { dataTransfer: data, bubbles: true, cancelable: true };
  drop.dispatchEvent(new win.DragEvent("drop", event));
  const card = await until(() => page.querySelector(".card"));
  const all = (what) => [...card.querySelectorAll(what)].map((x) => x.textContent).join("; ");
  seen("title " + all("h2"));
  seen("verdict " + all(".verdict"));
  seen("bars " + all(".bars li"));
  seen("figures " + all("dd b"));
  seen("votes " + card.querySelectorAll("tbody tr").length);
  seen("alt " + card.querySelector("img").alt);
  await until(() => $("status").textContent.startsWith("Answered"));
"""

WRITTEN = """
  await until(() => $("prompt"));
  const fields = [...page.querySelectorAll("#form textarea, #form input")];
  seen("unlabelled " + fields.filter((field) => !field.labels.length).length);
  $("prompt").value = "who are you";
  $("tokens").value = 5;
  $("form").requestSubmit();
  const card = await until(() => page.querySelector(".card"));
  seen("answer " + card.dataset.answer);
  seen("tokens " + card.querySelectorAll("mark").length);
  seen("figures " + [...card.querySelectorAll("dd b")].map((x) => x.textContent).join("; "));
"""

REFUSED = """
  await until(() => !$("access").hidden);
  seen("asked " + $("status").textContent);
  $("token").value = "TOKEN";
  $("access").requestSubmit();
  const input = await until(() => $("file"));
  const data = new win.DataTransfer();
  data.items.add(new win.File(["no image"], "a.png"));
  input.files = data.files;
  input.dispatchEvent(new win.Event("change"));
  const status = $("status");
  await until(() => status.className === "failed" && status.textContent.startsWith("Image"));
  seen("refused " + status.textContent);
  seen("hidden " + $("access").hidden);
"""


@pytest.fixture
def browse(tmp_path, monkeypatch):
    """What a script sees that uses an application's page as a person would."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium to open the page with: install it, or trust the others")
    monkeypatch.setattr(guard, "OPEN", (*guard.OPEN, "/person"))

    def drive(app, script):
        @app.get("/person", response_class=HTMLResponse)
        async def person():
            return DRIVER.replace("SCRIPT", script)

        with served(app) as client:
            command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
            command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=30000"]
            address = f"http://localhost:{client.port}/person"
            ran = subprocess.run(
                [*command, address], capture_output=True, text=True, timeout=120, check=True
            )
        seen = unescape(re.search(r'<pre id="seen">(.*?)</pre>', ran.stdout, re.DOTALL)[1])
        assert "ERROR" not in seen, seen
        assert "DONE" in seen, seen
        return dict(line.split(" ", 1) for line in seen.splitlines() if " " in line)

    return drive


def test_the_page_asks_nobody_else_and_the_browser_is_told_so():
    text, policy = page()
    assert not re.search(r'(src|href)="(?!docs|data:|#)', text)
    assert not re.search(r"url\(|https?://|innerHTML| style=", text)
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert 'lang="en"' in text


def test_colours_stand_out_in_light_and_dark():
    """By 4.5 to 1 (WCAG 2.2, 1.4.3), words on the ground that they stand on."""
    style = page()[0].partition("</style>")[0]
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6})", p)) for p in style.split(":root")[1:]]
    assert len(schemes) == 2
    for scheme in schemes:
        pairs = [
            (word, ground) for word in ("ink", "soft", "accent") for ground in ("paper", "card")
        ]
        for word, ground in [
            *pairs,
            ("paper", "accent"),
            ("good", "good-back"),
            ("bad", "bad-back"),
        ]:
            assert contrast(scheme[word], scheme[ground]) >= 4.5, (word, ground, scheme)


def test_a_prompt_is_answered_token_by_token(networks, browse):
    run = opened(networks, "causal-lm", {"messages": "messages"}, {}, "llama")
    asked = [{"messages": [{"role": "user", "content": "who are you"}]}]
    writer = Writer(run.posterior, run.asked.tokenizer)
    (row,) = writer.answer(asked, max_new_tokens=5, do_sample=False)
    seen = browse(make_app(run), WRITTEN)
    assert seen["unlabelled"] == "0"
    assert seen["answer"] == row["answer"]
    assert int(seen["tokens"]) == len(row["tokens"])
    assert f"{row['mutual_information']:.3f} nats" in seen["figures"]


def test_a_dropped_image_is_answered_with_its_doubt(run, pictures, browse):
    path = sorted((pictures / "images" / "night").glob("*.png"))[0]
    predictions = run.predict([path])
    (row,) = predictions.rows()
    content = base64.b64encode(path.read_bytes()).decode()
    app = make_app(run, threshold=2.0, promise="It is promised.")
    seen = browse(app, DROP.replace("CONTENT", content))
    assert seen["title"].startswith(f"{row['class']}, ")
    assert "is below the threshold of 2.000. It is promised." in seen["verdict"]
    entropy, information, *_ = seen["figures"].split("; ")
    assert float(entropy.removesuffix(" nats")) == pytest.approx(row["entropy"], abs=6e-4)
    found = float(information.removesuffix(" nats"))
    assert found == pytest.approx(row["mutual_information"], abs=6e-4)
    assert {"day", "night"} <= set(re.findall("[a-z]+", seen["bars"]))
    assert int(seen["votes"]) == len(predictions.predictive.logits)
    assert seen["alt"] == "Asked: <i>dark</i>.png"


def test_a_token_is_asked_for_and_a_refusal_is_shown(run, browse):
    token = "a-token-of-some-length"
    app = make_app(run, token=token, local=False)
    seen = browse(app, REFUSED.replace("TOKEN", token))
    assert seen["asked"].startswith("Give the service's token")
    assert seen["refused"].startswith("Image 1 cannot be read as an image")
    assert seen["hidden"] == "true"
