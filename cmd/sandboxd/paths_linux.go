package main

const (
	defaultConfigFile = "/etc/sandboxd/sandboxd.toml"
	defaultSocket     = "/run/sandboxd/sandboxd.sock"
	defaultStateDir   = "/var/lib/sandboxd"
	defaultCacheDir   = "/var/cache/sandboxd"
)
