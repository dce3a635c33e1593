package clients

import (
	"fmt"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/mirror"
	"go.etcd.io/etcd/client/v3/namespace"
	naming "go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/client/v3/ordering"
	"go.uber.org/zap"
)

// What Kubernetes' API server asks of its store.
func TestKubernetes(t *testing.T) {
	ctx, client := connect(t)
	store := got(kubernetes.New(clientv3.Config{Endpoints: client.Endpoints(), Logger: zap.NewNop()}))(t)
	defer store.Close()
	k8s := store.Kubernetes
	var last int64
	for at := range 5 {
		key := fmt.Sprintf("registry/pods/%d", at)
		put := got(k8s.OptimisticPut(ctx, key, []byte("new"), 0, kubernetes.PutOptions{}))(t)
		equal(t, "created", put.Succeeded, true)
		last = put.Revision
	}
	conflict := got(k8s.OptimisticPut(ctx, "registry/pods/1", []byte("x"), last, kubernetes.PutOptions{GetOnFailure: true}))(t)
	equal(t, "a conflict", conflict.Succeeded, false)
	equal(t, "what is there", string(conflict.KV.Value), "new")
	known := conflict.KV.ModRevision
	equal(t, "updated", got(k8s.OptimisticPut(ctx, "registry/pods/1", []byte("newer"), known, kubernetes.PutOptions{}))(t).Succeeded, true)
	equal(t, "of before", string(got(k8s.Get(ctx, "registry/pods/1", kubernetes.GetOptions{Revision: last}))(t).KV.Value), "new")
	equal(t, "count", got(k8s.Count(ctx, "registry/pods/", kubernetes.CountOptions{}))(t), 5)

	// Pages of one list are of one revision.
	var keys []string
	page := kubernetes.ListOptions{Limit: 2, Revision: last}
	for {
		list := got(k8s.List(ctx, "registry/pods/", page))(t)
		for _, kv := range list.Kvs {
			equal(t, "a page's value", string(kv.Value), "new")
			keys = append(keys, string(kv.Key))
		}
		if len(keys) >= 5 {
			break
		}
		page.Continue = keys[len(keys)-1] + "\x00"
	}
	equal(t, "pages", len(keys), 5)
	gone := got(k8s.OptimisticDelete(ctx, "registry/pods/1", known, kubernetes.DeleteOptions{GetOnFailure: true}))(t)
	equal(t, "deleted too late", gone.Succeeded, false)
	gone = got(k8s.OptimisticDelete(ctx, "registry/pods/1", gone.KV.ModRevision, kubernetes.DeleteOptions{}))(t)
	equal(t, "deleted", gone.Succeeded, true)
}

func TestNamespace(t *testing.T) {
	ctx, client := connect(t)
	inside := namespace.NewKV(client, "namespace/")
	start := got(inside.Put(ctx, "a", "1"))(t).Header.Revision
	equal(t, "inside", keysOf(got(inside.Get(ctx, "", clientv3.WithFromKey()))(t)), "a")
	equal(t, "outside", keysOf(got(client.Get(ctx, "namespace/", clientv3.WithPrefix()))(t)), "namespace/a")
	watcher := namespace.NewWatcher(client, "namespace/").Watch(ctx, "a", clientv3.WithRev(start))
	equal(t, "event", collect(t, ctx, watcher, 1), "PUT a=1")
}

// A cache of keys that the client holds leases of, which others have to ask for.
func TestLeasing(t *testing.T) {
	ctx, client := connect(t)
	mine, closeMine, err := leasing.NewKV(client, "leasing-locks/")
	must(t, err)
	defer closeMine()
	theirs, closeTheirs, err := leasing.NewKV(client, "leasing-locks/")
	must(t, err)
	defer closeTheirs()
	must(t, second(client.Put(ctx, "leasing/a", "1")))
	equal(t, "read", string(got(mine.Get(ctx, "leasing/a"))(t).Kvs[0].Value), "1")
	must(t, second(theirs.Put(ctx, "leasing/a", "2")))
	equal(t, "read again", string(got(mine.Get(ctx, "leasing/a"))(t).Kvs[0].Value), "2")
}

func TestMirror(t *testing.T) {
	ctx, client := connect(t)
	for at := range 3 {
		must(t, second(client.Put(ctx, fmt.Sprintf("mirror/%d", at), "")))
	}
	syncer := mirror.NewSyncer(client, "mirror/", 0)
	base, failed := syncer.SyncBase(ctx)
	count := 0
	for response := range base {
		count += len(response.Kvs)
	}
	must(t, <-failed)
	equal(t, "base", count, 3)
	updates := syncer.SyncUpdates(ctx)
	must(t, second(client.Put(ctx, "mirror/3", "new")))
	equal(t, "update", collect(t, ctx, updates, 1), "PUT mirror/3=new")
}

func TestNaming(t *testing.T) {
	ctx, client := connect(t)
	manager := got(naming.NewManager(client, "naming"))(t)
	changes := got(manager.NewWatchChannel(ctx))(t)
	must(t, manager.AddEndpoint(ctx, "naming/a", naming.Endpoint{Addr: "127.0.0.1:1"}))
	select {
	case updates := <-changes:
		equal(t, "address", updates[0].Endpoint.Addr, "127.0.0.1:1")
	case <-ctx.Done():
		t.Fatal("no change was seen")
	}
	// The list is read from any member, as it has it.
	listed := func(count int) {
		t.Helper()
		for len(got(manager.List(ctx))(t)) != count {
		}
	}
	listed(1)
	must(t, manager.DeleteEndpoint(ctx, "naming/a"))
	listed(0)
}

// Reads that never go back, whichever member answers.
func TestOrdering(t *testing.T) {
	ctx, client := connect(t)
	ordered := ordering.NewKV(client, ordering.NewOrderViolationSwitchEndpointClosure(client))
	for at := range 50 {
		value := fmt.Sprint(at)
		must(t, second(client.Put(ctx, "ordering", value)))
		equal(t, "linearizable", string(got(ordered.Get(ctx, "ordering"))(t).Kvs[0].Value), value)
	}
}
