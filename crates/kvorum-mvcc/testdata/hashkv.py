"""Makes hashkv.txt: what a real etcd answers to HashKV after each of a few hundred random writes and compactions.

    etcd --data-dir D --listen-client-urls http://127.0.0.1:23799 --advertise-client-urls http://127.0.0.1:23799
    python3 hashkv.py http://127.0.0.1:23799 > hashkv.txt

The etcd must be new and empty. Lines are `put KEY VALUE`, `delete KEY [END]`, `txn` with several of these behind it,
separated by `|`, `compact REVISION`, and `hash REVISION HASH COMPACTED`; keys and values are in hexadecimal.
"""

import base64
import json
import os
import random
import subprocess
import sys
import urllib.request

url, rng = sys.argv[1], random.Random(34)


def call(path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode())
    return json.loads(urllib.request.urlopen(request).read())


def b64(data):
    return base64.b64encode(data).decode()


def key():
    return rng.choice([b"a", b"b", b"c", b"\x00", b"\x00\xff", b"\xff\xff", b"key-%d" % rng.randrange(6)])


def put():
    k, v = key(), rng.choice([b"", bytes([rng.randrange(256)]) * rng.randrange(300), b"value"])
    return {"key": b64(k), "value": b64(v)}, f"put {k.hex()} {v.hex() or '-'}"


def delete():
    k = key()
    if rng.random() < 0.8:
        return {"key": b64(k)}, f"delete {k.hex()}"
    end = rng.choice([b"\x00", k + b"\xff", b"b"])
    return {"key": b64(k), "range_end": b64(end)}, f"delete {k.hex()} {end.hex()}"


def txn():
    ops, lines, seen = [], [], set()
    for _ in range(rng.randrange(1, 4)):
        body, line = put()
        if body["key"] not in seen:
            seen.add(body["key"])
            ops.append({"request_put": body})
            lines.append(line)
    k = b"gone-%d" % rng.randrange(3)
    if rng.random() < 0.5:
        ops.append({"request_delete_range": {"key": b64(k)}})
        lines.append(f"delete {k.hex()}")
    else:
        ops.append({"request_put": {"key": b64(k), "value": b64(b"soon")}})
        lines.append(f"put {k.hex()} {b'soon'.hex()}")
    return {"success": ops}, "txn " + " | ".join(lines)


def hash_at(revision):
    # Not through the gateway: etcd 3.4 has HashKV under the path of Hash.
    ask = ["etcdctl", "--endpoints", url, "endpoint", "hashkv", "--rev", str(revision), "-w", "json"]
    answer = subprocess.run(ask, capture_output=True, check=True, env={**os.environ, "ETCDCTL_API": "3"})
    answer = json.loads(answer.stdout)[0]["HashKV"]
    print("hash", revision, answer["hash"], answer.get("compact_revision", 0))


version = json.loads(urllib.request.urlopen(url + "/version").read())["etcdserver"]
print("# HashKV of etcd", version)
revision, compacted = 1, 0
hash_at(0)
for step in range(400):
    kind = rng.choices(["put", "delete", "txn", "compact", "clear"], [10, 5, 4, 1.5, 0.4])[0]
    if kind == "compact":
        if revision > compacted:
            compacted = rng.choice([revision, rng.randrange(compacted + 1, revision + 1)])
            call("/v3/kv/compaction", {"revision": compacted, "physical": True})
            print("compact", compacted)
    else:
        clear = {"key": b64(b"\x00"), "range_end": b64(b"\x00")}, "delete 00 00"
        body, line = clear if kind == "clear" else {"put": put, "delete": delete, "txn": txn}[kind]()
        path = {"put": "put", "txn": "txn"}.get(kind, "deleterange")
        revision = int(call("/v3/kv/" + path, body)["header"]["revision"])
        print(line)
    hash_at(0)
    if revision > compacted + 1 and rng.random() < 0.5:
        hash_at(rng.randrange(compacted + 1, revision + 1))
