"""Text for language models: documents, tokens, and blocks of tokens."""
