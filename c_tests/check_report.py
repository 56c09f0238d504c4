"""The page of qmem report as a browser has it: its plots are there, drawn with points, and its table has the numbers that the run's own
summary has. Called by test_watch.sh with the DOM, the summary and a screenshot."""
import json
import re
import sys

dom, summary = open(sys.argv[1], encoding="utf-8").read(), json.load(open(sys.argv[2]))
process = summary["processes"][0]
shown = [int(n) for n in re.findall(r'data-value="(\d+)"', dom)]
wanted = [process[name] for name in ("budget", "peak_resident", "peak_logical", "peak_compressed", "peak_swapped", "faults", "refaults")]
assert shown[: len(wanted)] == wanted, f"the page shows {shown}, the run says {wanted}"
assert process["faults"] > 0 and process["peak_logical"] == 192 << 20
plots = re.findall(r"<svg.*?</svg>", dom, re.S)
assert len(plots) == 3, f"{len(plots)} plots"
for plot in plots:
    points = [line.split() for line in re.findall(r'<polyline[^>]*points="([^"]*)"', plot)]
    assert max(map(len, points)) > 10, "a plot without a curve"
assert "<script" not in dom and not re.search(r'(src|href)="(http|//)', dom), "the page needs something beside it"
assert open(sys.argv[3], "rb").read(8) == b"\x89PNG\r\n\x1a\n", "no picture"
print(f"{len(plots)} plots, {len(shown)} numbers")
