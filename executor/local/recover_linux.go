package local

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// recordName is the file of a state directory that names the parents of its control groups. It
// is there from when there may be some until they are known to be gone.
const recordName = "cgroups"

// leftovers counts what a dead executor had left, all of which was removed.
type leftovers struct {
	Processes, Groups, Layers, Roots, TemporaryFiles int
	Outputs                                          int // entries in callers' work directories
}

func (l *leftovers) add(m leftovers) {
	l.Processes += m.Processes
	l.Groups += m.Groups
	l.Layers += m.Layers
	l.Roots += m.Roots
	l.TemporaryFiles += m.TemporaryFiles
	l.Outputs += m.Outputs
}

func (l leftovers) tell(log logrus.FieldLogger) {
	if l == (leftovers{}) {
		return
	}
	log.WithFields(logrus.Fields{
		"processes": l.Processes, "groups": l.Groups, "layers": l.Layers, "roots": l.Roots,
		"temporary_files": l.TemporaryFiles, "outputs": l.Outputs,
	}).Info("removed what a killed daemon had left")
}

// ownerName names the control group of whoever holds the lock of a state directory. No two can
// hold it, whatever paths, copies or mounts lead there; so what is in the group is ours or a
// dead executor's.
func ownerName(lock *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(lock.Fd()), &st); err != nil {
		return "", fmt.Errorf("lock of the state directory: %w", err)
	}
	return fmt.Sprintf("s-%x", sha256.Sum256(fmt.Appendf(nil, "%d:%d", st.Dev, st.Ino)))[:18], nil
}

// recoverLocal recovers the state directories of run --local that are nobody's, and were not left in
// order. One that cannot be is left for its next user, who will say why.
func (e *Executor) recoverLocal() (left leftovers) {
	records, err := filepath.Glob(filepath.Join(e.cfg.StateDir, "local", "*", recordName))
	if err != nil {
		return left
	}
	for _, r := range records {
		one := &Executor{cfg: e.cfg, log: e.log}
		one.cfg.StateDir = filepath.Dir(r)
		found, err := one.open()
		left.add(found)
		if err = errors.Join(err, one.unmake()); err != nil && !errors.Is(err, ErrInUse) {
			e.log.WithError(err).WithField("directory", one.cfg.StateDir).Warn("what a killed run --local had left stays")
		}
	}
	return left
}
