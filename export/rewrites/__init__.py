"""Exact rewrites, before -> after, one per file: the exported graphs compute what the official modules compute, in a faster form."""
