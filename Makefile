# Hawser: a managed instance link for PostgreSQL.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
STATICCHECK := go run honnef.co/go/tools/cmd/staticcheck@v0.8.2

.PHONY: help
help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: demo
demo: postgres build ## Run the whole product on this machine: two instances, a link, a failover and back
	bin/hawser demo

.PHONY: build
build: compiler ## Build bin/hawser
	CGO_ENABLED=1 go build -tags netgo,osusergo -ldflags "-X main.version=$(VERSION) -linkmode external -extldflags -static" -o bin/hawser ./cmd/hawser

.PHONY: test
test: compiler postgres versions faketime check ## Run all checks and tests, on real PostgreSQL clusters
	@scripts/test.sh -race -vet=off -timeout 40m -p 2 -parallel 3 ./... # check has vetted all

FOR ?= 1h
SEED ?= 0
.PHONY: soak
soak: postgres ## Run with faults and failovers for a long time: make soak FOR=1h SEED=7
	go test ./internal/soak -run TestSoak -count 1 -v -timeout 0 -soak $(FOR) -seed $(SEED) -keep

.PHONY: walk
walk: postgres ## Walk at random over four instances' links of one database, and carry the remedies out: make walk FOR=15m SEED=7
	HAWSER_TEST_WALK=$(FOR) HAWSER_TEST_SEED=$(SEED) go test ./internal/agent -run TestWalk -count 1 -v -timeout 0

KILLS ?= all
.PHONY: kills
kills: postgres ## Kill agents and PostgreSQL at every question in every command (hours): make kills KILLS=failover
	HAWSER_TEST_KILLS="$(KILLS)" go test ./internal/agent -run TestKillsInEveryCommand -count 1 -v -timeout 0

ROWS ?= 10000000
.PHONY: large
large: postgres ## Run transactions of ten million rows and measure the agents' memory: make large ROWS=1000000
	HAWSER_TEST_LARGE_ROWS=$(ROWS) go test ./internal/agent -run TestLargeTransactions -count 1 -v -timeout 0

.PHONY: check
check: ## gofmt, go vet, staticcheck
	@out=$$(gofmt -l bench cmd internal); if [ -n "$$out" ]; then echo "gofmt: $$out"; exit 1; fi
	go vet ./...
	$(STATICCHECK) ./...

FUZZTIME ?= 60s
.PHONY: fuzz
fuzz: ## Fuzz what parses bytes from outside, a minute each: make fuzz FUZZTIME=1h
	@grep -roE '^func Fuzz[A-Za-z]+' --include='*_test.go' internal | sed -E 's|(.*)/[^/]*:func (.*)|\1 \2|' | while read -r package target; do \
		echo "$$package $$target"; go test "./$$package" -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) || exit 1; done

.PHONY: proto
proto: ## Generate the peers' protocol (needs protoc, protoc-gen-go, protoc-gen-go-grpc)
	protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative internal/peer/peerpb/peer.proto

.PHONY: compiler
compiler: ## Install gcc from Debian's packages, if it is missing
	@scripts/install-compiler.sh

.PHONY: postgres
postgres: ## Install PostgreSQL from Debian's packages, if it is missing
	@scripts/install-postgres.sh

.PHONY: versions
versions: ## Install the server programs of PostgreSQL 14, 16, 17 and 18 for the tests, if they are missing
	@scripts/install-versions.sh

.PHONY: faketime
faketime: ## Install libfaketime for the tests that set a server's clock, if it is missing
	@scripts/install-faketime.sh

.PHONY: rivals
rivals: ## Install what the benchmark measures against, where Debian has it
	@scripts/install-rivals.sh

.PHONY: bench
bench: postgres rivals build ## Measure Hawser against its rivals (hours); writes bench/RESULTS.md
	go run ./bench

.PHONY: bench-short
bench-short: postgres rivals build ## The same with a tenth of the data, one round: shows that all of it runs
	go run ./bench -short -rounds 1 -out /tmp/hawser-bench-short.md -json /tmp/hawser-bench-short.json
