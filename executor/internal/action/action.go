// Package action is what a task is to the cache, whichever executor runs it: its signature, and
// its stored result.
package action

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
)

// semantics counts what changes the meaning of a TaskSpec: results of another
// number are not ours.
const semantics = 1

// Files are a task's paths, open. They stay the caller's.
type Files struct {
	// Work is the work directory; nil is an empty one.
	Work *os.File
	// Inputs are those of the spec, in their order.
	Inputs []*os.File
	// Reader is whose rights Credential takes on; see cache.TreeOptions for both.
	Reader     uint32
	Credential func(work func() error) error
}

// Signature is the digest of the Action that a task is, and when the newest of its files was
// changed: the same content may have been another in between.
type Signature struct {
	cache.Digest
	changed int64
}

// Ground is what a task runs on: Root names the file tree or the module on the platform.
type Ground struct{ Platform, Root string }

// Sign hashes what a task is and reads, and runs on: env is all that it sees.
// An *executor.Error lies in the task.
func Sign(ctx context.Context, c *cache.Cache, spec *executor.TaskSpec, env map[string]string, o Files, on Ground) (s Signature, err error) {
	if err := signable(spec); err != nil {
		return s, err
	}
	nodes := map[string]cache.Node{}
	opt := cache.TreeOptions{Exclude: spec.Outputs, Reader: o.Reader, Credential: o.Credential}
	if o.Work != nil {
		t, err := c.HashTree(ctx, o.Work, opt)
		if err != nil {
			return s, unreadable("workdir", err)
		}
		nodes["work"], s.changed = cache.Node{Digest: t.Digest, Dir: true}, t.Changed
	}
	opt.Exclude = nil
	for i, f := range o.Inputs {
		// Numbered, since one input may lie beneath another; where they are seen is in the platform.
		n, changed, err := signInput(ctx, c, f, opt)
		if err != nil {
			return s, unreadable("inputs", err)
		}
		nodes["inputs/"+strconv.Itoa(i)], s.changed = n, max(s.changed, changed)
	}
	if spec.Script != "" {
		nodes["script"] = cache.Node{Digest: cache.DigestOf([]byte(spec.Script)), Executable: true}
	}
	if len(spec.Stdin) > 0 {
		nodes["stdin"] = cache.Node{Digest: cache.DigestOf(spec.Stdin)}
	}
	if len(spec.DepSignatures) > 0 {
		var b strings.Builder
		for _, d := range slices.Sorted(slices.Values(spec.DepSignatures)) {
			fmt.Fprintln(&b, d)
		}
		nodes["deps"] = cache.Node{Digest: cache.DigestOf([]byte(b.String()))}
	}
	in, err := cache.Directory(nodes)
	if err != nil {
		return s, err
	}
	cmd, err := command(spec, env, on)
	if err != nil {
		return s, err
	}
	s.Digest, err = cache.Action(cmd, in, 0, nil)
	if err != nil {
		return s, executor.Errorf(executor.Invalid, "%w", err)
	}
	return s, nil
}

// signable refuses bytes that the text fields of an Action cannot hold.
func signable(spec *executor.TaskSpec) error {
	const remedy = "put such bytes into a file, or run without the cache (cache off)"
	for i, a := range spec.Argv {
		if !utf8.ValidString(a) {
			return executor.FieldErrorf("argv", "argument %d is not UTF-8, which a signature must be; %s", i, remedy)
		}
	}
	for k, v := range spec.Env {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return executor.FieldErrorf("env", "%.80q is not UTF-8, which a signature must be; %s", k, remedy)
		}
	}
	for _, o := range spec.Outputs {
		if !utf8.ValidString(o) {
			return executor.FieldErrorf("outputs", "%.80q is not UTF-8, which a signature must be; %s", o, remedy)
		}
	}
	return nil
}

func signInput(ctx context.Context, c *cache.Cache, f *os.File, opt cache.TreeOptions) (n cache.Node, changed int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return n, 0, err
	}
	if !st.IsDir() {
		return c.HashFile(ctx, f, opt)
	}
	t, err := c.HashTree(ctx, f, opt)
	return cache.Node{Digest: t.Digest, Dir: true}, t.Changed, err
}

// unreadable blames a tree that cannot be hashed on who owns it.
func unreadable(field string, err error) error {
	var bad *cache.TreeError
	if errors.As(err, &bad) {
		return executor.FieldErrorf(field, "%w, or run without the cache (cache off)", err)
	}
	return err
}

// command is what runs, under what. Of the task's Platforms the one that it runs on is all that counts.
func command(spec *executor.TaskSpec, env map[string]string, on Ground) (cache.Command, error) {
	argv := spec.Argv
	if spec.Script != "" {
		argv = []string{"/bin/sh", "-e", "script"}
	}
	platform := map[string]string{
		"sandboxd-semantics": strconv.Itoa(semantics),
		"platform":           on.Platform,
		"root":               on.Root,
		"network":            spec.Network.String(),
		"work":               string(spec.WorkdirMode),
		"debug":              strconv.FormatBool(spec.Debug),
		"has-work":           strconv.FormatBool(spec.Workdir != ""),
	}
	rules, err := spec.AllowRules()
	if err != nil {
		return cache.Command{}, err
	}
	for i, r := range rules {
		platform["allow-"+strconv.Itoa(i)] = r.String()
	}
	for i, in := range spec.Inputs {
		platform["input-"+strconv.Itoa(i)] = in.Target()
	}
	return cache.Command{Argv: argv, Env: env, Outputs: spec.Outputs, Workdir: "work", Platform: platform}, nil
}

// Environment is what a task's processes see: its own, over what every task has.
func Environment(path, home string, env map[string]string) map[string]string {
	all := map[string]string{"PATH": path, "HOME": home, "LANG": "C.UTF-8", "TMPDIR": "/tmp", "USER": "build"}
	maps.Copy(all, env)
	return all
}
