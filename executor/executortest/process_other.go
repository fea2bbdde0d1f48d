//go:build !unix

package executortest

import (
	"os"
	"os/exec"
)

// group does nothing here: the end of the context kills the first process alone.
func group(*exec.Cmd) {}

func killGroup(*exec.Cmd) {}

func signal(*os.ProcessState) int { return 0 }
