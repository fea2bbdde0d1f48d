package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// maxEntries bounds the entries of a task's outputs, maxNames the bytes of their paths and of what links lead to.
const maxEntries, maxNames = 1_000_000, 128 << 20

// judge says why the task ended, and collects what a success leaves.
func (r *running) judge(ctx context.Context, scratch string, d *wire.Done, out *executor.TaskOutput) error {
	if d.Error != "" {
		if d.Field != "" {
			return executor.FieldErrorf(d.Field, "%s", d.Error)
		}
		return errors.New(d.Error)
	}
	if d.Declined != "" {
		return executor.Errorf(executor.Unsupported, "the component did not run the task: %.4000s", visible(d.Declined))
	}
	peak := d.PeakMemory
	out.Usage = executor.Usage{CPUUser: d.CPUUser, CPUSystem: d.CPUSystem, PeakMemory: &peak}
	out.UndeclaredTotal = max(d.Undeclared, int64(len(r.undeclared)))
	out.ExitCode, out.Cause, out.Evidence = int(min(d.Code, 255)), executor.CauseExited, fmt.Sprintf("the module exited with %d", d.Code)
	if d.Trap != "" {
		out.ExitCode, out.Evidence = exitTrap, "the module trapped: "+visible(d.Trap)
	}
	if d.MemoryRefused {
		out.Evidence += fmt.Sprintf("; it was refused memory beyond %d bytes", r.granted.memory)
		if out.ExitCode != 0 {
			out.Cause = executor.CauseOOMKilled
		}
		r.strained = true
	}
	if d.Refused != "" {
		out.Evidence += "; " + d.Refused
		r.strained = true
	}
	if out.ExitCode != 0 {
		return nil
	}
	for _, m := range d.Missing {
		given := func(f [2]string) bool { return f[0] == string(m) || below(f[0], string(m)) }
		if len(out.MissingOutputs) < executor.MaxListed && !slices.ContainsFunc(d.Files, given) {
			out.MissingOutputs = append(out.MissingOutputs, string(m))
		}
	}
	if len(out.MissingOutputs) > 0 {
		return nil
	}
	err := r.collect(ctx, scratch, out)
	if err == nil {
		err = r.componentFiles(d.Files, out)
	}
	if err != nil && ctx.Err() != nil {
		out.Cause, out.Evidence, out.OutputFiles = executor.CauseCanceled, "the caller canceled it, or went away, or the executor stopped, while its outputs were collected", nil
		return nil
	}
	return err
}

// output is an entry of the outputs, whose content is in the cache, or in the scratch directory.
type output struct {
	wire.Output
	digest cache.Digest // if Number is 0
}

// output takes note of an entry of the outputs. Who says so may lie. As many as there are, no content is held in memory.
func (r *running) output(body []byte) error {
	var o output
	if err := json.Unmarshal(body, &o.Output); err != nil {
		return err
	}
	p := string(o.Path)
	if !r.declared(p) {
		return fmt.Errorf("an output %.200q that was not declared", p)
	}
	if len(r.outputs) == maxEntries {
		return fmt.Errorf("the outputs are more than %d entries", maxEntries)
	}
	if len(o.Target) > executor.MaxPathBytes {
		return fmt.Errorf("a link of %d bytes", len(o.Target))
	}
	if fs.FileMode(o.Mode).IsRegular() && o.Number == 0 {
		if int64(len(o.Content)) != o.Size {
			return fmt.Errorf("the content of output %q is not what it was said to be", o.Path)
		}
	}
	if r.unkept != nil {
		return nil
	}
	if r.names += len(p) + len(o.Target); r.names > maxNames {
		r.unkept = executor.FieldErrorf("outputs", "have more than %d bytes of names; declare less, or give shorter ones", maxNames)
	} else if fs.FileMode(o.Mode).IsRegular() && o.Number == 0 {
		if r.unkept = r.count(o.Output); r.unkept == nil {
			o.digest, r.unkept = r.cfg.Cache.Put(r.ctx, bytes.NewReader(o.Content))
		}
	}
	o.Content = nil
	r.outputs = append(r.outputs, o)
	return nil
}

// declared says whether a path is a declared output, or lies in one.
func (r *running) declared(p string) bool {
	if len(p) > executor.MaxPathBytes || path.Clean(p) != p || strings.ContainsRune(p, 0) {
		return false
	}
	for _, o := range r.spec.Outputs {
		if p == o || below(p, o) {
			return true
		}
	}
	return false
}

func below(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }

// collect takes the outputs into the cache.
func (r *running) collect(ctx context.Context, scratch string, out *executor.TaskOutput) error {
	if len(r.outputs) == 0 || r.unkept != nil {
		return r.unkept
	}
	root, err := os.OpenRoot(scratch)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, o := range r.outputs {
		mode := fs.FileMode(o.Mode)
		f := executor.OutputFile{Path: string(o.Path), Mode: uint32(mode.Perm())}
		if !utf8.ValidString(f.Path) || filepath.ToSlash(filepath.FromSlash(f.Path)) != f.Path || !filepath.IsLocal(filepath.FromSlash(f.Path)) {
			return executor.FieldErrorf("outputs", "%q is no name for a file here; name it otherwise", f.Path)
		}
		switch mode.Type() {
		case fs.ModeDir:
			f.Kind = executor.KindDir
		case fs.ModeSymlink:
			f.Kind, f.Target = executor.KindSymlink, string(o.Target)
			if f.Target == "" || len(f.Target) > executor.MaxPathBytes || strings.ContainsRune(f.Target, 0) {
				return fmt.Errorf("link %q leads to %q", f.Path, f.Target)
			}
			if !utf8.ValidString(f.Target) {
				return executor.FieldErrorf("outputs", "the link %q leads to %q, which is not UTF-8; name that otherwise", f.Path, f.Target)
			}
		case 0:
			f.Kind = executor.KindFile
			if f.Digest, err = r.keep(ctx, root, o); err != nil {
				return err
			}
		default:
			return fmt.Errorf("output %q has mode %v", f.Path, mode)
		}
		out.OutputFiles = append(out.OutputFiles, f)
	}
	slices.SortFunc(out.OutputFiles, func(a, b executor.OutputFile) int { return strings.Compare(a.Path, b.Path) })
	for i := range out.OutputFiles[1:] {
		if p := out.OutputFiles[i+1].Path; p == out.OutputFiles[i].Path {
			return fmt.Errorf("output %q came twice", p)
		}
	}
	return nil
}

// count counts a file of the outputs.
func (r *running) count(o wire.Output) error {
	if r.blobs.bytes += o.Size; o.Size < 0 || r.blobs.bytes > r.granted.OutputBytes {
		return executor.FieldErrorf("outputs", "are more than %d bytes; declare less, or give a higher limits.output_bytes", r.granted.OutputBytes)
	}
	return nil
}

// keep takes a file into the cache.
func (r *running) keep(ctx context.Context, root *os.Root, o output) (d executor.Digest, err error) {
	if o.Number == 0 {
		return executor.Digest(o.digest), nil
	}
	if err := r.count(o.Output); err != nil {
		return d, err
	}
	f, err := root.OpenFile(strconv.Itoa(o.Number), os.O_RDONLY|tree.Nonblock, 0)
	if err != nil {
		return d, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Size() != o.Size {
		return d, errors.Join(fmt.Errorf("the content of output %q is not what it was said to be", o.Path), err)
	}
	blob, err := r.cfg.Cache.Put(ctx, io.LimitReader(f, o.Size))
	if err == nil && blob.Size != o.Size {
		err = fmt.Errorf("the content of output %q became shorter", o.Path)
	}
	return executor.Digest(blob), err
}
