"""Statistics and tables for `run`: medians, ratios with their 95 % interval, plain text. Knows nothing of processes or machines."""
import random
import statistics

RESAMPLES = 10000


def median(values):
    return statistics.median(values)


def interval(ratios):
    """Median of the pairwise ratios with its 95 % percentile-bootstrap interval; the seed is fixed, so a result file can be recomputed."""
    if not ratios:
        return None
    generator = random.Random(1)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return {"ratio": median(ratios), "low": medians[int(0.025 * RESAMPLES)], "high": medians[int(0.975 * RESAMPLES) - 1], "pairs": len(ratios)}


def show_interval(i, digits=2):
    if i is None:
        return "-"
    if i["pairs"] < 4:  # too few for an interval to mean anything
        return f"{i['ratio']:.{digits}f}  n={i['pairs']}"
    return f"{i['ratio']:.{digits}f}  [{i['low']:.{digits}f}, {i['high']:.{digits}f}]  n={i['pairs']}"


def table(title, head, rows):
    """First column to the left, the rest to the right."""
    cells = [head] + [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = ["  ".join([row[0].ljust(widths[0])] + [row[i].rjust(widths[i]) for i in range(1, len(row))]) for row in cells]
    return "\n".join(["", title, lines[0], "-" * len(lines[0]), *lines[1:]])


def mib(value):
    return "-" if value is None else f"{value / (1 << 20):.0f}"
