"""One official module or method -> one graph of `fastsam2.contracts`, one file each."""
