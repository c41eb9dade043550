"""Pages for people: one file each, which asks nobody but its own service.

The browser is told so too (a content security policy that names the page's own script and style by
their hashes), so that nothing that a class or an answer is called can run.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

PLACE = "bella.serve"


def page() -> tuple[str, str]:
    """The page at ``/`` and its content security policy."""
    script = _part("page.js")
    style = _part("page.css")
    text = _part("page.html").replace("/*style*/", style).replace("/*script*/", script)
    return text, policy(style, script)


def api_page(schema: Mapping[str, Any]) -> tuple[str, str]:
    """What can be asked, with a command for each, from the OpenAPI document; and its policy."""
    style = _part("page.css")
    parts = []
    for path, methods in schema["paths"].items():
        for method, told in methods.items():
            asked = told.get("requestBody", {}).get("content", {})
            parts.append(
                f"<section><h2>{method.upper()} <code>{escape(path)}</code></h2>"
                f"<p>{escape(told.get('description', ''))}</p>"
                f"<pre tabindex='0'>{escape(command(schema, path, method, asked))}</pre></section>"
            )
    text = (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<meta name='color-scheme' content='light dark'><link rel='icon' href='data:,'>"
        f"<title>{escape(schema['info']['title'])}</title><style>{style}</style></head><body>"
        "<header><p class='brand'>bella</p><nav aria-label='Pages'><a href='./'>Page</a> "
        "<a href='openapi.json'>OpenAPI</a></nav></header>"
        f"<main><h1>What can be asked</h1><p class='lead'>{escape(schema['info']['description'])} "
        "The whole description, for programs, is the OpenAPI document. Where the service has a "
        "token, add <code>-H 'Authorization: Bearer TOKEN'</code>.</p>"
        f"{''.join(parts)}</main></body></html>"
    )
    return text, policy(style)


def policy(*inline: str) -> str:
    """A content security policy for a page with this style, and script."""
    style, *script = (
        f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline
    )
    scripts = " ".join(script) or "'none'"
    return (
        f"default-src 'none'; style-src {style}; script-src {scripts}; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    )


def command(schema: Mapping[str, Any], path: str, method: str, asked: Mapping[str, Any]) -> str:
    """A command line that asks this."""
    if method == "get":
        return f"curl http://localhost:8000{path}"
    if "multipart/form-data" in asked:
        return f"curl http://localhost:8000{path} -F images=@one.jpg -F images=@two.jpg"
    body = example(schema, asked["application/json"]["schema"])
    return f"curl http://localhost:8000{path} --json '{json.dumps(body)}'"


def example(schema: Mapping[str, Any], shape: Mapping[str, Any]) -> Any:
    """A value of a shape, as short as it can be: what has to be there."""
    if "$ref" in shape:
        return example(schema, schema["components"]["schemas"][shape["$ref"].rpartition("/")[2]])
    if options := shape.get("anyOf"):
        return example(schema, options[0])
    kind = shape.get("type")
    if kind == "object":
        wanted = shape.get("required", [])
        return {name: example(schema, shape["properties"][name]) for name in wanted}
    if kind == "array":
        return [example(schema, shape["items"])] * shape.get("minItems", 1)
    return shape.get("default", {"string": "...", "integer": 1, "number": 1.0}.get(str(kind)))


def _part(name: str) -> str:
    return files(PLACE).joinpath("page", name).read_text(encoding="utf-8")
