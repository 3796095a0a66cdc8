"""The lab model's parts: an ordinary fast tokenizer, chat template and Qwen3 configuration.

Nothing here is special-cased elsewhere: the result is a Hugging Face model directory.
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config

from epistill.metrics.lexicon import PAPER, load_lexicon
from epistill.tasks.star_search import NAMES
from epistill.tasks.star_traces import FIRST_DOUBTFUL, LATER_DOUBTFUL

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
MAX_POSITIONS = 512
_FRAME = "system user assistant edges from gold dust so answer , . :"
_TEMPLATE_WORDS = (
    "Solution Answer Feedback on an earlier attempt Correctly solve the original question The gave "
    "no readable which is wrong correct"
)


def vocabulary() -> list[str]:
    """Every word the lab can read: the world's, the traces', the templates', the ten markers."""
    spoken = {word for text, _ in (*FIRST_DOUBTFUL, *LATER_DOUBTFUL) for word in text.split()}
    markers = load_lexicon(PAPER).words
    words = spoken.union(markers, _FRAME.split(), _TEMPLATE_WORDS.split())
    return ["<unk>", *NAMES, *sorted(words)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word.

    `<think>` tags are ordinary added tokens, as in Qwen3, so decoded text keeps them.
    """
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
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        eos_token_id=tokenizer.get_vocab()["<|im_end|>"],
        pad_token_id=tokenizer.get_vocab()["<|endoftext|>"],
        bos_token_id=None,
    )
