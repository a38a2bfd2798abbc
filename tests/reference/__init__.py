"""Independent formulas: plain Python floats, written from the papers, never from the package."""
