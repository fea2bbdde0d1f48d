# sandboxd: `make help` lists what can be asked for.
# runc_nocriu leaves checkpoint/restore, and its dependencies, out of libcontainer.
TAGS  ?= runc_nocriu
GO    ?= go
FUZZTIME ?= 10s
DEBS   = gcc libc6-dev make

.PHONY: help deps build test check bench fuzz clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

deps: ## install what is missing, by Debian package name
	@command -v $(GO) >/dev/null || { echo "Go 1.26 or newer is needed: install it and put it on PATH" >&2; exit 1; }
	@missing=$$(for p in $(DEBS); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing $$missing"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi

build: deps ## compile every package
	$(GO) build -tags '$(TAGS)' ./...

test: deps ## all tests that this machine can run
	CGO_ENABLED=1 $(GO) test -race -tags '$(TAGS)' ./...

check: deps ## vet, staticcheck, gofmt, tidy, and the builds for other systems
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "run gofmt on:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet -tags '$(TAGS)' ./...
	$(GO) tool staticcheck -tags '$(TAGS)' ./...
	GOOS=darwin CGO_ENABLED=0 $(GO) vet ./...
	GOOS=windows CGO_ENABLED=0 $(GO) vet ./...
	CGO_ENABLED=0 $(GO) build ./...
	$(GO) mod tidy -diff

bench: deps ## benchmarks
	$(GO) test -run '^$$' -bench . -tags '$(TAGS)' ./...

fuzz: deps ## every fuzz target for FUZZTIME
	@set -e; grep -rl --include='*_test.go' '^func Fuzz' . | while read -r f; do \
	for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$f); do \
	echo "$$f $$t"; $(GO) test -run '^$$' -fuzz "^$$t$$" -fuzztime $(FUZZTIME) ./$$(dirname $$f); done; done

clean: ## remove what the build made
	rm -rf bin .cache
