package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// Client is a connection to a daemon: an Executor for any number of goroutines.
// Once the daemon is gone every call is Unavailable; dial again then.
type Client struct {
	*executor.Handle
	grpc *grpc.ClientConn
	blob pb.ExecutorClient
	end  context.CancelFunc
	done chan struct{} // closed when both goroutines have ended
}

// Dial connects to the daemon's socket. ctx bounds the dialing alone.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c, err := dial(ctx, socket)
	if !errors.Is(err, errHungUp) {
		return c, err
	}
	// It may have been about to die, and systemd listens for the next one.
	select {
	case <-ctx.Done():
		return nil, err
	case <-time.After(dialAgain):
		return dial(ctx, socket)
	}
}

// dialAgain is how long Dial waits before its second try.
const dialAgain = 100 * time.Millisecond

func dial(ctx context.Context, socket string) (*Client, error) {
	n, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, dialError(socket, err)
	}
	l := &listened{Conn: n}
	cc, err := newConn(l)
	if err != nil {
		_ = n.Close()
		return nil, err
	}
	session, end := context.WithCancel(context.Background())
	c := &Client{grpc: cc, blob: pb.NewExecutorClient(cc), end: end, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, end)
	stream, err := c.blob.Session(session)
	if err != nil {
		end()
		_ = cc.Close()
		return nil, l.explain(fromStatus(err))
	}
	c.start(session, stream)
	// The first answer shows that the daemon serves this caller.
	err = c.Ping(ctx)
	if err == nil && !stop() {
		err = executor.AsError(ctx.Err())
	}
	if err != nil {
		_ = c.Close(context.WithoutCancel(ctx))
		return nil, l.explain(err)
	}
	return c, nil
}

// listened knows whether the far end has said anything.
type listened struct {
	net.Conn
	heard atomic.Bool
}

var errHungUp = errors.New("the daemon hung up")

// explain says what it means that the far end has said nothing.
func (l *listened) explain(err error) error {
	if l.heard.Load() || executor.KindOf(err) != executor.Unavailable {
		return err
	}
	return executor.Errorf(executor.Unavailable, "%w (%w); it has too many connections or is stopping: try again later", errHungUp, err)
}

// Read implements net.Conn.
func (l *listened) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	if n > 0 {
		l.heard.Store(true)
	}
	return n, err
}

func dialError(socket string, err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return executor.Errorf(executor.Denied, "%w; ask to be put into the group that owns %s", err, socket)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return executor.Errorf(executor.Unavailable, "no daemon at %s: %w; start one, or name its socket", socket, err)
	case errors.Is(err, context.Canceled):
		return executor.AsError(err)
	}
	return executor.Errorf(executor.Unavailable, "%w", err)
}

// newConn is gRPC over n, once: a daemon that comes back knows nothing of this client.
func newConn(n net.Conn) (*grpc.ClientConn, error) {
	var used atomic.Bool
	return grpc.NewClient("passthrough:///sandboxd",
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			if used.Swap(true) {
				return nil, errors.New("the connection is gone; dial again")
			}
			return n, nil
		}),
		// A daemon that is being started may take its time; whoever dials bounds that.
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: time.Hour}),
		grpc.WithTransportCredentials(peerCredentials{}), grpc.WithAuthority("localhost"),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), grpc.WithIdleTimeout(0),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(newCodec()), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithStaticStreamWindowSize(windowBytes), grpc.WithStaticConnWindowSize(2*windowBytes),
		grpc.WithReadBufferSize(bufferBytes), grpc.WithWriteBufferSize(bufferBytes),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
	)
}

// start puts a Handle on the stream.
func (c *Client) start(ctx context.Context, stream pb.Executor_SessionClient) {
	tx, rx := make(chan executor.Request), make(chan executor.Response)
	c.Handle = executor.NewHandle(tx, rx)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for {
			select {
			case r := <-tx:
				if stream.Send(toRequest(r)) != nil {
					return // receive learns why
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	go func() {
		defer close(c.done)
		rx <- executor.Response{Body: receiveAnswers(ctx, stream, rx)}
		close(rx)
		c.end()
		_ = c.grpc.Close()
		<-sent
	}()
}

// receiveAnswers passes answers on until the stream ends, and says why it did.
func receiveAnswers(ctx context.Context, stream pb.Executor_SessionClient, rx chan<- executor.Response) *executor.Error {
	parts := map[uint64]*pb.TaskOutput{}
	for {
		var a answer
		err := stream.RecvMsg(&a)
		switch {
		case err == io.EOF:
			return executor.Errorf(executor.Unavailable, "the daemon has shut down; dial again when it is back")
		case ctx.Err() != nil:
			return executor.Errorf(executor.Unavailable, "the connection was closed; dial again")
		case err != nil:
			return fromStatus(err)
		case a.event != nil:
			rx <- executor.Response{ID: a.event.id, Body: a.event.TaskEvent}
			continue
		}
		m := a.message
		switch b := m.GetBody().(type) {
		case *pb.Response_TaskResultPart:
			if parts[m.GetId()] == nil {
				parts[m.GetId()] = &pb.TaskOutput{}
			}
			proto.Merge(parts[m.GetId()], b.TaskResultPart)
			continue
		case *pb.Response_TaskResult:
			if o := parts[m.GetId()]; o != nil {
				proto.Merge(o, b.TaskResult)
				b.TaskResult = o
			}
		}
		r := fromResponse(m)
		if _, more := r.Body.(executor.TaskEvent); !more {
			delete(parts, r.ID)
		}
		rx <- r
	}
}

// Close closes the connection, which cancels the tasks that it still has; the daemon
// goes on (see Shutdown). It does not wait for an EventFunc; Execute does.
func (c *Client) Close(ctx context.Context) error {
	c.end()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return executor.AsError(ctx.Err())
	}
}

// ReadBlob writes the blob d to w as it comes. A few blobs are read at a time; further
// calls wait for them. An error means that w got part of it or,
// where size or hash turned out wrong at the end, something else.
func (c *Client) ReadBlob(ctx context.Context, d executor.Digest, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the stream where it is left early
	stream, err := c.blob.ReadBlob(ctx, &pb.Digest{Hash: text(d.Hash), Size: d.Size})
	if err != nil {
		return fromStatus(err)
	}
	sum, left := sha256.New(), d.Size
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fromStatus(err)
		}
		if left -= int64(len(m.GetData())); left < 0 {
			return executor.Errorf(executor.Internal, "blob %v is larger than its digest says; verify the daemon's cache", d)
		}
		sum.Write(m.GetData())
		if _, err := w.Write(m.GetData()); err != nil {
			return err
		}
	}
	if left != 0 || hex.EncodeToString(sum.Sum(nil)) != d.Hash {
		return executor.Errorf(executor.Internal, "blob %v is not what its digest says; verify the daemon's cache", d)
	}
	return nil
}
