package process

import (
	"context"
	rand2 "crypto/rand"
	"io"
	"math/rand/v2"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/sys"
)

// clock is the time that a task sees: it begins at the task's epoch, and goes on by a microsecond
// with each look at it, and with each sleep by what was slept. So what a task sees depends on
// what it does alone.
type clock struct {
	ctx     context.Context
	epoch   int64
	elapsed int64
}

// defaultEpoch is 2022-01-01, as wazero's own.
const defaultEpoch = 1640995200 * int64(time.Second)

// now is the time in nanoseconds since 1970, without it going on.
func (c *clock) now() int64 { return c.epoch + c.elapsed }

func (c *clock) walltime() (int64, int32) {
	n := c.epoch + c.nanotime()
	return n / int64(time.Second), int32(n % int64(time.Second))
}

func (c *clock) nanotime() int64 {
	c.elapsed += int64(time.Microsecond)
	return c.elapsed
}

func (c *clock) nanosleep(ns int64) {
	if ns <= 0 {
		return
	}
	c.elapsed += ns
	timer := time.NewTimer(time.Duration(ns))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.ctx.Done():
	}
}

// seeded is the same randomness for every task.
func seeded() io.Reader { return rand.NewChaCha8([32]byte{}) }

// configure gives a module the clock, and the randomness that goes with it.
func (c *clock) configure(cfg wazero.ModuleConfig, real bool) wazero.ModuleConfig {
	if real {
		return cfg.WithSysWalltime().WithSysNanotime().WithSysNanosleep().WithRandSource(rand2.Reader)
	}
	return cfg.WithWalltime(c.walltime, sys.ClockResolution(time.Microsecond)).
		WithNanotime(c.nanotime, sys.ClockResolution(time.Microsecond)).
		WithNanosleep(c.nanosleep).WithRandSource(seeded())
}
