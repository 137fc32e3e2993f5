"""Models at fewer than 8 bits: how fast, how small, and why not; speed against bits by device class."""
