// Command etcd-ref is the reference server: one member of unmodified etcd, embedded.
//
// It takes etcd's own flags, as far as embed.Config reads them by itself (quota-backend-bytes, max-txn-ops,
// auth-token, unsafe-no-fsync and so on), and instead of etcd's URLs a port for clients and one for peers, both on
// 127.0.0.1. It ends with SIGTERM, or, with --until-stdin-closes, with the process that started it.
package main

import (
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// Longest that it may take until the member serves.
const startTimeout = time.Minute

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "etcd-ref:", err)
		os.Exit(1)
	}
}

func run() error {
	config := embed.NewConfig()
	flags := flag.NewFlagSet("etcd-ref", flag.ExitOnError)
	config.AddFlags(flags)
	if err := flags.Set("log-level", "error"); err != nil {
		return err
	}
	clientPort := flags.Int("client-port", 2379, "port for clients, on 127.0.0.1")
	peerPort := flags.Int("peer-port", 2380, "port for peers, on 127.0.0.1")
	untilStdinCloses := flags.Bool("until-stdin-closes", false, "end when standard input is closed")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	client, peer := local(*clientPort), local(*peerPort)
	config.ListenClientUrls, config.AdvertiseClientUrls = client, client
	config.ListenPeerUrls, config.AdvertisePeerUrls = peer, peer
	config.InitialCluster = config.InitialClusterFromName(config.Name)

	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return err
	}
	defer etcd.Close()
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	if *untilStdinCloses {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			end <- syscall.SIGTERM
		}()
	}
	select {
	case <-etcd.Server.ReadyNotify():
	case <-end:
		return nil
	case <-time.After(startTimeout):
		return fmt.Errorf("does not serve within %s", startTimeout)
	}
	select {
	case <-end:
		return nil
	case err := <-etcd.Err():
		return err
	}
}

func local(port int) []url.URL {
	return []url.URL{{Scheme: "http", Host: fmt.Sprintf("127.0.0.1:%d", port)}}
}
