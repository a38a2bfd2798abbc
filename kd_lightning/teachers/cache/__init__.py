"""Teacher outputs computed once and replayed exactly."""
