"""Where graphs run: one protocol, one file per backend."""
