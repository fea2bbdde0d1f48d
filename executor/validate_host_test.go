package executor

import (
	"path/filepath"
	"testing"
)

// TestHostPaths: paths of the executor's machine are as that has them, and clean.
func TestHostPaths(t *testing.T) {
	here, err := filepath.Abs("x")
	if err != nil {
		t.Fatal(err)
	}
	for p, ok := range map[string]bool{here: true, "/": true, "x": false, here + "/../y": false, "": false, here + "\x00": false} {
		spec := &TaskSpec{Script: "true", Inputs: []Input{{Host: p, Sandbox: "/src"}}}
		if err := spec.Validate(); (err == nil) != ok {
			t.Errorf("%q: %v", p, err)
		}
	}
}
