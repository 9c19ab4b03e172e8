"""Drives one node of its own hard, and says what that took: for the tables of docs/benchmarks.md.

usage: load.py rate|half|kill|open [--binary PATH] [--seconds N] [--spans-per-second N] [--spans N] [--lives N]
               [NODE FLAGS...]
       rate   closed loop at full rate: spans a second, processor time and bytes a span, memory
       half   open loop at a given rate: latencies of export requests
       kill   closed loop, kill -9 at the end, start again: seconds until the node is ready
       open   open loop, so many spans at a given rate, a policy that decides none in time: open traces in 1 GiB

Flags that are not its own go to the node (`--keep-all`). Needs Python 3 alone, on Linux; the data lies in a temporary
directory. Nothing else may use the node's default ports.
"""

import argparse
import http.client
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import threading
import time

HOST = "127.0.0.1:3200"
READY_POLL_SECONDS = 0.02
MEMORY_POLL_SECONDS = 0.2
READY_DEADLINE_SECONDS = 120
GAUGES_SECONDS = 3
# The mix of traces follows from it: 12.3 spans a trace.
DEMO_SEED = 2
# Nothing is decided for ten minutes, unless memory is short.
OPEN_POLICY = """decision: { idle: 600s, max_age: 700s }
policies:
  - name: nothing
    type: string_attribute
    key: no.such.key
    values: [none]
"""
TICKS = os.sysconf("SC_CLK_TCK")


def get(path, method="GET", body=None):
    connection = http.client.HTTPConnection(HOST, timeout=60)
    headers = {"content-type": "application/json"} if body else {}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def metric(name):
    lines = get("/metrics")[1].decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and line[len(name)] in " {")


class Node:
    """A node as a child process."""

    def __init__(self, binary, directory, flags):
        self.started = time.monotonic()
        command = [binary, "node", "start", "--data-dir", directory, *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ready_after(self):
        """Seconds from the start of the process until it answers that it is ready."""
        while time.monotonic() < self.started + READY_DEADLINE_SECONDS:
            try:
                if get("/ready")[0] == 200:
                    return time.monotonic() - self.started
            except OSError:
                pass
            if self.process.poll() is not None:
                raise SystemExit(f"the node ended with {self.process.returncode}")
            time.sleep(READY_POLL_SECONDS)
        raise SystemExit(f"not ready within {READY_DEADLINE_SECONDS} s")

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def anonymous_bytes(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self, with_signal):
        self.process.send_signal(with_signal)
        self.process.wait()


class Memory(threading.Thread):
    """Looks at a node's anonymous memory again and again, and keeps the most."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.most, self.done = node, 0, threading.Event()

    def run(self):
        while not self.done.wait(MEMORY_POLL_SECONDS):
            self.most = max(self.most, self.node.anonymous_bytes())


def demo_command(binary, rate, *flags, seed=DEMO_SEED):
    return [binary, "demo", "--rate", str(rate), "--grouping", "trace", "--seed", str(seed), *flags]


def demo(binary, seconds, rate):
    command = demo_command(binary, rate, "--duration", f"{seconds}s", "--json")
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False, text=True)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def disk_bytes(directory):
    files = pathlib.Path(directory).rglob("*")
    return sum(file.stat().st_blocks * 512 for file in files if file.is_file())


def rate(arguments, directory, flags):
    node = Node(arguments.binary, directory, flags)
    node.ready_after()
    memory = Memory(node)
    memory.start()
    report = demo(arguments.binary, arguments.seconds, 0)
    while json.loads(get("/v1/status")[1])["openTraces"] > 0:
        time.sleep(1)
    get("/v1/admin/flush", "POST", "{}")
    memory.done.set()
    print(json.dumps(report))
    spans = report["acknowledgedSpans"]
    print(f"cpu per span {node.cpu_seconds() / spans * 1e6:.2f} us")
    print(f"disk per sent span, journal included {disk_bytes(directory) / spans:.0f} B")
    for part in ("journal", "blocks", "index"):
        print(f"  {part} {disk_bytes(pathlib.Path(directory) / part) / spans:.1f} B")
    print(f"anonymous memory, most seen {memory.most / 2**20:.0f} MiB")
    node.stop(signal.SIGTERM)


def half(arguments, directory, flags):
    node = Node(arguments.binary, directory, flags)
    node.ready_after()
    print(json.dumps(demo(arguments.binary, arguments.seconds, arguments.spans_per_second)))
    node.stop(signal.SIGTERM)


def kill(arguments, directory, flags):
    node = Node(arguments.binary, directory, flags)
    node.ready_after()
    for life in range(1, arguments.lives + 1):
        duration = f"{arguments.seconds + 30}s"
        # The lives share a directory, and ids follow from the seed.
        command = demo_command(arguments.binary, 0, "--duration", duration, seed=DEMO_SEED + life)
        load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(arguments.seconds)
        open_traces = json.loads(get("/v1/status")[1])["openTraces"]
        node.stop(signal.SIGKILL)
        load.kill()
        load.wait()
        node = Node(arguments.binary, directory, flags)
        ready = node.ready_after()
        print(f"life {life}: {open_traces} open traces when killed, ready after {ready:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    node.stop(signal.SIGTERM)


def hold_open(arguments, directory, flags):
    policy = pathlib.Path(directory) / "policy.yaml"
    policy.write_text(OPEN_POLICY)
    node = Node(arguments.binary, str(pathlib.Path(directory) / "data"), ["--memory", "1GiB", "--policy", str(policy), *flags])
    node.ready_after()
    memory = Memory(node)
    memory.start()
    command = demo_command(arguments.binary, arguments.spans_per_second, "--spans", str(arguments.spans))
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    time.sleep(GAUGES_SECONDS)
    memory.done.set()
    print(f"open traces {metric('spandrel_open_traces'):.0f}, decided {metric('spandrel_traces_decided_total'):.0f}")
    print(f"credit used {metric('spandrel_credit_used_bytes') / metric('spandrel_credit_capacity_bytes'):.1%}")
    print(f"anonymous memory, most seen {memory.most / 2**20:.0f} MiB")
    node.stop(signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["rate", "half", "kill", "open"])
    parser.add_argument("--binary", default="target/release/spandrel")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--spans-per-second", type=int, default=95_000)
    parser.add_argument("--spans", type=int, default=12_450_000)
    parser.add_argument("--lives", type=int, default=3)
    arguments, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="spandrel-load-", dir=".") as directory:
        {"rate": rate, "half": half, "kill": kill, "open": hold_open}[arguments.what](arguments, directory, flags)


if __name__ == "__main__":
    main()
