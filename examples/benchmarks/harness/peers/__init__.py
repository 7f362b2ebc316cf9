"""Published optimizers that the benchmark compares with, where no package has them as they should be.

All of them treat a model in the same way (``matrices``): its hidden matrices get the update that the file is named
after, everything else gets AdamW.
"""
