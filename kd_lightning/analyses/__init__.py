"""What single papers ask of finished runs; an experiment's YAML names them, the runner knows none."""
