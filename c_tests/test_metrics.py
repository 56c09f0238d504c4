"""Exported metrics as others read them: prometheus_client's OpenMetrics parser, which is strict about types, units, suffixes and buckets, and
Python's JSON. Called by test_metrics.sh with the program to ask."""
import json
import os
import socket
import subprocess
import sys
import tempfile

from prometheus_client.openmetrics.parser import text_string_to_metric_families

TAG = 'gates, "of\\ one\nkind"'
NAME = 'a "quoted\\" name\nof two lines, é'
failures = []


def check(good, what):
    if not good:
        failures.append(what)
        print("FAIL", what)


def get(path, target):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(f"GET {target} HTTP/1.1\r\nHost: qmem\r\n\r\n".encode())
        answer = b""
        while part := client.recv(65536):
            answer += part
    head, body = answer.split(b"\r\n\r\n", 1)
    check(f"Content-Length: {len(body)}".encode() in head, f"{target}: the length is the body's")
    return body.decode()


def samples(text):
    families = list(text_string_to_metric_families(text))
    check(len({f.name for f in families}) == len(families), "every family once")
    check(all(f.documentation for f in families), "every family says what it is")
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def main():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "socket")
        program = subprocess.Popen([sys.argv[1], path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        check(program.stdout.readline() == "ready\n", "the program is ready")
        first, second = samples(get(path, "/metrics")), samples(get(path, "/metrics"))
        data = json.loads(get(path, "/json"))
        program.stdin.close()
        check(program.wait() == 0, "the program ended well")

    value = lambda name, **labels: first.get((name, tuple(sorted(labels.items()))))
    check(value("qmem_tag_allocated_bytes", tag=TAG) in (4242, 4242 + (128 << 20)), "a tag's bytes, by its awkward name")
    used = [v for (name, labels), v in first.items() if name == "qmem_resource_used" and dict(labels)["name"] == NAME]
    check(sorted(used) == [0, 77], f"two resources of one name: {used}")
    check(value("qmem_monitoring_level") == 2, "the level")
    check(value("qmem_error_budget") == 0.125, "the error budget")
    check(value("qmem_allocations_total") >= 1, "allocations are counted")
    for name in ("fault", "eviction", "swap_io", "allocation"):
        buckets = [v for (n, _), v in first.items() if n == f"qmem_{name}_duration_seconds_bucket"]
        check(len(buckets) > 20 and max(buckets) == value(f"qmem_{name}_duration_seconds_count"), f"{name}: its buckets")
    for (name, labels), before in first.items():
        if name.endswith(("_total", "_bucket", "_count")):
            check(second[(name, labels)] >= before, f"{name} only grows")

    metrics = data["metrics"]
    names = {n.removesuffix("_total") for (n, _) in first if not n.endswith(("_bucket", "_count", "_sum"))}
    check(names <= set(metrics), f"JSON has what OpenMetrics has: {names - set(metrics)}")
    check(any(s["labels"]["tag"] == TAG for s in metrics["qmem_tag_allocated_bytes"]), "the tag in JSON")
    check(all(e["kind"] for e in data["events"]), "events have kinds")
    check([e["number"] for e in data["events"]] == sorted(e["number"] for e in data["events"]), "events are in order")
    if value("qmem_page_faults_total"):
        check(metrics["qmem_fault_duration_seconds"][0]["p99_ns"] > 1000, "a fault takes time")
        check(value("qmem_swap_written_bytes_total") > 0, "bytes were written to the swap file")
        check(sum(e["kind"] == "buffer_begin" for e in data["events"]) >= 1, "a buffer began")
    print(len(first), "samples,", len(failures), "failures")
    sys.exit(bool(failures))


main()
