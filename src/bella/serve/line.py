"""Between HTTP and the passes: examples are made ready in threads, queued, and waited for."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.requests import Request

from bella.errors import BellaError
from bella.serve.batching import Batcher, ClosedError, FullError, LateError
from bella.serve.gauges import Gauges
from bella.serve.guard import DEADLINE, RefusedError
from bella.serve.limits import Limits


class Line:
    """The one queue of a service.

    Args:
        answer: a pass, see `Batcher`.
        limits: of the service.
        gauges: what hears of passes and answers.
    """

    def __init__(self, answer: Callable[..., Any], limits: Limits, gauges: Gauges):
        self.limits = limits
        self.gauges = gauges
        self.batcher = Batcher(
            answer,
            batch=limits.batch,
            wait=limits.wait,
            queue=limits.queue,
            passes=limits.passes,
            heard=gauges.hear_pass,
        )
        gauges.held.set_function(lambda: self.batcher.held)
        # Decoded images are large: so many at a time and no more.
        self.readers = ThreadPoolExecutor(max(os.cpu_count() or 1, 2), "reader")

    async def ask(
        self, request: Request, read: Callable[[], Sequence[Any]], key: Hashable = None
    ) -> list[dict[str, Any]]:
        """The answers to what ``read`` makes ready, one an example.

        Raises:
            RefusedError: what cannot be read (422), no room (429), no time or the end (503).
        """
        deadline: float = request.scope[DEADLINE]
        loop = asyncio.get_running_loop()
        try:
            items = await asyncio.wait_for(
                loop.run_in_executor(self.readers, read), left_until(deadline)
            )
            done = self.batcher.submit(items, key, left_until(deadline))
            answers = await asyncio.wait_for(asyncio.wrap_future(done), left_until(deadline))
        except FullError as error:
            raise RefusedError(429, str(error)) from None
        except (LateError, ClosedError) as error:
            raise RefusedError(503, str(error)) from None
        except TimeoutError:
            raise RefusedError(
                503, f"There was no answer within {self.limits.seconds:g} seconds: ask again later."
            ) from None
        except BellaError as error:
            raise RefusedError(422, str(error)) from None
        for answer in answers:
            self.gauges.hear_answer(answer)
        return list(answers)

    @property
    def ready(self) -> bool:
        """Whether a request would be accepted and answered."""
        return self.batcher.alive and self.batcher.held < self.limits.queue

    def close(self) -> None:
        """Answer what was accepted, and end."""
        self.batcher.close(self.limits.seconds)
        self.readers.shutdown(wait=False, cancel_futures=True)


def left_until(deadline: float) -> float:
    """Seconds, and not less than a moment: what is ready is taken even at the last one."""
    return max(deadline - time.monotonic(), 0.001)
