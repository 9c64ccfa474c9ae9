"""One model for threads and for asyncio: requests of both join one batch, and each gets what it would get alone.

python examples/03_many_requests.py [model directory]
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ernie_accel as ea

POET = Path(__file__).parent / "poet" / "model"
LINES = ["床前明月光，", "白日依山尽，", "春眠不觉晓，", "红豆生南国，"]


def ask(model: ea.Model, line: str) -> str:
    return line + model.generate(line, max_tokens=24, temperature=0.8, seed=5).text


def from_threads(model: ea.Model) -> list[str]:
    with ThreadPoolExecutor(len(LINES)) as pool:
        return list(pool.map(lambda line: ask(model, line), LINES))


async def from_asyncio(model: ea.Model) -> list[str]:
    """The first that is asked for is also read token by token."""
    others = asyncio.gather(
        *(model.agenerate(line, max_tokens=24, temperature=0.8, seed=5) for line in LINES[1:])
    )
    async with model.astream(LINES[0], max_tokens=24, temperature=0.8, seed=5) as stream:
        first = LINES[0] + "".join([chunk.text async for chunk in stream])
    return [first, *(line + done.text for line, done in zip(LINES[1:], await others, strict=True))]


def main() -> None:
    directory = sys.argv[1] if len(sys.argv) > 1 else str(POET)
    with ea.Model.load(directory) as model:
        alone = [ask(model, line) for line in LINES]
        assert from_threads(model) == asyncio.run(from_asyncio(model)) == alone
        print("\n\n".join(alone))
        metrics = model.metrics()
        print(
            f"\n{metrics.counters['generated_tokens']} tokens in {metrics.counters['steps']} steps; of the prompts' "
            f"{metrics.counters['prompt_tokens']} tokens {metrics.counters['cached_tokens']} were known already"
        )


if __name__ == "__main__":
    main()
