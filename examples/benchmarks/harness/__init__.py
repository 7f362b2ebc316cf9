"""A benchmark is a problem, some arms, runs of the arms on the problem, and a report of the runs.

problem        what is learned: model, batches, loss, and three splits (train, tune, eval)
language       problems of next tokens: news, sources; catalogue: those from scratch by name
finetuning     problems that have rows of data and their own loss; materials: what they are made of; scoring: means
tasks          the problems of fine-tuning by name, with their arms and what counts
arms           the optimizers that are compared; peers: those that are written here
contestants    what is tuned of each from scratch; finetuners: the arms of fine-tuning
roles          which weights are tables and heads, which are hidden matrices
runner, jobs   one training run, and what it is made of
workers        where runs are made; laboratory: which runs are made next
timing         how long a run takes
tuning         how an arm is set
journal        finished runs in a file, so that an interrupted benchmark goes on
contest        the stages of a benchmark
standing       what is known of an arm; rankings: the tables and the picture of it
report         the tables of fine-tuning
"""
