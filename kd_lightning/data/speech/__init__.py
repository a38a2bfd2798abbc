"""Acoustic modeling of speech: features, forced alignment, decoding and datamodules."""
