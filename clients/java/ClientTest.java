import static java.nio.charset.StandardCharsets.UTF_8;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.Election;
import io.etcd.jetcd.KV;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.election.LeaderResponse;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.CompactOption;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.support.CloseableClient;
import io.etcd.jetcd.watch.WatchEvent;
import io.grpc.stub.StreamObserver;
import java.io.ByteArrayOutputStream;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;

/** jetcd, unmodified, against the three members that ENDPOINTS names; clients/java/run starts them. */
@Timeout(60)
class ClientTest {
    private static final String[] ENDPOINTS =
            Stream.of(System.getenv("ENDPOINTS").split(",")).map(address -> "http://" + address).toArray(String[]::new);
    private static final long PATIENCE_S = 30;

    private Client client;
    private KV kv;

    @BeforeEach
    void connect() {
        client = Client.builder().endpoints(ENDPOINTS).build();
        kv = client.getKVClient();
    }

    @AfterEach
    void close() {
        client.close();
    }

    private static ByteSequence bytes(String text) {
        return ByteSequence.from(text, UTF_8);
    }

    private static <T> T done(CompletableFuture<T> future) throws Exception {
        return future.get(PATIENCE_S, TimeUnit.SECONDS);
    }

    private void put(String key, String value) throws Exception {
        done(kv.put(bytes(key), bytes(value)));
    }

    private String text(List<KeyValue> records) {
        return records.stream()
                .map(record -> record.getKey().toString(UTF_8) + "=" + record.getValue().toString(UTF_8))
                .collect(Collectors.joining(" "));
    }

    private String get(String key, GetOption option) throws Exception {
        return text(done(kv.get(bytes(key), option)).getKvs());
    }

    @Test
    void keys() throws Exception {
        put("keys/b", "2");
        put("keys/a", "1");
        put("keys/c", "3");
        GetOption.Builder all = GetOption.builder().isPrefix(true);
        assertEquals("keys/a=1 keys/b=2 keys/c=3", get("keys/", all.build()));
        assertEquals("keys/a=1 keys/b=2", get("keys/", all.withLimit(2).build()));
        GetOption descending = GetOption.builder()
                .isPrefix(true)
                .withSortField(GetOption.SortTarget.KEY)
                .withSortOrder(GetOption.SortOrder.DESCEND)
                .build();
        assertEquals("keys/c=3 keys/b=2 keys/a=1", get("keys/", descending));

        var again = done(kv.put(bytes("keys/a"), bytes("4"), PutOption.builder().withPrevKV().build()));
        assertEquals("1", again.getPrevKv().getValue().toString(UTF_8));
        long revision = again.getHeader().getRevision();
        assertEquals("keys/a=1", get("keys/a", GetOption.builder().withRevision(revision - 1).build()));
        assertEquals(2, done(kv.get(bytes("keys/a"))).getKvs().get(0).getVersion());

        DeleteOption prefix = DeleteOption.builder().isPrefix(true).withPrevKV(true).build();
        assertEquals("keys/a=4 keys/b=2 keys/c=3", text(done(kv.delete(bytes("keys/"), prefix)).getPrevKvs()));
        assertEquals(0, done(kv.get(bytes("keys/"), GetOption.builder().isPrefix(true).build())).getCount());

        done(kv.compact(revision, CompactOption.builder().withCompactPhysical(true).build()));
        var refused = assertThrows(
                ExecutionException.class, () -> get("keys/a", GetOption.builder().withRevision(revision - 1).build()));
        assertTrue(refused.getMessage().contains("mvcc: required revision has been compacted"), refused.getMessage());
    }

    @Test
    void transactions() throws Exception {
        Cmp isNew = new Cmp(bytes("txn/a"), Cmp.Op.EQUAL, CmpTarget.version(0));
        List<TxnResponse> answers = new ArrayList<>();
        for (int n = 0; n < 2; n++) {
            answers.add(done(kv.txn()
                    .If(isNew)
                    .Then(Op.put(bytes("txn/a"), bytes("1"), PutOption.DEFAULT))
                    .Else(Op.get(bytes("txn/a"), GetOption.DEFAULT))
                    .commit()));
        }
        assertTrue(answers.get(0).isSucceeded());
        assertFalse(answers.get(1).isSucceeded());
        assertEquals("txn/a=1", text(answers.get(1).getGetResponses().get(0).getKvs()));
    }

    @Test
    void watch() throws Exception {
        long start = done(kv.put(bytes("watch/a"), bytes("1"))).getHeader().getRevision();
        put("watch/a", "2");
        done(kv.delete(bytes("watch/a")));
        WatchOption option = WatchOption.builder().isPrefix(true).withRevision(start).withPrevKV(true).build();
        BlockingQueue<String> seen = new LinkedBlockingQueue<>();
        try (Watch.Watcher watcher = client.getWatchClient().watch(bytes("watch/"), option, response -> {
            for (WatchEvent event : response.getEvents()) {
                seen.add(event.getEventType() + " " + text(List.of(event.getKeyValue())) + " (" + event.getPrevKV().getValue() + ")");
            }
        })) {
            put("watch/b", "3");
            for (String event :
                    List.of("PUT watch/a=1 ()", "PUT watch/a=2 (1)", "DELETE watch/a= (2)", "PUT watch/b=3 ()")) {
                assertEquals(event, seen.poll(PATIENCE_S, TimeUnit.SECONDS));
            }
            assertFalse(watcher.isClosed());
        }
    }

    @Test
    void leases() throws Exception {
        long lease = done(client.getLeaseClient().grant(60)).getID();
        done(kv.put(bytes("lease/a"), bytes("1"), PutOption.builder().withLeaseId(lease).build()));
        var left = done(client.getLeaseClient().timeToLive(lease, LeaseOption.builder().withAttachedKeys().build()));
        assertEquals(60, left.getGrantedTTL());
        assertEquals(List.of(bytes("lease/a")), left.getKeys());
        BlockingQueue<Object> renewals = new LinkedBlockingQueue<>();
        try (CloseableClient renewal = client.getLeaseClient().keepAlive(lease, new StreamObserver<>() {
            @Override
            public void onNext(LeaseKeepAliveResponse response) {
                renewals.add(response.getTTL());
            }

            @Override
            public void onError(Throwable error) {
                renewals.add(error);
            }

            @Override
            public void onCompleted() {}
        })) {
            assertEquals(60L, renewals.poll(PATIENCE_S, TimeUnit.SECONDS));
        }
        done(client.getLeaseClient().revoke(lease));
        assertEquals("", get("lease/a", GetOption.DEFAULT));

        long lost = done(client.getLeaseClient().grant(2)).getID();
        BlockingQueue<WatchEvent> deleted = new LinkedBlockingQueue<>();
        WatchOption deletions = WatchOption.builder().withNoPut(true).build();
        try (Watch.Watcher watcher = client.getWatchClient()
                .watch(bytes("lease/b"), deletions, response -> deleted.addAll(response.getEvents()))) {
            done(kv.put(bytes("lease/b"), bytes("1"), PutOption.builder().withLeaseId(lost).build()));
            assertEquals(WatchEvent.EventType.DELETE, deleted.poll(PATIENCE_S, TimeUnit.SECONDS).getEventType());
        }
    }

    @Test
    void locks() throws Exception {
        long mine = done(client.getLeaseClient().grant(30)).getID();
        long theirs = done(client.getLeaseClient().grant(30)).getID();
        ByteSequence held = done(client.getLockClient().lock(bytes("lock"), mine)).getKey();
        assertTrue(held.toString(UTF_8).startsWith("lock/"));
        var waiting = client.getLockClient().lock(bytes("lock"), theirs);
        assertEquals("lock", held.toString(UTF_8).split("/")[0]);
        assertFalse(waiting.isDone());
        done(client.getLockClient().unlock(held));
        done(client.getLockClient().unlock(done(waiting).getKey()));
    }

    @Test
    void elections() throws Exception {
        Election election = client.getElectionClient();
        BlockingQueue<String> leaders = new LinkedBlockingQueue<>();
        election.observe(bytes("election"), new Election.Listener() {
            @Override
            public void onNext(LeaderResponse response) {
                leaders.add(response.getKv().getValue().toString(UTF_8));
            }

            @Override
            public void onError(Throwable error) {}

            @Override
            public void onCompleted() {}
        });
        long lease = done(client.getLeaseClient().grant(30)).getID();
        var leader = done(election.campaign(bytes("election"), lease, bytes("first"))).getLeader();
        assertEquals("first", leaders.poll(PATIENCE_S, TimeUnit.SECONDS));
        assertEquals("first", done(election.leader(bytes("election"))).getKv().getValue().toString(UTF_8));
        done(election.proclaim(leader, bytes("first, still")));
        assertEquals("first, still", leaders.poll(PATIENCE_S, TimeUnit.SECONDS));
        done(election.resign(leader));
        var error = assertThrows(ExecutionException.class, () -> done(election.leader(bytes("election"))));
        assertInstanceOf(io.etcd.jetcd.election.NoLeaderException.class, error.getCause());
    }

    @Test
    void membersAndMaintenance() throws Exception {
        put("maintenance", "1");
        assertEquals(3, done(client.getClusterClient().listMember()).getMembers().size());
        assertEquals(List.of(), done(client.getMaintenanceClient().listAlarms()).getAlarms());
        for (String endpoint : ENDPOINTS) {
            var status = done(client.getMaintenanceClient().statusMember(endpoint));
            assertTrue(status.getLeader() != 0 && status.getDbSize() > 0, endpoint);
            done(client.getMaintenanceClient().defragmentMember(endpoint));
        }
        var snapshot = new ByteArrayOutputStream();
        assertEquals(done(client.getMaintenanceClient().snapshot(snapshot)), snapshot.size());
        assertTrue(snapshot.size() > 0);
    }
}
