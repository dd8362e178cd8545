"""Models of others: whatever is read by transformers, or fetched from the Hugging Face hub, is read in here."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

HUB = "hf:"
"""How the name of a folder of the hub begins."""
PARTS = ("config.json", "model.safetensors", "adapter.safetensors", "image_tokenizer/*", "text_tokenizer/*")
"""What is fetched of a folder; cards, pictures and reports are not."""
READS = ("GET", "HEAD")
"""Requests that fetch; others send."""
REPOSITORY = re.compile(
    r"(\w+://[^/]+/)(?:api/)?(?:models/)?((?:datasets/)?[^/]+(?:/(?!resolve/|revision/|tree/)[^/?]+)?)"
)
"""An address of the hub: its beginning, and the repository, which may have no owner."""


@contextmanager
def from_hub(told: Callable[[Exception], str], quiet: Sequence[str] = ("huggingface_hub",)) -> Iterator[None]:
    """Whatever fails inside is one UserError, in the words that `told` has for it, or that files are kept from this
    user; the own words of the packages in `quiet`, such as the hub's on every retry, are kept off the screen."""
    loggers = [logging.getLogger(name) for name in quiet]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, and those of its own parts
        raise UserError(_kept_from_us(error) or told(error)) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _kept_from_us(error: BaseException | None) -> str | None:
    """What to do where the hub has files for some users alone; None: it was something else. Other packages wrap the
    hub's errors into their own."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__ or error.__context__
    if error is None or error.response.request.method not in READS:
        return None
    page, status = _page(str(error.response.url)), error.response.status_code
    if isinstance(error, GatedRepoError) or status == 403:
        return (
            f"{page} is not open to everybody (gated): ask for access on that page, then log in with hf auth "
            "login, or set HF_TOKEN to a token that may read it"
        )
    if status == 401:
        return (
            f"{page} is not there, or is private: check the name; if it is private, log in with hf auth login, or set "
            "HF_TOKEN"
        )
    return None


def _page(address: str) -> str:
    """The page of a repository to which an address of its files, or of the hub's answers about it, belongs.

    >>> _page("https://hub/api/models/owner/name/revision/main"), _page("https://hub/owner/name/resolve/main/a.pt")
    ('https://hub/owner/name', 'https://hub/owner/name')
    """
    found = REPOSITORY.match(address)
    return found[1] + found[2] if found else address


def why(error: Exception) -> str:
    """Why nothing was fetched, in a few words."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    if any(isinstance(one, LocalEntryNotFoundError | OfflineModeIsEnabled) for one in (error, error.__cause__)):
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
