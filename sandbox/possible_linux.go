package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// unable is why sandboxes cannot be made here by this process, whatever is asked of them. It is an
// errors.ErrUnsupported.
type unable string

// Error implements error.
func (u unable) Error() string { return "sandbox: " + string(u) }

// Is makes it an errors.ErrUnsupported.
func (unable) Is(target error) bool { return target == errors.ErrUnsupported }

// Possible returns an errors.ErrUnsupported where no sandbox can be made. That none is wrong with it does not
// mean that one can: the machine may be short of something.
func Possible() error {
	if !haveNsenter {
		return unable("this program was built without cgo, which libcontainer needs: build it with CGO_ENABLED=1")
	}
	if uid := os.Geteuid(); uid != 0 {
		return unable(fmt.Sprintf("id-mapped mounts need root, and this is user %d: run as root, or use a daemon that does", uid))
	}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0]); err != nil {
		return fmt.Errorf("sandbox: capabilities: %w", err)
	}
	if sets[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0 {
		return unable("mounts need CAP_SYS_ADMIN, which root has not here: run outside of the container, or give it the capability")
	}
	ids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return fmt.Errorf("sandbox: %w", err)
	}
	if f := strings.Fields(string(ids)); len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295" {
		return unable("id-mapped mounts need the machine's root, and this is a user namespace's: run outside of the container")
	}
	most, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return unable("the kernel has no user namespaces: use one with CONFIG_USER_NS")
	}
	if strings.TrimSpace(string(most)) == "0" {
		return unable("user.max_user_namespaces is 0: set it to 10000 or so with sysctl")
	}
	return nil
}
