"""TRL's SDPO trains the lab model with epistill's loss; TRL samples, builds contexts and steps.

    python examples/trl_self_distillation.py

Of this, two lines are epistill's: the base class with the loss, and the reward function.
"""

from datasets import Dataset
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from epistill.config import StarSearchTask
from epistill.integrations.rewards import correct_answers
from epistill.integrations.trl_loss import SelfDistillationLoss
from epistill.rollouts.load_model import load_model
from epistill.tasks.coverage import load_eval_problems


class Trainer(SelfDistillationLoss, SDPOTrainer):
    """SDPOTrainer with a loss that rows without a context do not dilute."""


rows = [
    {
        "prompt": [{"role": m.role, "content": m.content} for m in p.messages],
        "answer": p.answer,
        "grader": "exact",
    }
    for p in load_eval_problems(StarSearchTask(arms=3, depth=2), 8)
]
model = load_model("lab")  # yours: AutoModelForCausalLM, AutoTokenizer
trainer = Trainer(
    model=model.network,
    processing_class=model.tokenizer,
    reward_funcs=correct_answers,
    args=SDPOConfig(
        output_dir="runs/trl-sdpo",
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_steps=2,
        logging_steps=1,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
        num_generations=4,
        max_completion_length=24,
        teacher_model_kind="live",  # others are loaded from the model's name
        distillation_mode="topk_logits",
        distillation_topk=100,
        distillation_alpha=0.5,
        distillation_add_tail=True,
    ),
    train_dataset=Dataset.from_list(rows),
)
trainer.train()
for log in trainer.state.log_history[:-1]:
    reward, loss = (log[f"self_distillation/{n}"] for n in ("reward_mean", "distillation_loss"))
    print(f"step {log['step']}: reward {reward:.2f}, loss {loss:.4f} nats per token")
