"""From a request to its order and back: what the worker's thread tells, as events of the server's loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from fastapi import Request

from .errors import ApiError
from .guards import LEFT
from .orders import Order
from .worker import Done, Event, Failed, Worker


async def events(worker: Worker, order: Order, request: Request, seconds: float) -> AsyncGenerator[Event, None]:
    """What is told about an order, `Accepted` first and `Failed` never, until all its values are there. An order is
    given up when so many seconds are over, when its client has left, and when this is closed.

    Raises:
        ApiError: the queue is full, the order failed or took too long, or the client has left.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[Event | None] = asyncio.Queue()

    def tell(event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended, nobody waits
            loop.call_soon_threadsafe(told.put_nowait, event)

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        told.put_nowait(None)

    ends, places = loop.time() + seconds, order.places
    number = worker.submit(order, tell)
    leaving = asyncio.create_task(left())
    try:
        while places:
            event = await asyncio.wait_for(told.get(), ends - loop.time())
            if event is None:
                raise ApiError(LEFT, "the client has left")
            if isinstance(event, Failed):
                raise event.error
            places -= isinstance(event, Done)
            yield event
    except TimeoutError:
        raise ApiError(
            504,
            f"this took longer than {seconds:g} seconds, the most that this server gives a request: ask for less, or "
            "when it is less busy",
            code="timeout",
        ) from None
    finally:
        worker.cancel(number)
        leaving.cancel()
