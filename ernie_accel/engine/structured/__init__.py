"""Structured output: which tokens may come next, so that a text has the structure that was asked for.

The grammars are worked out by the optional ``llguidance`` package, which nothing outside this folder knows. A
``Compiler`` belongs to a loaded model; it makes a ``Constraint`` for each request, along which a ``Guide`` leads each
completion.
"""

from ernie_accel.engine.structured.compiler import Compiler
from ernie_accel.engine.structured.constraint import Constraint
from ernie_accel.engine.structured.guide import Guide

__all__ = ["Compiler", "Constraint", "Guide"]
