"""Analyses that any experiment can use; those of one paper are next to its experiments."""
