"""What a model will get and what a run tells: coverage and memory before training, figures and logs during it."""
