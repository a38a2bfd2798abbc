"""Runs: from a config to a finished run folder, and reading run folders."""
