package executor

import (
	"context"
	"errors"
	"fmt"
)

// Kind says who must act on an error.
type Kind string

const (
	// Invalid: change the task.
	Invalid Kind = "invalid"
	// Denied: this caller may not.
	Denied Kind = "denied"
	// Unsupported: this executor cannot; the text has the remedy.
	Unsupported Kind = "unsupported"
	// Unavailable: try again, or another executor.
	Unavailable Kind = "unavailable"
	// Canceled: the caller ended it before it had started.
	Canceled Kind = "canceled"
	// Internal: a fault of sandboxd or its machine; see the daemon's log.
	Internal Kind = "internal"
)

// Error is an error that crosses the wire whole. Kinds are made once, at the
// edge of the executor; inside, plain wrapped errors do.
type Error struct {
	Kind Kind
	// Field is the field of the TaskSpec at fault, as in its JSON; may be empty.
	Field string
	// Text says what is wrong and what to do.
	Text string
	// err is the cause, which stays in this process.
	err error
}

// Errorf makes an Error; %w keeps the cause for errors.Is in this process.
func Errorf(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Text: err.Error(), err: errors.Unwrap(err)}
}

// FieldErrorf is Errorf for an Invalid field of a TaskSpec.
func FieldErrorf(field, format string, args ...any) *Error {
	e := Errorf(Invalid, format, args...)
	e.Field = field
	return e
}

// Error is the text, after the field where there is one.
func (e *Error) Error() string {
	if e.Field == "" {
		return e.Text
	}
	return e.Field + ": " + e.Text
}

// Unwrap returns the cause, if this process made the error.
func (e *Error) Unwrap() error { return e.err }

// AsError gives any error a kind: an *Error in err's chain decides, the end of a context
// is Canceled, all else Internal. It returns nil for nil.
func AsError(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	kind := Internal
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		kind = Canceled
	}
	return &Error{Kind: kind, Text: err.Error(), err: err}
}

// KindOf is the kind of AsError(err); empty for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	return AsError(err).Kind
}

// PanicError is what an Internal error unwraps to where an executor panicked. It
// tells of the inside, so it is for the log of this process and crosses no wire.
type PanicError struct {
	Value any
	Stack []byte
}

// Error is empty: the text of the error that wraps it says all that a caller may know.
func (*PanicError) Error() string { return "" }
