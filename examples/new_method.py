"""A new method in under 20 lines: distil towards the answer-only teacher, late in a response.

    python examples/new_method.py

Nothing is registered and no loop is touched: a method is a point on the five axes.
"""

from epistill.axes import Context, Method
from epistill.blends import Convex
from epistill.config import RunConfig, SamplingConfig, StarSearchTask
from epistill.studies.run_arm import run
from epistill.token_weights import PositionRise

late_answer = Method(
    name="late-answer",
    context=Context(source="answer"),
    token_weights=(PositionRise(floor=0.0, midpoint=0.6),),
    blend=Convex(distillation=0.3),
)

if __name__ == "__main__":
    config = RunConfig(
        model="lab",
        task=StarSearchTask(arms=4, depth=2),
        method=late_answer,
        sampling=SamplingConfig(max_new_tokens=60),
        steps=2,
        problems_per_step=4,
        learning_rate=1e-3,
    )
    import tempfile
    from pathlib import Path

    for row in run(config, Path(tempfile.mkdtemp())).metrics():
        print(row["step"], row["loss"], row["distillation_nats_per_token"])
