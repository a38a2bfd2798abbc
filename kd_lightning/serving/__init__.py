"""Uses a trained network: predicts files, and answers requests over HTTP."""
