package clients

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

func session(t *testing.T, client *clientv3.Client) *concurrency.Session {
	t.Helper()
	session := got(concurrency.NewSession(client, concurrency.WithTTL(30)))(t)
	t.Cleanup(func() { session.Close() })
	return session
}

func TestMutex(t *testing.T) {
	ctx, client := connect(t)
	// Without the lock, most of these increments would be lost.
	const tasks, rounds = 4, 8
	done := make(chan error)
	for range tasks {
		session := session(t, client)
		go func() {
			done <- func() error {
				mutex := concurrency.NewMutex(session, "mutex/lock")
				for range rounds {
					if err := mutex.Lock(ctx); err != nil {
						return err
					}
					read, err := client.Get(ctx, "mutex/count")
					if err != nil {
						return err
					}
					count := 0
					if len(read.Kvs) > 0 {
						count, _ = strconv.Atoi(string(read.Kvs[0].Value))
					}
					if _, err := client.Put(ctx, "mutex/count", strconv.Itoa(count+1)); err != nil {
						return err
					}
					if err := mutex.Unlock(ctx); err != nil {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range tasks {
		must(t, <-done)
	}
	count := got(client.Get(ctx, "mutex/count"))(t).Kvs[0].Value
	equal(t, "increments", string(count), strconv.Itoa(tasks*rounds))

	// Who holds it keeps others out, until its session ends.
	holder, other := session(t, client), session(t, client)
	must(t, concurrency.NewMutex(holder, "mutex/held").Lock(ctx))
	if err := concurrency.NewMutex(other, "mutex/held").TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Fatal("it is locked, but", err)
	}
	must(t, holder.Close())
	must(t, concurrency.NewMutex(other, "mutex/held").Lock(ctx))
}

func TestElection(t *testing.T) {
	ctx, client := connect(t)
	first := concurrency.NewElection(session(t, client), "election")
	then := concurrency.NewElection(session(t, client), "election")
	must(t, first.Campaign(ctx, "first"))
	observed := concurrency.NewElection(session(t, client), "election").Observe(ctx)
	leads := func(wanted string) {
		t.Helper()
		for response := range observed {
			if string(response.Kvs[0].Value) == wanted {
				return
			}
		}
		t.Fatal(wanted, "was not seen to lead")
	}
	leads("first")
	elected := make(chan error)
	go func() { elected <- then.Campaign(ctx, "then") }()
	must(t, first.Proclaim(ctx, "first, still"))
	leads("first, still")
	must(t, first.Resign(ctx))
	must(t, <-elected)
	leads("then")
	equal(t, "leader", string(got(then.Leader(ctx))(t).Kvs[0].Value), "then")
	must(t, then.Resign(ctx))
	if _, err := then.Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		t.Fatal("nobody leads, but", err)
	}
}

func TestSoftwareTransactions(t *testing.T) {
	// One member: a serializable transaction reads on, locally, at the revision of its first read, and another member may
	// not have that yet.
	ctx, client := connectTo(t, endpoints()[:1])
	must(t, second(client.Put(ctx, "stm/from", "100")))
	must(t, second(client.Put(ctx, "stm/to", "0")))
	transfer := func(stm concurrency.STM) error {
		from, _ := strconv.Atoi(stm.Get("stm/from"))
		to, _ := strconv.Atoi(stm.Get("stm/to"))
		stm.Put("stm/from", strconv.Itoa(from-1))
		stm.Put("stm/to", strconv.Itoa(to+1))
		return nil
	}
	levels := []concurrency.Isolation{
		concurrency.SerializableSnapshot, concurrency.Serializable, concurrency.RepeatableReads,
	}
	done := make(chan error)
	for _, level := range levels {
		go func() {
			for range 10 {
				_, err := concurrency.NewSTM(client, transfer, concurrency.WithIsolation(level), concurrency.WithAbortContext(ctx))
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range levels {
		must(t, <-done)
	}
	read := got(client.Get(ctx, "stm/", clientv3.WithPrefix()))(t)
	equal(t, "from, to", fmt.Sprintf("%s %s", read.Kvs[0].Value, read.Kvs[1].Value), "70 30")
}

func TestRecipes(t *testing.T) {
	ctx, client := connect(t)
	queue := recipe.NewQueue(client, "recipes/queue")
	for at := range 3 {
		must(t, queue.Enqueue(fmt.Sprint(at)))
	}
	for at := range 3 {
		equal(t, "queue", got(queue.Dequeue())(t), fmt.Sprint(at))
	}
	urgent := recipe.NewPriorityQueue(client, "recipes/urgent")
	must(t, urgent.Enqueue("later", 7))
	must(t, urgent.Enqueue("now", 1))
	equal(t, "urgent", got(urgent.Dequeue())(t), "now")

	barrier := recipe.NewBarrier(client, "recipes/barrier")
	must(t, barrier.Hold())
	passed := make(chan error)
	go func() { passed <- recipe.NewBarrier(client, "recipes/barrier").Wait() }()
	must(t, barrier.Release())
	must(t, <-passed)

	// Readers share the lock; a writer waits for all of them.
	reader, another := recipe.NewRWMutex(session(t, client), "recipes/rw"), recipe.NewRWMutex(session(t, client), "recipes/rw")
	must(t, reader.RLock())
	must(t, another.RLock())
	writer, wrote := recipe.NewRWMutex(session(t, client), "recipes/rw"), make(chan error)
	go func() { wrote <- writer.Lock() }()
	must(t, reader.RUnlock())
	select {
	case err := <-wrote:
		t.Fatal("a writer beside a reader", err)
	default:
	}
	must(t, another.RUnlock())
	must(t, <-wrote)
	must(t, writer.Unlock())

	const guests = 3
	met := make(chan error)
	for range guests {
		guest := recipe.NewDoubleBarrier(session(t, client), "recipes/double", guests)
		go func() {
			err := guest.Enter()
			if err == nil {
				err = guest.Leave()
			}
			met <- err
		}()
	}
	for range guests {
		select {
		case err := <-met:
			must(t, err)
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
	}
}
