//go:build !unix

package executortest

import "github.com/sandboxd/sandboxd/executor"

// watched watches nothing on systems without FIFOs.
func (s *suite) watched(script string) (spec *executor.TaskSpec, gone func()) {
	return sh(script), func() {}
}
