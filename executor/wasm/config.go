package wasm

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/cache"
	"github.com/sandboxd/sandboxd/executor/access"
	"github.com/sandboxd/sandboxd/executor/wasm/shell"
)

// Config is what an Executor is made with.
type Config struct {
	// Module is what runs tasks: the bytes of a wasip1 command; nil is the embedded shell.
	Module []byte
	// Cache keeps results and blobs, and what tasks write meanwhile. It stays the caller's, to be
	// closed after the Executor.
	Cache *cache.Cache
	// CodeDir keeps compiled modules, which are native code: whoever may write there may run
	// anything in a worker. It is made with mode 0700, and one that others may write to, or have something of theirs in, is refused; what others could put another in the place of is not used. What no executor was
	// made for in a month is removed. Empty, or where nothing can be written to it: each worker compiles for itself.
	CodeDir string
	// MaxParallel is how many tasks run at once, and how many workers there are; 0 is the number of processors. In a pool this
	// is what Capabilities tell it, and it gives the turns; alone, others wait with all that they have open.
	MaxParallel int
	// StateDir holds what is being put into callers' trees, so that a killed executor's successor can clean up
	// there: one Executor's at a time. Empty: nothing is noted. It is for Linux.
	StateDir string
	// Access says who may have what; Reconfigure changes it.
	Access access.Rules
	// RealClock has tasks see the time, and randomness.
	RealClock bool
	// InProcess runs modules in this process, and not in workers: for those who trust the Module, and may not start processes.
	// Nothing of a worker's walls is there then. A task has the rights of this process, is its user's, and can end
	// it, by its memory say. Guests are several times slower, may hold up the garbage collector, and
	// a call that neither loops nor asks for anything goes on after its task's timeout, as Execute does.
	InProcess bool
	// Logger takes what is nobody's error; nil drops it.
	Logger logrus.FieldLogger
	// Version is told in Capabilities.
	Version string

	digest            cache.Digest  // of Module
	code              string        // where in CodeDir its compiled code is; empty: nowhere
	unkept            error         // why it is nowhere, where there is a CodeDir
	shell             bool          // Module is the embedded one
	files             int           // that a task may make; 0 is maxFiles
	program           []string      // of the workers, with its arguments; nil is the one that runs, as a worker
	compiling, trying time.Duration // 0 are the constants of these names
	touching          time.Duration // after how long code is touched; 0 is a day
}

// check fills in the defaults.
func (c *Config) check() error {
	if c.Cache == nil {
		return errors.New("Config.Cache is missing")
	}
	if c.shell = c.Module == nil; c.shell {
		var err error
		if c.Module, err = shell.Module(); err != nil {
			return err
		}
	}
	c.digest = cache.DigestOf(c.Module)
	if c.files == 0 {
		c.files = maxFiles
	}
	if c.MaxParallel <= 0 {
		c.MaxParallel = runtime.NumCPU()
	}
	if c.Logger == nil {
		l := logrus.New()
		l.SetOutput(io.Discard)
		c.Logger = l
	}
	if c.CodeDir == "" {
		return nil
	}
	err := c.openCode()
	var above *aboveError
	switch {
	case err == nil:
	case unwritable(err) || errors.As(err, &above):
		c.code, c.unkept = "", err
	default:
		return fmt.Errorf("directory for compiled modules: %w", err)
	}
	return nil
}

// openCode opens the directory for compiled code, by a path without links, which others could turn.
func (c *Config) openCode() error {
	dir, err := filepath.Abs(c.CodeDir)
	if err != nil {
		return err
	}
	c.CodeDir = dir
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return err
	}
	c.code, err = openCode(filepath.Join(parent, filepath.Base(dir)), c.digest)
	return err
}
