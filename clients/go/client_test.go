// Package clients holds the official Go client, unmodified, against kvorum: what programs do with it, and the packages
// that stand on it (locks, elections, Kubernetes' interface, caches, mirrors).
//
// clients/go/run starts three members and calls `go test`. The environment names them: ENDPOINTS and MEMBER_PIDS, with
// commas between, in the same order. TestKilledLeader wants three of its own.
package clients

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Longest that a test may take; the machine may be busy with other things.
const patience = time.Minute

func endpoints() []string { return strings.Split(os.Getenv("ENDPOINTS"), ",") }

// connect gives a client of all members and the time that this test has.
func connect(t *testing.T) (context.Context, *clientv3.Client) {
	t.Helper()
	return connectTo(t, endpoints())
}

func connectTo(t *testing.T, endpoints []string) (context.Context, *clientv3.Client) {
	t.Helper()
	client, err := clientv3.New(clientv3.Config{
		Endpoints:         endpoints,
		DialTimeout:       10 * time.Second,
		DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: 2 * time.Second,
		RejectOldCluster: true,
		Logger:           zap.NewNop(),
	})
	must(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(func() {
		cancel()
		client.Close()
	})
	return ctx, client
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func got[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		must(t, err)
		return value
	}
}

func equal[T comparable](t *testing.T, what string, got, wanted T) {
	t.Helper()
	if got != wanted {
		t.Fatalf("%s: %v instead of %v", what, got, wanted)
	}
}

// refused checks an error of the server by the value that programs compare it with.
func refused(t *testing.T, err, wanted error) {
	t.Helper()
	if !errors.Is(err, wanted) {
		t.Fatalf("%v instead of %v", err, wanted)
	}
}

func keysOf(response *clientv3.GetResponse) string {
	var keys []string
	for _, kv := range response.Kvs {
		keys = append(keys, string(kv.Key))
	}
	return strings.Join(keys, " ")
}

func TestKeys(t *testing.T) {
	ctx, client := connect(t)
	for at, key := range []string{"keys/b", "keys/a", "keys/c"} {
		must(t, second(client.Put(ctx, key, fmt.Sprint(at))))
	}
	all := got(client.Get(ctx, "keys/", clientv3.WithPrefix()))(t)
	equal(t, "keys", keysOf(all), "keys/a keys/b keys/c")
	created := all.Kvs[0].CreateRevision

	prev := got(client.Put(ctx, "keys/a", "again", clientv3.WithPrevKV()))(t).PrevKv
	equal(t, "the value before", string(prev.Value), "1")
	again := got(client.Get(ctx, "keys/a"))(t)
	equal(t, "version", again.Kvs[0].Version, 2)
	equal(t, "creation", again.Kvs[0].CreateRevision, created)
	equal(t, "modification", again.Kvs[0].ModRevision, again.Header.Revision)
	old := got(client.Get(ctx, "keys/a", clientv3.WithRev(again.Header.Revision-1)))(t)
	equal(t, "the value of before", string(old.Kvs[0].Value), "1")

	for name, row := range map[string]struct {
		options []clientv3.OpOption
		keys    string
		count   int64
		more    bool
	}{
		"limit": {[]clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithLimit(2)}, "keys/a keys/b", 3, true},
		"range": {[]clientv3.OpOption{clientv3.WithRange("keys/c")}, "keys/a keys/b", 2, false},
		"last":  {clientv3.WithLastRev(), "keys/a", 3, true},
		"first": {clientv3.WithFirstCreate(), "keys/b", 3, true},
		"descending": {
			[]clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)},
			"keys/c keys/b keys/a", 3, false,
		},
		"old ones": {
			[]clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithMaxModRev(again.Header.Revision - 1)},
			"keys/b keys/c", 3, false,
		},
		"count": {[]clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithCountOnly()}, "", 3, false},
		"local": {[]clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithSerializable(), clientv3.WithKeysOnly()},
			"keys/a keys/b keys/c", 3, false},
	} {
		response := got(client.Get(ctx, "keys/", row.options...))(t)
		// A local read may be asked of a member that lags.
		for name == "local" && response.Count < row.count {
			response = got(client.Get(ctx, "keys/", row.options...))(t)
		}
		equal(t, name, keysOf(response), row.keys)
		equal(t, name+", count", response.Count, row.count)
		equal(t, name+", more", response.More, row.more)
	}

	deleted := got(client.Delete(ctx, "keys/", clientv3.WithPrefix(), clientv3.WithPrevKV()))(t)
	equal(t, "deleted", deleted.Deleted, 3)
	equal(t, "deleted", string(deleted.PrevKvs[2].Value), "2")
	equal(t, "what is left", got(client.Get(ctx, "keys/", clientv3.WithPrefix()))(t).Count, 0)

	refused(t, second(client.Get(ctx, "keys/a", clientv3.WithRev(1<<40))), rpctypes.ErrFutureRev)
	refused(t, second(client.Put(ctx, "", "")), rpctypes.ErrEmptyKey)
	refused(t, second(client.Put(ctx, "keys/a", "", clientv3.WithIgnoreValue())), rpctypes.ErrKeyNotFound)
	refused(t, second(client.Put(ctx, "keys/a", "", clientv3.WithLease(4321))), rpctypes.ErrLeaseNotFound)
	refused(t, second(client.Put(ctx, "keys/a", strings.Repeat("x", 2_000_000))), rpctypes.ErrRequestTooLarge)
	// Compaction in the middle: what is before it cannot be read any more.
	must(t, second(client.Compact(ctx, deleted.Header.Revision, clientv3.WithCompactPhysical())))
	refused(t, second(client.Get(ctx, "keys/a", clientv3.WithRev(created))), rpctypes.ErrCompacted)
	refused(t, second(client.Compact(ctx, deleted.Header.Revision)), rpctypes.ErrCompacted)
}

func second[T any](_ T, err error) error { return err }

func TestTransactions(t *testing.T) {
	ctx, client := connect(t)
	create := func() *clientv3.TxnResponse {
		return got(client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision("txn/a"), "=", 0)).
			Then(clientv3.OpPut("txn/a", "1"), clientv3.OpPut("txn/b", "2")).
			Else(clientv3.OpGet("txn/", clientv3.WithPrefix())).
			Commit())(t)
	}
	first, again := create(), create()
	equal(t, "the first", first.Succeeded, true)
	equal(t, "the second", again.Succeeded, false)
	read := again.Responses[0].GetResponseRange()
	equal(t, "what it read", len(read.Kvs), 2)
	equal(t, "one revision", read.Kvs[0].ModRevision, read.Kvs[1].ModRevision)

	nested := got(client.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("txn/"), ">", "0").WithPrefix()).
		Then(
			clientv3.OpTxn(
				[]clientv3.Cmp{clientv3.Compare(clientv3.Version("txn/a"), "!=", 1)},
				nil,
				[]clientv3.Op{clientv3.OpDelete("txn/a", clientv3.WithPrevKV())},
			),
			clientv3.OpGet("txn/", clientv3.WithPrefix(), clientv3.WithCountOnly()),
		).
		Commit())(t)
	inner := nested.Responses[0].GetResponseTxn()
	equal(t, "the branch within", inner.Succeeded, false)
	equal(t, "deleted within", string(inner.Responses[0].GetResponseDeleteRange().PrevKvs[0].Value), "1")
	equal(t, "read behind it", nested.Responses[1].GetResponseRange().Count, 1)

	twice := client.Txn(ctx).Then(clientv3.OpPut("txn/c", ""), clientv3.OpPut("txn/c", ""))
	refused(t, second(twice.Commit()), rpctypes.ErrDuplicateKey)
	many := slices.Repeat([]clientv3.Op{clientv3.OpGet("txn/c")}, 129)
	refused(t, second(client.Txn(ctx).Then(many...).Commit()), rpctypes.ErrTooManyOps)
}

func TestLeases(t *testing.T) {
	ctx, client := connect(t)
	lease := got(client.Grant(ctx, 60))(t)
	equal(t, "TTL", lease.TTL, 60)
	must(t, second(client.Put(ctx, "lease/a", "", clientv3.WithLease(lease.ID))))
	left := got(client.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys()))(t)
	equal(t, "granted", left.GrantedTTL, 60)
	equal(t, "keys", fmt.Sprintf("%s", left.Keys), "[lease/a]")
	if left.TTL < 1 || left.TTL > 60 {
		t.Fatal("it lives for", left.TTL)
	}
	equal(t, "renewed", got(client.KeepAliveOnce(ctx, lease.ID))(t).TTL, 60)
	// Any member lists it, as soon as it applied it.
	for isListed := false; !isListed; {
		for _, status := range got(client.Leases(ctx))(t).Leases {
			isListed = isListed || status.ID == lease.ID
		}
	}
	must(t, second(client.Revoke(ctx, lease.ID)))
	equal(t, "its keys", got(client.Get(ctx, "lease/a"))(t).Count, 0)
	refused(t, second(client.Revoke(ctx, lease.ID)), rpctypes.ErrLeaseNotFound)
	refused(t, second(client.KeepAliveOnce(ctx, lease.ID)), rpctypes.ErrLeaseNotFound)
	equal(t, "left", got(client.TimeToLive(ctx, lease.ID))(t).TTL, -1)

	// One that is kept outlives one that is not; its keys go, and watchers hear of it.
	kept, lost := got(client.Grant(ctx, 2))(t), got(client.Grant(ctx, 2))(t)
	must(t, second(client.Put(ctx, "lease/kept", "", clientv3.WithLease(kept.ID))))
	must(t, second(client.Put(ctx, "lease/lost", "", clientv3.WithLease(lost.ID))))
	renewals := got(client.KeepAlive(ctx, kept.ID))(t)
	for response := range client.Watch(ctx, "lease/", clientv3.WithPrefix(), clientv3.WithFilterPut()) {
		must(t, response.Err())
		equal(t, "deleted", string(response.Events[0].Kv.Key), "lease/lost")
		break
	}
	equal(t, "kept", got(client.Get(ctx, "lease/kept"))(t).Count, 1)
	if (<-renewals).TTL != 2 {
		t.Fatal("it is not renewed")
	}
	must(t, second(client.Revoke(ctx, kept.ID)))
}
