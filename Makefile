# Every target can be run by hand; `make` lists them. Root is needed for the
# privileged tests (others skip them, with the reason), for demo and install.

# libcontainer's support for checkpoints brings in CRIU's protocol, which no task uses.
TAGS    := runc_nocriu
PREFIX  ?= /usr/local
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -s -w $(if $(VERSION),-X main.version=$(VERSION))
GO      ?= go
# Linked statically, since each sandbox starts the program twice, and without mounts for its libraries.
STATIC  := -linkmode external -extldflags "-static"
GOBUILD := CGO_ENABLED=1 $(GO) build -trimpath -tags '$(TAGS) netgo osusergo' -ldflags '$(LDFLAGS) $(STATIC)'

FUZZTIME  ?= 10s
BENCHTIME ?= 1s
SOAK      ?= 200
BENCH     ?= .
SEED      ?= 1
# The packages whose tests make namespaces, mounts, cgroups or rules. Those that take long
# begin early, after the harness's own.
VM_PACKAGES := $(foreach d,internal/vmtest executor/local integration executor/rpc executor/wasm rootfs sandbox limits netpolicy cache netpolicy/inside,$(if $(wildcard $(d)/*_test.go),./$(d)))
# The kernels of `make test-vm` and, the oldest we care for, of `make test-vm-all`:
# packages of which the first that apt knows is taken, or a folder with one unpacked.
VM_KERNEL     ?= linux-image-6.12-cloud-amd64 linux-image-cloud-amd64
VM_KERNEL_OLD ?= linux-image-cloud-amd64
COVER_PACKAGES ?= ./...
VM_RUN         ?= .
VM_RUN_SYSTEMD ?= ^TestSystemd
# How many guests run at once. An emulated one keeps one processor busy, and takes 2 GiB.
VM_PARALLEL    ?= $(shell n=$$(nproc); m=$$(awk '/MemAvailable/{print int($$2/3000000)}' /proc/meminfo); [ $$m -lt $$n ] && n=$$m; [ $$n -ge 1 ] || n=1; echo $$n)
# An emulated guest is 10 to 40 times slower than the machine.
VM_GO      = CGO_ENABLED=1 $(GO) test -count=1 -p $(VM_PARALLEL) -timeout 30m -tags '$(TAGS) netgo osusergo' -ldflags '$(STATIC)'
VM_TEST    = $(VM_GO) $(COVER) -run '$(VM_RUN)'
VM_SYSTEMD = $(VM_GO) -v -run '$(VM_RUN_SYSTEMD)'

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install what is missing of the Debian packages (DEPS="build check test demo bench")
	@.ci/deps $(DEPS)

deps-%:
	@.ci/deps $*

build: deps-build ## every package, and bin/sandboxd where there is a program
	$(GO) build -tags '$(TAGS)' ./...
	@if [ -d cmd/sandboxd ]; then $(GOBUILD) -o bin/sandboxd ./cmd/sandboxd; fi

demo: build deps-demo ## build BusyBox in a sandbox, twice, and see two tasks refused
	@examples/demo.sh

test: test-host test-vm ## all tests: on this machine, and in a VM

test-host: deps-build deps-test ## the tests on this machine, with the race detector
	@# The race detector's second of waiting for stragglers would be paid by each sandbox's init.
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test -race -tags '$(TAGS)' -timeout 20m $$($(GO) list -tags '$(TAGS)' ./... | grep -v /executor/wasm/shell)
	@# The shell with its interpreter as it is in the module: patched.
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test -race -modfile=$$(GO='$(GO)' executor/wasm/shell/build.sh --modfile) -tags '$(TAGS)' -timeout 20m ./executor/wasm/shell/...

test-vm: test-vm-fast test-vm-systemd ## the privileged tests on a pure cgroup v2 tree, and the daemon under systemd, under VM_KERNEL

test-vm-fast: deps-test vmtools build
	@k=$$(internal/vmtest/kernel.sh $(VM_KERNEL)) && echo "test-vm: kernel $${k##*/}" && \
	$(VM_TEST) -exec "$(CURDIR)/bin/vmexec -kernel $$k -file /usr/bin/sandboxd=$(CURDIR)/bin/sandboxd -env SANDBOXD_PROGRAM=/usr/bin/sandboxd" $(VM_PACKAGES)

test-vm-systemd: deps-test vmtools build
	@k=$$(internal/vmtest/kernel.sh $(VM_KERNEL)) && i=$${VM_IMAGE:-$$(internal/vmtest/image.sh)} && \
	echo "test-vm: kernel $${k##*/}, image $${i##*/}" && \
	d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && $(MAKE) --no-print-directory install DESTDIR=$$d >/dev/null && \
	$(VM_SYSTEMD) -exec "$(CURDIR)/bin/vmexec -kernel $$k -image $$i -memory 1536 -file /usr/local=$$d/usr/local -env SANDBOXD_PROGRAM=/usr/local/bin/sandboxd -env SANDBOXD_SYSTEMD=1" ./integration

test-vm-all: test-vm ## test-vm, and again under VM_KERNEL_OLD
	@$(MAKE) --no-print-directory test-vm VM_KERNEL='$(VM_KERNEL_OLD)'

vmtools:
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/ ./internal/vmtest/cmd/...

# One profile of both: a line of code that either has run counts. What the tests run as
# processes of their own, the daemon above all, is not counted.
cover: COVER = -covermode=atomic -coverpkg=./...
cover: deps-build deps-test vmtools build ## what the tests of both cover: bin/cover.out
	CGO_ENABLED=1 $(GO) test -tags '$(TAGS)' -timeout 20m $(COVER) -coverprofile=bin/cover.host $(COVER_PACKAGES)
	@$(MAKE) --no-print-directory test-vm-fast COVER='$(COVER) -coverprofile=$(CURDIR)/bin/cover.vm'
	@{ echo 'mode: atomic'; grep -hv '^mode:' bin/cover.host bin/cover.vm; } >bin/cover.out
	@$(GO) tool cover -func=bin/cover.out | tail -n 1

check: deps-build deps-check ## vet, lint, formatting, generated code, other systems, modules
	@GO='$(GO)' TAGS='$(TAGS)' .ci/check

generate: deps-check ## the Go code of the protobuf messages, and the wasm shell
	GO='$(GO)' $(GO) generate ./executor/executorpb ./executor/wasm/shell

bench: BENCH_TABLES := $(CURDIR)/benchmarks/$(shell date -u +%Y-%m-%d-%H%M).md
bench: build ## what a task costs, next to a bare exec, bwrap and runc; the tables are kept in benchmarks/
	@{ echo "# $$(git describe --always --dirty 2>/dev/null)"; echo; \
	echo "$$(nproc) processors ($$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)), $$(uname -sr), load before $$(cut -d ' ' -f 1-3 /proc/loadavg)"; \
	for t in 'bwrap --version' 'runc --version' '$(GO) version'; do $$t 2>/dev/null | head -n 1 | sed 's/^/- /'; done; } >$(BENCH_TABLES)
	SANDBOXD_BENCH_TABLES=$(BENCH_TABLES) SANDBOXD_PROGRAM=$(CURDIR)/bin/sandboxd $(GO) test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -tags '$(TAGS)' -timeout 60m ./...
	@echo "the tables are in $(BENCH_TABLES)"

soak: build ## kill the daemon SOAK times while tasks run, from SEED on, and run 2000 tasks that end in all ways, 20000 that do not, and 500 with a network
	SANDBOXD_PROGRAM=$(CURDIR)/bin/sandboxd SANDBOXD_CRASH_ROUNDS=$(SOAK) SANDBOXD_CRASH_SEED=$(SEED) SANDBOXD_NETWORK_TASKS=500 SANDBOXD_SOAK_TASKS=20000 \
		$(GO) test -count=1 -v -tags '$(TAGS)' -timeout 120m -run '^(TestCrash|TestSoak|TestDaemonStaysAsItIs|TestNetworkLeavesNothing)$$' ./integration

fuzz: ## every fuzz target for FUZZTIME
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sort | while IFS=: read -r file func; do \
		echo "== $${func#func } in $${file%/*}"; \
		$(GO) test -tags '$(TAGS)' -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) "$${file%/*}" || exit 1; done

install: build ## into DESTDIR and PREFIX, with the systemd units
	install -D -m 0755 bin/sandboxd $(DESTDIR)$(PREFIX)/bin/sandboxd
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/doc/sandboxd README.md SECURITY.md RATIONALE.md CHANGELOG.md LICENSE systemd/sandboxd.toml
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	for u in sandboxd.service sandboxd.socket; do \
		sed 's|/usr/local/|$(PREFIX)/|g' systemd/$$u >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$u && \
		chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/$$u || exit 1; done
	install -D -m 0644 systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/sandboxd.conf
	install -D -m 0644 systemd/tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/sandboxd.conf

clean: ## what was built here
	rm -rf bin .cache
	$(GO) clean

.PHONY: help deps build demo test test-host test-vm test-vm-fast test-vm-systemd test-vm-all vmtools cover check generate bench soak fuzz install clean
