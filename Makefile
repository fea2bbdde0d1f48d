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
# The packages whose tests make namespaces, mounts, cgroups or rules.
VM_PACKAGES := $(foreach d,internal/vmtest limits netpolicy netpolicy/inside rootfs sandbox executor/local integration,$(if $(wildcard $(d)/*_test.go),./$(d)))
# The kernels of `make test-vm` and, the oldest we care for, of `make test-vm-all`:
# packages of which the first that apt knows is taken, or a folder with one unpacked.
VM_KERNEL     ?= linux-image-6.12-cloud-amd64 linux-image-cloud-amd64
VM_KERNEL_OLD ?= linux-image-cloud-amd64
VM_RUN        ?= .
# An emulated guest is 10 to 40 times slower than the machine.
VM_TEST = CGO_ENABLED=1 $(GO) test -count=1 -p 1 -timeout 30m -run '$(VM_RUN)' -tags '$(TAGS) netgo osusergo' \
	-ldflags '$(STATIC)'

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
	GORACE=atexit_sleep_ms=0 CGO_ENABLED=1 $(GO) test -race -tags '$(TAGS)' -timeout 20m ./...

test-vm: deps-test vmtools build ## the privileged tests on a pure cgroup v2 tree, under VM_KERNEL
	@k=$$(internal/vmtest/kernel.sh $(VM_KERNEL)) && echo "test-vm: kernel $${k##*/}" && \
	$(VM_TEST) -exec "$(CURDIR)/bin/vmexec -kernel $$k -file /usr/bin/sandboxd=$(CURDIR)/bin/sandboxd -env SANDBOXD_PROGRAM=/usr/bin/sandboxd" $(VM_PACKAGES)

test-vm-all: test-vm ## test-vm, and again under VM_KERNEL_OLD
	@$(MAKE) --no-print-directory test-vm VM_KERNEL='$(VM_KERNEL_OLD)'

vmtools:
	@CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o bin/ ./internal/vmtest/cmd/...

check: deps-build deps-check ## vet, lint, formatting, generated code, other systems, modules
	@GO='$(GO)' TAGS='$(TAGS)' .ci/check

generate: deps-check ## the Go code of the protobuf messages
	GO='$(GO)' $(GO) generate ./executor/executorpb

bench: build ## what a task costs, next to a bare exec, bwrap and runc
	SANDBOXD_PROGRAM=$(CURDIR)/bin/sandboxd $(GO) test -run '^$$' -bench . -benchtime $(BENCHTIME) -tags '$(TAGS)' -timeout 60m ./...

fuzz: ## every fuzz target for FUZZTIME
	@grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' . | sort | while IFS=: read -r file func; do \
		echo "== $${func#func } in $${file%/*}"; \
		$(GO) test -tags '$(TAGS)' -run '^$$' -fuzz "^$${func#func }\$$" -fuzztime $(FUZZTIME) "$${file%/*}" || exit 1; done

install: build ## into DESTDIR and PREFIX, with the systemd units
	install -D -m 0755 bin/sandboxd $(DESTDIR)$(PREFIX)/bin/sandboxd
	@for f in $(wildcard systemd/*.service systemd/*.socket); do install -D -m 0644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system $$f || exit 1; done
	@for d in sysusers tmpfiles; do ! [ -e systemd/$$d.conf ] || install -D -m 0644 systemd/$$d.conf $(DESTDIR)$(PREFIX)/lib/$$d.d/sandboxd.conf || exit 1; done

clean: ## what was built here
	rm -rf bin .cache
	$(GO) clean

.PHONY: help deps build demo test test-host test-vm test-vm-all vmtools check generate bench fuzz install clean
