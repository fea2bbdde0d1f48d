package main

const (
	defaultConfigFile = `C:\ProgramData\sandboxd\sandboxd.toml`
	defaultSocket     = `C:\ProgramData\sandboxd\sandboxd.sock`
	defaultStateDir   = `C:\ProgramData\sandboxd\state`
	defaultCacheDir   = `C:\ProgramData\sandboxd\cache`
)
