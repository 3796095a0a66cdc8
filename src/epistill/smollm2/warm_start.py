"""The warm start: SmolLM2 learns to search in words, and becomes an ordinary model directory.

    epistill lab warm-start models/smollm2 --out models/smollm2-search [--shipped]

Enters: the pretrained model, a seed. Leaves: a folder with the corpus, the run (it resumes), the
adapter in the run's `model/`, and the merged model in `merged/`. An adapter of it ships with the
package, in bfloat16: the one that the committed study was run on.
"""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from epistill.config import FileTask, Lora, RunConfig, SamplingConfig
from epistill.errors import EpistillError
from epistill.json_files import read_json, write_jsonl
from epistill.methods import method
from epistill.rollouts.in_process_engine import weights_fingerprint
from epistill.rollouts.load_model import load_model
from epistill.rollouts.model import LanguageModel
from epistill.smollm2.warm_start_corpus import warm_start_records
from epistill.studies.run_arm import run

SEQUENCES, PER_STEP = 1440, 24
LEARNING_RATE = 1e-3
ADAPTER = Lora(rank=16, alpha=32.0)


def chat_template() -> Path:
    """SmolLM2's, without its default system prompt, opening `<think>`."""
    return Path(str(resources.files("epistill.smollm2") / "chat_template.jinja"))


def warm_start_config(model: str, records: Path, *, seed: int, sequences: int) -> RunConfig:
    """The run: one pass over the records."""
    return RunConfig(
        model=model,
        chat_template=str(chat_template()),
        task=FileTask(path=str(records)),
        method=method("sft-unguided", traces={"written_by": "data", "count": sequences}),
        steps=sequences // PER_STEP,
        problems_per_step=PER_STEP,
        samples_per_problem=1,
        learning_rate=LEARNING_RATE,
        warmup_steps=5,
        weight_decay=0.0,
        dtype="bfloat16",
        lora=ADAPTER,
        microbatch_tokens=3200,
        sampling=SamplingConfig(max_new_tokens=128),
        monitor=None,
        seed=seed,
    )


def warm_start(model: str, out: Path, *, seed: int = 0, sequences: int = SEQUENCES) -> Path:
    """Train, merge and save; the same call goes on where it was stopped.

    Returns:
        The merged model's directory.

    Raises:
        EpistillError: Fewer sequences than one step takes, or the folder holds another run.
    """
    if sequences < PER_STEP:
        raise EpistillError(f"{sequences} sequences; expected at least {PER_STEP}, one step")
    records, merged = out / "corpus.jsonl", out / "merged"
    if not records.exists():
        write_jsonl(records, warm_start_records(seed, sequences))
    config = warm_start_config(model, records, seed=seed, sequences=sequences)
    run(config, out / "run")
    if not merged.exists():
        merge(out / "run" / "model", load_base(model), merged)
    return merged


def load_base(model: str) -> LanguageModel:
    """The pretrained model in bfloat16, with the study's chat template."""
    return load_model(model, dtype="bfloat16", chat_template=str(chat_template()))


def shipped_adapter() -> Path:
    """The adapter's directory, with its card."""
    return Path(str(resources.files("epistill.smollm2") / "adapter"))


def merge_shipped(model: str, out: Path) -> Path:
    """The shipped adapter in the pretrained model's weights, without any training.

    Returns:
        The merged model's directory.

    Raises:
        EpistillError: The model is not the one that the adapter was trained on.
    """
    base = load_base(model)
    card = read_json(shipped_adapter() / "card.json")
    if (found := weights_fingerprint(base)) != card["base_weights"]:
        raise EpistillError(
            f"{model} has other weights ({found[:12]}) than the adapter's base "
            f"({card['base_weights'][:12]}); make it with scripts/real_models.py OUT smollm2"
        )
    if not (out / "merged").exists():
        merge(shipped_adapter(), base, out / "merged")
    return out / "merged"


def merge(adapter: Path, base: LanguageModel, out: Path) -> None:
    """Write the base with the adapter in its weights as an ordinary directory."""
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(base.causal_lm(), str(adapter))
    network: Any = adapted.merge_and_unload()
    temporary = out.with_suffix(".tmp")
    network.save_pretrained(str(temporary))
    base.tokenizer.save_pretrained(str(temporary))
    shutil.rmtree(out, ignore_errors=True)
    temporary.rename(out)
