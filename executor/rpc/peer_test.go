package rpc

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// TestCallerOf: on every system that has sockets with callers, this process is who it is.
func TestCallerOf(t *testing.T) {
	dir, err := os.MkdirTemp("", "peer") // whose name is short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	testutil.Require(t, err == nil, "needs Unix sockets")
	defer l.Close()
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c, p, err := callerOf(server)
	defer p.close()
	if err != nil {
		t.Fatal(err)
	}
	groups, _ := os.Getgroups()
	if c.UID != uint32(max(os.Geteuid(), 0)) || c.GID != uint32(max(os.Getegid(), 0)) || len(groups) < 16 && slices.ContainsFunc(c.Groups, func(g uint32) bool { return !slices.Contains(groups, int(g)) }) {
		t.Errorf("%+v, in groups %v", c, groups)
	}
}
