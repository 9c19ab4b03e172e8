"""Latencies of fetches and searches of a node that holds the demonstration traffic, one question after the other.

usage: query_latency.py [HOST:PORT]    (default 127.0.0.1:3200; needs Python 3 alone)
"""

import http.client
import json
import random
import sys
import time

HOST = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:3200"
PAGES = 3
PAGE = 100
UNKNOWN = 300
REPEATS = 30

connection = http.client.HTTPConnection(HOST)


def get(path):
    """Milliseconds, status and body of an answer."""
    start = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    return (time.perf_counter() - start) * 1e3, answer.status, body


def show(name, milliseconds):
    ordered = sorted(milliseconds)
    at = lambda part: ordered[min(int(len(ordered) * part), len(ordered) - 1)]
    print(f"{name:44} p50 {at(0.5):7.2f} ms  p99 {at(0.99):7.2f} ms  n={len(ordered)}")


def newest_ids():
    ids, cursor = [], ""
    for _ in range(PAGES):
        page = json.loads(get(f"/v1/traces/search?limit={PAGE}{cursor}")[2])
        ids += [trace["traceId"] for trace in page["traces"]]
        cursor = f"&cursor={page['nextCursor']}"
    return ids


def main():
    ids = newest_ids()
    random.seed(1)
    show("fetch", [get(f"/v1/traces/{trace}")[0] for trace in ids])
    unknown = [f"/v1/traces/{random.getrandbits(128):032x}" for _ in range(UNKNOWN)]
    show("unknown id", [get(path)[0] for path in unknown])
    service = json.loads(get("/v1/services")[2])["services"][0]
    searches = {
        "service": f"service={service}",
        "service, error": f"service={service}&status=error",
        "service, duration": f"service={service}&minDurationMs=1000",
        "indexed attribute": "tag=http.response.status_code:503",
        "attribute that is not indexed, no hit": "tag=host.name:nothing",
        "unknown attribute": "tag=no.such.key:x",
    }
    for name, question in searches.items():
        answers = [get(f"/v1/traces/search?{question}") for _ in range(REPEATS)]
        found = len(json.loads(answers[0][2]).get("traces", []))
        show(f"{name} ({found} hits)", [answer[0] for answer in answers])


main()
