"""Quantization: codes for the matrices of a checkpoint, chosen with calibration or without data, and what they cost.

    recipe = Recipe.for_precision("int8")
    ids = built_in_ids(checkpoint.config, tokenizer, recipe)      # or ids_of_texts, ids_of_sequences
    results = []
    for result in Calibration(checkpoint, recipe, ids.sequences, finished=[], progress=None):
        results.append(result)                    # a LayerResult a layer, then one for the head; keep it to resume
    quantised = QuantisedResults(checkpoint, results, recipe, ids.description)

``quantise_data_free(checkpoint, recipe)`` gives the same results without data. ``QuantisedResults`` is a
``QuantisedCheckpoint`` that a backend opens.
"""

from __future__ import annotations

from ernie_accel.quant.calibrate import Calibration
from ernie_accel.quant.data_free import quantise_data_free
from ernie_accel.quant.recipe import QuantPrecision, Recipe
from ernie_accel.quant.results import LayerResult, QuantisedResults
from ernie_accel.quant.text import CalibrationIds, built_in_ids, ids_of_sequences, ids_of_texts

__all__ = [
    "Calibration",
    "CalibrationIds",
    "LayerResult",
    "QuantPrecision",
    "QuantisedResults",
    "Recipe",
    "built_in_ids",
    "ids_of_sequences",
    "ids_of_texts",
    "quantise_data_free",
]
