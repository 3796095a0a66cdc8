"""TRL's GRPO trains the lab model; epistill watches its markers, entropy, length and scores.

    python examples/trl_monitor.py

Of this, two lines are epistill's: `reward_hook` around the verifier, and the callback.
"""

from pathlib import Path

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from epistill.config import StarSearchTask
from epistill.integrations.rewards import correct_answers
from epistill.integrations.transformers import EpistemicMonitor
from epistill.monitor import Monitor
from epistill.rollouts.load_model import load_model
from epistill.tasks.coverage import load_eval_problems

problems = load_eval_problems(StarSearchTask(arms=3, depth=2), 8)
rows = [
    {
        "prompt": [{"role": m.role, "content": m.content} for m in p.messages],
        "answer": p.answer,
        "grader": "exact",
    }
    for p in problems
]
model = load_model("lab")  # yours: AutoModelForCausalLM, AutoTokenizer
monitor = EpistemicMonitor(Monitor(action="stop"))
trainer = GRPOTrainer(
    model=model.network,
    processing_class=model.tokenizer,
    reward_funcs=monitor.reward_hook(correct_answers),
    args=GRPOConfig(
        output_dir="runs/trl",
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=24,
    ),
    train_dataset=Dataset.from_list(rows),
    callbacks=[monitor],
)
trainer.train()
print(Path("runs/trl/monitor/metrics.jsonl").read_text())
print("alarms:", monitor.alarms)
