"""How the memory rows of a frame are scored; one policy per file, each a `Policy` of `runtime/policies/base.py`."""
