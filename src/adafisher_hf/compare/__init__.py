"""``adafisher-hf compare``: a training script once an arm and learning rate, and what that says.

An arm is an optimizer with options and the learning rates to try. The way of a comparison: ``arms`` (or ``defaults``)
says what is compared, ``program`` which script, ``plan`` which runs are wanted, ``workshop`` makes them in processes of
their own, where ``recorder`` writes a ``record``; ``results`` reads these, ``tables``, ``notes`` and ``verdict`` say
what they mean.
"""
