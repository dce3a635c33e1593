# One-word commands. `make` alone lists them; `task NAME` does the same through Taskfile.yml.

TARGET := $(or $(CARGO_TARGET_DIR),target)
# How many pairs `make send` writes; and the members (HOST:PORT,...) for it and for `make ui`: those of docker-up.
N ?= 10000
ENDPOINTS ?= localhost:7001,localhost:7002,localhost:7003,localhost:7004,localhost:7005

IMAGE := raft-kv-store:latest
COMPOSE := docker compose --file deploy/compose.raft-kv.yaml
MANIFESTS := --filename deploy/statefulset.yaml --filename deploy/service.yaml --filename deploy/prometheus.yaml

.DEFAULT_GOAL := help
.PHONY: help build run run-cluster stop-cluster run1 run2 run3 test run-test ui send \
	docker-up docker-down docker-build deploy status logs clean clean-k8s

help: ## list the commands
	@awk -F ':[^#]*## ' '/^[a-z0-9-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/kvorum, and bin/raft-kv-store beside it
	cargo build --release --locked --package kvorum
	@mkdir -p bin
	install -m 755 $(TARGET)/release/kvorum bin/kvorum
	ln -sf kvorum bin/raft-kv-store

run: build ## run one member: gRPC on 8080, HTTP on 9090, data in data/single
	bin/raft-kv-store --id=node-1 --port=8080 --http-port=9090 --data-dir=data/single

run-cluster: build ## start three members: gRPC on 8081-8083, HTTP on 9091-9093, data and logs in data/cluster
	deploy/local-cluster start

stop-cluster: ## stop what run-cluster started, and nothing else
	deploy/local-cluster stop

run1: build ## run the first member of .env1, which makes a cluster of one
	bin/kvorum --env-file .env1

run2: build ## run the member of .env2, which joins through .env1's
	bin/kvorum --env-file .env2

run3: build ## run the member of .env3, which joins through .env1's
	bin/kvorum --env-file .env3

test: ## run all tests
	cargo test --workspace --locked

run-test: test ## the same as test

ui: build ## serve the live page of the members on http://localhost:3000
	bin/kvorum ui --listen 127.0.0.1:3000 --only --endpoints $(ENDPOINTS)

send: build ## write N random pairs to the leader: make send N=500 ENDPOINTS=localhost:9091,localhost:9092
	bin/kvorum send $(N) --endpoints $(ENDPOINTS)

docker-up: docker-build ## start five members in containers: HTTP on 7001-7005, gRPC on 8001-8005
	$(COMPOSE) up --detach

docker-down: ## stop the containers; their data stays in volumes
	$(COMPOSE) --profile '*' down

docker-build: ## build the image raft-kv-store:latest
	docker build --tag $(IMAGE) .

deploy: ## deploy three members and Prometheus to the current Kubernetes context
	kubectl apply $(MANIFESTS)

status: ## show the pods and the service
	kubectl get pods,services --selector app=raft-kv-store

logs: ## follow the logs of the pods
	kubectl logs --selector app=raft-kv-store --prefix --tail=100 --follow

clean: stop-cluster ## remove what was built, and the data of run, run-cluster and run1-run3
	rm -rf bin data/single data/cluster data/node1 data/node2 data/node3
	cargo clean

clean-k8s: ## remove the deployment with its volumes: THE DATA IS GONE
	kubectl delete --ignore-not-found $(MANIFESTS)
	kubectl delete --ignore-not-found persistentvolumeclaims --selector app=raft-kv-store
