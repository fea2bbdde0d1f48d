package executor

import "context"

// Start serves e over two channels of the given buffer, until ctx ends, the
// caller closes the first, or Shutdown; the second is closed then.
func Start(ctx context.Context, e Executor, buffer int) (chan<- Request, <-chan Response) {
	in, out := make(chan Request, buffer), make(chan Response, buffer)
	go func() {
		defer close(out)
		Serve(ctx, e, in, out)
	}()
	return in, out
}
