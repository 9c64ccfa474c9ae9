"""One adapter for each engine that is compared; ``base.py`` is what each of them is."""
