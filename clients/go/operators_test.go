package clients

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

func TestMembers(t *testing.T) {
	ctx, client := connect(t)
	members := got(client.MemberList(ctx))(t).Members
	equal(t, "members", len(members), 3)
	for _, member := range members {
		if member.Name == "" || len(member.ClientURLs) != 1 || !strings.HasPrefix(member.PeerURLs[0], "http://") {
			t.Fatal(member)
		}
	}
	must(t, client.Sync(ctx))
	equal(t, "endpoints told", len(client.Endpoints()), 3)

	// A change of the membership and back.
	learner := got(client.MemberAddAsLearner(ctx, []string{"http://127.0.0.1:1"}))(t).Member
	equal(t, "a learner", learner.IsLearner, true)
	refused(t, second(client.MemberPromote(ctx, learner.ID)), rpctypes.ErrMemberLearnerNotReady)
	must(t, second(client.MemberUpdate(ctx, learner.ID, []string{"http://127.0.0.1:2"})))
	removed := got(client.MemberRemove(ctx, learner.ID))(t)
	equal(t, "members left", len(removed.Members), 3)
	refused(t, second(client.MemberRemove(ctx, learner.ID)), rpctypes.ErrMemberNotFound)
}

func TestMaintenance(t *testing.T) {
	ctx, client := connect(t)
	revision := got(client.Put(ctx, "maintenance", "x"))(t).Header.Revision
	equal(t, "alarms", len(got(client.AlarmList(ctx))(t).Alarms), 0)
	hashes := map[uint32]bool{}
	for _, endpoint := range endpoints() {
		// Until this member has it, too.
		own, only := connectTo(t, []string{endpoint})
		must(t, second(only.Get(own, "maintenance")))
		status := got(client.Status(ctx, endpoint))(t)
		if status.Leader == 0 || status.DbSize == 0 || len(status.Errors) > 0 || status.IsLearner {
			t.Fatal(status)
		}
		hashes[got(client.HashKV(ctx, endpoint, revision))(t).Hash] = true
		must(t, second(client.Defragment(ctx, endpoint)))
	}
	equal(t, "different hashes", len(hashes), 1)

	stream := got(client.Snapshot(ctx))(t)
	defer stream.Close()
	snapshot := got(io.ReadAll(stream))(t)
	content, sum := snapshot[:len(snapshot)-sha256.Size], snapshot[len(snapshot)-sha256.Size:]
	wanted := sha256.Sum256(content)
	equal(t, "the snapshot's checksum", bytes.Equal(sum, wanted[:]), true)

	leader := leaderOf(t, ctx, client)
	status := got(client.Status(ctx, endpoints()[leader]))(t)
	var other uint64
	for _, member := range got(client.MemberList(ctx))(t).Members {
		if member.ID != status.Leader {
			other = member.ID
		}
	}
	// Only the leader may be asked.
	own, follower := connectTo(t, []string{endpoints()[(leader+1)%3]})
	refused(t, second(follower.MoveLeader(own, other)), rpctypes.ErrNotLeader)
	own, leading := connectTo(t, []string{endpoints()[leader]})
	must(t, second(leading.MoveLeader(own, other)))
	moved := got(client.Status(ctx, endpoints()[leader]))(t)
	equal(t, "leader", moved.Leader, other)
}

// leaderOf gives the place of the endpoint that leads.
func leaderOf(t *testing.T, ctx context.Context, client *clientv3.Client) int {
	t.Helper()
	for ctx.Err() == nil {
		for at, endpoint := range endpoints() {
			status, err := client.Status(ctx, endpoint)
			if err == nil && status.Leader == status.Header.MemberId {
				return at
			}
		}
	}
	t.Fatal("nobody leads")
	return 0
}

// While the leader is killed, a program increments a counter, another watches it, a third holds a lock: no increment is
// lost or made twice without the client's knowing, no event is missed, and the lock stays where it is.
func TestKilledLeader(t *testing.T) {
	ctx, client := connect(t)
	holder := got(concurrency.NewSession(client, concurrency.WithTTL(20)))(t)
	mutex := concurrency.NewMutex(holder, "killed/lock")
	must(t, mutex.Lock(ctx))
	start := got(client.Put(ctx, "killed/count", "0"))(t).Header.Revision

	const increments = 400
	killed := make(chan error, 1)
	watcher := client.Watch(clientv3.WithRequireLeader(ctx), "killed/count", clientv3.WithRev(start+1))
	unclear, count := 0, 0
	go func() {
		time.Sleep(200 * time.Millisecond)
		pids := strings.Split(os.Getenv("MEMBER_PIDS"), ",")
		pid, err := strconv.Atoi(pids[leaderOf(t, ctx, client)])
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		killed <- err
	}()
	isKilled := false
	for after := 0; after < increments; {
		err := increment(ctx, client, &count)
		if err != nil {
			must(t, ctx.Err())
			unclear++
		}
		select {
		case err := <-killed:
			must(t, err)
			isKilled = true
		default:
		}
		if isKilled && err == nil {
			after++
		}
	}
	last := got(client.Get(ctx, "killed/count"))(t).Kvs[0]
	equal(t, "the count", string(last.Value), strconv.Itoa(count))

	// Each value once, in order. A watcher whose member had no leader for too long is told so, and made anew.
	seen := 0
	revision := start
	for seen < count {
		response, open := <-watcher
		if !open || response.Err() != nil {
			must(t, ctx.Err())
			watcher = client.Watch(clientv3.WithRequireLeader(ctx), "killed/count", clientv3.WithRev(revision+1))
			continue
		}
		for _, event := range response.Events {
			value, err := strconv.Atoi(string(event.Kv.Value))
			must(t, err)
			equal(t, "event", value, seen+1)
			seen, revision = value, event.Kv.ModRevision
		}
	}
	select {
	case <-holder.Done():
		t.Fatal("the lock's session ended")
	default:
	}
	equal(t, "the lock's holder", got(client.Txn(ctx).If(mutex.IsOwner()).Commit())(t).Succeeded, true)
	must(t, mutex.Unlock(ctx))
	t.Logf("%d increments, %d without an answer", count, unclear)
}

// increment adds one to the counter, from what is there: after an error nobody knows whether it was added.
func increment(ctx context.Context, client *clientv3.Client, count *int) error {
	limited, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	read, err := client.Get(limited, "killed/count")
	if err != nil {
		return err
	}
	kv := read.Kvs[0]
	value, err := strconv.Atoi(string(kv.Value))
	if err != nil {
		return err
	}
	*count = value
	answer, err := client.Txn(limited).
		If(clientv3.Compare(clientv3.ModRevision("killed/count"), "=", kv.ModRevision)).
		Then(clientv3.OpPut("killed/count", strconv.Itoa(value+1))).
		Commit()
	if err == nil && answer.Succeeded {
		*count = value + 1
	}
	return err
}
