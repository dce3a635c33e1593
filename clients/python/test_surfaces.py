"""The gRPC services of the replaced systems by Python's ordinary client, generated from proto/.

`clients/python/run` installs what this needs and runs it.

Starts one member of the given program on loopback with a directory of its own, which is deleted at the end; the
member ends with this process, however that ends. Exit code 0: everything passed.
"""

import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import grpc
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROTOS = ["kv/kv.proto", "kv_pb/kv.proto", "raft_pb/raft.proto"]
START_TIMEOUT_S = 60
CALL_TIMEOUT_S = 20


def generate(directory):
    """Compiles the services into `directory` and makes them importable."""
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"--python_out={directory}", f"--grpc_python_out={directory}"]
    code = protoc.main(arguments + PROTOS)
    if code != 0:
        raise SystemExit(f"protoc failed with {code}")
    sys.path.insert(0, str(directory))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Member:
    """One member, which runs as long as its standard input is open."""

    def __init__(self, binary, directory):
        self.address = f"127.0.0.1:{free_port()}"
        command = [binary, "serve", "--name", "node-1", "--data-dir", f"{directory}/data"]
        command += ["--listen-client", self.address, "--listen-peer", f"127.0.0.1:{free_port()}"]
        self.log = pathlib.Path(directory, "log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command + ["--until-stdin-closes"], stdin=subprocess.PIPE, stdout=log, stderr=log
            )

    def wait_until_ready(self):
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise SystemExit(f"the member ended:\n{self.log.read_text()}")
            try:
                if self.http("GET", "/readyz")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise SystemExit(f"the member is not ready after {START_TIMEOUT_S} s:\n{self.log.read_text()}")

    def http(self, method, path, body=None):
        """Status and body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=START_TIMEOUT_S)


class Surfaces(unittest.TestCase):
    member = None

    def setUp(self):
        self.channel = grpc.insecure_channel(self.member.address)
        self.addCleanup(self.channel.close)

    def fails(self, code, text, call, request, **more):
        with self.assertRaises(grpc.RpcError) as caught:
            call(request, timeout=CALL_TIMEOUT_S, **more)
        self.assertEqual(caught.exception.code(), code)
        self.assertIn(text, caught.exception.details())
        return caught.exception

    def test_raft_kv(self):
        from kv_pb import kv_pb2, kv_pb2_grpc

        client = kv_pb2_grpc.KVServiceStub(self.channel)
        client.Set(kv_pb2.SetRequest(key="a", value="1 é"), timeout=CALL_TIMEOUT_S)
        self.assertEqual(client.Get(kv_pb2.GetRequest(key="a"), timeout=CALL_TIMEOUT_S).value, "1 é")
        for _ in range(2):
            client.Del(kv_pb2.DelRequest(key="a"), timeout=CALL_TIMEOUT_S)
        self.fails(grpc.StatusCode.NOT_FOUND, "not found", client.Get, kv_pb2.GetRequest(key="a"))
        empty = grpc.StatusCode.INVALID_ARGUMENT, "empty key"
        self.fails(*empty, client.Get, kv_pb2.GetRequest())
        self.fails(*empty, client.Del, kv_pb2.DelRequest())
        error = self.fails(*empty, client.Set, kv_pb2.SetRequest())
        self.assertIn(("kvorum-outcome", "not-applied"), error.trailing_metadata())

    def test_raft_kv_info(self):
        from raft_pb import raft_pb2, raft_pb2_grpc

        client = raft_pb2_grpc.RaftServiceStub(self.channel)
        info = client.Info(raft_pb2.InfoRequest(), timeout=CALL_TIMEOUT_S)
        self.assertEqual(info.state, "leader")
        self.assertGreater(info.term, 0)
        self.assertGreaterEqual(info.last_log_index, info.commit_index)
        self.assertGreaterEqual(info.commit_index, info.last_applied)

    def test_raft_kv_store(self):
        from kv import kv_pb2, kv_pb2_grpc

        client = kv_pb2_grpc.KVStoreStub(self.channel)
        put = client.Put(kv_pb2.PutRequest(key="b", value=b"\xff\x00"), timeout=CALL_TIMEOUT_S)
        self.assertTrue(put.success)
        got = client.Get(kv_pb2.GetRequest(key="b"), timeout=CALL_TIMEOUT_S)
        self.assertEqual((got.found, got.value, got.error), (True, b"\xff\x00", ""))
        deleted = client.Delete(kv_pb2.DeleteRequest(key="b"), timeout=CALL_TIMEOUT_S)
        self.assertTrue(deleted.success)
        self.assertGreater(deleted.index, put.index)
        self.assertFalse(client.Get(kv_pb2.GetRequest(key="b"), timeout=CALL_TIMEOUT_S).found)
        status = client.GetClusterStatus(kv_pb2.ClusterStatusRequest(), timeout=CALL_TIMEOUT_S)
        # A new member leads a moment before the cluster knows its name.
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while status.leader_id != "node-1" and time.monotonic() < deadline:
            time.sleep(0.05)
            status = client.GetClusterStatus(kv_pb2.ClusterStatusRequest(), timeout=CALL_TIMEOUT_S)
        self.assertEqual((status.node_id, status.state, status.leader_id), ("node-1", "leader", "node-1"))
        self.assertEqual(list(status.peers), [])

    def test_one_keyspace_and_strings(self):
        from kv import kv_pb2 as bytes_pb2, kv_pb2_grpc as bytes_grpc
        from kv_pb import kv_pb2 as strings_pb2, kv_pb2_grpc as strings_grpc

        of_bytes, of_strings = bytes_grpc.KVStoreStub(self.channel), strings_grpc.KVServiceStub(self.channel)
        self.assertEqual(self.member.http("POST", "/key", {"key": "c", "value": "v"})[0], 201)
        self.assertEqual(of_strings.Get(strings_pb2.GetRequest(key="c"), timeout=CALL_TIMEOUT_S).value, "v")
        self.assertEqual(of_bytes.Get(bytes_pb2.GetRequest(key="c"), timeout=CALL_TIMEOUT_S).value, b"v")
        self.assertEqual(self.member.http("GET", "/key/c"), (200, '{ "c" : "v" }'))
        self.assertEqual(self.member.http("GET", "/kv/c"), (200, '{"value":"v"}'))

        of_bytes.Put(bytes_pb2.PutRequest(key="binary", value=b"\xff"), timeout=CALL_TIMEOUT_S)
        request = strings_pb2.GetRequest(key="binary")
        self.fails(grpc.StatusCode.FAILED_PRECONDITION, "not UTF-8", of_strings.Get, request)
        self.assertEqual(self.member.http("GET", "/kv/binary")[0], 422)
        self.assertEqual(self.member.http("GET", "/key/binary")[0], 422)

    def test_local_reads(self):
        from kv_pb import kv_pb2, kv_pb2_grpc

        client = kv_pb2_grpc.KVServiceStub(self.channel)
        client.Set(kv_pb2.SetRequest(key="d", value="1"), timeout=CALL_TIMEOUT_S)
        local = [("kvorum-consistency", "local")]
        got = client.Get(kv_pb2.GetRequest(key="d"), metadata=local, timeout=CALL_TIMEOUT_S)
        self.assertEqual(got.value, "1")
        wrong = [("kvorum-consistency", "sometimes")]
        code = grpc.StatusCode.INVALID_ARGUMENT
        self.fails(code, "kvorum-consistency", client.Get, kv_pb2.GetRequest(key="d"), metadata=wrong)


def main():
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    with tempfile.TemporaryDirectory() as directory:
        generated = pathlib.Path(directory, "generated")
        generated.mkdir()
        generate(generated)
        Surfaces.member = Member(sys.argv[1], directory)
        try:
            Surfaces.member.wait_until_ready()
            result = unittest.main(argv=sys.argv[:1], exit=False, verbosity=2).result
        finally:
            Surfaces.member.stop()
    sys.exit(0 if result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
