"""A benchmark is a problem, some arms, runs of the arms on the problem, and a report of the runs.

problem   what is learned: model, batches, loss, and three splits (train, tune, eval)
arms      the optimizers that are compared
runner    one training run
timing    how long a run takes
tuning    which learning rate an arm gets
journal   finished runs in a file, so that an interrupted benchmark goes on
report    the table and the picture
"""
