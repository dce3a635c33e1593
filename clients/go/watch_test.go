package clients

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// next gives the next response of a watcher.
func next(t *testing.T, ctx context.Context, watcher clientv3.WatchChan) clientv3.WatchResponse {
	t.Helper()
	select {
	case response, open := <-watcher:
		if !open {
			t.Fatal("the watcher ended")
		}
		return response
	case <-ctx.Done():
		t.Fatal("nothing came in time")
		return clientv3.WatchResponse{}
	}
}

// collect gives the next so many events as text.
func collect(t *testing.T, ctx context.Context, watcher clientv3.WatchChan, count int) string {
	t.Helper()
	var texts []string
	for len(texts) < count {
		response := next(t, ctx, watcher)
		must(t, response.Err())
		for _, event := range response.Events {
			text := fmt.Sprintf("%s %s=%s", event.Type, event.Kv.Key, event.Kv.Value)
			if event.PrevKv != nil {
				text += fmt.Sprintf(" (%s)", event.PrevKv.Value)
			}
			texts = append(texts, text)
		}
	}
	return strings.Join(texts, ", ")
}

func TestWatch(t *testing.T) {
	ctx, client := connect(t)
	start := got(client.Put(ctx, "watch/a", "1"))(t).Header.Revision
	must(t, second(client.Put(ctx, "watch/a", "2")))
	must(t, second(client.Put(ctx, "other", "")))
	must(t, second(client.Delete(ctx, "watch/a")))

	// All history, then what happens now.
	watcher := client.Watch(ctx, "watch/", clientv3.WithPrefix(), clientv3.WithRev(start), clientv3.WithPrevKV())
	equal(t, "history", collect(t, ctx, watcher, 3), "PUT watch/a=1, PUT watch/a=2 (1), DELETE watch/a= (2)")
	must(t, second(client.Put(ctx, "watch/b", "3")))
	equal(t, "now", collect(t, ctx, watcher, 1), "PUT watch/b=3")

	deletions := client.Watch(ctx, "watch/", clientv3.WithPrefix(), clientv3.WithRev(start), clientv3.WithFilterPut())
	equal(t, "deletions", collect(t, ctx, deletions, 1), "DELETE watch/a=")
	puts := client.Watch(ctx, "watch/", clientv3.WithPrefix(), clientv3.WithRev(start), clientv3.WithFilterDelete())
	equal(t, "puts", collect(t, ctx, puts, 3), "PUT watch/a=1, PUT watch/a=2, PUT watch/b=3")

	created := next(t, ctx, client.Watch(ctx, "watch/", clientv3.WithCreatedNotify()))
	equal(t, "created", created.Created, true)

	// All watchers of this stream have what was written before the question.
	revision := got(client.Put(ctx, "other", ""))(t).Header.Revision
	for at := int64(0); at < revision; {
		must(t, client.RequestProgress(ctx))
		response := next(t, ctx, watcher)
		equal(t, "progress", response.IsProgressNotify(), true)
		at = response.Header.Revision
	}

	// A transaction is one response.
	must(t, second(client.Txn(ctx).Then(clientv3.OpPut("watch/x", "4"), clientv3.OpPut("watch/y", "5")).Commit()))
	for {
		response := next(t, ctx, watcher)
		if !response.IsProgressNotify() {
			equal(t, "a transaction's events", len(response.Events), 2)
			break
		}
	}

	// One that ends ends alone.
	ends, cancel := context.WithCancel(ctx)
	ending := client.Watch(ends, "watch/")
	cancel()
	for range ending {
	}
	must(t, second(client.Put(ctx, "watch/z", "6")))
	equal(t, "the others go on", collect(t, ctx, watcher, 1), "PUT watch/z=6")

	// Through one member: another may not have heard of the compaction yet.
	ctx, client = connectTo(t, endpoints()[:1])
	must(t, second(client.Compact(ctx, start+2)))
	compacted := next(t, ctx, client.Watch(ctx, "watch/", clientv3.WithRev(start)))
	refused(t, compacted.Err(), rpctypes.ErrCompacted)
	equal(t, "the first that can be watched", compacted.CompactRevision, start+2)
}

// More events at once than a message may hold come in fragments, which the client puts together.
func TestFragments(t *testing.T) {
	ctx, client := connect(t)
	const count = 6
	value := strings.Repeat("x", 1_000_000)
	var start int64
	for at := range count {
		revision := got(client.Put(ctx, fmt.Sprintf("fragments/%d", at), value))(t).Header.Revision
		if at == 0 {
			start = revision
		}
	}
	watcher := client.Watch(ctx, "fragments/", clientv3.WithPrefix(), clientv3.WithRev(start), clientv3.WithFragment())
	for at := 0; at < count; {
		response := next(t, ctx, watcher)
		must(t, response.Err())
		for _, event := range response.Events {
			equal(t, "key", string(event.Kv.Key), fmt.Sprintf("fragments/%d", at))
			equal(t, "bytes", len(event.Kv.Value), len(value))
			at++
		}
	}
	must(t, second(client.Delete(ctx, "fragments/", clientv3.WithPrefix())))
}
