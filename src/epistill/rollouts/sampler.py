"""The in-process sampler: batched, cached, prompts computed once per group, ended rows leave.

Enters: prompts as token ids, how many samples of each, `SamplingConfig`, a seed. Leaves: `Rollout`s
in the order of the prompts. It knows token ids only; `prompts` renders, `tasks.grading` grades.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from epistill.config import SamplingConfig
from epistill.errors import BudgetExceeded
from epistill.objective import entropy, tempered
from epistill.records import Rollout
from epistill.rollouts.engine import PromptRequest
from epistill.rollouts.kv_cache import cache_argument, decoding_mask, select_rows
from epistill.rollouts.low_rank import weights_stay
from epistill.rollouts.model import LanguageModel
from epistill.rollouts.ruled_draws import RuledDraws
from epistill.rollouts.shared_prompts import prefill
from epistill.seeds import derive_seed

# Ended rows leave once they are this share of the batch: every departure copies the cache.
LEAVE_SHARE = 0.125
# From so many tokens on a row is drawn by one number and a running sum: as many exponential numbers
# as there are tokens cost 19 ns each, a sixth of a step of SmolLM2.
LARGE_VOCABULARY = 2**14
SUMMED = 2**8  # tokens per block of the running sum


def sample(
    model: LanguageModel,
    requests: Sequence[PromptRequest],
    *,
    samples: int,
    sampling: SamplingConfig,
    seed: int,
    policy_version: int = 0,
    entropies: bool = False,
) -> list[Rollout]:
    """Sample responses.

    Args:
        model: The model, in eval mode.
        requests: Prompts; equally long ones share batches without padding.
        samples: Responses per prompt; the prompt is computed once for all of them.
        sampling: Temperature, top-p, top-k, token limit, stop texts, rows decoded together.
        seed: Names every draw; the same call gives the same responses.
        policy_version: Stamped on each rollout.
        entropies: Record them; as dear as the head, so only for those who read them.

    Returns:
        `samples` rollouts per request, in request order.

    Raises:
        BudgetExceeded: A prompt plus `max_new_tokens` is longer than the model can read.
    """
    check_budget(model, requests, sampling)
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].ids))
    per_batch = max(1, sampling.batch_rows // samples)
    found: dict[int, list[Rollout]] = {}
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        generators = [
            torch.Generator(model.device).manual_seed(
                derive_seed("sample", seed, requests[i].draw, requests[i].ids)
            )
            for i in chosen
        ]
        with model.computing(), weights_stay(model.network):
            decoded = _decode(
                model, [requests[i].ids for i in chosen], samples, sampling, generators, entropies
            )
        for position, index in enumerate(chosen):
            found[index] = [
                decoded.rollout(
                    model, requests[index], position * samples + k, k, policy_version, sampling.stop
                )
                for k in range(samples)
            ]
    return [rollout for index in range(len(requests)) for rollout in found[index]]


@dataclass(slots=True)
class _Decoded:
    """Result buffers of one batch: [rows, max_new_tokens], and the length of each row."""

    tokens: Tensor
    log_probs: Tensor
    entropies: Tensor | None
    rules: RuledDraws | None
    lengths: Tensor
    ended: Tensor

    def rollout(
        self,
        model: LanguageModel,
        request: PromptRequest,
        row: int,
        sample: int,
        version: int,
        stop: Sequence[str],
    ) -> Rollout:
        length = int(self.lengths[row])
        ids = tuple(self.tokens[row, :length].tolist())
        ended = bool(self.ended[row])
        return Rollout(
            problem_id=request.problem_id,
            sample=sample,
            prompt_ids=request.ids,
            completion_ids=ids,
            logprobs=tuple(self.log_probs[row, :length].tolist()),
            entropies=None
            if self.entropies is None
            else tuple(self.entropies[row, :length].tolist()),
            forced=None if self.rules is None else tuple(self.rules.rows[row].decided[:length]),
            stop_reason="eos" if ended else "length",
            text=decode_text(model.tokenizer, model.eos_ids, ids, stop),
            policy_version=version,
        )


def decode_text(
    tokenizer: PreTrainedTokenizerBase,
    ends: Collection[int],
    ids: Sequence[int],
    stop: Sequence[str] = (),
) -> str:
    """A response as text, up to its end token or stop text, `<think>` tags and all."""
    end = len(ids) - 1 if ids and ids[-1] in ends else len(ids)
    text = str(tokenizer.decode(list(ids[:end]), skip_special_tokens=False))
    return text[: min((text.find(one) for one in stop if one in text), default=None)]


def check_budget(
    model: LanguageModel, requests: Sequence[PromptRequest], sampling: SamplingConfig
) -> None:
    """Refuse prompts that leave no room for `max_new_tokens` (`BudgetExceeded`)."""
    limit = model.max_positions
    longest = max((len(request.ids) for request in requests), default=0)
    if limit is not None and longest + sampling.max_new_tokens > limit:
        raise BudgetExceeded(
            f"a prompt of {longest} tokens plus max_new_tokens={sampling.max_new_tokens} is longer "
            f"than the {limit} positions of {model.name!r}; lower max_new_tokens or drop long "
            "problems"
        )


@torch.inference_mode()
def _decode(
    model: LanguageModel,
    prompts: Sequence[tuple[int, ...]],
    samples: int,
    sampling: SamplingConfig,
    generators: Sequence[torch.Generator],
    with_entropies: bool,
) -> _Decoded:
    device, limit = model.device, sampling.max_new_tokens
    decoder, head = model.decoder(), model.head()
    rows = len(prompts) * samples
    read = prefill(model, prompts, room=limit)
    cache, hidden, mask = read.cache, read.last, read.mask
    unpadded = decoding_mask(cache, model.causal_lm(), model.compute_dtype)
    cached = {cache_argument(decoder): cache}
    repeat = torch.arange(len(prompts), device=device).repeat_interleave(samples)
    select_rows(cache, repeat)
    hidden = hidden[repeat]
    if mask is not None:
        mask = mask[repeat]
    positions = torch.tensor([len(prompt) for prompt in prompts], device=device)[repeat]
    out = _Decoded(
        tokens=torch.full((rows, limit), model.pad_id, device=device),
        log_probs=torch.zeros(rows, limit, device=device),
        entropies=torch.zeros(rows, limit, device=device) if with_entropies else None,
        rules=RuledDraws(model.tokenizer, model.eos_ids, sampling, rows)
        if sampling.has_rules
        else None,
        lengths=torch.full((rows,), limit, device=device),
        ended=torch.zeros(rows, dtype=torch.bool, device=device),
    )
    # A prompt's generator draws for all of its rows, ended ones too: what a row draws depends
    # neither on when its neighbours end nor on which other prompts are in the batch.
    vocabulary = head.weight.shape[0]
    at_once = vocabulary >= LARGE_VOCABULARY and out.rules is None and sampling.temperature != 0.0
    noise = torch.ones(rows, 1 if at_once else vocabulary, device=device)
    groups: Sequence[int] = range(len(prompts))
    ends = torch.tensor(sorted(model.eos_ids), device=device)
    here = torch.arange(rows, device=device)  # which result row each row of the batch writes to
    alive = torch.ones(rows, dtype=torch.bool, device=device)
    # A stop text has at most a token per byte; a character that begins before it at most 3 more.
    tail = 3 + max((len(text.encode()) for text in sampling.stop), default=0)
    for step in range(limit):
        log_probs = tempered(head.logits(hidden).float(), sampling.temperature).log_softmax(-1)
        for group in groups:
            noise[group * samples : (group + 1) * samples].exponential_(generator=generators[group])
        if at_once:
            chosen = by_running_sum(log_probs, sampling, noise[here])
        else:
            keys = _keys(log_probs, sampling, noise[here])
            chosen = keys.argmax(-1)
            if out.rules is not None:
                chosen = out.rules.settle(here, chosen, keys, log_probs)
        out.tokens[here, step] = chosen
        out.log_probs[here, step] = log_probs.gather(1, chosen.unsqueeze(1)).squeeze(1)
        if out.entropies is not None:
            out.entropies[here, step] = entropy(log_probs)
        finished = torch.isin(chosen, ends)
        if sampling.stop:
            written = out.tokens[here, max(0, step + 1 - tail) : step + 1]
            texts = model.tokenizer.batch_decode(written, skip_special_tokens=False)
            stopped = [any(one in text for one in sampling.stop) for text in texts]
            finished |= torch.tensor(stopped, device=device)
        finished &= alive
        if finished.any():
            out.lengths[here[finished]] = step + 1
            out.ended[here[finished]] = True
            alive = alive & ~finished
            living = int(alive.sum())
            if living == 0:
                break
            if len(alive) - living >= LEAVE_SHARE * len(alive):
                kept = alive.nonzero().squeeze(1)
                select_rows(cache, kept)
                here, chosen, positions = here[kept], chosen[kept], positions[kept]
                groups = (here // samples).unique().tolist()
                alive = alive[kept]
                mask = None if mask is None else mask[kept]
        if step + 1 == limit:
            break
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        hidden = decoder(
            input_ids=chosen.unsqueeze(1),
            attention_mask=unpadded if mask is None else mask,
            position_ids=(positions + step).unsqueeze(1),  # hybrid caches do not know them
            **cached,
            use_cache=True,
        )[0][:, -1]
    return out


def _keys(log_probs: Tensor, sampling: SamplingConfig, noise: Tensor) -> Tensor:
    """[rows, V] whose largest entry is the draw: log-probs themselves at temperature 0.

    argmax of p / Exp(1) is a draw from p, in one pass and without normalising p.
    """
    if sampling.temperature == 0.0:
        return log_probs
    filtered = filter_log_probs(log_probs, top_k=sampling.top_k, top_p=sampling.top_p)
    return filtered - noise.log()


def by_running_sum(log_probs: Tensor, sampling: SamplingConfig, noise: Tensor) -> Tensor:
    """The first token at which the sum of probabilities reaches exp(-noise), uniform in (0, 1].

    First the block of tokens, then the token in it: the long sum alone is as dear as the head.
    """
    filtered = filter_log_probs(log_probs, top_k=sampling.top_k, top_p=sampling.top_p)
    probs = torch.nn.functional.pad(filtered.exp(), (0, -filtered.shape[1] % SUMMED))
    blocks = probs.unflatten(1, (-1, SUMMED))
    sums = blocks.sum(-1).double().cumsum(-1)
    reached = (-noise.double()).exp() * sums[:, -1:]
    block = torch.searchsorted(sums, reached)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(1, block)
    inside = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]].double().cumsum(-1)
    # At most all of the block: its two sums differ by rounding.
    place = torch.searchsorted(inside, (reached - before).minimum(inside[:, -1:]))
    return (block * SUMMED + place).squeeze(1)


def filter_log_probs(log_probs: Tensor, *, top_k: int | None, top_p: float) -> Tensor:
    """Set to -inf what top-k and then top-p leave out (the smallest set with mass >= top_p)."""
    if top_k is not None and top_k < log_probs.shape[-1]:
        threshold = log_probs.topk(top_k, dim=-1).values[..., -1:]
        log_probs = log_probs.masked_fill(log_probs < threshold, -torch.inf)
    if top_p < 1.0:
        ordered, order = log_probs.sort(dim=-1, descending=True)
        mass = ordered.softmax(-1)
        outside = mass.cumsum(-1) - mass >= top_p
        log_probs = log_probs.masked_fill(outside.gather(-1, order.argsort(-1)), -torch.inf)
    return log_probs
