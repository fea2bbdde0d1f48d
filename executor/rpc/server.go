package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/reflection"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	// Executor runs the tasks. The Server closes it only upon a client's Shutdown.
	Executor executor.Executor
	// Blobs opens what a result names by its digest; nil if there is no such store. A
	// client may read what the results that its connection has seen name, and nothing
	// else: that one knows a digest does not show that one may have the content.
	Blobs interface {
		OpenBlob(context.Context, executor.Digest) (io.ReadCloser, error)
	}
	// Logger takes what is for the operator and not for clients; nil for nobody.
	Logger interface {
		Errorf(format string, args ...any)
	}
}

// Bounds of a server. What one user can make it hold is the number of connections
// times what Serve holds for each.
const (
	maxConns        = 512
	maxConnsPerUser = 64
	// reservedConns of maxConns are for root, who must be able to look and to stop it.
	reservedConns = maxConnsPerUser
	// maxTurnedAway connections beyond these are told so; they stay for turnAwayTime.
	maxTurnedAway = 16
	turnAwayTime  = time.Second
	// maxStreams is for each connection: one Session, and blobs that are being read.
	// Each can hold a message that is still coming, of maxMessage.
	maxStreams = 8
	// pieceBytes is the size of a message of ReadBlob.
	pieceBytes = 128 << 10
	// handshakeTime is how long a new connection may say nothing.
	handshakeTime = 5 * time.Second
	// flushTime is how long connections may take to end once their calls have.
	flushTime = 2 * time.Second
)

// Server answers clients on a socket. Its methods may be called by any goroutine.
type Server struct {
	config ServerConfig
	grpc   *grpc.Server
	health *health.Server
	conns  connections

	mu              sync.Mutex
	down            bool           // no more calls are counted
	sessions, blobs sync.WaitGroup // of the calls under way

	stop     sync.Once
	grace    context.Context // of Shutdown, set before stopping is closed
	stopping chan struct{}
	stopped  chan struct{}
}

// NewServer makes a Server that does nothing until Serve.
func NewServer(c ServerConfig) *Server {
	s := &Server{config: c, health: health.NewServer(), stopping: make(chan struct{}), stopped: make(chan struct{})}
	s.conns = connections{perUser: map[uint32]int{}, all: map[*conn]bool{}}
	s.grpc = grpc.NewServer(
		grpc.Creds(peerCredentials{}), grpc.ForceServerCodecV2(careful{newCodec()}),
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			if _, err := connOf(ctx); err != nil {
				return nil, toStatus(err)
			}
			return next(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			if _, err := connOf(stream.Context()); err != nil {
				return toStatus(err)
			}
			return next(srv, stream)
		}),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage), grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(16<<10), grpc.ConnectionTimeout(handshakeTime),
		grpc.StaticStreamWindowSize(windowBytes), grpc.StaticConnWindowSize(2*windowBytes),
		grpc.ReadBufferSize(bufferBytes), grpc.WriteBufferSize(bufferBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	pb.RegisterExecutorServer(s.grpc, service{s: s})
	healthpb.RegisterHealthServer(s.grpc, s.health)
	s.health.SetServingStatus(pb.Executor_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	reflection.Register(s.grpc)
	return s
}

// Serve answers the clients that come to l, a Unix socket, until Shutdown or a
// client's Shutdown is done; it returns nil then. It closes l.
func (s *Server) Serve(l net.Listener) error {
	err := s.grpc.Serve(&listener{Listener: l, conns: &s.conns})
	select {
	case <-s.stopping:
		<-s.stopped
		return nil
	default:
		return err
	}
}

// Shutdown refuses new connections and tasks, lets running tasks end until ctx
// does and then cancels them, and returns when every task is gone and was answered
// to whoever reads, and every connection is closed. The Executor stays open. Blobs
// may be read until ctx ends; other calls, such as a watch of the health, are ended
// once nothing else is left. Later calls wait for the first.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stop.Do(func() {
		s.mu.Lock()
		s.down = true
		s.mu.Unlock()
		s.grace = ctx
		s.health.Shutdown()
		close(s.stopping)
		ended, read := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			s.grpc.GracefulStop()
		}()
		s.sessions.Wait()
		go func() {
			defer close(read)
			s.blobs.Wait()
		}()
		select {
		case <-read:
		case <-ctx.Done():
		}
		select {
		case <-ended:
		case <-time.After(flushTime):
			s.conns.close()
			s.grpc.Stop()
			<-ended
		}
		<-read
		close(s.stopped)
	})
	<-s.stopped
	return nil
}

// enter counts a call that Shutdown waits for, unless that has begun.
func (s *Server) enter(calls *sync.WaitGroup) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return executor.Errorf(executor.Unavailable, "the daemon is shutting down; dial again when it is back")
	}
	calls.Add(1)
	return nil
}

func (s *Server) errorf(format string, args ...any) {
	if s.config.Logger != nil {
		s.config.Logger.Errorf(format, args...)
	}
}

// connOf is the connection of a call, unless its caller is refused.
func connOf(ctx context.Context) (*conn, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, errors.New("a call without a connection")
	}
	c, ok := p.AuthInfo.(authInfo)
	if !ok {
		return nil, errors.New("a call without credentials")
	}
	return c.conn, c.conn.refused
}

// service is the gRPC service of a Server.
type service struct {
	pb.UnimplementedExecutorServer
	s *Server
}

// Session serves one client.
func (v service) Session(stream pb.Executor_SessionServer) error {
	c, err := connOf(stream.Context())
	if err != nil {
		return toStatus(err)
	}
	if !c.session.CompareAndSwap(false, true) {
		return toStatus(executor.Errorf(executor.Unavailable, "the connection has a session; use that, or another connection"))
	}
	if err := v.s.enter(&v.s.sessions); err != nil {
		return toStatus(err)
	}
	defer v.s.sessions.Done()
	ctx, lose := context.WithCancel(stream.Context())
	defer lose()
	in, out := make(chan executor.Request), make(chan executor.Response)
	go func() { // ends with the stream: after this function, since Recv cannot be told to
		defer lose()
		receive(ctx, stream, c, in)
	}()
	var rest sync.WaitGroup
	rest.Go(func() {
		select {
		case <-v.s.stopping:
			offer(ctx, in, executor.Request{Body: executor.Drain{Grace: v.s.grace}})
		case <-ctx.Done():
		}
	})
	var down atomic.Bool
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		v.send(stream, c, out, lose, &down)
	}()
	executor.Serve(ctx, v.s.config.Executor, in, out)
	close(out)
	select {
	case <-sent:
	case <-time.After(flushTime): // nobody reads; the end of this call ends it
	}
	lose()
	rest.Wait()
	if down.Load() {
		// It waits for this call to end; Serve waits for it.
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), flushTime)
			defer cancel()
			_ = v.s.Shutdown(ctx)
		}()
	}
	return nil
}

// receive passes requests on until the stream ends or ctx does.
func receive(ctx context.Context, stream pb.Executor_SessionServer, c *conn, in chan<- executor.Request) {
	for {
		m, err := stream.Recv()
		if err != nil {
			return // the client went, or sent what is no message
		}
		r := fromRequest(m)
		by := c.by()
		r.Caller = &by
		if !offer(ctx, in, r) {
			return
		}
	}
}

func offer[T any](ctx context.Context, to chan<- T, v T) bool {
	select {
	case to <- v:
		return true
	case <-ctx.Done():
		return false
	}
}

// send sends what comes from out until it is closed, and sets down if that answers a
// Shutdown. Once the client cannot be reached it calls lose and drops the rest.
func (v service) send(stream pb.Executor_SessionServer, c *conn, out <-chan executor.Response, lose func(), down *atomic.Bool) {
	var lost bool
	put := func(m any) {
		if lost {
			return
		}
		if err := stream.SendMsg(m); err != nil {
			lost = true
			lose()
		}
	}
	for r := range out {
		switch b := r.Body.(type) {
		case executor.TaskEvent:
			if b.Platform == "" && b.Text == "" { // else it is as small as it is rare
				put(event{r.ID, b})
				continue
			}
		case executor.TaskResult:
			c.named.addResult(b.Output)
		case executor.ShutdownAck:
			down.Store(true)
		case *executor.Error:
			v.log(b)
		}
		for _, m := range split(toResponse(r)) {
			put(m)
		}
	}
}

// log tells the operator of a fault of ours, with what a client does not get to see.
func (v service) log(e *executor.Error) {
	var p *executor.PanicError
	switch {
	case errors.As(e, &p):
		v.s.errorf("executor panicked: %v\n%s", p.Value, p.Stack)
	case e.Kind == executor.Internal:
		v.s.errorf("internal error: %v", e)
	}
}

// ReadBlob sends a blob in pieces.
func (v service) ReadBlob(m *pb.Digest, stream pb.Executor_ReadBlobServer) error {
	err := v.readBlob(m, stream)
	if err == nil {
		return nil
	}
	e := executor.AsError(err)
	v.log(e)
	return toStatus(e)
}

func (v service) readBlob(m *pb.Digest, stream pb.Executor_ReadBlobServer) error {
	c, err := connOf(stream.Context())
	if err != nil {
		return err
	}
	d, err := executor.ParseDigest(fromDigest(m).String())
	if err != nil {
		return executor.FieldErrorf("digest", "%w", err)
	}
	if !c.mayRead(d) { // whether it is there or not
		return executor.Errorf(executor.Denied, "no result on this connection names the blob %v; run its task again on this one, and read it then", d)
	}
	if v.s.config.Blobs == nil {
		return executor.Errorf(executor.Unsupported, "this executor keeps no blobs; use what results hold themselves")
	}
	if err := v.s.enter(&v.s.blobs); err != nil {
		return err
	}
	defer v.s.blobs.Done()
	r, err := v.s.config.Blobs.OpenBlob(stream.Context(), d)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return sendBlob(r, stream)
}

func sendBlob(r io.Reader, stream pb.Executor_ReadBlobServer) error {
	piece := make([]byte, pieceBytes)
	for {
		n, err := io.ReadFull(r, piece)
		if n > 0 {
			if err := stream.Send(&pb.Blob{Data: piece[:n]}); err != nil {
				return executor.Errorf(executor.Unavailable, "the reader is gone: %w", err)
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF:
			return nil
		case err != nil:
			return err
		}
	}
}
