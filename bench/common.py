"""What the measurements share: clusters of real processes, their figures, and the document with the results.

Every process that is started here is ended here, by its own handle, whatever ends the script.
"""

import http.client
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DOCUMENT = os.path.join(ROOT, "docs", "performance.md")
START_TIMEOUT = 30.0
STOP_TIMEOUT = 15.0
IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def fail(text):
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)


def ended_by_signals():
    """SIGTERM and SIGHUP end the script as Ctrl-C does: through the handlers that stop the clusters."""
    def stop(_signal, _frame):
        raise KeyboardInterrupt
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)


def file_system(path):
    """The type of the file system that holds `path`."""
    path = os.path.realpath(path)
    best = ("", "unknown")
    with open("/proc/self/mountinfo") as mounts:
        for line in mounts:
            fields = line.split()
            mount, kind = fields[4], fields[fields.index("-") + 1]
            inside = path == mount or path.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best[0]):
                best = (mount, kind)
    return best[1]


def disk_bytes_written(path):
    """What the disk below `path` wrote since the system's start, whoever asked for it; `None` if it has no counter.
    (What /proc/PID/io tells of a process counts whole pages of the cache, up to 2 MiB for a byte that changed.)"""
    device = os.stat(path).st_dev
    with open("/proc/diskstats") as disks:
        for line in disks:
            fields = line.split()
            if (int(fields[0]), int(fields[1])) == (os.major(device), os.minor(device)):
                return int(fields[9]) * 512
    return None


def working_directory(parent):
    """A new directory on a real file system; to be deleted by the caller."""
    os.makedirs(parent, exist_ok=True)
    kind = file_system(parent)
    if kind in IN_MEMORY:
        fail(f"--data-dir is on {kind}, in memory: an fsync there costs nothing; give a directory on a disk")
    return tempfile.mkdtemp(prefix="run-", dir=parent), kind


def binary(given):
    path = given or os.path.join(ROOT, "target", "release", "kvorum")
    if not os.path.isfile(path):
        fail(f"there is no {path}; run `cargo build --release`, or give --kvorum PATH")
    return os.path.abspath(path)


def free_ports(count):
    """Ports below the range that the system takes for outgoing connections, so that restarts find them free."""
    ports, port = [], 20000 + os.getpid() * 31 % 9000
    while len(ports) < count:
        port += 1
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        ports.append(port)
    return ports


def get(port, path, timeout=2.0):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def metrics(port):
    """The samples without labels of a member's metrics page."""
    _, page = get(port, "/metrics")
    samples = {}
    for line in page.splitlines():
        name, _, value = line.rpartition(" ")
        if name and not line.startswith("#") and "{" not in name:
            samples[name] = float(value)
    return samples


class Cluster:
    """Three members, fresh, on loopback. A context: leaving it stops them and deletes their data."""

    name = ""
    size = 3

    def __init__(self, program, parent):
        self.program, self.parent = program, parent
        self.processes = [None] * self.size
        self.directory = None

    def __enter__(self):
        self.directory = tempfile.mkdtemp(prefix=self.name + "-", dir=self.parent)
        ports = free_ports(2 * self.size)
        self.client_ports, self.peer_ports = ports[: self.size], ports[self.size :]
        try:
            for n in range(self.size):
                self.start(n)
            self.wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        running = [process for process in self.processes if process]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = [None] * self.size
        shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, n):
        raise NotImplementedError

    def start(self, n):
        with open(os.path.join(self.directory, f"n{n}.log"), "ab") as log:
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("KVORUM_", "ETCD_"))}
            self.processes[n] = subprocess.Popen(
                self.command(n), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def kill(self, n):
        self.processes[n].kill()
        self.processes[n].wait()
        self.processes[n] = None

    def pids(self):
        return [process.pid for process in self.processes if process]

    def endpoints(self):
        return ",".join(f"127.0.0.1:{port}" for port in self.client_ports)

    def wait_until_ready(self):
        """Every member answers, and knows a leader."""
        deadline = time.monotonic() + START_TIMEOUT
        for n, port in enumerate(self.client_ports):
            while True:
                process = self.processes[n]
                if process.poll() is not None:
                    fail(f"a member of {self.name} ended with code {process.returncode}: {self.last_line(n)}")
                try:
                    if metrics(port).get("etcd_server_has_leader") == 1:
                        break
                except (OSError, http.client.HTTPException):
                    pass
                if time.monotonic() > deadline:
                    fail(f"{self.name} has no leader after {START_TIMEOUT:.0f} s: {self.last_line(n)}")
                time.sleep(0.05)

    def last_line(self, n):
        with open(os.path.join(self.directory, f"n{n}.log"), errors="replace") as log:
            lines = log.read().strip().splitlines()
        return lines[-1] if lines else "it logged nothing"


class Kvorum(Cluster):
    name = "kvorum"

    def command(self, n):
        cluster = ",".join(f"n{i}=127.0.0.1:{port}" for i, port in enumerate(self.peer_ports))
        return [
            self.program, "serve", "--name", f"n{n}", "--data-dir", os.path.join(self.directory, f"n{n}"),
            "--listen-client", f"127.0.0.1:{self.client_ports[n]}",
            "--listen-peer", f"127.0.0.1:{self.peer_ports[n]}", "--initial-cluster", cluster,
        ]


class Etcd(Cluster):
    name = "etcd"

    def command(self, n):
        client = f"http://127.0.0.1:{self.client_ports[n]}"
        peer = f"http://127.0.0.1:{self.peer_ports[n]}"
        cluster = ",".join(f"n{i}=http://127.0.0.1:{port}" for i, port in enumerate(self.peer_ports))
        return [
            self.program, "--name", f"n{n}", "--data-dir", os.path.join(self.directory, f"n{n}"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
            "--initial-cluster", cluster, "--initial-cluster-state", "new",
            # Room for a long run: the default of 2 GiB would end it.
            "--quota-backend-bytes", str(8 << 30), "--log-level", "warn",
        ]


def first_line(command):
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()[0]


def machine(kind):
    """The machine in a few words, without names and places."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as info:
        for line in info:
            if line.startswith("model name"):
                model = " ".join(line.split(":", 1)[1].split())
                break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}, data on {kind}"


def write_part(document, part, text):
    """Replaces what stands between the markers of `part`."""
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    with open(document) as file:
        old = file.read()
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(old):
        fail(f"{document} has no lines `{begin}` and `{end}`")
    new = pattern.sub(lambda _: f"{begin}\n{text.strip()}\n{end}", old)
    with open(document + ".new", "w") as file:
        file.write(new)
    os.replace(document + ".new", document)


def add_arguments(parser):
    parser.add_argument("--kvorum", metavar="PATH", help="the program [default: target/release/kvorum]")
    parser.add_argument("--data-dir", metavar="DIR", default=os.path.join(ROOT, "target", "bench"),
                        help="where the members keep their data, on a disk [default: target/bench]")
    parser.add_argument("--document", metavar="FILE", default=DOCUMENT,
                        help="where the results are written [default: docs/performance.md]")
    parser.add_argument("--dry-run", action="store_true", help="print the results, write no document")
    parser.add_argument("--json", metavar="FILE", help="write all single results there too")


def save_json(path, results):
    if path:
        with open(path, "w") as file:
            json.dump(results, file, indent=1)
