"""Runs: one fresh folder each, what is written there, and how a run is launched from the command line or from Python."""
