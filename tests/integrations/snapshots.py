"""What transformers looks like. Apart from the tests, because it must not import adafisher_hf."""

import copy

from transformers import Trainer, TrainingArguments, trainer, trainer_optimizer, training_args
from transformers.integrations import moe
from transformers.training_args import OptimizerNames


def snapshot():
    """Everything that registration touches, copied one level deep where it is a container."""
    return {
        "enum": {name: copy.copy(x) if isinstance(x, dict | list) else x for name, x in vars(OptimizerNames).items()},
        "enum order": list(vars(OptimizerNames)),
        "members": [(member.name, member.value, id(member)) for member in OptimizerNames],
        "handlers": list(trainer_optimizer._OPTIMIZER_HANDLERS.items()),
        "trainer": dict(vars(Trainer)),
        # Without what copyreg keeps there when one is pickled.
        "arguments": {name: x for name, x in vars(TrainingArguments).items() if name != "__slotnames__"},
        "experts": dict(moe.ALL_EXPERTS_FUNCTIONS._global_mapping),
        "modules": [sorted(vars(module)) for module in (training_args, trainer_optimizer, trainer, moe)],
    }
