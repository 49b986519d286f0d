"""Keys, not events: once in the queue, one worker at a time, delays kept."""

import asyncio
import random

from cloudcore.kube import KeyedQueue
from tests.cloudcore.support import until


async def test_a_key_is_given_once_and_again_if_added_meanwhile() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    for _ in range(3):
        queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("b")
    assert await queue.get() == "b"
    waiting = asyncio.ensure_future(queue.get())
    await asyncio.sleep(0.01)
    assert not waiting.done()  # a is being worked on
    queue.done("a")
    assert await waiting == "a"
    queue.done("a")
    queue.done("b")
    assert len(queue) == 0


async def test_delays_and_the_earlier_time_wins() -> None:
    queue: KeyedQueue[str] = KeyedQueue()
    loop = asyncio.get_running_loop()
    start = loop.time()
    queue.add("late", delay_s=30)
    queue.add("late", delay_s=0.1)
    queue.add("late", delay_s=40)
    queue.add("soon", delay_s=0.05)
    assert await queue.get() == "soon"
    assert await queue.get() == "late"
    assert 0.1 <= loop.time() - start < 5
    queue.add("now", delay_s=30)
    queue.add("now")
    assert await queue.get() == "now"
    queue.close()


async def test_every_key_added_is_worked_on_and_never_by_two() -> None:
    queue: KeyedQueue[int] = KeyedQueue()
    wanted = dict.fromkeys(range(10), 0)
    done = dict.fromkeys(range(10), 0)
    busy: set[int] = set()

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in busy
            busy.add(key)
            seen = wanted[key]
            await asyncio.sleep(0)
            done[key] = seen
            busy.discard(key)
            queue.done(key)

    async with asyncio.TaskGroup() as group:
        workers = [group.create_task(work()) for _ in range(4)]
        chance = random.Random(1)
        for number in range(1, 500):
            key = chance.randrange(10)
            wanted[key] = number
            queue.add(key, delay_s=chance.choice((0, 0, 0.001)))
            if number % 7 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(queue) == 0)
        for worker in workers:
            worker.cancel()
    assert done == wanted
