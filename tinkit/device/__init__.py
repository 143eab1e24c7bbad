"""What runs on the board: numpy and the board's own runtime; Python 3.8, nothing of torch."""
