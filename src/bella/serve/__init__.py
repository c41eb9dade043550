"""A run over HTTP: `bella serve RUN`.

Requests that come at once are answered by one pass of all particles. A kind of run is a file of
`bella.serve.kinds`; the rest is the same for all: the queue (batching), what is refused (guard),
what is measured (gauges), the page for people (pages).
"""

from bella.serve.limits import Limits
from bella.serve.server import make_app, serve

__all__ = ["Limits", "make_app", "serve"]
