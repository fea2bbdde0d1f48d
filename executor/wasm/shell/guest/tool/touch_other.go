//go:build !unix && !wasip1

package tool

import (
	"errors"
	"time"
)

// TouchLink is for systems that have it.
func TouchLink(string, time.Time) error { return errors.ErrUnsupported }
