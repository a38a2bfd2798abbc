"""`kd report`: one HTML page about runs or an experiment."""
