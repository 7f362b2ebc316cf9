"""What transformers looks like. Apart from the tests, because it must not import adafisher_hf."""

import copy

from transformers import Trainer, TrainingArguments, trainer_optimizer
from transformers.training_args import OptimizerNames


def snapshot():
    """Everything that registration touches, copied one level deep where it is a container."""
    return {
        "enum": {name: copy.copy(x) if isinstance(x, dict | list) else x for name, x in vars(OptimizerNames).items()},
        "enum order": list(vars(OptimizerNames)),
        "members": [(member.name, member.value, id(member)) for member in OptimizerNames],
        "handlers": list(trainer_optimizer._OPTIMIZER_HANDLERS.items()),
        "trainer": dict(vars(Trainer)),
        "arguments": dict(vars(TrainingArguments)),
    }
