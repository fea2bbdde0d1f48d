// Package statedir is the directory for what lives as long as an executor's tasks. It is one executor's at a time.
package statedir

import "errors"

// ErrInUse is Open's where the directory is another executor's, of this process or another.
var ErrInUse = errors.New("is in use by another sandboxd")
