"""Writes our synthetic checkpoint in the formats of other engines. Files are kept in ``benchmarks/models``."""
