"""The lab model's parts: an ordinary fast tokenizer, chat template and Qwen3 configuration.

Nothing here is special-cased elsewhere: the result is a Hugging Face model directory.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config

from epistill.tasks.star_search import NAMES
from epistill.tasks.star_traces import FIRST_DOUBTFUL, LATER_DOUBTFUL

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
MAX_POSITIONS = 512


def vocabulary() -> list[str]:
    """Every word the lab can read: the world's, the traces', the templates', the ten markers."""
    spoken = {word for text, _ in (*FIRST_DOUBTFUL, *LATER_DOUBTFUL) for word in text.split()}
    markers = "wait hmm perhaps maybe actually alternatively seems might likely check".split()
    frame = "system user assistant edges from gold dust so answer , . :".split()
    templates = (
        "Solution Answer Feedback on an earlier attempt Correctly solve the original question "
        "The gave no readable which is wrong correct"
    ).split()
    words = sorted(spoken | set(markers) | set(frame) | set(templates))
    return ["<unk>", *NAMES, *words]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; `<think>` tags are ordinary added tokens, as in Qwen3, so text keeps
    them."""
    words = vocabulary()
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    core.add_tokens([AddedToken(token, special=False) for token in THINK])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    )


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    """d=64, 3 layers, 4 heads: the smallest that learnt to search (`docs/lab.md`)."""
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=MAX_POSITIONS,
        rope_theta=10_000.0,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
