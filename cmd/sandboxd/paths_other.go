//go:build !linux && !windows

package main

const (
	defaultConfigFile = "/etc/sandboxd/sandboxd.toml"
	defaultSocket     = "/var/run/sandboxd/sandboxd.sock"
	defaultStateDir   = "/var/lib/sandboxd"
	defaultCacheDir   = "/var/cache/sandboxd"
)
