"""`python -m fastsam2`."""

from fastsam2.cli import main

if __name__ == "__main__":
    main()
