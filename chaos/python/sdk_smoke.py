#!/usr/bin/env python3
"""Sends traces to a running node with the stock OpenTelemetry SDK, by gRPC and by HTTP, and waits until a search
finds them. Prints how long each took; exits with 1 when one is missing after five seconds. See README.md."""

import argparse
import json
import sys
import time
import urllib.parse
import urllib.request

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpExporter,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode

DEADLINE_SECONDS = 5.0
POLL_SECONDS = 0.05


def send(exporter, service, traces):
    """Sends traces of three spans, the last trace with an error. Returns their ids and when the first one began."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("sdk-smoke", "1.0")
    began = time.monotonic()
    ids = set()
    for number in range(traces):
        with tracer.start_as_current_span("GET /cart", kind=SpanKind.SERVER) as root:
            root.set_attribute("http.request.method", "GET")
            root.set_attribute("smoke.number", number)
            with tracer.start_as_current_span("load cart") as child:
                child.add_event("loaded", {"items": number})
            with tracer.start_as_current_span("render") as child:
                if number == traces - 1:
                    child.record_exception(ValueError("broken on purpose"))
                    child.set_status(Status(StatusCode.ERROR, "broken on purpose"))
            ids.add(format(root.get_span_context().trace_id, "032x"))
    if not provider.force_flush(int(DEADLINE_SECONDS * 1000)):
        print(f"{service}: the exporter did not finish", file=sys.stderr)
    return ids, began, time.monotonic(), provider


def found(http, service):
    query = urllib.parse.urlencode({"service": service, "limit": 1000})
    with urllib.request.urlopen(f"{http}/v1/traces/search?{query}", timeout=5) as answer:
        return {trace["traceId"]: trace for trace in json.load(answer)["traces"]}


def wait(http, service, ids):
    """Polls until the search finds all ids with all their spans; returns what is missing after the deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        traces = found(http, service)
        whole = {id for id, trace in traces.items() if trace["spanCount"] == 3}
        missing = ids - whole
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(POLL_SECONDS)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", default="http://127.0.0.1:3200", help="native API")
    parser.add_argument("--otlp-grpc", default="http://127.0.0.1:4317")
    parser.add_argument("--otlp-http", default="http://127.0.0.1:4318")
    parser.add_argument("--traces", type=int, default=5, help="traces of each way")
    options = parser.parse_args()

    ways = {
        "grpc": GrpcExporter(endpoint=options.otlp_grpc, insecure=True),
        "http": HttpExporter(endpoint=f"{options.otlp_http}/v1/traces"),
    }
    failed = False
    for way, exporter in ways.items():
        # A service of its own each time: a search then finds nothing of an earlier run.
        service = f"sdk-smoke-{way}-{time.time_ns()}"
        ids, began, exported, provider = send(exporter, service, options.traces)
        missing = wait(options.http, service, ids)
        visible = time.monotonic()
        provider.shutdown()
        if missing:
            failed = True
            print(f"{way}: MISSING {len(missing)} of {len(ids)}: {sorted(missing)}")
        else:
            print(
                f"{way}: {len(ids)} traces found; exported {1000 * (exported - began):.0f} ms after the first span "
                f"began, searchable {1000 * (visible - exported):.0f} ms after that"
            )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
