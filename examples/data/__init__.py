"""Text: where it comes from (bbc, text), how it is split, and how it becomes blocks of tokens (tokens)."""
