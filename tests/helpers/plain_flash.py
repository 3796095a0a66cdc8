"""Flash attention on a CPU: its two functions in plain torch, all else is transformers' own code.

So what leads to the kernel is tested where there is none: positions that become sequences, padding
that is taken out, windows. The name is of one of the hub's kernels; every model class takes it.
"""

from __future__ import annotations

import torch
from transformers import AttentionInterface, AttentionMaskInterface, modeling_flash_attention_utils
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.masking_utils import flash_attention_mask
from transformers.models.falcon import modeling_falcon

FLASH = "kernels-community/vllm-flash-attn3"


def attended(q, k, v, scale, causal, window, softcap, sinks):
    """Of one sequence, [tokens, heads, dim]; the last query is at the last key."""
    if q.dtype == torch.float32:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    k, v = (one.repeat_interleave(q.shape[1] // k.shape[1], 1) for one in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * (scale or q.shape[-1] ** -0.5)
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    mine = torch.arange(len(q)).unsqueeze(1) + len(k) - len(q)
    others = torch.arange(len(k))
    seen = (others <= mine) | (not causal)
    if window[0] >= 0:
        seen &= others >= mine - window[0]
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.view(-1, 1, 1).expand(-1, len(q), 1)], -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : len(k)], v)


def flash_attn_func(
    q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
    s_aux=None,
):  # fmt: skip
    settings = (softmax_scale, causal, window_size, softcap, s_aux)
    return torch.stack([attended(*row, *settings) for row in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0,
    softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, s_aux=None,
):  # fmt: skip
    settings = (softmax_scale, causal, window_size, softcap, s_aux)
    of_q, of_k = (ends[1:-1].long() for ends in (cu_seqlens_q, cu_seqlens_k))
    rows = zip(q.tensor_split(of_q), k.tensor_split(of_k), v.tensor_split(of_k), strict=True)
    return torch.cat([attended(*row, *settings) for row in rows])


def use_plain_flash(monkeypatch):
    """Let networks be made with attention `FLASH`."""
    utils = modeling_flash_attention_utils
    functions = (
        flash_attn_func,
        flash_attn_varlen_func,
        None,
        utils._pad_input,
        utils._unpad_input,
    )
    monkeypatch.setattr(utils, "_lazy_imports", lambda *args, **kwargs: functions)
    monkeypatch.setattr(utils, "_loaded_implementation", None)
    monkeypatch.setitem(AttentionInterface._global_mapping, FLASH, flash_attention_forward)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, FLASH, flash_attention_mask)
    monkeypatch.setattr(  # imported only where a kernel is installed
        modeling_falcon, "_flash_attention_forward", utils._flash_attention_forward, raising=False
    )
