package limits

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Left is what Open found and removed.
func (m *Manager) Left() Left { return m.left }

// recover removes what a dead Manager of the same Owner left below any parent that one had. The parent is on record
// before the first group is made there.
func (m *Manager) recover() error {
	if o := m.cfg.Owner; len(o) > 64 || strings.Trim(o, nameChars) != "" {
		return fmt.Errorf("limits: owner %q: use 1 to 64 of a-z, 0-9 and -", o)
	}
	parents, err := m.recorded()
	if err != nil {
		return err
	}
	if !slices.Contains(parents, m.above) {
		parents = append(parents, m.above)
		if err := m.record(parents); err != nil {
			return err
		}
	}
	for _, p := range parents {
		if err := m.sweep(p); err != nil {
			return fmt.Errorf("limits: what a killed daemon left in the control group %s/%s stays: %w", p, m.cfg.Owner, err)
		}
		if p == m.above {
			continue
		}
		if err := m.removeEmpty(p); err != nil {
			return err
		}
	}
	return m.record([]string{m.above})
}

// sweep kills and removes the owner's group below a parent, with all in it.
func (m *Manager) sweep(parent string) error {
	g := &Group{m: m, path: parent + "/" + m.cfg.Owner}
	pids, err := g.Procs()
	if err != nil {
		return err
	}
	found := map[string]bool{} // by the path below g, which is the same in every hierarchy
	err = g.walk(func(dir string) {
		_, below, _ := strings.Cut(dir, g.path)
		found[below] = true
	})
	if err != nil {
		return err
	}
	delete(found, "") // the owner's own group is no leftover
	m.left.Processes += len(pids)
	m.left.Groups += len(found)
	return errors.Join(g.thaw(), g.Close())
}

// thaw undoes what a Kill that was cut short left on v1: what is frozen does not die, and a group above it that is
// thawed does not thaw it.
func (g *Group) thaw() (err error) {
	walked := g.walk(func(dir string) {
		if p := dir + "/freezer.state"; read(p) != "" {
			err = errors.Join(err, write(p, "THAWED"))
		}
	})
	return errors.Join(err, walked)
}

// recorded are the parents on record. What is no path of a group is none of ours.
func (m *Manager) recorded() (parents []string, err error) {
	b, err := os.ReadFile(m.cfg.Record)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("limits: %w", err)
	}
	for l := range strings.Lines(string(b)) {
		if p := strings.TrimSuffix(l, "\n"); strings.HasPrefix(p, "/") && p != "/" && filepath.Clean(p) == p {
			parents = append(parents, p)
		}
	}
	return parents, nil
}

// record needs no sync: where the machine crashed there are no groups.
func (m *Manager) record(parents []string) error {
	next := m.cfg.Record + ".new"
	if err := os.WriteFile(next, []byte(strings.Join(parents, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	if err := os.Rename(next, m.cfg.Record); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	return nil
}
