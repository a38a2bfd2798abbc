"""Takes the trained student out of the framework: file formats, checks and a model card."""
