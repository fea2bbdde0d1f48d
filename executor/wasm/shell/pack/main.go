// Command pack reads a module and writes it compressed with zstd, in the way that makes the least of it and always the same. Data that Go's linker leaves
// in a hundred thousand segments is in few then, which each instance would copy one by one, and each worker keep in memory.
package main

import (
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/component"
)

func main() {
	if err := pack(); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pack() error {
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	if in, err = component.MergeData(in, 256); err != nil {
		return err
	}
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(e.EncodeAll(in, nil))
	return err
}
