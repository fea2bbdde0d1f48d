// Command worker is a worker process and nothing else: for tests with the race detector, which
// makes a compiler thirty times slower.
package main

import _ "github.com/sandboxd/sandboxd/executor/wasm/internal/process"

func main() { panic("run by no executor") }
