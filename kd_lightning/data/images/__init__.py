"""Image data: sources, datamodules and augmentations."""
