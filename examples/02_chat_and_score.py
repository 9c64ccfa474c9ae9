"""Talk to a model over several turns, then let it judge: which of several lines is the most probable?

python examples/02_chat_and_score.py [model directory]
"""

from __future__ import annotations

import sys
from pathlib import Path

import ernie_accel as ea

POET = Path(__file__).parent / "poet" / "model"
REQUESTS = ["以《山居》为题写一首五言绝句", "写一首七言绝句，关于月"]
LINES = ["天涯若比邻。", "天涯若远山。", "天涯若电脑。"]


def talk(model: ea.Model) -> None:
    """A conversation keeps what was said, so each turn starts where the last one ended."""
    conversation = model.conversation()
    for request in REQUESTS:
        print(f"> {request}")
        for chunk in conversation.stream(request, max_tokens=64, temperature=0.8, seed=11):
            print(chunk.text, end="", flush=True)
        print("\n")


def judge(model: ea.Model) -> None:
    """Score each line after the same beginning; the sum of log-probabilities compares texts of one length."""
    scores = {line: model.score(f"海内存知己，{line}") for line in LINES}
    for line, score in sorted(scores.items(), key=lambda item: item[1].total, reverse=True):
        print(f"海内存知己，{line}  log-probability {score.total:7.2f}  perplexity {score.perplexity:8.1f}")


def main() -> None:
    directory = sys.argv[1] if len(sys.argv) > 1 else str(POET)
    with ea.Model.load(directory) as model:
        talk(model)
        judge(model)


if __name__ == "__main__":
    main()
