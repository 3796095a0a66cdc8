"""The Hugging Face hub, where it can be reached; its cache on this machine, where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.utils import get_session

PATIENCE_SECONDS = 5.0


@contextmanager
def hub_or_cache(wanted: bool = True) -> Iterator[None]:
    """Within it only the cache is read if the hub does not answer one question.

    Without a network the hub's client asks for every file six times, for half a minute, and says so
    on twelve lines. Its own offline mode is set by a variable that is read once, at its import.

    Args:
        wanted: Whether the hub is needed at all; if not, it is not asked.
    """
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = offline or (wanted and not _answers())
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def _answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE_SECONDS)
    except Exception:  # noqa: BLE001 - of httpx or httpx2, by the version of the client
        return False
    return True
