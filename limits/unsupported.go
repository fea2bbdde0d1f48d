//go:build !linux

package limits

import (
	"errors"
	"fmt"
)

// Manager cannot be made on this system.
type Manager struct{}

// Open reports that package limits needs Linux.
func Open(Config) (*Manager, error) { return nil, fmt.Errorf("limits: %w", errors.ErrUnsupported) }
