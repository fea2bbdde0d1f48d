//go:build race

package wasm

// raceEnabled says that the race detector is on.
const raceEnabled = true
