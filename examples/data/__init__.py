"""What is learned: text (bbc, text) in blocks of tokens (tokens), topics, headlines, digits; split by document."""
