package wasm

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/tree"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// forComponent refuses what the world in executor.wit has no place for.
func (t *task) forComponent() error {
	refuse := func(field, what string) error {
		e := executor.Errorf(executor.Unsupported, "%s; use another executor, or the embedded shell", what)
		e.Field = field
		return e
	}
	if t.spec.Script == "" {
		return refuse("argv", "a component takes a script, and no command with arguments")
	}
	if !utf8.ValidString(t.spec.Script) {
		return refuse("script", "it is not UTF-8, which all that a component is given must be")
	}
	for k, v := range t.env {
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return refuse("env", fmt.Sprintf("%.80q is not UTF-8, which all that a component is given must be", k))
		}
	}
	return nil
}

// componentSpec is the record task-spec.
func (t *task) componentSpec() *wire.Spec {
	seconds := uint64((t.granted.Timeout + time.Second - 1) / time.Second)
	s := &wire.Spec{
		Name: t.spec.Name, Recipe: t.spec.Recipe, Script: t.spec.Script, Workdir: tree.WorkDir, Outputs: t.spec.Outputs, TimeoutSecs: &seconds,
	}
	for _, k := range slices.Sorted(maps.Keys(t.env)) {
		s.Env = append(s.Env, [2]string{k, t.env[k]})
	}
	return s
}

// reply answers a component.
func (r *running) reply(content []byte, err error) error {
	var refused *refusal
	switch {
	case errors.As(err, &refused):
		content = append([]byte{1}, refused.text...)
	case err != nil:
		return err
	default:
		content = append([]byte{0}, content...)
	}
	return wire.Write(r.worker.in, wire.KindReply, content)
}

// componentFiles adds to the outputs what a component's output-files names.
func (r *running) componentFiles(files [][2]string, out *executor.TaskOutput) error {
	has := map[string]bool{}
	for _, f := range out.OutputFiles {
		has[f.Path] = true
	}
	for _, f := range files {
		p := f[0]
		switch {
		case !r.declared(p):
			return executor.FieldErrorf("outputs", "the component gave an output %.200q that was not declared; declare it", p)
		case has[p]:
			return executor.FieldErrorf("outputs", "the component gave the output %.200q twice", p)
		}
		d, err := r.blobs.name(f[1])
		var refused *refusal
		if errors.As(err, &refused) {
			return executor.FieldErrorf("outputs", "the component gave the output %.200q: %s", p, refused.text)
		}
		if err != nil {
			return err
		}
		has[p] = true
		out.OutputFiles = append(out.OutputFiles, executor.OutputFile{Path: p, Kind: executor.KindFile, Mode: 0o644, Digest: d})
		for dir := path.Dir(p); r.declared(dir) && !has[dir]; dir = path.Dir(dir) {
			has[dir] = true
			out.OutputFiles = append(out.OutputFiles, executor.OutputFile{Path: dir, Kind: executor.KindDir, Mode: 0o755})
		}
	}
	slices.SortFunc(out.OutputFiles, func(a, b executor.OutputFile) int { return cmp.Compare(a.Path, b.Path) })
	return nil
}
