"""`kd init`: a project to start from."""
