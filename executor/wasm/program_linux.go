package wasm

// program is the one that runs, also if it was removed, or is in memory.
func program() (string, error) { return "/proc/self/exe", nil }
