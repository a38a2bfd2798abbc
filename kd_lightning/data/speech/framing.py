"""How a signal is cut into frames: windows of 25 ms that advance by 10 ms."""

from __future__ import annotations

RATE = 8000
"""Samples per second."""
WINDOW = 200
"""Samples per analysis window: 25 ms."""
HOP = 80
"""Samples from the start of one window to the start of the next: 10 ms."""
FFT = 256
"""Length of the Fourier transform: the window, zero-padded to a power of two."""
MELS = 40
"""Mel bands between 0 Hz and half the sampling rate."""


def frames_in(samples: int) -> int:
    """Number of frames whose whole Fourier transform fits into `samples` samples."""
    # The first frame starts at sample 0; the others advance by a hop while the transform still
    # fits.
    return 1 + (samples - FFT) // HOP
