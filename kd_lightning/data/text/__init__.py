"""Text: tokenizers, sources and datamodules."""
