"""docs/serve.md: its requests are asked as they stand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from own_images import CLASSES
from serve_cases import served

from bella.serve import make_app

pytestmark = pytest.mark.long

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"


def test_every_request_of_the_page_is_answered(run, pictures, tmp_path, monkeypatch, capsys):
    text = PAGE.read_text(encoding="utf-8")
    shutil.copy(next((pictures / "images" / "night").glob("*.png")), tmp_path / "photo.png")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(pictures / "run")
    monkeypatch.chdir(tmp_path)
    with served(make_app(run)) as client:
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(
                compile(block.replace("localhost:8000", f"localhost:{client.port}"), "page", "exec")
            )
        said, paths = capsys.readouterr().out.splitlines()
        assert said.split()[0] in CLASSES
        assert "/v1/predict/files" in paths
        if shutil.which("curl") is None:
            pytest.skip("no curl to ask with")
        (commands,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in commands.strip().replace(":8000", f":{client.port}").splitlines():
            done = subprocess.run(shlex.split(line), capture_output=True, text=True, check=True)
            assert '"class' in done.stdout, done.stdout


def test_every_flag_that_the_page_names_is_there():
    import inspect

    from bella.cli.serve import serve

    flags = {name.replace("_", "-") for name in inspect.signature(serve).parameters}
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z-]*)", PAGE.read_text(encoding="utf-8")))
    assert named - {"tag"} <= flags
