"""Speech: features, alignments and datamodules."""
