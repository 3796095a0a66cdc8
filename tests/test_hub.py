"""Without the hub the cache is read at once; with it, it is asked."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _http

from epistill.errors import EpistillError
from epistill.hub import hub_or_cache
from epistill.rollouts.load_model import load_model, load_without_weights
from epistill.tasks.files import load_problems

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: pytest.fail("asked again"))


@pytest.mark.parametrize(
    "read",
    [
        lambda: load_problems("nobody/nothing"),
        lambda: load_problems("hf://datasets/nobody/nothing/file.jsonl"),
        lambda: load_model("nobody/nothing"),
        lambda: load_without_weights("nobody/nothing"),
    ],
    ids=["dataset", "file", "model", "tokenizer"],
)
def test_a_hub_that_is_not_there_is_asked_once(online, capfd, read):
    with pytest.raises(EpistillError, match="nobody/nothing") as caught:
        read()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
    assert constants.HF_HUB_OFFLINE is False


def test_what_is_here_asks_nobody(online, monkeypatch):
    monkeypatch.setattr("epistill.hub.get_session", lambda: pytest.fail("asked"))
    load_without_weights("lab")


def test_a_hub_that_answers_is_used(online, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404)  # an answer all the same
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        with hub_or_cache():
            assert constants.HF_HUB_OFFLINE is False
        server.shutdown()
    monkeypatch.setattr(constants, "ENDPOINT", NOBODY)
    with hub_or_cache():
        assert constants.HF_HUB_OFFLINE is True
