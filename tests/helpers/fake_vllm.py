"""A server that speaks vLLM's HTTP with a real small model, and misbehaves when told to.

Only the transport is fake: responses are sampled and scored by the package's own model, weights are
read from disk on /collective_rpc.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from safetensors.torch import load_file

from epistill.config import SamplingConfig
from epistill.records import Rollout
from epistill.rollouts import vllm_client
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.sampler import filter_log_probs, sample

GENERATE = "/inference/v1/generate"


class FakeVllm:
    """One server in a thread.

    `faults` is used up from the front, one per completion request: "ok", "429", "500", "garbage",
    "few_choices", "few_tokens", "no_logprobs", "nan", "drop" (the connection), "slow" (no answer
    until the server stops), "die" (the server goes away). When it is used up, `always` holds.
    With `cache` it scores from a prefix cache of that many tokens per block; `cut` leaves out the
    entries of cached tokens, as one of vLLM's model runners does, where the other's hold anything.
    """

    def __init__(
        self, model, *, faults=(), always="ok", raw=False, retry_after=None, port=0,
        cache=None, cut=False, details=True,
    ):  # fmt: skip
        self.block, self.cut, self.details, self.cached = cache, cut, details, set()
        self.model, self.faults, self.always = model, list(faults), always
        self.raw, self.retry_after = raw, retry_after
        self.bodies, self.paths = [], []
        self.version, self.deaf, self.most, self.now = "default", False, 0, 0
        self.lock, self.stopped = threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.handle(self, None)

            def do_POST(self):
                size = int(self.headers.get("Content-Length", 0))
                outer.handle(self, json.loads(self.rfile.read(size) or b"{}"))

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stop()

    def stop(self):
        self.stopped.set()
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
            self.http.server_close()

    # ---- requests

    def handle(self, handler, body):
        with self.lock:
            self.paths.append(handler.path)
        if handler.path not in ("/v1/completions", GENERATE):
            status, reply = self.control(handler.path, body)
            self.send(handler, status, json.dumps(reply).encode())
            return
        with self.lock:
            self.bodies.append(body)
            fault = self.faults.pop(0) if self.faults else self.always
            if fault == "die":  # who comes before it is gone gets no answer either
                self.faults, self.always = [], "drop"
            self.now += 1
            self.most = max(self.most, self.now)
        status, data = self.complete(handler, body, fault)
        with self.lock:
            self.now -= 1
        if data is not None:
            self.send(handler, status, data)

    def complete(self, handler, body, fault):
        if fault in ("drop", "die"):
            if fault == "die":
                threading.Thread(target=self.stop).start()
            handler.connection.close()
            return 0, None
        if fault == "slow":
            self.stopped.wait()
        if fault.isdigit():
            return int(fault), json.dumps({"error": {"message": f"fault {fault}"}}).encode()
        if fault == "garbage":
            return 200, b'{"choices": ['
        with self.lock:  # one model
            reply = self.generate(body) if handler.path == GENERATE else self.answer(body)
        if handler.path != GENERATE:
            spoil(reply, fault)
        return 200, json.dumps(reply).encode()

    def send(self, handler, status, data):
        try:
            handler.send_response(status)
            if self.retry_after is not None and status == 429:
                handler.send_header("Retry-After", self.retry_after)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except OSError:
            pass  # the client gave up

    def control(self, path, body):
        if path == "/collective_rpc":
            if not self.deaf:
                self.load(Path(body["kwargs"]["weights_path"]))
            return 200, {"results": [None]}
        if path == "/update_weight_version":
            self.version = body["new_version"]
            return 200, {"success": True}
        if path == "/v1/models":
            return 200, {"data": [{"id": "m", "max_model_len": 512}]}
        if path == "/openapi.json":
            return 200, {"paths": {} if self.block is None else {GENERATE: {}}}
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        return 200, {}

    def load(self, folder):
        weights = load_file(folder / "model.safetensors")
        weights.pop("lm_head.weight", None)
        missing, unknown = self.model.network.load_state_dict(weights, strict=False)
        assert not unknown
        assert set(missing) <= {"lm_head.weight"}

    # ---- the model

    def generate(self, body):
        """Scores of what the cache does not hold; below it there is anything."""
        ids, how = tuple(body["token_ids"]), body["sampling_params"]
        assert how["detokenize"] is how["skip_reading_prefix_cache"] is False  # the real one ends
        ends = range(self.block, len(ids), self.block)
        known = [(body["cache_salt"], ids[:end]) for end in ends]
        hits = 0
        while hits < len(known) and known[hits] in self.cached:
            hits += 1
        self.cached.update(known)
        held = hits * self.block
        entries = self.scores(ids, how)
        if self.cut:
            entries = [None, *entries[held + 1 :]]
        else:
            anything = {str(-(2**31)): {"logprob": 3e38, "rank": -7}}
            entries[1 : held + 1] = [anything] * held
        usage = {"prompt_tokens": len(ids)}
        if self.details:
            usage["prompt_tokens_details"] = {"cached_tokens": held}
        return {"prompt_logprobs": entries, "usage": usage}

    def answer(self, body):
        ids = tuple(body["prompt"])
        if body.get("prompt_logprobs") is not None:
            return {"choices": [{"index": 0, "prompt_logprobs": self.scores(ids, body)}]}
        greedy = body["temperature"] == 0.0
        assert not (greedy and body["n"] > 1)  # the real one refuses too
        sampling = SamplingConfig(
            temperature=body["temperature"],
            max_new_tokens=body["max_tokens"],
            top_p=body.get("top_p", 1.0),
            top_k=None if body.get("top_k", -1) < 1 else body["top_k"],
        )
        drawing = {"samples": body.get("n", 1), "sampling": sampling, "seed": body["seed"]}
        if body.get("logit_bias"):
            rollouts = self.biased(ids, body["logit_bias"], **drawing)
        else:
            rollouts = sample(self.model, [PromptRequest("", ids)], **drawing)
        return {"choices": [self.choice(k, ids, r, body) for k, r in enumerate(rollouts)]}

    def biased(self, ids, bias, samples, sampling, seed):
        """One token each, in vLLM's order: bias, temperature, filters."""
        assert sampling.max_new_tokens == 1
        logits = self.logits(ids)[-1].clone()
        logits[[int(i) for i in bias]] += torch.tensor(list(bias.values()))
        if sampling.temperature == 0.0:
            tokens = [int(logits.argmax())]
        else:
            log_probs = (logits / sampling.temperature).log_softmax(-1)[None]
            kept = filter_log_probs(log_probs, top_k=sampling.top_k, top_p=sampling.top_p)[0]
            generator = torch.Generator().manual_seed(seed)
            drawn = kept.exp().multinomial(samples, replacement=True, generator=generator)
            tokens = drawn.tolist()
        return [
            Rollout("", k, ids, (i,), (0.0,), "eos" if i in self.model.eos_ids else "length", "")
            for k, i in enumerate(tokens)
        ]

    def choice(self, index, ids, rollout, body):
        logprobs = {"token_logprobs": list(rollout.logprobs)}
        if body["logprobs"]:
            at = 1.0 if self.raw else body["temperature"]
            top = (self.logits(ids)[-1] / at).log_softmax(-1).topk(body["logprobs"])
            named = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            logprobs["top_logprobs"] = [{f"token_id:{i}": v for i, v in named}]
        return {
            "index": index,
            "token_ids": list(rollout.completion_ids),
            "prompt_token_ids": list(ids),
            "finish_reason": "stop" if rollout.stop_reason == "eos" else "length",
            "logprobs": logprobs,
        }

    @torch.no_grad()
    def logits(self, ids):
        return self.model.network(torch.tensor([ids])).logits[0]

    def scores(self, ids, body):
        found = [None]
        for place, row in enumerate(self.logits(ids).log_softmax(-1)[:-1], start=1):
            order = row.argsort(descending=True).tolist()
            listed = {*order[: body["prompt_logprobs"]], ids[place]}
            found.append(
                {
                    str(i): {"logprob": row[i].item(), "rank": order.index(i) + 1}
                    for i in sorted(listed)
                }
            )
        return found


def impatient_with(server, monkeypatch, seconds=0.2):
    """Clients give up on this one soon; others have the time that a busy machine takes."""
    whole = vllm_client.exchange

    def exchange(http, url, body, limit, most_bytes):
        return whole(http, url, body, seconds if server.url in url else limit, most_bytes)

    monkeypatch.setattr(vllm_client, "exchange", exchange)


def spoil(reply, fault):
    """Make a good reply a bad one."""
    choice = reply["choices"][0]
    if fault == "few_choices":
        reply["choices"].pop()
    elif fault == "few_tokens":
        if "token_ids" in choice:
            choice["token_ids"].pop()
            choice["logprobs"]["token_logprobs"].pop()
            choice["finish_reason"] = "length"
        else:
            choice["prompt_logprobs"].pop()
    elif fault == "no_logprobs":
        choice.pop("logprobs", None)
        choice.pop("prompt_logprobs", None)
    elif fault == "nan":
        if "token_ids" in choice:
            choice["logprobs"]["token_logprobs"][0] = None
        else:
            next(iter(choice["prompt_logprobs"][-1].values()))["logprob"] = None


def nobody_answers(monkeypatch):
    """Every exchange with a server ends without a reply; the seconds that each had, as they come."""
    limits = []

    async def exchange(http, url, body, seconds, most_bytes):
        limits.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(vllm_client, "exchange", exchange)
    return limits
