package main

import (
	"context"
	"runtime"
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"version", 0, "sandboxd "},
		{"version", 0, runtime.Version()},
		{"--help", 0, "Available Commands"},
		{"run --help", 0, "--workdir-mode"},
		{"completion bash", 0, "bash completion"},
		{"completion zsh", 0, "#compdef sandboxd"},
		{"completion fish", 0, "fish completion"},
		{"__complete run --network lo", 0, "loopback"},
		{"bogus", 2, `unknown command "bogus"`},
		{"serve --bogus", 2, "unknown flag: --bogus\nSee 'sandboxd serve --help'."},
		{"serve extra", 2, `takes no argument such as "extra"`},
		{"cache bogus", 2, "give it stats, verify or gc"},
		{"cache", 2, "give it stats, verify or gc"},
		{"ping extra", 2, "takes no argument"},
	} {
		e, out, errs := testEnv(strings.Fields(c.args)...)
		if code := run(context.Background(), e); code != c.code || !strings.Contains(out.String()+errs.String(), c.want) {
			t.Errorf("%s: exit %d, want %d and %q in\n%s%s", c.args, code, c.code, c.want, out, errs)
		}
	}
}

func TestCheck(t *testing.T) {
	good := finding{Name: "namespaces", OK: true, Detail: "user mount pid", Required: true}
	optional := finding{Name: "io_weight", Detail: "no io controller", Remedy: "use cgroup v2"}
	needed := finding{Name: "overlay", Detail: "unknown to the kernel", Remedy: "modprobe overlay", Required: true}
	for _, c := range []struct {
		findings []finding
		code     int
		want     string
	}{
		{[]finding{good, optional}, 0, "ok       namespaces: user mount pid\nMISSING  io_weight: no io controller — use cgroup v2 (the default task runs without)\n"},
		{[]finding{good, needed}, 1, "ok       namespaces: user mount pid\nMISSING  overlay: unknown to the kernel — modprobe overlay\n"},
	} {
		e, out, errs := testEnv("check")
		e.parts.check = func(context.Context, config) []finding { return c.findings }
		if code := run(context.Background(), e); code != c.code || out.String() != c.want || errs.String() != "" {
			t.Errorf("exit %d, %q, %q", code, out, errs)
		}
	}
}
