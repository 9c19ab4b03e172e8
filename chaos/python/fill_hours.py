"""Fills a data directory with some spans in each of many hours, so that it has as many blocks: the node is started once
for each hour with an older clock (by the library of Debian's package `faketime`), gets spans, and writes them to blocks.

usage: fill_hours.py DIRECTORY [--binary PATH] [--hours N] [--spans N]

Then start the node on the directory with `--retention 30d`, and ask it by query_latency.py. Nothing else may use the
node's default ports.
"""

import argparse
import http.client
import os
import signal
import subprocess
import time

HOST = "127.0.0.1:3200"
LIBRARY = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
READY_DEADLINE_SECONDS = 60


def call(method, path, body=None):
    connection = http.client.HTTPConnection(HOST, timeout=60)
    headers = {"content-type": "application/json"} if body else {}
    connection.request(method, path, body, headers)
    return connection.getresponse().status


def wait_until_ready(node):
    deadline = time.monotonic() + READY_DEADLINE_SECONDS
    while time.monotonic() < deadline and node.poll() is None:
        try:
            if call("GET", "/ready") == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise SystemExit(f"the node is not ready, or ended: {node.poll()}")


def fill(arguments, hours_ago):
    past = dict(os.environ, LD_PRELOAD=arguments.faketime, FAKETIME=f"-{hours_ago}h")
    start = [arguments.binary, "node", "start", "--data-dir", arguments.directory, "--keep-all", "--retention", "30d"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": past}
    node = subprocess.Popen(start, **quiet)
    wait_until_ready(node)
    demo = [arguments.binary, "demo", "--rate", "0", "--spans", str(arguments.spans), "--grouping", "trace"]
    subprocess.run(demo, check=True, **quiet)
    if call("POST", "/v1/admin/flush", "{}") != 200:
        raise SystemExit("the node does not flush")
    node.send_signal(signal.SIGTERM)
    node.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--binary", default="target/release/spandrel")
    parser.add_argument("--faketime", default=LIBRARY, help="the library that Debian's package faketime installs")
    parser.add_argument("--hours", type=int, default=168)
    parser.add_argument("--spans", type=int, default=2_000)
    arguments = parser.parse_args()
    for hours_ago in range(arguments.hours, 0, -1):
        fill(arguments, hours_ago)


main()
