"""Images: sources, datamodules and augmentations."""
