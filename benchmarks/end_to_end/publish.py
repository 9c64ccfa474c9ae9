"""Write what was measured: JSON for programs, plots, and tables between marks in the documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ernie_accel.bench.workload import Workload

from .engines import ENGINES
from .plot import plot
from .report import Result, best_peer

HEADERS = {
    "en": (
        "engine",
        "tokens/s, median",
        "lowest to highest",
        "of the read bandwidth",
        "peak memory",
        "{ours} ÷ it",
        "a request, ms",
    ),
    "zh": (
        "引擎",
        "每秒 token 数（中位数）",
        "最低至最高",
        "占内存读带宽",
        "内存峰值",
        "{ours} ÷ 该引擎",
        "单个请求（毫秒）",
    ),
}
WHAT = {
    "en": {
        "prefill": "prompt of {context} tokens",
        "request": "a request of {context} tokens for {steps} new ones",
        "decode": "decoding at a context of {context}, {steps} tokens a round",
        "one": "one sequence",
        "many": "{batch} sequences (sum)",
    },
    "zh": {
        "prefill": "提示词 {context} 个 token",
        "request": "提示词 {context} 个 token、生成 {steps} 个 token 的请求",
        "decode": "在上下文 {context} 处解码，每轮 {steps} 个 token",
        "one": "单个序列",
        "many": "{batch} 个序列（合计）",
    },
}
CONDITIONS = {
    "en": (
        "`{command}` on {date}: {shape} shape, random weights, {what}, {threads} threads, {rounds} alternating rounds; "
        "read bandwidth {bandwidth:.1f} GB/s ({low:.1f} – {high:.1f}).{best} {processor}, {cores} cores, {memory}, "
        "{system}, Python {python}; {packages}."
    ),
    "zh": (
        "`{command}`，{date}：{shape} 的形状，随机权重，{what}，{threads} 线程，交替 {rounds} 轮；"
        "内存读带宽 {bandwidth:.1f} GB/s（{low:.1f} – {high:.1f}）。{best}{processor}，{cores} 核，{memory}，{system}，"
        "Python {python}；{packages}。"
    ),
}
BEST = {"en": " Best of the others: {title}.", "zh": "其他引擎中最快：{title}。"}
PAGES = {"README.md": "en", "README.zh-CN.md": "zh", "docs/performance.md": "en"}


def table(result: Result, language: str = "en") -> str:
    """Markdown: one row an engine, then the conditions."""
    ours = [name for name in result["engines"] if ENGINES[name].ours and len(result["engines"]) > 1]
    engine, speed, spread, share, memory, ratio, latency = HEADERS[language]
    whole = result["workload"]["measures"] == "request"
    shares = any("bandwidth_share" in made for made in result["engines"].values())
    peaks = any("peak_memory" in made for made in result["engines"].values())
    titles = [
        ratio.format(ours=result["engines"][name]["title"].removeprefix("ernie_accel ")) for name in ours
    ]
    columns = [engine, *([latency] if whole else []), speed, spread, *([share] if shares else [])]
    columns += [*([memory] if peaks else []), *titles]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, made in result["engines"].items():
        rate = made["tokens_per_second"]
        cells = [made["title"]]
        if whole:
            cells.append(number(1000 * Workload(**result["workload"]).seconds(rate["median"])))
        cells += [number(rate["median"]), f"{number(rate['low'])} – {number(rate['high'])}"]
        if shares:
            cells.append(f"{made['bandwidth_share']['median']:.0%}" if "bandwidth_share" in made else "")
        if peaks:
            cells.append(f"{made['peak_memory'] / 2**30:.1f} GiB" if "peak_memory" in made else "")
        cells += [f"{result['ratio'][mine][name]['median']:.2f}" if mine != name else "" for mine in ours]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", conditions(result, language)])


def number(value: float) -> str:
    """Four digits are more than any two rounds agree in."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def what(result: Result, language: str) -> str:
    """The workload in words."""
    workload, words = result["workload"], WHAT[language]
    sequences = words["one" if workload["batch"] == 1 else "many"]
    comma = "，" if language == "zh" else ", "
    return comma.join([words[workload["measures"]], sequences]).format(**workload)


def conditions(result: Result, language: str) -> str:
    """One paragraph on how the figures came about."""
    ceiling, best = result["read_bandwidth"], best_peer(result)
    return CONDITIONS[language].format(
        **{key: result[key] for key in ("command", "date", "shape", "threads", "rounds")},
        **result["machine"],
        what=what(result, language),
        bandwidth=ceiling["median"] / 1e9,
        low=ceiling["low"] / 1e9,
        high=ceiling["high"] / 1e9,
        best=BEST[language].format(title=result["engines"][best]["title"]) if best else "",
        packages=", ".join(f"{name} {version}" for name, version in result["versions"].items()),
    )


def publish(result: Result, root: Path) -> list[Path]:
    """Replace the result and plot of this workload, and its table on every page that has marks for it."""
    folder = root / "benchmarks/results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}.json"
    write(path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    picture = path.with_suffix(".svg")
    write(picture, plot(result, f"{result['shape']}: {what(result, 'en')}"))
    return [path, picture, *place(result, root)]


def place(result: Result, root: Path) -> list[Path]:
    """Put the table of a result on every page that has marks for it."""
    return [
        root / page
        for page, language in PAGES.items()
        if replace(root / page, result["name"], table(result, language))
    ]


def results(root: Path) -> list[Path]:
    """Files of results that this tool wrote, by name."""
    files = (root / "benchmarks/results").glob("*.json")
    return sorted(path for path in files if re.search(r"-(prefill|decode|request)-\d", path.stem))


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    half = path.with_name(f".{path.name}.half")
    half.write_text(text, encoding="utf-8")
    half.replace(path)


def replace(page: Path, name: str, text: str) -> bool:
    """Put a text between the marks of that name; False where the page has none."""
    before = page.read_text(encoding="utf-8")
    marks = re.compile(f"(<!-- bench {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(before):
        return False
    write(page, marks.sub(lambda match: f"{match[1]}{text}\n{match[2]}", before))
    return True


if __name__ == "__main__":
    here = Path(__file__).parents[2]
    for file in results(here):
        print(file.stem, *place(json.loads(file.read_text(encoding="utf-8")), here))
