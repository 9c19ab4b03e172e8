"""Drives a cluster of its own on this machine, and says what that took: for the tables of docs/benchmarks.md.

usage: cluster.py cost|form|kill|join|memory [--binary PATH] [--nodes N] [--replication R] [--spans N] [--rate N]
       [--victim leader|other] [--signal KILL|STOP|TERM] [NODE FLAGS...]
       cost   closed loop at node 1, with --rate an open one: spans a second, processor time a span of all nodes together
       form   nothing is sent: seconds from the start of node 1 until every shard has its copies where they should be
       kill   open loop at one node, a signal to another: how long exports took at most, how many were refused
       join   open loop at one node, one more joins: the same, seconds until every shard is where it should be, and how
              long shards acknowledged nothing
       memory closed loop at node 1 with the least memory that a node takes and a policy that decides nothing in time; the
              last node stands still for a while: the most memory that each node took, and what no credit covered

Flags that are not its own go to the nodes (`--keep-all`). Needs Python 3 alone, on Linux; the data lies in a temporary
directory. Ports 3210 to 3219, 4410 to 4429 and 7210 to 7219 must be free.
"""

import argparse
import http.client
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

from load import OPEN_POLICY

TICKS = os.sysconf("SC_CLK_TCK")
READY_DEADLINE_SECONDS = 60
POLL_SECONDS = 0.05
# Spans a second, where nothing else is asked for.
OPEN_LOOP_RATE = 10_000
LEAST_MEMORY = "368MiB"
# Seconds after which a node stands still, and for which it does.
STILL_AFTER_SECONDS, STILL_SECONDS = 30, 20


def label(line, name):
    """A label's value in a line of metrics."""
    return line.split(f'{name}="')[1].split('"')[0]


class Node:
    """A node as a child process; numbered from 1."""

    def __init__(self, binary, directory, number, flags):
        self.number, self.directory = number, directory
        self.http, self.link = 3209 + number, 7209 + number
        self.grpc, self.otlp_http = 4409 + number, 4419 + number
        command = [
            binary, "node", *(["start"] if number == 1 else ["join", "127.0.0.1:7210"]),
            "--data-dir", f"{directory}/{number}",
            "--http-addr", f"127.0.0.1:{self.http}", "--link-addr", f"127.0.0.1:{self.link}",
            "--otlp-grpc-addr", f"127.0.0.1:{self.grpc}", "--otlp-http-addr", f"127.0.0.1:{self.otlp_http}",
            *flags,
        ]
        log = open(f"{directory}/{number}.log", "ab")
        self.process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + READY_DEADLINE_SECONDS
        while time.monotonic() < end:
            try:
                if self.ask("/ready")[0] == 200:
                    return
            except OSError:
                pass
            if self.process.poll() is not None:
                raise SystemExit(f"node {number} ended with {self.process.returncode}: see {directory}/{number}.log")
            time.sleep(POLL_SECONDS)
        raise SystemExit(f"node {number} is not ready")

    def ask(self, path, method="GET", body=None):
        connection = http.client.HTTPConnection(f"127.0.0.1:{self.http}", timeout=60)
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def cluster(self):
        return json.loads(self.ask("/v1/cluster")[1])

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def stages(self):
        """Processor seconds by stage."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        counted = [line for line in lines if line.startswith("spandrel_stage_cpu_nanoseconds_total")]
        return {label(line, "stage"): float(line.rsplit(" ", 1)[1]) / 1e9 for line in counted}

    def pages_received(self):
        """Pages that primaries have shipped here, by what became of them."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        counted = [line for line in lines if line.startswith("spandrel_pages_received_total")]
        return {label(line, "outcome"): int(float(line.rsplit(" ", 1)[1])) for line in counted}

    def pauses(self):
        """How many pauses of shards lasted at most so long, by reason."""
        lines = self.ask("/metrics")[1].decode().splitlines()
        counts = {}
        for line in lines:
            if line.startswith("spandrel_shard_pause_seconds_bucket"):
                counts[label(line, "why"), float(label(line, "le"))] = int(line.rsplit(" ", 1)[1])
        return counts

    def anonymous_bytes(self):
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
        return 0

    def uncovered_bytes(self):
        lines = self.ask("/metrics")[1].decode().splitlines()
        of = [line for line in lines if line.startswith("spandrel_credit_uncovered_bytes_total")]
        return sum(int(line.rsplit(" ", 1)[1]) for line in of)


def settled(node, nodes):
    """Every shard has its copies, nothing is filled, and nobody leads more than 110 % of its share."""
    view = node.cluster()
    up = [one for one in view["nodes"] if one["state"] == "up"]
    led = [one["primaryShards"] for one in up]
    most = -(-sum(led) * 110 // (100 * max(len(up), 1)))
    return (
        len(up) == nodes and not view["lacking"] and all(one["fillingShards"] == 0 for one in up) and max(led) <= most
    )


def wait_settled(node, nodes):
    started = time.monotonic()
    while not settled(node, nodes):
        if time.monotonic() > started + 120:
            raise SystemExit(f"not settled: {json.dumps(node.cluster())}")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - started


def start(arguments, flags, directory):
    nodes = []
    seeds = ["--replication", str(arguments.replication)]
    for number in range(1, arguments.nodes + 1):
        nodes.append(Node(arguments.binary, directory, number, flags + (seeds if number == 1 else [])))
    if arguments.nodes > 1:
        wait_settled(nodes[0], arguments.nodes)
    return nodes


def stop(nodes):
    for node in nodes:
        if node.process.poll() is None:
            node.process.send_signal(signal.SIGKILL)
            node.process.wait()


def demo(arguments, node, *flags):
    return [
        arguments.binary, "demo", "--endpoint", f"http://127.0.0.1:{node.grpc}", "--grouping", "trace", "--json", *flags,
    ]


def cost(arguments, flags, directory):
    nodes = start(arguments, flags, directory)
    before = sum(node.cpu_seconds() for node in nodes)
    load = demo(arguments, nodes[0], "--rate", str(arguments.rate or 0), "--spans", str(arguments.spans))
    sent = json.loads(subprocess.check_output(load))
    most = max(node.anonymous_bytes() for node in nodes)
    # Everything is decided 12 s after its last span, on every copy.
    time.sleep(15)
    for node in nodes:
        node.ask("/v1/admin/flush", "POST")
    time.sleep(1)
    used = sum(node.cpu_seconds() for node in nodes) - before
    stages, pages = {}, {}
    for node in nodes:
        for stage, seconds in node.stages().items():
            stages[stage] = stages.get(stage, 0) + seconds
        for outcome, count in node.pages_received().items():
            pages[outcome] = pages.get(outcome, 0) + count
    stop(nodes)
    spans = sent["acknowledgedSpans"]
    print(
        f"{arguments.nodes} nodes, {arguments.replication} copies: {sent['spansPerSecond']:.0f} spans/s, "
        f"{used * 1e6 / spans:.2f} us a span, p50 {sent['latencyMs']['p50']:.1f} p99 {sent['latencyMs']['p99']:.1f} ms, "
        f"given up {sent['abandonedSpans']}, anonymous memory of the largest node {most >> 20} MiB"
    )
    rest = used - sum(stages.values())
    print("  us a span: " + ", ".join(f"{stage} {seconds * 1e6 / spans:.2f}" for stage, seconds in stages.items())
          + f", the rest {rest * 1e6 / spans:.2f}")
    if pages:
        print("  pages that followers got: " + ", ".join(f"{outcome} {count}" for outcome, count in pages.items()))


def form(arguments, flags, directory):
    began = time.monotonic()
    stop(start(arguments, flags, directory))
    print(f"{arguments.nodes} nodes, {arguments.replication} copies: settled after {time.monotonic() - began:.1f} s")


def open_loop(arguments, node, seconds):
    flags = ["--rate", str(arguments.rate or OPEN_LOOP_RATE), "--duration", f"{seconds}s"]
    return subprocess.Popen(demo(arguments, node, *flags), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def report(what, load):
    sent = json.loads(load.communicate()[0])
    latency = sent["latencyMs"]
    print(
        f"{what}: {sent['acknowledgedSpans']} of {sent['sentSpans']} spans acknowledged, given up {sent['abandonedSpans']}, "
        f"refused attempts {sent['refusedAttempts']} ({sent['lastRefusal'][:120]}), "
        f"export p50 {latency['p50']:.1f} p99 {latency['p99']:.1f} max {latency['max']:.0f} ms"
    )


def kill(arguments, flags, directory):
    nodes = start(arguments, flags, directory)
    leader = int(nodes[0].cluster()["leader"])
    others = [node for node in nodes if node.number != leader]
    victim = nodes[leader - 1] if arguments.victim == "leader" else others[-1]
    asked = next(node for node in nodes if node is not victim)
    load = open_loop(arguments, asked, 20)
    time.sleep(8)
    victim.process.send_signal(getattr(signal, f"SIG{arguments.signal}"))
    report(f"SIG{arguments.signal} of the {'leader' if victim.number == leader else 'other'} of {len(nodes)}", load)
    stop(nodes)


def say_pauses(nodes, before):
    """The bucket in which the longest pauses of shards lie, of all and of 99 in 100."""
    counts = {}
    for node in nodes:
        for bucket, count in node.pauses().items():
            counts[bucket] = counts.get(bucket, 0) + count - before.get((node.number, bucket), 0)
    for why in sorted({why for why, _ in counts}):
        buckets = sorted((most, count) for (of, most), count in counts.items() if of == why)
        total = buckets[-1][1]
        within = lambda share: next(most for most, count in buckets if count >= share * total)
        if total:
            print(f"  {total} pauses, {why}: p99 at most {within(0.99)} s, all at most {within(1)} s")


def join(arguments, flags, directory):
    nodes = start(arguments, flags, directory)
    before = {(node.number, bucket): count for node in nodes for bucket, count in node.pauses().items()}
    load = open_loop(arguments, nodes[0], 30)
    time.sleep(5)
    nodes.append(Node(arguments.binary, directory, arguments.nodes + 1, flags))
    took = wait_settled(nodes[0], arguments.nodes + 1)
    report(f"a node joins {arguments.nodes}, settled after {took:.1f} s", load)
    say_pauses(nodes, before)
    stop(nodes)


def memory(arguments, flags, directory):
    policy = pathlib.Path(directory) / "policy.yaml"
    policy.write_text(OPEN_POLICY)
    nodes = start(arguments, ["--memory", LEAST_MEMORY, "--policy", str(policy), *flags], directory)
    command = demo(arguments, nodes[0], "--rate", "0", "--spans", str(arguments.spans))
    load = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    began, most = time.monotonic(), {node.number: 0 for node in nodes}
    still = [(STILL_AFTER_SECONDS, signal.SIGSTOP), (STILL_AFTER_SECONDS + STILL_SECONDS, signal.SIGCONT)]
    while load.poll() is None or still:
        if still and time.monotonic() >= began + still[0][0]:
            nodes[-1].process.send_signal(still.pop(0)[1])
        for node in nodes:
            most[node.number] = max(most[node.number], node.anonymous_bytes())
        time.sleep(POLL_SECONDS)
    report(f"{len(nodes)} nodes of {LEAST_MEMORY}, {arguments.replication} copies", load)
    for node in nodes:
        print(f"  node {node.number}: at most {most[node.number] >> 20} MiB, uncovered {node.uncovered_bytes()} bytes")
    stop(nodes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "form", "kill", "join", "memory"])
    parser.add_argument("--binary", default="target/release/spandrel")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--replication", type=int, default=2)
    parser.add_argument("--spans", type=int, default=1_200_000)
    parser.add_argument("--rate", type=int)
    parser.add_argument("--victim", choices=["leader", "other"], default="other")
    parser.add_argument("--signal", choices=["KILL", "STOP", "TERM"], default="KILL")
    arguments, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as directory:
        what = {"cost": cost, "form": form, "kill": kill, "join": join, "memory": memory}[arguments.what]
        what(arguments, flags, directory)


if __name__ == "__main__":
    main()
