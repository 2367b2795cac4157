"""A camera: pictures of 1920 by 1080 pixels, 60 a second, for any number of viewers, and no picture is ever copied.

Each picture is drawn once, in shared memory, and published; every viewer looks at that memory. Whoever looks too long
misses pictures, and holds up nobody. Try it from a shell, with as many viewers as you like::

    python examples/camera.py &
    python examples/camera.py view
    samehost describe camera
    samehost call camera frames --count 1 --json | cut -c 1-80
"""

import asyncio
import contextlib
import logging
import sys
import threading
import time
from collections.abc import AsyncIterator

import msgspec

import samehost
from samehost.errors import ArenaFull

WIDTH, HEIGHT = 1920, 1080
ROW_BYTES = 3 * WIDTH
FRAME_BYTES = ROW_BYTES * HEIGHT
FRAMES_A_SECOND = 60

BACKGROUND = bytes(range(256)) * (FRAME_BYTES // 256)
BAR = b"\xff" * ROW_BYTES


class Frame(msgspec.Struct):
    """One picture.

    Attributes:
        number: from 0 on.
        taken: when it was, by the clock that `time.monotonic` reads, which is the same for all processes of a host.
        pixels: rows of red, green and blue, a byte each.
    """

    number: int
    taken: float
    pixels: samehost.Blob


camera = samehost.Service("camera")
frames = camera.topic("frames", Frame, queue=4, doc="What the camera sees.")


@camera.lifespan
async def filming() -> AsyncIterator[None]:
    """Film as long as the service is there; in a thread, as drivers of cameras wait in ways that a loop cannot."""
    ending = threading.Event()
    thread = threading.Thread(target=film, args=(ending,), name="film")
    thread.start()
    try:
        yield
    finally:
        ending.set()
        await asyncio.to_thread(thread.join)


def film(ending: threading.Event) -> None:
    """Take a picture at every tick, where the viewers will see it."""
    begin = time.monotonic()
    number = 0
    while not ending.wait(begin + number / FRAMES_A_SECOND - time.monotonic()):
        if frames.subscribers:
            with contextlib.suppress(ArenaFull):  # viewers look at so many that nobody can have this one
                publish(number)
        number += 1


def publish(number: int) -> None:
    """Draw a picture, with a white bar that is a row lower in each, and hand it to all viewers."""
    picture = samehost.allocate(FRAME_BYTES)
    pixels = picture.view
    pixels[:] = BACKGROUND
    bar = ROW_BYTES * (number % HEIGHT)
    pixels[bar : bar + ROW_BYTES] = BAR
    frames.publish(Frame(number, time.monotonic(), picture))


def row_of_bar(frame: Frame) -> int:
    """Where the bar is, by the first pixel of each row."""
    return bytes(frame.pixels.view[::ROW_BYTES]).find(BAR[:1])


def view(address: str) -> None:
    """Look, and say once a second what was seen."""
    with samehost.connect(address, wait=5) as client, client.subscribe("frames", Frame) as seen:
        count, oldest, due = 0, 0.0, time.monotonic() + 1
        for frame in seen:
            count += 1
            oldest = max(oldest, time.monotonic() - frame.taken)
            if row_of_bar(frame) != frame.number % HEIGHT:
                sys.exit(f"picture {frame.number} is not what was drawn")
            if time.monotonic() >= due:
                print(f"{count} pictures, at most {1000 * oldest:.1f} ms old, {seen.dropped} missed so far", flush=True)
                count, oldest, due = 0, 0.0, time.monotonic() + 1


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    if sys.argv[1:2] == ["view"]:
        try:
            view(sys.argv[2] if len(sys.argv) > 2 else "camera")
        except KeyboardInterrupt:
            pass
        except samehost.errors.Error as error:  # there is no camera, or not any more
            sys.exit(str(error))
    else:
        samehost.serve(camera, *sys.argv[1:2])
