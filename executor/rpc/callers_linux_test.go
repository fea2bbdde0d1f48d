package rpc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/sandboxd/sandboxd/executor"
	pb "github.com/sandboxd/sandboxd/executor/executorpb"
	"github.com/sandboxd/sandboxd/executor/rpc"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// alice and bob are users that no account belongs to; nor does anything on this machine.
const alice, bob = 4001, 4002

// asIDs is as, with groups.
func asIDs(t *testing.T, uid, gid int, groups []uint32, f func()) {
	t.Helper()
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever
		const keep = ^uintptr(0)
		_, _, e1 := syscall.RawSyscall(syscall.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0)
		_, _, e2 := syscall.RawSyscall(syscall.SYS_SETRESGID, keep, uintptr(gid), keep)
		_, _, e3 := syscall.RawSyscall(syscall.SYS_SETRESUID, keep, uintptr(uid), keep)
		if e1 != 0 || e2 != 0 || e3 != 0 {
			errs <- fmt.Errorf("become %d:%d: %w, %w, %w", uid, gid, e1, e2, e3)
			return
		}
		f()
		errs <- nil
	}()
	if err := <-errs; err != nil {
		t.Fatal(err)
	}
}

// toldCallers serves an executor that tells who calls.
func toldCallers(t *testing.T) (told func() executor.Caller, socket string) {
	t.Helper()
	got := make(chan executor.Caller, 1)
	_, socket = serve(t, rpc.ServerConfig{Executor: probe{output: func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
		c, _ := executor.CallerFrom(ctx)
		got <- c
		return &executor.TaskOutput{}, nil
	}}})
	public(t, socket)
	return func() executor.Caller { return <-got }, socket
}

// ask runs a task, for the sake of who is seen to ask for it.
func ask(t *testing.T, c *rpc.Client) {
	t.Helper()
	if _, err := c.Execute(t.Context(), &executor.TaskSpec{Script: "x"}); err != nil {
		t.Fatal(err)
	}
}

// clientOver is a Client whose connection is n: it is handed over by a socket of its own.
func clientOver(t *testing.T, n net.Conn) *grpc.ClientConn {
	t.Helper()
	return connect(t, "unused", grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return n, nil }))
}

func TestCallersGroupsComeFromTheSocket(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	told, socket := toldCallers(t)
	many := make([]uint32, 300) // more than there is room for at first
	for i := range many {
		many[i] = 5000 + uint32(i)
	}
	for _, c := range []struct{ have, want []uint32 }{
		{nil, nil}, {[]uint32{5000, 7}, []uint32{7, 5000}}, {many, many}, {[]uint32{5000, 65534}, []uint32{5000}},
	} {
		var client *rpc.Client
		var err error
		asIDs(t, alice, 4444, c.have, func() { client, err = rpc.Dial(t.Context(), socket) })
		if err != nil {
			t.Fatal(err)
		}
		ask(t, client)
		if got := told(); got.UID != alice || got.GID != 4444 || fmt.Sprint(got.Groups) != fmt.Sprint(c.want) && len(got.Groups)+len(c.want) > 0 {
			t.Errorf("caller %+v; want %v", got, c.want)
		}
		if err := client.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// actorEnv makes this binary another process of a test.
const actorEnv = "SANDBOXD_TEST_ACTOR"

// actors hold a socket pair as descriptor 3.
var actors = map[string]func(t *testing.T, pair *net.UnixConn, socket string){
	// connect connects, and gives the connection away.
	"connect": func(t *testing.T, pair *net.UnixConn, socket string) {
		n := dialRaw(t, socket)
		f, err := n.(*net.UnixConn).File()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := pair.WriteMsgUnix([]byte("x"), unix.UnixRights(int(f.Fd())), nil); err != nil {
			t.Fatal(err)
		}
		_, _ = pair.Read(make([]byte, 1)) // until it is to end
	},
	// serve is a daemon that tells of each caller.
	"serve": func(t *testing.T, pair *net.UnixConn, socket string) {
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		public(t, socket)
		s := rpc.NewServer(rpc.ServerConfig{Executor: probe{output: func(ctx context.Context, _ *executor.TaskSpec) (*executor.TaskOutput, error) {
			c, _ := executor.CallerFrom(ctx)
			b, err := json.Marshal(c)
			return &executor.TaskOutput{Evidence: string(b)}, err
		}}})
		if _, err := pair.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = pair.Read(make([]byte, 1))
			_ = s.Shutdown(context.Background())
		}()
		if err := s.Serve(l); err != nil {
			t.Fatal(err)
		}
	},
}

func TestActor(t *testing.T) {
	how := os.Getenv(actorEnv)
	if how == "" {
		t.Skip("is run by other tests")
	}
	n, err := net.FileConn(os.NewFile(3, "pair"))
	if err != nil {
		t.Fatal(err)
	}
	actors[how](t, n.(*net.UnixConn), os.Getenv(actorEnv+"_SOCKET"))
}

// actor starts one and waits until it is ready. It ends with the test, or with end.
func actor(t *testing.T, how, socket string, attr *syscall.SysProcAttr) (message, rights []byte, pid int, end func()) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	far := os.NewFile(uintptr(fds[1]), "far")
	defer far.Close()
	near := os.NewFile(uintptr(fds[0]), "near")
	n, err := net.FileConn(near)
	near.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestActor$")
	cmd.Env = append(os.Environ(), actorEnv+"="+how, actorEnv+"_SOCKET="+socket)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.SysProcAttr = os.Stderr, os.Stderr, []*os.File{far}, attr
	if err := cmd.Start(); err != nil {
		n.Close()
		t.Fatal(err)
	}
	far.Close()
	var ended bool
	end = func() {
		if ended {
			return
		}
		ended = true
		_ = n.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the actor: %v", err)
		}
	}
	t.Cleanup(end)
	message, rights = make([]byte, 1), make([]byte, 64)
	_, k, _, _, err := n.(*net.UnixConn).ReadMsgUnix(message, rights)
	if err != nil {
		t.Fatalf("the actor is not ready: %v", err)
	}
	return message, rights[:k], cmd.Process.Pid, end
}

// TestAPassedConnectionStaysWhoseItWas: who was given a connection is still taken for who made it, and
// the number of that one's process is told as long as it is its own.
func TestAPassedConnectionStaysWhoseItWas(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	told, socket := toldCallers(t)
	_, rights, pid, end := actor(t, "connect", socket, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: alice, Gid: 4444, Groups: []uint32{5000}}})
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("descriptors %v, %v", fds, err)
	}
	unix.CloseOnExec(fds[0])
	f := os.NewFile(uintptr(fds[0]), "passed")
	n, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	cc := clientOver(t, n)
	s, err := pb.NewExecutorClient(cc).Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := &session{t, s, cc}
	caller := func(id uint64) executor.Caller {
		m.send(task(id, script("x")))
		c := told()
		if r := m.recv(); r.GetTaskResult() == nil {
			t.Fatalf("answer %v", r)
		}
		return c
	}
	if c := caller(1); c.UID != alice || c.GID != 4444 || fmt.Sprint(c.Groups) != "[5000]" || c.PID != 0 && int(c.PID) != pid || c.PID == 0 && tellsProcesses(t) {
		t.Errorf("caller %+v; want process %d of %d:4444", c, pid, alice)
	}
	end()
	if c := caller(2); c.UID != alice || c.GID != 4444 || fmt.Sprint(c.Groups) != "[5000]" || c.PID != 0 {
		t.Errorf("caller %+v; want no process of %d:4444", c, alice)
	}
	_ = cc.Close()
}

// tellsProcesses reports whether the kernel has SO_PEERPIDFD.
func tellsProcesses(t *testing.T) bool {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err == unix.ENOPROTOOPT {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	return unix.Close(fd) == nil
}

// TestIDsWithoutAMappingAreRefused: a daemon in a user namespace sees all users of outside as one.
func TestIDsWithoutAMappingAreRefused(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	dir, err := os.MkdirTemp("", "rpc-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := dir + "/s"
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	actor(t, "serve", socket, &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids})
	for _, c := range []struct {
		uid, gid int
		groups   []uint32
		refused  string
	}{
		{0, 0, nil, ""},
		{alice, 0, nil, "your user has no id here"},
		{0, 4444, nil, "your group has no id here"},
		{0, 0, []uint32{5000}, ""},
	} {
		var client *rpc.Client
		var err error
		asIDs(t, c.uid, c.gid, c.groups, func() { client, err = rpc.Dial(t.Context(), socket) })
		if c.refused != "" {
			if executor.KindOf(err) != executor.Denied || !strings.Contains(err.Error(), c.refused) {
				t.Errorf("%d:%d: %v; want %q", c.uid, c.gid, err, c.refused)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		out, err := client.Execute(t.Context(), &executor.TaskSpec{Script: "x"})
		if err != nil {
			t.Fatal(err)
		}
		var got executor.Caller
		if err := json.Unmarshal([]byte(out.Evidence), &got); err != nil {
			t.Fatal(err)
		}
		if got.UID != 0 || got.GID != 0 || len(got.Groups) != 0 {
			t.Errorf("groups %v: caller %+v", c.groups, got)
		}
		if err := client.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

// TestADaemonOfNobodys serves its own user, unless that one cannot be told from all those who have no id in its user namespace.
func TestADaemonOfNobodys(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	const nobody = 65534
	ids := []syscall.SysProcIDMap{{ContainerID: nobody, HostID: 0, Size: 1}}
	all, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		attr   *syscall.SysProcAttr
		caller int
		served bool
	}{
		"nobody's":                {&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}, nobody, strings.Join(strings.Fields(string(all)), " ") == "0 0 4294967295"},
		"nobody's in a namespace": {&syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "rpc-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			if err := os.Chown(dir, c.caller, c.caller); err != nil {
				t.Fatal(err)
			}
			socket := dir + "/s"
			actor(t, "serve", socket, c.attr)
			var client *rpc.Client
			asIDs(t, c.caller, c.caller, nil, func() { client, err = rpc.Dial(t.Context(), socket) })
			if c.served != (err == nil) || err != nil && (executor.KindOf(err) != executor.Denied || !strings.Contains(err.Error(), "your user has no id here, or is nobody")) {
				t.Errorf("%v", err)
			}
			if err == nil {
				if err := client.Close(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestTasksAreTheirCallersAlone: another user, and another connection of the same, neither ends a
// task nor hears of it by using its id, and gets nothing that it made by knowing its digest.
func TestTasksAreTheirCallersAlone(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	_, socket := fake(t)
	public(t, socket)
	sessionAs := func(uid int) *session {
		var n net.Conn
		var err error
		as(t, uid, func() { n, err = net.Dial("unix", socket) })
		if err != nil {
			t.Fatal(err)
		}
		cc := clientOver(t, n)
		s, err := pb.NewExecutorClient(cc).Session(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return &session{t, s, cc}
	}
	a := sessionAs(alice)
	spec := script("head -c 100000 /dev/zero; read line")
	release := hold(t, spec)
	r := task(1, spec)
	r.GetExecuteTask().Events = true
	a.send(r)
	if m := a.recv(); m.GetTaskEvent() == nil {
		t.Fatalf("%v", m)
	}
	others := []*session{sessionAs(bob), sessionAs(alice)}
	for _, o := range others {
		for id := uint64(1); id < 10; id++ {
			o.send(&pb.Request{Id: id, Body: &pb.Request_CancelTask{CancelTask: &pb.CancelTask{}}})
			o.send(&pb.Request{Id: id, Body: &pb.Request_EventsTaken{EventsTaken: &pb.EventsTaken{Events: 1}}})
		}
		for id := uint64(1); id < 10; id++ {
			o.ping(id) // read after those, and the next that it is told
		}
		o.send(&pb.Request{Id: 10, Body: &pb.Request_GetStatus{GetStatus: &pb.GetStatus{}}})
		if s := o.recv().GetStatus(); s == nil || s.GetActiveTasks() != 1 {
			t.Errorf("status %v", s)
		}
	}
	release()
	var result *pb.TaskOutput
	for result == nil {
		m := a.recv()
		if result = m.GetTaskResult(); result == nil && m.GetTaskEvent() == nil {
			t.Fatalf("%v", m)
		}
		a.send(&pb.Request{Id: 1, Body: &pb.Request_EventsTaken{EventsTaken: &pb.EventsTaken{Events: 1}}})
	}
	if result.GetCause() != string(executor.CauseExited) {
		t.Errorf("it ended with %s", result.GetCause())
	}
	blob := func(cc *grpc.ClientConn, d *pb.Digest) (n int, err error) {
		s, err := pb.NewExecutorClient(cc).ReadBlob(t.Context(), d)
		if err != nil {
			return 0, err
		}
		for {
			b, err := s.Recv()
			if err == io.EOF {
				return n, nil
			}
			if err != nil {
				return n, err
			}
			n += len(b.GetData())
		}
	}
	d := result.GetStdout().GetDigest()
	if n, err := blob(a.cc, d); err != nil || n != 100000 {
		t.Errorf("alice's blob has %d bytes, %v", n, err)
	}
	absent := &pb.Digest{Hash: strings.Repeat("a", 64), Size: 1}
	for _, o := range others {
		_, err := blob(o.cc, d)
		_, err2 := blob(o.cc, absent)
		if err == nil || !strings.Contains(err.Error(), "no result on this connection names") {
			t.Errorf("another's blob: %v", err)
		}
		// Nor whether there is one.
		if err == nil || err2 == nil || strings.ReplaceAll(err.Error(), d.GetHash()+"/100000", "") != strings.ReplaceAll(err2.Error(), absent.GetHash()+"/1", "") {
			t.Errorf("%v is told apart from %v", err, err2)
		}
	}
	// Who has run it, too, may.
	others[0].send(task(1, script("head -c 100000 /dev/zero")))
	others[0].recv()
	if n, err := blob(others[0].cc, d); err != nil || n != 100000 {
		t.Errorf("bob's own blob has %d bytes, %v", n, err)
	}
	if err := dial(t, socket).ReadBlob(t.Context(), executor.Digest{Hash: d.GetHash(), Size: d.GetSize()}, io.Discard); err != nil {
		t.Errorf("root: %v", err)
	}
	for _, o := range append(others, a) {
		_ = o.cc.Close()
	}
}

// TestStatusTellsNumbers: what all may ask for names nobody's tasks.
func TestStatusTellsNumbers(t *testing.T) {
	names := map[string]bool{"Name": true, "Fault": true, "Platforms": true} // of an executor
	for _, s := range []reflect.Type{reflect.TypeFor[executor.Status](), reflect.TypeFor[executor.MemberStatus]()} {
		for i := range s.NumField() {
			f := s.Field(i)
			if k := f.Type.Kind(); k != reflect.Int64 && k != reflect.Bool && f.Type != reflect.TypeFor[[]executor.MemberStatus]() && !names[f.Name] {
				t.Errorf("%s is a %v", f.Name, k)
			}
		}
	}
}

// TestNamedBlobsAreBounded: a connection forgets which blobs it may read, the oldest first.
func TestNamedBlobsAreBounded(t *testing.T) {
	testutil.RequireRoot(t)
	testutil.CheckLeaks(t)
	digest := func(task, i int) executor.Digest {
		return executor.Digest{Hash: fmt.Sprintf("%032x%032x", task, i), Size: 4}
	}
	const files = 30_000
	n := 0
	_, socket := serve(t, rpc.ServerConfig{Blobs: four{}, Executor: probe{output: func(context.Context, *executor.TaskSpec) (*executor.TaskOutput, error) {
		out := &executor.TaskOutput{Stdout: executor.Stream{Digest: digest(n, files), Truncated: true}}
		for i := range files {
			out.OutputFiles = append(out.OutputFiles, executor.OutputFile{Path: fmt.Sprint(i), Kind: executor.KindFile, Digest: digest(n, i)})
		}
		n++
		return out, nil
	}}})
	public(t, socket)
	c, err := dialAs(t, alice, socket)
	if err != nil {
		t.Fatal(err)
	}
	readable := func(d executor.Digest) bool {
		t.Helper()
		var b bytes.Buffer
		err := c.ReadBlob(t.Context(), d, &b)
		if k := executor.KindOf(err); k != executor.Denied && k != executor.Internal { // its content is not what the digest says
			t.Fatalf("%v: %v", d, err)
		}
		return executor.KindOf(err) != executor.Denied
	}
	for i := range 4 {
		ask(t, c)
		for _, d := range []executor.Digest{digest(i, 0), digest(i, files-1), digest(i, files)} {
			if !readable(d) {
				t.Errorf("%v of the latest result may not be read", d)
			}
		}
	}
	if readable(digest(0, 0)) || readable(digest(0, files)) {
		t.Error("a result of long ago is remembered")
	}
	if err := c.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// four is a store whose blobs all have the same four bytes.
type four struct{}

func (four) OpenBlob(context.Context, executor.Digest) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("four")), nil
}
