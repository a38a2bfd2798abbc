"""`kd compare`: tables over runs and seeds."""
