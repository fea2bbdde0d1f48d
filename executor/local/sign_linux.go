package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/sandbox"
)

// semantics counts what changes the meaning of a TaskSpec: results of another
// number are not ours.
const semantics = 1

// opened are a task's paths, open.
type opened struct {
	caller executor.Caller
	work   *os.File // nil: empty
	inputs []*os.File
}

// open opens the paths of spec with the caller's rights.
func open(c executor.Caller, spec *executor.TaskSpec) (*opened, error) {
	o := &opened{caller: c}
	if spec.Workdir != "" {
		f, err := openAs(c, spec.Workdir, unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return nil, executor.FieldErrorf("workdir", "%q: %w; name a directory that you may read", spec.Workdir, err)
		}
		o.work = f
	}
	for _, in := range spec.Inputs {
		f, err := openAs(c, in.Host, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
		if err != nil {
			return nil, errors.Join(executor.FieldErrorf("inputs", "%q: %w; name a file or directory that you may read", in.Host, err), o.close())
		}
		o.inputs = append(o.inputs, f)
		if st, err := f.Stat(); err != nil || !st.IsDir() && !st.Mode().IsRegular() {
			return nil, errors.Join(executor.FieldErrorf("inputs", "%q is not a file or directory", in.Host), err, o.close())
		}
	}
	return o, nil
}

func (o *opened) close() error {
	var errs []error
	if o.work != nil {
		errs = append(errs, o.work.Close())
	}
	for _, f := range o.inputs {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// signature is the digest of the Action that a task is, and when the newest of its files was
// changed: the same content may have been another in between.
type signature struct {
	cache.Digest
	changed int64
}

func (e *Executor) sign(ctx context.Context, spec *executor.TaskSpec, o *opened, root string) (s signature, err error) {
	if err := signable(spec); err != nil {
		return s, err
	}
	nodes := map[string]cache.Node{}
	opt := cache.TreeOptions{Exclude: spec.Outputs, Reader: o.caller.UID}
	if o.caller.UID != 0 {
		opt.Credential = func(work func() error) error { return as(o.caller, work) }
	}
	if o.work != nil {
		t, err := e.cfg.Cache.HashTree(ctx, o.work, opt)
		if err != nil {
			return s, unreadable("workdir", err)
		}
		nodes["work"], s.changed = cache.Node{Digest: t.Digest, Dir: true}, t.Changed
	}
	opt.Exclude = nil
	for i, f := range o.inputs {
		// Numbered, since one input may lie beneath another; where they are seen is in the platform.
		n, changed, err := e.signInput(ctx, f, opt)
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
	cmd, err := command(spec, root)
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

func (e *Executor) signInput(ctx context.Context, f *os.File, opt cache.TreeOptions) (n cache.Node, changed int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return n, 0, err
	}
	if !st.IsDir() {
		return e.cfg.Cache.HashFile(ctx, f, opt)
	}
	t, err := e.cfg.Cache.HashTree(ctx, f, opt)
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

// command is what runs, under what.
func command(spec *executor.TaskSpec, root string) (cache.Command, error) {
	argv := spec.Argv
	if spec.Script != "" {
		argv = []string{"/bin/sh", "-e", "script"}
	}
	platform := map[string]string{
		"sandboxd-semantics": strconv.Itoa(semantics),
		"root":               root,
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
	return cache.Command{Argv: argv, Env: environment(spec.Env), Outputs: spec.Outputs, Workdir: "work", Platform: platform}, nil
}

// environment is what a task's processes see: its own, over what every task has.
func environment(env map[string]string) map[string]string {
	all := map[string]string{
		"PATH": sandbox.DefaultPath, "HOME": sandbox.HomeDir, "LANG": "C.UTF-8", "TMPDIR": "/tmp", "USER": "build",
	}
	for k, v := range env {
		all[k] = v
	}
	return all
}
