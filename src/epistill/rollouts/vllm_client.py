"""Requests to vLLM servers: retried, spread over the servers, finished work kept. Imports no torch.

Enters: jobs, each a JSON body with a function that reads the reply. Leaves: what the functions
returned, in the order of the jobs. A request is retried on its server with growing pauses, then
tried on the others, and only then one `EpistillError` says what every server answered.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from epistill.errors import EpistillError

COMPLETIONS = "/v1/completions"
API_KEY = "EPISTILL_VLLM_API_KEY"  # environment variable
MAX_PAUSE_SECONDS = 60.0
CONNECT_SECONDS = 10.0


class ServersLost(EpistillError):
    """No server is left that answers the request."""


class UnusableReply(Exception):
    """One attempt failed in a way that another attempt, or another server, may mend.

    Attributes:
        silent: The server did not answer at all.
        pause: Seconds it asked us to wait (Retry-After).
    """

    def __init__(self, reason: str, *, silent: bool = False, pause: float | None = None) -> None:
        super().__init__(reason)
        self.silent = silent
        self.pause = pause


@dataclass(slots=True)
class Server:
    """One server as the pool sees it.

    Attributes:
        lost: Why it is no longer asked; None while it is.
        version: Of the weights that were pushed to it; None before the first push.
        tempered: Whether its log-probs were seen to be those at the sampling temperature.
        probe: Log-probs of a fixed sequence after the last push.
    """

    url: str
    busy: int = 0
    lost: str | None = None
    version: int | None = None
    tempered: bool = False
    probe: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """One request.

    Attributes:
        body: Of `POST /v1/completions`.
        read: Checks the reply and returns what is kept of it (JSON); raises `UnusableReply`.
        weights: Names the weights that are to answer; part of the key.
    """

    body: Mapping[str, Any]
    read: Callable[[Any], Any]
    weights: str = ""

    @property
    def key(self) -> str:
        """Names the request: the same body has the same key in every process."""
        text = json.dumps([self.weights, self.body], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class Counts:
    """What went wrong so far, for the metrics."""

    retried: int = 0
    moved: int = 0
    reused: int = 0


@dataclass(slots=True)
class Client:
    """Talks to the servers.

    Attributes:
        servers: All of them, lost ones too.
        in_flight: Requests per server at a time.
        attempts: Per request and server.
        pause: Seconds before the first retry; doubles every time, up to MAX_PAUSE_SECONDS.
        timeout: Seconds a reply may take.
        api_key: Sent as a bearer token; None for none.
        sleep: Waits so many seconds (a test passes its own).
    """

    servers: list[Server]
    in_flight: int = 32
    attempts: int = 4
    pause: float = 0.5
    timeout: float = 600.0
    api_key: str | None = None
    sleep: Callable[[float], None] = time.sleep
    counts: Counts = field(default_factory=Counts)
    _lock: threading.Condition = field(default_factory=threading.Condition)
    _http: httpx.Client | None = None

    @property
    def alive(self) -> list[Server]:
        """Servers that are asked."""
        return [server for server in self.servers if server.lost is None]

    def close(self) -> None:
        """Close the connections."""
        if self._http is not None:
            self._http.close()
            self._http = None

    # ---- one request to one server

    def call(
        self, server: Server, path: str, body: Any = None, *, seconds: float | None = None
    ) -> Any:
        """One attempt: POST a body, or GET without one; the reply's JSON, None if it is empty.

        Raises:
            UnusableReply: No reply, a status that may pass (408, 425, 429, 5xx), or not JSON.
            EpistillError: A status that will not pass: the request or the server is wrong.
        """
        limit = httpx.Timeout(seconds or self.timeout, connect=CONNECT_SECONDS)
        try:
            reply = self._connection().request(
                "GET" if body is None else "POST", server.url + path, json=body, timeout=limit
            )
        except httpx.TimeoutException as error:
            raise UnusableReply(
                f"no reply within {seconds or self.timeout:g} s", silent=True
            ) from error
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise UnusableReply(f"no connection ({reason})", silent=True) from error
        if reply.status_code in (408, 425, 429) or reply.status_code >= 500:
            raise UnusableReply(
                f"status {reply.status_code}: {_reason(reply)}", pause=_retry_after(reply)
            )
        if reply.status_code >= 400:
            raise EpistillError(
                f"vLLM server {server.url} refused {path} with status {reply.status_code}: "
                f"{_reason(reply)}"
            )
        if not reply.content:
            return None
        try:
            return reply.json()
        except ValueError as error:
            raise UnusableReply(f"a reply that is not JSON ({reply.text[:40]!r})") from error

    def patiently(self, call: Callable[[], Any]) -> Any:
        """Attempts with growing pauses; the last `UnusableReply` is raised."""

        def wait(state: RetryCallState) -> float:
            failure = state.outcome.exception() if state.outcome else None
            asked = failure.pause if isinstance(failure, UnusableReply) else None
            growing = self.pause * 2 ** (state.attempt_number - 1)
            return min(asked if asked is not None else growing, MAX_PAUSE_SECONDS)

        def count(state: RetryCallState) -> None:
            with self._lock:
                self.counts.retried += 1

        attempts = Retrying(
            stop=stop_after_attempt(self.attempts),
            wait=wait,
            retry=retry_if_exception_type(UnusableReply),
            before_sleep=count,
            sleep=self.sleep,
            reraise=True,
        )
        return attempts(call)

    # ---- many requests to all servers

    def run(
        self,
        jobs: Sequence[ServerRequest],
        kept: MutableMapping[str, Any],
        after: Callable[[Server], Any] = lambda server: None,
    ) -> list[tuple[Any, Any]]:
        """Carry out all jobs, each on the server with the fewest requests in flight.

        Args:
            jobs: The requests.
            kept: Finished work by `ServerRequest.key`; read before asking, written as replies
                come in.
            after: Asked of the server after each reply, while the reply can still be refused by
                raising `UnusableReply`; what it returns is kept beside the reply.

        Returns:
            (what `read` returned, what `after` returned) of each job.

        Raises:
            ServersLost: A request failed on every server.
            EpistillError: A request was refused. In both cases requests that were under way are
                finished and kept.
        """
        stop = threading.Event()

        def work(job: ServerRequest) -> tuple[Any, Any]:
            if (known := kept.get(job.key)) is not None:
                with self._lock:
                    self.counts.reused += 1
                return known[0], known[1]
            try:
                found = self._anywhere(job, after, stop)
            except EpistillError:
                stop.set()
                raise
            kept[job.key] = list(found)
            return found

        workers = max(1, min(len(jobs), self.in_flight * max(1, len(self.alive))))
        with ThreadPoolExecutor(workers, thread_name_prefix="vllm") as threads:
            futures = [threads.submit(work, job) for job in jobs]
        errors = [error for future in futures if (error := future.exception()) is not None]
        if errors:
            raise next((e for e in errors if not isinstance(e, _Stopped)), errors[0])
        return [future.result() for future in futures]

    def _anywhere(
        self, job: ServerRequest, after: Callable[[Server], Any], stop: threading.Event
    ) -> tuple[Any, Any]:
        """The job on one server after another."""
        failures: dict[str, str] = {}
        while not stop.is_set():
            server = self._take(failures)
            if server is None:
                raise self._given_up(failures)

            def attempt(server: Server = server) -> tuple[Any, Any]:
                if stop.is_set():
                    raise _Stopped("stopped because another request failed")
                if server.lost is not None:  # another request found out meanwhile
                    raise _Lost(server.lost)
                read = job.read(self.call(server, COMPLETIONS, job.body))
                return read, after(server)

            try:
                return self.patiently(attempt)
            except (_Lost, UnusableReply) as failure:
                failures[server.url] = str(failure)
                with self._lock:
                    self.counts.moved += 1
                    if isinstance(failure, UnusableReply) and failure.silent:
                        server.lost = server.lost or str(failure)
            finally:
                with self._lock:
                    server.busy -= 1
                    self._lock.notify_all()
        raise _Stopped("stopped because another request failed")

    def _take(self, tried: Mapping[str, str]) -> Server | None:
        """The least busy server that was not tried yet, as soon as it has room; None without."""
        with self._lock:
            while free := [s for s in self.alive if s.url not in tried]:
                server = min(free, key=lambda s: s.busy)
                if server.busy < self.in_flight:
                    server.busy += 1
                    return server
                self._lock.wait()
            return None

    def _given_up(self, failures: Mapping[str, str]) -> ServersLost:
        reasons = {s.url: s.lost for s in self.servers if s.lost is not None} | dict(failures)
        told = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
        return ServersLost(
            f"no vLLM server could answer ({told}); expected at least one; start the servers "
            "again and repeat the command, finished work is kept"
        )

    def lost_error(self) -> ServersLost:
        """What to raise when no server is left."""
        return self._given_up({})

    def _connection(self) -> httpx.Client:
        with self._lock:
            if self._http is None:
                headers = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
                many = httpx.Limits(max_connections=None, max_keepalive_connections=None)
                # No proxy from the environment: the servers are on this machine or network.
                self._http = httpx.Client(headers=headers, limits=many, trust_env=False)
            return self._http


class _Stopped(EpistillError):
    """Not begun: another request had failed for good."""


class _Lost(Exception):
    """The server was found lost by another request."""


def _reason(reply: httpx.Response) -> str:
    """The server's own words, on one line."""
    try:
        told = reply.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        told = reply.text
    return " ".join(str(told).split())[:300] or "no reason given"


def _retry_after(reply: httpx.Response) -> float | None:
    """Seconds to wait from a Retry-After header (seconds or a date); None without one."""
    value = reply.headers.get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
