"""Requests to vLLM servers: bounded, retried, spread over them, finished work kept. No torch.

A request is retried on its server with growing pauses, then tried on the others; one
`EpistillError` says what every server answered. No redirect is followed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from epistill.errors import EpistillError
from epistill.rollouts.vllm_server import (
    MAX_REPLY_BYTES,
    Refused,
    Server,
    ServerRequest,
    ServersLost,
    UnusableReply,
    exchange,
    retry_after_seconds,
    server_words,
    shown_reply,
)

API_KEY = "EPISTILL_VLLM_API_KEY"  # environment variable
MAX_PAUSE_SECONDS = 60.0
CONNECT_SECONDS = 10.0


@dataclass(slots=True)
class Client:
    """Talks to the servers.

    Attributes:
        servers: All of them, lost ones too.
        in_flight: Requests per server at a time.
        attempts: Per request and server.
        pause: Seconds before the first retry; doubles every time, up to MAX_PAUSE_SECONDS.
        timeout: Seconds a reply may take, from the request to its last byte.
        api_key: Sent as a bearer token; None for none.
        keeps: Whether finished replies are found again by the next process.
        sleep: Waits so many seconds (a test passes its own).
        counts: Requests that were retried, moved to another server, or reused, and optional ones
            that were answered or given up, so far.
    """

    servers: list[Server]
    in_flight: int = 32
    attempts: int = 4
    pause: float = 0.5
    timeout: float = 600.0
    api_key: str | None = None
    keeps: bool = False
    sleep: Callable[[float], None] = time.sleep
    counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Condition = field(default_factory=threading.Condition)
    _connected: tuple[asyncio.AbstractEventLoop, httpx.AsyncClient] | None = None

    @property
    def alive(self) -> list[Server]:
        """Servers that are asked."""
        return [server for server in self.servers if server.lost is None]

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._connected is not None:
                loop, http = self._connected
                asyncio.run_coroutine_threadsafe(http.aclose(), loop).result()
                loop.call_soon_threadsafe(loop.stop)
                self._connected = None

    def call(
        self,
        server: Server,
        path: str,
        body: Any = None,
        *,
        seconds: float | None = None,
        most_bytes: int = MAX_REPLY_BYTES,
    ) -> bytes:
        """One attempt: POST a body, or GET without one; what the server replied.

        Raises:
            UnusableReply: No reply in time, one that is too long or compressed, a redirect, or a
                status that may pass (408, 425, 429, 5xx).
            Refused: A status that will not pass: the request or the server is wrong.
        """
        limit = seconds or self.timeout
        loop, http = self._connection()
        attempt = exchange(http, server.url + path, body, limit, most_bytes)
        try:
            reply, content = asyncio.run_coroutine_threadsafe(attempt, loop).result()
        except (TimeoutError, httpx.TimeoutException) as error:
            raise UnusableReply(f"no reply within {limit:g} s", silent=True) from error
        except httpx.RequestError as error:
            told = f"no connection ({shown_reply(str(error))})"
            raise UnusableReply(told, silent=True) from error
        status = reply.status_code
        words = server_words(content) if status >= 400 else ""
        if status in (408, 425, 429) or status >= 500:
            raise UnusableReply(f"status {status}: {words}", pause=retry_after_seconds(reply))
        if status >= 400:
            raise Refused(f"vLLM server {server.url} refused {path} with status {status}: {words}")
        if status >= 300:
            raise UnusableReply(f"status {status}: a redirect, which is not followed")
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise UnusableReply("a compressed reply where none was asked for")
        return content

    def with_retries(self, call: Callable[[], Any]) -> Any:
        """Attempts with growing pauses; the last `UnusableReply` is raised."""
        for attempt in range(self.attempts - 1):
            try:
                return call()
            except UnusableReply as failure:
                pause = self.pause * 2**attempt if failure.pause is None else failure.pause
                self._count("retried")
                self.sleep(min(pause, MAX_PAUSE_SECONDS))
        return call()

    def on_each(self, act: Callable[[Server], Any], servers: Sequence[Server]) -> dict[str, Any]:
        """Do something on several servers at once; those where it fails after retries are lost.

        Returns:
            What `act` returned, by the address of each server where it went well.

        Raises:
            Refused: Every server that was asked is lost, and this is the first one's refusal.
        """
        refusals: list[Refused] = []
        found: dict[str, Any] = {}

        def tried(server: Server) -> None:
            once = server.lost is not None  # one that was lost need not be back
            try:
                told = act(server) if once else self.with_retries(lambda: act(server))
                found[server.url] = told
            except (Refused, UnusableReply) as failure:
                server.lost = str(failure)
                refusals.extend([failure] if isinstance(failure, Refused) else [])

        with ThreadPoolExecutor(max(1, len(servers))) as threads:
            list(threads.map(tried, servers))
        if refusals and not found:
            raise refusals[0]
        return {server.url: found[server.url] for server in servers if server.url in found}

    def run(
        self,
        requests: Sequence[ServerRequest],
        finished_replies: MutableMapping[str, Any],
        after: Callable[[Server], Any] = lambda server: None,
    ) -> list[tuple[Any, Any]]:
        """Carry out all requests, each on the server with the fewest in flight.

        Args:
            requests: What is asked.
            finished_replies: By `ServerRequest.key`; read before asking, written as they come in.
            after: Asked of the server after each reply, while the reply can still be refused by
                raising `UnusableReply`; what it returns is kept beside the reply.

        Returns:
            (what `read` returned, what `after` returned) of each request.

        Raises:
            ServersLost: A request failed on every server.
            Refused: Every server refused it. In both cases requests that were under way are
                finished and kept.
        """
        failed: list[EpistillError] = []

        def work(request: ServerRequest) -> tuple[Any, Any]:
            if (known := finished_replies.get(request.key)) is not None:
                self._count("reused")
                return known[0], known[1]
            try:
                found = self._anywhere(request, after, failed)
            except EpistillError as error:
                failed.append(error)
                return None, None
            finished_replies[request.key] = list(found)
            return found

        workers = max(1, min(len(requests), self.in_flight * max(1, len(self.alive))))
        with ThreadPoolExecutor(workers, thread_name_prefix="vllm") as threads:
            answers = list(threads.map(work, requests))
        if failed:
            raise failed[0]
        return answers

    def _anywhere(
        self,
        request: ServerRequest,
        after: Callable[[Server], Any],
        failed: Sequence[EpistillError],
    ) -> tuple[Any, Any]:
        """The request on one server after another; not begun once another one failed for good."""
        failures: dict[str, Exception] = {}
        while not failed and (server := self._take(failures, request.near)) is not None:

            def attempt(server: Server = server) -> tuple[Any, Any]:
                if failed or server.lost is not None:  # another request found out meanwhile
                    raise _Lost(server.lost)
                return self._read_from(server, request), after(server)

            try:
                return self.with_retries(attempt)
            except (_Lost, Refused, UnusableReply) as failure:
                failures[server.url] = failure
                self._count("moved")
                if isinstance(failure, UnusableReply) and failure.silent:
                    server.lost = server.lost or str(failure)
            finally:
                with self._lock:
                    server.busy -= 1
                    self._lock.notify_all()
        raise self.lost_error(failures)

    def _read_from(self, server: Server, request: ServerRequest) -> Any:
        """What is kept of one attempt's reply; None of an optional one's that will not do."""
        try:
            content = self.call(
                server,
                request.path,
                request.body,
                seconds=max(self.timeout, request.seconds),
                most_bytes=request.most_bytes,
            )
            kept = request.read(content)
        except (Refused, UnusableReply) as failure:
            if not request.optional or (isinstance(failure, UnusableReply) and failure.silent):
                raise
            self._count("given_up")
            return None
        if request.optional:
            self._count("answered")
        return kept

    def _take(self, tried: Mapping[str, Exception], near: int | None) -> Server | None:
        """The least busy server that was not tried yet, as soon as it has room; None without.

        With `near` the one of that number, whether it is busy or not.
        """
        with self._lock:
            while free := [s for s in self.alive if s.url not in tried]:
                least = min(free, key=lambda s: s.busy)
                server = least if near is None else free[near % len(free)]
                if server.busy < self.in_flight:
                    server.busy += 1
                    return server
                self._lock.wait()
            return None

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1

    def lost_error(self, failures: Mapping[str, Exception] = {}) -> EpistillError:
        """What to raise when no server is left, each of which may have failed in its own way."""
        reasons = {s.url: s.lost for s in self.servers if s.lost is not None}
        reasons |= {url: str(failure) for url, failure in failures.items()}
        refusals = [failure for failure in failures.values() if isinstance(failure, Refused)]
        if len(refusals) == len(reasons) > 0:
            return refusals[0]
        told = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        return ServersLost(
            f"no vLLM server could answer ({told}); expected at least one; start the servers "
            f"again and repeat the command{', finished work is kept' if self.keeps else ''}"
        )

    def _connection(self) -> tuple[asyncio.AbstractEventLoop, httpx.AsyncClient]:
        """Connections live on an event loop, where any exchange can be ended at its deadline."""
        with self._lock:
            if self._connected is None:
                headers = {"Accept-Encoding": "identity"}
                headers |= {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
                many = httpx.Limits(max_connections=None, max_keepalive_connections=None)
                waits = httpx.Timeout(None, connect=CONNECT_SECONDS)
                # No proxy from the environment: the servers are on this machine or network.
                http = httpx.AsyncClient(
                    headers=headers, limits=many, timeout=waits, trust_env=False
                )
                loop = asyncio.new_event_loop()
                threading.Thread(target=loop.run_forever, daemon=True, name="vllm-http").start()
                self._connected = loop, http
            return self._connected


class _Lost(Exception):
    """The server was found lost by another request."""
