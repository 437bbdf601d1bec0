"""The figures of `bench.gpu` as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from darkroom_worker.banded import Mode

from .gpu_ways import WHOLE


def table(result: Mapping[str, Any]) -> str:
    """Draw all tables."""
    parts = [_card(result)]
    parts += [_decode(row) for row in result["decodes"]]
    parts += [_bands(result["bands"]), _batches(result["batches"]), _profiles(result["profiles"])]
    if "service" in result:
        parts.append(_service(result["service"]))
    return "\n\n".join(parts)


def _card(result: Mapping[str, Any]) -> str:
    rates = result["rates"]
    products = ", ".join(f"{rate:.4g} in {key}" for key, rate in rates.items() if key != "copy")
    used = [dtype for dtype, is_used in result["kernels"].items() if is_used]
    return (
        f"{result['card']['name']}: {products} TFLOP/s in products of matrices, "
        f"{rates['copy']:.3g} TB/s in copies. Triton's kernels were used in: "
        f"{', '.join(used) or 'no dtype'}. {len(result['checked'])} pictures were checked first."
    )


def _decode(row: Mapping[str, Any]) -> str:
    floor, work = row["floor_milliseconds"], row["work"]
    title = _work(row)
    return "\n".join(
        [
            f"| {title} | ms | to diffusers | peak memory | to diffusers | predicted, of it "
            "| of the arithmetic floor | of the memory floor | host ms |",
            "|---|---|---|---|---|---|---|---|---|",
            *(_way(way, found, row["ways"][WHOLE], floor) for way, found in row["ways"].items()),
            "",
            f"Floors: {work['flops'] / 1e12:.3g} TFLOP ({work['whole_flops'] / 1e12:.3g} as "
            f"diffusers computes) in {floor['arithmetic']:.3g} ms, {work['bytes'] / 1e9:.3g} GB in "
            f"{floor['memory']:.3g} ms.",
        ]
    )


def _way(
    way: str, found: Mapping[str, Any], whole: Mapping[str, Any], floor: Mapping[str, float]
) -> str:
    title = _title(way)
    if "failed" in found:
        return f"| {title} | {found['failed']} |" + " |" * 7
    taken = found["milliseconds"]["p50"]
    cells = (
        title,
        _spread(found["milliseconds"]),
        _ratio(taken, whole.get("milliseconds", {}).get("p50")),
        _megabytes(found["bytes"]),
        _ratio(found["bytes"], whole.get("bytes")),
        _ratio(found["predicted_bytes"], found["bytes"]),
        f"{floor['arithmetic'] / taken:.0%}",
        f"{floor['memory'] / taken:.0%}",
        f"{found['host_milliseconds']:.1f}",
    )
    return "| " + " | ".join(cells) + " |"


def _bands(result: Mapping[str, Any]) -> str:
    lines = [
        f"| {_work(result)} | size of bands | ms | peak memory | host ms |",
        "|---|---|---|---|---|",
    ]
    for working, by_way in result["working_bytes"].items():
        for way, found in by_way.items():
            lines.append(f"| {_title(way)} | {int(working) / 2**20:g} MiB | {_figures(found)} |")
    return "\n".join(lines)


def _batches(result: Mapping[str, Any]) -> str:
    lines = [
        f"| {_work(result)} | pictures at once | pictures a second | ms | peak memory | host ms |",
        "|---|---|---|---|---|---|",
    ]
    for way, by_batch in result["ways"].items():
        for batch, found in by_batch.items():
            rate = ""
            if "failed" not in found:
                rate = f"{1000 * int(batch) / found['milliseconds']['p50']:.1f}"
            lines.append(f"| {_title(way)} | {batch} | {rate} | {_figures(found)} |")
    return "\n".join(lines)


def _profiles(result: Mapping[str, Any]) -> str:
    lines = [f"| {_work(result)} | busy with | times | ms | of all |", "|---|---|---|---|---|"]
    for way, found in result["ways"].items():
        busy = found["busy_milliseconds"]
        for part in found["parts"]:
            share = part["milliseconds"] / busy if busy else 0.0
            lines.append(
                f"| {_title(way)} | `{part['name']}` | {part['count']} "
                f"| {part['milliseconds']:.2f} | {share:.0%} |"
            )
    return "\n".join(lines)


def _work(result: Mapping[str, Any]) -> str:
    return f"{result['subject']}, {result['dtype']}, {result['size']} x {result['size']}"


def _title(way: str) -> str:
    mode, comma, more = way.partition(", ")
    return f"bands, `{mode}`{comma}{more}" if mode in list(Mode) else way


def _figures(found: Mapping[str, Any]) -> str:
    if "failed" in found:
        return f"{found['failed']} | |"
    host = f"{found['host_milliseconds']:.1f}"
    return f"{_spread(found['milliseconds'])} | {_megabytes(found['bytes'])} | {host}"


def _service(result: Mapping[str, Any]) -> str:
    if "failed" in result:
        return f"The service was not measured: {result['failed']}"
    title = f"{result['jobs']} jobs, `{result['vae']}`, {result['dtype']}"
    lines = [
        f"| {title} | bare loop, a second | service, a second | to the loop |",
        "|---|---|---|---|",
    ]
    for size, found in result["per_second"].items():
        bare, rate = found["bare"], found["service"]
        spread = f"{rate['p50']:.2f} ({rate['least']:.2f} to {rate['most']:.2f})"
        ratio = rate["p50"] / bare
        lines.append(f"| {size} x {size} | {bare:.2f} | {spread} | {ratio:.2f} |")
    return "\n".join(lines)


def _spread(found: Mapping[str, Any]) -> str:
    return f"{found['p50']:.2f} ({found['least']:.2f} to {found['most']:.2f})"


def _ratio(value: float | None, whole: float | None) -> str:
    return f"{value / whole:.2f}" if value is not None and whole else ""


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:,.0f} MB"
