"""Models of others: whatever is read by transformers, or fetched from the Hugging Face hub, is read in here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .errors import UserError


@contextmanager
def from_hub(told: Callable[[Exception], str]) -> Iterator[None]:
    """Whatever fails inside is one UserError, in the words that `told` has for it; the hub's own words on every retry
    are kept off the screen."""
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, and those of its own parts
        raise UserError(told(error)) from error
    finally:
        hub.setLevel(level)
