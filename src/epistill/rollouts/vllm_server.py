"""One exchange with a vLLM server: bounded in seconds and bytes, whatever comes. No torch."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from epistill.errors import EpistillError, first_line

COMPLETIONS = "/v1/completions"
MAX_REPLY_BYTES = 2**24  # of a reply that does not grow with its request


class ServersLost(EpistillError):
    """No server is left that answers the request."""


class Refused(EpistillError):
    """A server refused the request, or is not the one expected: it is not asked this again."""


class UnusableReply(Exception):
    """One attempt failed in a way that another attempt, or another server, may mend.

    Attributes:
        silent: The server did not answer at all.
        pause: Seconds it asked us to wait (Retry-After).
    """

    def __init__(self, reason: str, *, silent: bool = False, pause: float | None = None) -> None:
        super().__init__(reason)
        self.silent, self.pause = silent, pause


@dataclass(slots=True)
class Server:
    """One server as the engine sees it.

    Attributes:
        lost: Why it is no longer asked; None while it is.
        version: Of the weights that were pushed to it; None before the first push.
        tempered: Whether its log-probs were seen to be those at the sampling temperature.
        probe: Log-probs of a fixed sequence after the last push.
        by_prefix: Whether it scores from its prefix cache; None until it was asked.
    """

    url: str
    busy: int = 0
    lost: str | None = None
    version: int | None = None
    tempered: bool = False
    probe: tuple[float, ...] | None = None
    by_prefix: bool | None = None

    def __post_init__(self) -> None:
        expected = "expected http://HOST:PORT"
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL as error:
            told = f"server address {self.url!r}: {first_line(error)}; {expected}"
            raise EpistillError(told) from error
        if url.scheme not in ("http", "https") or not url.host:
            raise EpistillError(f"server address {self.url!r}; {expected}")


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """One request.

    Attributes:
        body: Of the POST.
        read: Checks the reply and returns what is kept of it (JSON); raises `UnusableReply`.
        most_bytes: Longest reply that can be an answer.
        seconds: That a reply may take where that is more than the client's limit.
        path: Where it is posted.
        optional: There is another way: where a server answers, but not with what is needed, None is
            kept and nobody is asked again.
        near: Requests of one number go to the same server while it is there; None to any.
    """

    body: Mapping[str, Any]
    read: Callable[[bytes], Any]
    most_bytes: int = MAX_REPLY_BYTES
    seconds: float = 0.0
    path: str = COMPLETIONS
    optional: bool = False
    near: int | None = None

    @property
    def key(self) -> str:
        """Names the request: the same body has the same key in every process."""
        text = json.dumps(self.body, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


async def exchange(
    http: httpx.AsyncClient, url: str, body: Any, seconds: float, most_bytes: int
) -> tuple[httpx.Response, bytes]:
    """POST a body, or GET without one: the reply's head and its bytes as they were sent.

    Raises:
        TimeoutError: The last byte had not come after so many seconds.
        UnusableReply: More bytes than that.
    """
    method = "GET" if body is None else "POST"
    async with asyncio.timeout(seconds), http.stream(method, url, json=body) as reply:
        content = bytearray()
        async for piece in reply.aiter_raw():
            content += piece
            if len(content) > most_bytes:
                raise UnusableReply(f"a reply of more than {most_bytes:,} bytes")
        return reply, bytes(content)


def shown_reply(text: str) -> str:
    """Foreign words on one line of at most 300 characters, without control characters."""
    line = " ".join(text[:3000].split())[:300]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def server_words(content: bytes) -> str:
    """The server's own words on an error."""
    told = content.decode(errors="replace")[:100_000]
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        told = str(json.loads(content)["error"]["message"])
    return shown_reply(told) or "no reason given"


def retry_after_seconds(reply: httpx.Response) -> float | None:
    """Seconds to wait from a Retry-After header (seconds or a date); None without one."""
    value = reply.headers.get("Retry-After", "")
    with suppress(ValueError):
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    with suppress(ValueError, OverflowError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None
