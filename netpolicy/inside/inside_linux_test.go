package inside

import (
	"errors"
	"net"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testutil"
)

// inNamespace runs f on a thread with a network namespace of its own, which ends with it.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// dial needs no other thread than the caller's, as net.Dial might.
func dial(family int, to unix.Sockaddr) error {
	s, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.Connect(s, to)
}

func TestIsolatedReachesNothing(t *testing.T) {
	inNamespace(t, func() error {
		found, err := Isolated.Setup()
		if err != nil {
			return err
		}
		if !strings.HasPrefix(found, "isolated: lo down") {
			t.Errorf("found %q", found)
		}
		for _, to := range []unix.Sockaddr{
			&unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}},
			&unix.SockaddrInet4{Port: 80, Addr: [4]byte{169, 254, 169, 254}},
			&unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 0, 0, 1}},
		} {
			if err := dial(unix.AF_INET, to); !errors.Is(err, unix.ENETUNREACH) {
				t.Errorf("connect to %v: %v, want network unreachable", to, err)
			}
		}
		if err := dial(unix.AF_INET6, &unix.SockaddrInet6{Port: 80, Addr: [16]byte(net.IPv6loopback)}); err == nil || errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("connect to ::1: %v, want unreachable", err)
		}
		return nil
	})
}

func TestLoopbackReachesItselfOnly(t *testing.T) {
	inNamespace(t, func() error {
		found, err := Loopback.Setup()
		if err != nil {
			return err
		}
		if !strings.HasPrefix(found, "loopback: lo up") {
			t.Errorf("found %q", found)
		}
		// Refused by a host that is there, as nothing listens.
		if err := dial(unix.AF_INET, &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("connect to 127.0.0.1: %v, want refused", err)
		}
		if err := dial(unix.AF_INET, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{10, 0, 0, 1}}); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("connect to 10.0.0.1: %v, want network unreachable", err)
		}
		// What is up under a policy that says down is not passed over.
		if _, err := Isolated.Verify(); err == nil {
			t.Error("isolated: loopback up was not noticed")
		}
		if _, err := Controlled.Verify(); err == nil {
			t.Error("controlled: the missing link was not noticed")
		}
		return nil
	})
}

func TestCheckRefusesTheUnknown(t *testing.T) {
	for _, p := range []Policy{"Controlled", "none", "Full"} {
		if err := p.Check(); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%q: %v", p, err)
		}
		if !p.Own() {
			t.Errorf("%q shares the host's network", p)
		}
	}
	if err := errors.Join(Isolated.Check(), Loopback.Check(), Controlled.Check(), Full.Check()); err != nil {
		t.Error(err)
	}
	if Full.Own() {
		t.Error("full has a namespace of its own")
	}
}
