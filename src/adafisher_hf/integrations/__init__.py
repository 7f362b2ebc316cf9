"""The Hugging Face layer: registration with the Trainer, and Trainers of our own. It holds no maths."""
