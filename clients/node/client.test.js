// npm's etcd3, unmodified, against kvorum. clients/node/run starts three members, which ENDPOINTS names, and calls
// this with Node's own test runner.
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const test = require('node:test');
const { Etcd3, EtcdLockFailedError, GRPCOutOfRangeError, SortTarget } = require('etcd3');

const hosts = process.env.ENDPOINTS.split(',').map((address) => `http://${address}`);
const limits = { timeout: 60_000 };
// Of leases, in seconds. This client may set a timer of so long for a lease that it has just revoked, and Node.js runs
// until that is over.
const ttl = 4;

/** A client for one test, which has to end its watchers: a client that is closed before goes on trying for a while. */
function connect(t) {
    const client = new Etcd3({ hosts });
    t.after(() => client.close());
    return client;
}

/** Waits until a function gives what is wanted. */
async function eventually(what, look) {
    const deadline = Date.now() + 30_000;
    while (!(await look())) {
        assert.ok(Date.now() < deadline, what);
        await new Promise((resume) => setTimeout(resume, 50));
    }
}

test('keys', limits, async (t) => {
    const client = connect(t).namespace('keys/');
    await client.put('a').value('1');
    await client.put('b').value(2);
    await client.put('c').value(Buffer.from([0, 255]));
    assert.equal(await client.get('a').string(), '1');
    assert.equal(await client.get('b').number(), 2);
    assert.deepEqual(await client.get('c').buffer(), Buffer.from([0, 255]));
    assert.equal(await client.get('d').string(), null);
    assert.deepEqual(await client.getAll().keys(), ['a', 'b', 'c']);
    assert.deepEqual(await client.getAll().limit(2).sort('Key', 'Descend').keys(), ['c', 'b']);
    assert.equal(await client.getAll().prefix('').count(), 3);

    const before = await client.put('a').value('2').getPrevious();
    assert.equal(before.value.toString(), '1');
    const { kvs } = await client.get('a').exec();
    assert.equal(kvs[0].version, '2');
    const old = await client.get('a').revision(Number(kvs[0].mod_revision) - 1).string();
    assert.equal(old, '1');
    await assert.rejects(client.get('a').revision('1000000000').exec(), GRPCOutOfRangeError);
    assert.equal((await client.delete().key('b').exec()).deleted, '1');
    assert.equal((await client.delete().all().exec()).deleted, '2');
});

test('transactions', limits, async (t) => {
    const client = connect(t).namespace('txn/');
    const create = () =>
        client
            .if('a', 'Create', '==', 0)
            .then(client.put('a').value('1'))
            .else(client.get('a'))
            .commit();
    assert.equal((await create()).succeeded, true);
    const again = await create();
    assert.equal(again.succeeded, false);
    assert.equal(again.responses[0].response_range.kvs[0].value.toString(), '1');
});

test('software transactions', limits, async (t) => {
    const client = connect(t);
    await client.put('stm').value(0);
    const add = () =>
        client.stm({ retries: 100 }).transact(async (tx) => {
            await tx.put('stm').value((await tx.get('stm').number()) + 1);
        });
    await Promise.all(Array.from({ length: 10 }, add));
    assert.equal(await client.get('stm').number(), 10);
});

test('watch', limits, async (t) => {
    const client = connect(t);
    const first = await client.put('watch/a').value('1');
    await client.put('watch/a').value('2');
    await client.delete().key('watch/a').exec();
    const seen = [];
    const watcher = await client.watch().prefix('watch/').withPreviousKV().startRevision(first.header.revision).create();
    watcher.on('put', (kv) => seen.push(`put ${kv.key}=${kv.value}`));
    watcher.on('delete', (kv, previous) => seen.push(`delete ${kv.key} (${previous.value})`));
    await client.put('watch/b').value('3');
    await eventually('four events', () => seen.length >= 4);
    assert.deepEqual(seen, ['put watch/a=1', 'put watch/a=2', 'delete watch/a (2)', 'put watch/b=3']);

    const deletions = await client.watch().key('watch/b').only('delete').create();
    const [[deleted]] = await Promise.all([once(deletions, 'delete'), client.delete().key('watch/b').exec()]);
    assert.equal(deleted.key.toString(), 'watch/b');
    await watcher.cancel();
    await deletions.cancel();
});

test('leases', limits, async (t) => {
    const client = connect(t);
    const lease = client.lease(ttl);
    await lease.put('lease/a').value('1');
    const renewed = once(lease, 'keepaliveSucceeded');
    const [response] = await renewed;
    assert.equal(response.TTL, String(ttl));
    await lease.revoke();
    assert.equal(await client.get('lease/a').string(), null);

    // One that nobody renews ends with its keys.
    const lost = client.lease(2, { autoKeepAlive: false });
    await lost.put('lease/b').value('1');
    await eventually('the lease ends', async () => (await client.get('lease/b').string()) === null);
});

test('locks', limits, async (t) => {
    const client = connect(t);
    const lock = await client.lock('lock').ttl(ttl).acquire();
    await assert.rejects(client.lock('lock').ttl(ttl).acquire(), EtcdLockFailedError);
    await lock.release();
    assert.equal(await client.lock('lock').ttl(ttl).do(async () => 'done'), 'done');
});

test('elections', limits, async (t) => {
    const client = connect(t);
    const election = client.election('election', ttl);
    const first = election.campaign('first');
    await first.wait();
    assert.equal(await election.leader(), 'first');
    const observer = await election.observe();
    const second = election.campaign('second');
    await first.resign();
    await second.wait();
    await eventually('the second leads', () => observer.leader() === 'second');
    await second.proclaim('second, still');
    await eventually('its new word is seen', () => observer.leader() === 'second, still');
    await observer.cancel();
    await second.resign();
});

test('members and maintenance', limits, async (t) => {
    const client = connect(t);
    const { members } = await client.cluster.memberList({});
    assert.equal(members.length, 3);
    const status = await client.maintenance.status();
    assert.ok(members.some((member) => member.ID === status.leader));
    assert.deepEqual((await client.maintenance.alarm({ action: 'Get', memberID: 0, alarm: 'None' })).alarms, []);
    await client.maintenance.defragment({});
});
