"""Models of others: whatever is read by transformers, or fetched from the Hugging Face hub, is read in here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

HUB = "hf:"
"""How the name of a folder of the hub begins."""
PARTS = ("config.json", "model.safetensors", "adapter.safetensors", "image_tokenizer/*", "text_tokenizer/*")
"""What is fetched of a folder; cards, pictures and reports are not."""


@contextmanager
def from_hub(told: Callable[[Exception], str], quiet: Sequence[str] = ("huggingface_hub",)) -> Iterator[None]:
    """Whatever fails inside is one UserError, in the words that `told` has for it; the own words of the packages in
    `quiet`, such as the hub's on every retry, are kept off the screen."""
    loggers = [logging.getLogger(name) for name in quiet]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, and those of its own parts
        raise UserError(told(error)) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def why(error: Exception) -> str:
    """Why nothing was fetched, in a few words."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return "the hub cannot be reached, and the cache has no copy"
    return next(iter(str(error).splitlines()), "")[:200] or type(error).__name__


def local_folder(name: str | Path) -> Path:
    """The folder of a model or a tokenizer; one of the hub, `hf:owner/name` or `hf:owner/name/folder`, is fetched into
    the user's cache.

    Raises:
        UserError: no such name, or no network.
    """
    text = str(name)
    if not text.startswith(HUB):
        return Path(name)
    return fetched(text, PARTS)


def fetched(name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """The folder in the user's cache with some files of `hf:owner/name` or `hf:owner/name/folder`, given as patterns.
    That of a whole repository has the name of the commit.

    Raises:
        UserError: no such name, or no network.
    """
    owner, _, rest = name.removeprefix(HUB).partition("/")
    repository, _, inside = rest.partition("/")
    if not owner or not repository or ".." in inside.split("/"):
        raise UserError(f"{name} names no repository: write hf:owner/name, or hf:owner/name/folder")
    from huggingface_hub import snapshot_download

    start = f"{inside}/" if inside else ""
    with from_hub(
        lambda error: f"{name} could not be fetched ({why(error)}): check name and network, or give a local folder"
    ):
        patterns = [f"{start}{one}" for one in files]
        found = snapshot_download(f"{owner}/{repository}", revision=revision, allow_patterns=patterns)
    return Path(found) / inside
