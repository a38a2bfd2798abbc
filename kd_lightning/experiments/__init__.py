"""Experiments: YAML files that list runs. The runner trains what is missing, aggregates over seeds, and knows no paper."""
