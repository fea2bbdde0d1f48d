package vmtest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Module is a kernel module, unpacked.
type Module struct {
	Name string // with underscores, as the kernel spells it
	ELF  []byte
}

// LoadOrder returns the named modules of dir (lib/modules/VERSION) and all that
// they depend on, each after what it needs. What the kernel has built in is left
// out. A name that the kernel does not have is an error, unless it has a "?" in
// front.
func LoadOrder(dir string, names ...string) ([]Module, error) {
	files, err := moduleFiles(dir)
	if err != nil {
		return nil, err
	}
	builtin, err := builtinModules(dir)
	if err != nil {
		return nil, err
	}
	o := order{
		skip: builtin,
		load: func(name string) ([]byte, bool, error) {
			p, ok := files[name]
			if !ok {
				return nil, false, nil
			}
			b, err := moduleBytes(p)
			return b, true, err
		},
		deps: moduleDeps,
	}
	for _, n := range names {
		n, optional := strings.CutPrefix(n, "?")
		if _, have := files[canonical(n)]; optional && !have {
			continue
		}
		if err := o.visit(n, "the harness"); err != nil {
			return nil, err
		}
	}
	return o.out, nil
}

// order walks dependencies depth first. The kernel's build refuses cycles.
type order struct {
	skip map[string]bool
	load func(name string) (image []byte, ok bool, err error)
	deps func(image []byte) ([]string, error)
	out  []Module
}

func (o *order) visit(name, wantedBy string) error {
	name = canonical(name)
	if o.skip[name] {
		return nil
	}
	o.skip[name] = true
	image, ok, err := o.load(name)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	if !ok {
		return fmt.Errorf("the kernel has no module %s, which %s wants", name, wantedBy)
	}
	deps, err := o.deps(image)
	if err != nil {
		return fmt.Errorf("module %s: %w", name, err)
	}
	for _, d := range deps {
		if err := o.visit(d, name); err != nil {
			return err
		}
	}
	o.out = append(o.out, Module{Name: name, ELF: image})
	return nil
}

func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

func moduleFiles(dir string) (map[string]string, error) {
	files := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(dir, "kernel"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name, _, ok := strings.Cut(d.Name(), ".ko"); ok {
			files[canonical(name)] = p
		}
		return nil
	})
	return files, err
}

// builtinModules reads modules.builtin: a line such as kernel/fs/ext4/ext4.ko each.
func builtinModules(dir string) (map[string]bool, error) {
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	builtin := make(map[string]bool)
	for _, line := range strings.Fields(string(b)) {
		builtin[canonical(strings.TrimSuffix(filepath.Base(line), ".ko"))] = true
	}
	return builtin, nil
}

// moduleBytes unpacks on the host, where it is fast.
func moduleBytes(p string) ([]byte, error) {
	if strings.HasSuffix(p, ".xz") {
		return exec.Command("xz", "-dcq", p).Output()
	}
	return os.ReadFile(p)
}

// moduleDeps reads "depends=" in the .modinfo section, which needs no
// modules.dep: the kernel's package leaves that to its installation.
func moduleDeps(image []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, fmt.Errorf("no .modinfo section")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	return parseDepends(info), nil
}

func parseDepends(modinfo []byte) []string {
	for kv := range strings.SplitSeq(string(modinfo), "\x00") {
		if v, ok := strings.CutPrefix(kv, "depends="); ok && v != "" {
			return strings.Split(v, ",")
		}
	}
	return nil
}
