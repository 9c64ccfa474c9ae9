"""Plans beside what others published: FastDeploy's tables of minimum hardware, and tokens per second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ernie_accel as ea
from benchmarks.planning.published import FITTED, PUBLISHED, Figure, predicted
from ernie_accel.planner.plan import MemoryPlan

__all__ = ["HARDWARE", "Row", "least_devices", "speed_row"]

CONTEXT = 32768


@dataclass(frozen=True)
class Row:
    """One cell of a published table: so many devices; 0 where the table has none."""

    model: str
    precision: str
    device: str
    devices: int


def _rows() -> Iterator[Row]:
    small = ("A10", "A30", "L20", "A800", "H800", "H20-96G")
    for device in small:
        yield Row("0.3B", "int8", device, 1)
        yield Row("0.3B", "int4", device, 1)
        yield Row("21B-A3B", "int8", device, 2 if device in ("A10", "A30") else 1)
        yield Row("21B-A3B", "int4", device, 1)
    for device in ("L20", "H800", "H20-96G"):
        yield Row("0.3B", "fp8", device, 1)
        yield Row("21B-A3B", "fp8", device, 1)
    for precision, devices in (("int8", 8), ("int4", 4), ("w4a8", 4), ("int2", 2)):
        for device in ("A800", "H800"):
            yield Row("300B-A47B", precision, device, devices)
    yield Row("300B-A47B", "fp8", "H800", 8)
    yield Row("300B-A47B", "int2", "H20-141G", 1)
    yield Row("300B-A47B", "bf16", "A800", 16)  # "more than one node of eight"
    for precision, counts in (("int4", (2, 1, 1, 1)), ("int8", (2, 1, 1, 1)), ("bf16", (4, 2, 1, 1))):
        for device, devices in zip(("A30", "L20", "A100", "H20-141G"), counts, strict=True):
            yield Row("VL-28B", precision, device, devices)
    for precision, here, there in (("int4", 8, 8), ("int8", 8, 8), ("bf16", 0, 8)):
        for device, devices in (("A100", here), ("H20-141G", there)):
            yield Row("VL-424B", precision, device, devices)


HARDWARE = tuple(sorted(_rows(), key=lambda row: (len(row.model), row.model, row.precision)))


def least_devices(row: Row, context: int = CONTEXT) -> MemoryPlan | None:
    """The plan with the fewest devices that fits one sequence of the context, up to two machines of eight."""
    for count in (1, 2, 4, 8, 16):
        plan = ea.plan(
            row.model,
            devices=f"{count}x{row.device}",
            precision=row.precision,
            tensor_parallel=count,
            max_context=context,
        )
        if plan.fits:
            return plan
    return None


def main() -> None:
    print("| model | precision | device | published | least that fits | a device needs | may use | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for row in HARDWARE:
        plan = least_devices(row)
        count = plan.degrees.devices if plan else 0
        need = (f"{plan.required / 2**30:.1f} GiB", f"{plan.available / 2**30:.1f} GiB") if plan else ("", "")
        published = row.devices or "more than 8"
        same = count == row.devices or (row.devices == 0 and count > 8)
        print(
            f"| {row.model} | {row.precision} | {row.device} | {published} | {count} | {need[0]} | {need[1]} | "
            f"{'same' if same else 'differs'} |"
        )
    for title, figures in (("fitted to", FITTED), ("predicted", PUBLISHED)):
        print(f"\n| {title} | devices | engine | published | to expect | error | ceiling |")
        print("|---|---|---|---|---|---|---|")
        for figure in figures:
            print(speed_row(figure))


def speed_row(figure: Figure) -> str:
    """Return a row of a table."""
    expected, ceiling = predicted(figure)
    error = expected / figure.rate - 1
    return (
        f"| {figure.model} | {figure.devices} | {figure.engine} | {figure.rate:.0f} | {expected:.0f} | {error:+.0%} | "
        f"{ceiling:.0f} |"
    )


if __name__ == "__main__":
    main()
