"""Random JSON schemas whose outputs have an end: strings, arrays, numbers and depth are bounded."""

from __future__ import annotations

import json
import random
from typing import Any

LETTERS = "abcXYZ 0159_-'\"\\\n床前明月光é😀"
PATTERNS = (r"^[a-f]{2,6}$", r"^\+[0-9]{1,3}-[0-9]{4}$", r"^(明|月|光){1,4}$")

Schema = dict[str, Any]


def random_schema(rng: random.Random, depth: int = 3) -> Schema:
    """One schema; objects and arrays nest at most ``depth`` deep."""
    leaves = [_string, _string, _pattern, _integer, _number, _enum, _constant, _simple]
    inner = [_object, _object, _array, _choice] if depth > 0 else []
    return rng.choice([*leaves, *inner])(rng, depth - 1)


def random_object(rng: random.Random) -> Schema:
    """As ``random_schema``, but an object with a definition that some property refers to."""
    schema = _object(rng, 2)
    schema["$defs"] = {"shared": random_schema(rng, 1)}
    schema["properties"]["$shared"] = {"$ref": "#/$defs/shared"}
    schema["required"].append("$shared")
    return schema


def _word(rng: random.Random, most: int = 8) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, most)))


def _string(rng: random.Random, depth: int) -> Schema:
    least = rng.choice((0, 0, 1, 3))
    return {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 12)}


def _pattern(rng: random.Random, depth: int) -> Schema:
    return {"type": "string", "pattern": rng.choice(PATTERNS)}


def _integer(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(-1000, 1000)
    return {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 500)}


def _number(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(-50, 50)
    return {"type": "number", "minimum": least, "maximum": least + rng.randint(1, 9), "multipleOf": 1}


def _enum(rng: random.Random, depth: int) -> Schema:
    return {
        "enum": [rng.choice((_word(rng), rng.randint(-9, 9), None, True)) for _ in range(rng.randint(1, 4))]
    }


def _constant(rng: random.Random, depth: int) -> Schema:
    return {"const": rng.choice((_word(rng), {_word(rng): [1, None]}, rng.randint(0, 99), False))}


def _simple(rng: random.Random, depth: int) -> Schema:
    return {"type": rng.choice(("boolean", "null"))}


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    items = random_schema(rng, depth)
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + rng.randint(0, 3)}


def _object(rng: random.Random, depth: int) -> Schema:
    names = list(dict.fromkeys(_word(rng, 5) for _ in range(rng.randint(1, 4))))
    return {
        "type": "object",
        "properties": {name: random_schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _choice(rng: random.Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(rng, depth) for _ in range(rng.randint(2, 3))]}


def check(text: str, schema: Schema) -> None:
    """Assert that the text is JSON of the schema."""
    import jsonschema

    jsonschema.Draft202012Validator(schema).validate(json.loads(text))
