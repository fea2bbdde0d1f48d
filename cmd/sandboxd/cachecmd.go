package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/sandboxd/sandboxd/cache"
)

// cacheCommand works on the directory itself, which several processes may use at once, so no daemon is asked.
func (e *env) cacheCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "cache", Short: "Look after the cache's directory", RunE: func(*cobra.Command, []string) error {
		return usagef("cache does nothing by itself; give it stats, verify or gc")
	}, Args: cobra.ArbitraryArgs}
	cmd.AddCommand(
		e.cacheVerb("stats", "Show what the cache holds", func(_ context.Context, c *cache.Cache) (any, error) { return c.Stats() }),
		e.cacheVerb("verify", "Read every blob and drop those that are damaged", func(ctx context.Context, c *cache.Cache) (any, error) { return c.Verify(ctx) }),
		e.cacheVerb("gc", "Drop what was not used for longest, down to cache_max_bytes", func(ctx context.Context, c *cache.Cache) (any, error) { return c.GC(ctx) }),
	)
	return cmd
}

func (e *env) cacheVerb(use, short string, do func(context.Context, *cache.Cache) (any, error)) *cobra.Command {
	var (
		dir, file string
		asJSON    bool
	)
	cmd := &cobra.Command{Use: use, Short: short, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) (err error) {
		c, err := readConfig(file, e.configFile)
		if err != nil {
			return err
		}
		if dir != "" {
			if c.CacheDir, err = filepath.Abs(dir); err != nil {
				return err
			}
		}
		if err := c.validate(); err != nil {
			return err
		}
		if _, err := os.Stat(c.CacheDir); err != nil {
			return fmt.Errorf("cache: %w; name another with --cache-dir", err)
		}
		store, err := cache.Open(c.CacheDir, cache.Config{MaxBytes: int64(c.CacheMaxBytes)})
		if err != nil {
			return fmt.Errorf("cache: %w", err)
		}
		defer func() { err = errors.Join(err, store.Close()) }()
		v, err := do(cmd.Context(), store)
		if err != nil {
			return fmt.Errorf("cache %s: %w", use, err)
		}
		if asJSON {
			return writeJSON(e.stdout, v)
		}
		return e.printFields(v)
	}}
	cmd.Flags().StringVar(&dir, "cache-dir", "", "the cache (default as configured, else "+defaultConfig().CacheDir+")")
	cmd.Flags().StringVar(&file, "config", "", "configuration (default "+e.configFile+", if it exists)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// printFields prints v as its JSON has it, a line for each key.
func (e *env) printFields(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if _, err := fmt.Fprintf(e.stdout, "%-20s %v\n", k, m[k]); err != nil {
			return err
		}
	}
	return nil
}
