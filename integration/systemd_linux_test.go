package integration_test

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestSystemdActivation: the first client starts the daemon, and who may be one is for the group to say.
func TestSystemdActivation(t *testing.T) {
	d := underSystemd(t)
	if s := d.property("ActiveState"); s != "inactive" {
		t.Errorf("before the first client the service is %s", s)
	}
	st, err := os.Stat(unitSocket)
	if err != nil || st.Mode() != os.ModeSocket|0o660 || st.Sys().(*syscall.Stat_t).Uid != 0 || st.Sys().(*syscall.Stat_t).Gid == 0 {
		t.Errorf("the socket: %v, %v", st, err)
	}
	if o := d.run(d.dir, "--workdir", "none", "-c", "echo first"); o.code != 0 || o.stdout != "first\n" {
		t.Fatalf("the first task: %+v", o)
	}
	if s := d.property("ActiveState"); s != "active" {
		t.Errorf("after it the service is %s", s)
	}
	if s := d.property("StatusText"); !strings.Contains(s, "done") {
		t.Errorf("its status is %q", s)
	}
}
