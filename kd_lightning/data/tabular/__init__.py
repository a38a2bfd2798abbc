"""Tables: samples are rows, features and targets are columns."""
