"""The ERNIE 4.5 decoder step as one static graph: defined once in ``step.py``, written for each target by a builder.

``signature.py`` names inputs and outputs, ``weights.py`` fuses the checkpoint's matrices, ``builder.py`` is what a
target has to offer, and each of ``onnx.py`` and so on offers it.
"""
