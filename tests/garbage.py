"""What is left to a garbage collection."""

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["uncollected"]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Nothing is collected in the block, and nothing is left to be from before."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
