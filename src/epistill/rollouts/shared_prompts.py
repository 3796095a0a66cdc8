"""Prompts, computed once for all rows that begin with them.

Enters: prompts as token ids. Leaves: a cache to go on from (the sampler's), or the hidden states
that predict the tokens of given completions. The rows of a group share the student's prompt, and
the teacher's where their contexts are equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from epistill.rollouts.align import align, micro_batches
from epistill.rollouts.engine import Ids
from epistill.rollouts.kv_cache import cache_argument, holds_everything, make_cache
from epistill.rollouts.model import LanguageModel
from epistill.world import World, current_world

# Of all tokens of a pass, what must be saved: below it the second forward pass costs more.
LEAST_SAVED = 0.1
# Every call gathers the blocks of a sharded network, which takes as long as so many tokens: on two
# cores measured (docs/benchmarks.md), on GPUs reckoned from 400 TFLOP/s and 250 GB/s in bfloat16.
GATHER_TOKENS = {"cpu": 150, "cuda": 1600}


@dataclass(frozen=True, slots=True)
class Prefilled:
    """Prompts that were read.

    Attributes:
        cache: Keys and values, [P, heads, width, dim], padded on the left.
        last: [P, H]: the hidden states that predict the first token after each.
        mask: [P, width]; None where all are equally long.
    """

    cache: Cache
    last: Tensor
    mask: Tensor | None


def prefill(model: LanguageModel, prompts: Sequence[Ids], *, room: int) -> Prefilled:
    """Read prompts, of at least one token each, for sequences that go on by `room` tokens."""
    width = max(map(len, prompts))
    ids = _left_padded([torch.tensor(prompt) for prompt in prompts]).to(model.device)
    mask = None
    if any(len(prompt) < width for prompt in prompts):
        mask = _mask(prompts).to(model.device)
    cache, decoder = make_cache(model.network.config, width, room), model.decoder()
    states = decoder(
        input_ids=ids,
        attention_mask=mask,
        position_ids=None if mask is None else (mask.cumsum(1) - 1).clamp(min=0),
        use_cache=True,
        **{cache_argument(decoder): cache},
    )[0]
    return Prefilled(cache, states[:, -1], mask)


class SharedPrompts:
    """The prompts of one pass without gradients, each read once while rows with it are to come.

    Rows are read whole, as ever, where few tokens would be saved and where the model's layers hold
    more than keys and values. What follows prompts that were read is padded, of a model that packs
    too. A sharded network's blocks are gathered by all processes together, which must call it
    equally often: each plans what the others are dealt too, and makes up the calls it has less.

    Args:
        prompts: Of every row of the pass, whichever process has it.
        completions: As many.
        batches: The micro-batches of all processes, as `World.deal` deals them.
        most_tokens: Of prompts that are kept for later micro-batches: as many as one may have.
    """

    def __init__(
        self,
        prompts: Sequence[Ids],
        completions: Sequence[Ids],
        batches: Sequence[Sequence[int]],
        *,
        most_tokens: int,
    ) -> None:
        first: dict[tuple[int, ...], int] = {}
        # A prompt goes by the first row that has it.
        self._begins = [first.setdefault(tuple(ids), row) for row, ids in enumerate(prompts)]
        self._prompts, self._completions = prompts, completions
        self._batches, self._most = batches, most_tokens
        self._kept: dict[int, _Kept] = {}
        self._rounds: Iterator[tuple[Sequence[_Part], int]] | None = None

    @torch.no_grad()
    def hidden(self, model: LanguageModel) -> Tensor:
        """[N, H]: what predicts each completion token of this process's next micro-batch."""
        self._rounds = self._rounds or self._planned(model)
        parts, missing = next(self._rounds)
        found: dict[int, Tensor] = {}
        for part in parts:
            states = self._hidden(model, part)
            lengths = [len(self._completions[row]) for row in part.rows]
            found |= zip(part.places, states.split(lengths), strict=True)
        for _ in range(missing):
            align(model, [[model.pad_id]], [[]]).hidden(model)
        return torch.cat([found[place] for place in range(len(found))])

    def _planned(self, model: LanguageModel) -> Iterator[tuple[Sequence[_Part], int]]:
        """This process's micro-batches, each with how many calls more another process makes."""
        world = current_world()
        sharded = any(isinstance(one, FSDPModule) for one in model.network.modules())
        ranks = range(world.size) if sharded else (world.rank,)
        gather = GATHER_TOKENS.get(model.device.type, 0) if sharded else 0
        dealt = [
            [batch for batch, _ in World(rank, world.size).deal(self._batches)] for rank in ranks
        ]
        plans = [[[self._whole(range(len(one)), one)] for one in batches] for batches in dealt]
        if any(map(self._share, dealt)):
            once = [self._plan_once(model, batches) for batches in dealt]
            cost = _cost(plans, gather)
            if cost - _cost(once, gather) >= LEAST_SAVED * cost:
                plans = once
        for parts, *same in zip(plans[ranks.index(world.rank)], *plans, strict=True):
            yield parts, max(map(_calls, same)) - _calls(parts)

    def _share(self, batches: Sequence[Sequence[int]]) -> bool:
        """Whether some of these rows have one prompt."""
        rows = [row for batch in batches for row in batch]
        return len({self._begins[row] for row in rows}) < len(rows)

    def _whole(self, places: Sequence[int], rows: Sequence[int]) -> _Part:
        tokens = sum(len(self._prompts[row]) + len(self._completions[row]) for row in rows)
        return _Part(places, rows, (tokens,))

    def _plan_once(self, model: LanguageModel, dealt: Sequence[Sequence[int]]) -> list[list[_Part]]:
        """A prompt is read by the first row that has it, and again where there was no room."""
        prompt = list(map(len, self._prompts))
        said = list(map(len, self._completions))
        to_come = Counter(self._begins[row] for batch in dealt for row in batch)
        kept = list[int]()

        def part(places: Sequence[int], batch: Sequence[int]) -> _Part:
            nonlocal kept
            rows = [batch[place] for place in places]
            begun = [self._begins[row] for row in rows]
            width, longest = (max(length[row] for row in rows) for length in (prompt, said))
            to_come.subtract(begun)
            if not holds_everything(make_cache(model.network.config, width, longest)):
                return self._whole(places, rows)
            new = [one for one in dict.fromkeys(begun) if one not in kept]
            before, kept, room = (*kept, *new), [], self._most
            for one in before:  # what rows are to come for, and what there is room for
                if to_come[one] > 0 and prompt[one] <= room:
                    kept.append(one)
                    room -= prompt[one]
            read = [sum(prompt[one] for one in new)] if new else []
            if longest > 1:
                read.append(sum(said[row] for row in rows))
            return _Part(places, rows, tuple(read), new, kept)

        plan: list[list[_Part]] = []
        for batch in dealt:
            cut: Iterable[Sequence[int]] = [range(len(batch))]
            if model.packs:  # padding is to stay little
                lengths = [prompt[row] + said[row] for row in batch]
                cut = micro_batches(lengths, max_tokens=self._most)
            plan.append([part(places, batch) for places in cut])
        return plan

    def _hidden(self, model: LanguageModel, part: _Part) -> Tensor:
        prompts = [self._prompts[row] for row in part.rows]
        completions = [self._completions[row] for row in part.rows]
        assert all(map(len, prompts))
        if part.new is None:
            return align(model, prompts, completions).hidden(model)
        with model.computing():
            self._read(model, part.new)
            kept = [self._kept[self._begins[row]] for row in part.rows]
            states = _go_on(model, kept, prompts, completions)
        self._kept = {one: self._kept[one] for one in part.kept}
        return states if model.compute_dtype is None else states.to(model.compute_dtype)

    def _read(self, model: LanguageModel, new: Sequence[int]) -> None:
        if not new:
            return
        prompts = [self._prompts[one] for one in new]
        found = prefill(model, prompts, room=0)
        cached: Any = found.cache.layers
        for row, (one, prompt) in enumerate(zip(new, prompts, strict=True)):
            layers = [
                tuple(
                    states[row, :, -len(prompt) :].transpose(0, 1).clone()
                    for states in (layer.keys, layer.values)
                )
                for layer in cached
            ]
            self._kept[one] = _Kept(layers, found.last[row])


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of a micro-batch that go through the network together.

    Attributes:
        places: Where the rows stand in the micro-batch.
        rows: Their numbers among those of the pass.
        reads: Tokens of each call of the network, without padding.
        new: Prompts that are read first; None where rows are read whole.
        kept: Prompts that are kept afterwards.
    """

    places: Sequence[int]
    rows: Sequence[int]
    reads: tuple[int, ...]
    new: Sequence[int] | None = None
    kept: Sequence[int] = ()


def _calls(parts: Sequence[_Part]) -> int:
    return sum(len(part.reads) for part in parts)


def _cost(plans: Sequence[Sequence[Sequence[_Part]]], gather: int) -> int:
    """Tokens, of each call of processes that call together those of the slowest."""
    return sum(
        max(*tokens, gather)
        for parts in zip(*plans, strict=True)
        for tokens in zip_longest(
            *([read for part in own for read in part.reads] for own in parts), fillvalue=1
        )
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """Of a prompt: keys and values of each layer, [P, heads, dim], and its last hidden state."""

    layers: Sequence[tuple[Tensor, ...]]
    last: Tensor


def _go_on(
    model: LanguageModel,
    kept: Sequence[_Kept],
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
) -> Tensor:
    """The completions' tokens but the last, which predicts nothing, after what was read."""
    width, room = max(map(len, prompts)), max(map(len, completions))
    cache, device = make_cache(model.network.config, width, room), model.device
    for index in range(len(cache.layers)):
        pairs = zip(*(one.layers[index] for one in kept), strict=True)
        keys, values = (_left_padded(states).transpose(1, 2) for states in pairs)
        cache.update(keys, values, index)
    lengths = torch.tensor([[len(prompt)] for prompt in prompts])
    read = [torch.tensor(said[:-1], dtype=torch.long) for said in completions]
    ids = pad_sequence(read, batch_first=True, padding_value=model.pad_id)
    states = torch.stack([one.last for one in kept]).unsqueeze(1)
    if ids.shape[1]:
        mask = None
        if len(lengths.unique()) > 1:
            mask = torch.cat([_mask(prompts), torch.ones_like(ids)], 1).to(device)
        # Padding stays at the row's last position: one more might be beyond the model's last.
        ends = torch.tensor([[max(0, len(one) - 1)] for one in read])
        places = lengths + torch.arange(ids.shape[1]).minimum(ends)
        after = model.decoder()(
            input_ids=ids.to(device),
            attention_mask=mask,
            position_ids=places.to(device),
            past_key_values=cache,
            use_cache=True,
        )[0]
        states = torch.cat([states, after], 1)
    return torch.cat([row[: len(c)] for row, c in zip(states, completions, strict=True)])


def _mask(prompts: Sequence[Ids]) -> Tensor:
    return _left_padded([torch.ones(len(prompt), dtype=torch.long) for prompt in prompts])


def _left_padded(parts: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(parts), batch_first=True, padding_side="left")
