"""The Hugging Face layer: registration with the Trainer, and Trainers of our own. It holds no maths.

``entries`` says what is known of an optimizer, ``optimizers`` has the list, ``patches`` tells transformers.
"""
