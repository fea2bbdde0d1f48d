//go:build !linux

package inside

import (
	"errors"
	"fmt"
)

// Setup needs Linux.
func (p Policy) Setup() (found string, err error) {
	return "", fmt.Errorf("network namespaces need Linux: %w", errors.ErrUnsupported)
}
