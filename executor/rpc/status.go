package rpc

import (
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sandboxd/sandboxd/executor"
)

// kindCodes says how kinds cross where gRPC's own status is all that there is.
var kindCodes = map[executor.Kind]codes.Code{
	executor.Invalid:     codes.InvalidArgument,
	executor.Denied:      codes.PermissionDenied,
	executor.Unsupported: codes.Unimplemented,
	executor.Unavailable: codes.Unavailable,
	executor.Canceled:    codes.Canceled,
	executor.Internal:    codes.Internal,
}

func toStatus(err error) error {
	e := executor.AsError(err)
	return status.Error(kindCodes[e.Kind], text(e.Text))
}

// fromStatus gives the error of a call its kind. What gRPC itself makes up, such as
// for a connection that broke, is Unavailable.
func fromStatus(err error) *executor.Error {
	s := status.Convert(err)
	if s.Code() == codes.Unavailable && strings.Contains(s.Message(), "EOF") {
		return executor.Errorf(executor.Unavailable, "the daemon is gone, and with it the tasks that it ran; dial again when it is back: %s", s.Message())
	}
	kind := executor.Unavailable
	for k, c := range kindCodes {
		if c == s.Code() {
			kind = k
		}
	}
	return executor.Errorf(kind, "%s", s.Message())
}
