//go:build !linux

package netpolicy

import (
	"errors"
	"fmt"
)

// Setup needs Linux.
func (p Policy) Setup() (found string, err error) {
	return "", fmt.Errorf("netpolicy: network namespaces need Linux: %w", errors.ErrUnsupported)
}
