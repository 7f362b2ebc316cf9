"""What problems of fine-tuning are made of: data, batches, and a model to start from. A file a kind of model."""
