"""A benchmark is a problem, some arms, runs of the arms on the problem, and a report of the runs.

problem        what is learned: model, batches, loss, and three splits (train, tune, eval)
language       problems of next tokens: news, sources; finetuning: those of the examples; catalogue: all by name
arms           the optimizers that are compared; peers: those that are written here; contestants: what is tuned of each
roles          which weights are tables and heads, which are hidden matrices
runner, jobs   one training run, and what it is made of
workers        where runs are made; laboratory: which runs are made next
timing         how long a run takes
tuning         how an arm is set
journal        finished runs in a file, so that an interrupted benchmark goes on
contest        the stages of a benchmark from scratch
standing       what is known of an arm; rankings: the tables and the picture of it
report         the tables of fine-tuning
"""
