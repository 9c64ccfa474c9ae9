"""Choosing the codes of quantised weights, and measuring what they cost."""
