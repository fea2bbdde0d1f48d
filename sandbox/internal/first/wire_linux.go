package first

import (
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/netpolicy/inside"
)

// Order is what the first process of a sandbox is told: all of it at once. Files
// are given as indices into the descriptors that come along. It travels as a gob, since
// JSON would put U+FFFD where a script or an argument is not UTF-8.
type Order struct {
	Tree   []Node
	Mounts []MountOrder
	Inputs []MountOrder
	Work   WorkOrder
	// Remove are paths in the work directory that the command must not find.
	Remove []string
	Dev    int
	Stdio  [3]int

	Network  inside.Policy
	Script   string
	Argv     []string
	Env      []string
	TmpBytes int64
	// OpenFiles is the command's RLIMIT_NOFILE.
	OpenFiles uint64
	// Filter is the seccomp program, as the kernel takes it.
	Filter []unix.SockFilter
}

// Node is a directory, symbolic link or file of the root.
type Node struct {
	Path string // relative to the root
	Mode os.FileMode
	Link string
	Data []byte
}

// MountOrder attaches a detached mount.
type MountOrder struct {
	FD     int
	Target string
	Dir    bool
}

// WorkOrder makes /build. Indices are -1 where there is no such tree.
type WorkOrder struct {
	Lower, Layer, Direct int
}

// Report is what the first process says. A report of the end has the merged work
// directory as its descriptor.
type Report struct {
	// Error is why there is no command, and Target or Output the input or output at fault,
	// if one is.
	Error  string `json:",omitempty"`
	Target string `json:",omitempty"`
	Output string `json:",omitempty"`
	// Started is set when the command is about to run, with Found: what was read back.
	Found   []string `json:",omitempty"`
	Network string   `json:",omitempty"`
	Started bool     `json:",omitempty"`
	// Ended has Status, a wait status, and Own.
	Ended  bool   `json:",omitempty"`
	Status uint32 `json:",omitempty"`
	Own    Own
}

// Own is what the first process itself has used, and of I/O what all have.
type Own struct {
	UserUS, SystemUS, Threads int64
	Read, Write               int64 // bytes, of a storage device: proc_pid_io(5)
}

const (
	// maxFDs is SCM_MAX_FD, the most descriptors in one message.
	maxFDs = 253
	// MaxMounts bounds the descriptors of an order.
	MaxMounts = 1024
	// maxReport bounds a report.
	maxReport = 32 << 10
)

const (
	// msgTerminate asks to send SIGTERM to all processes.
	msgTerminate = 'T'
	// msgFiles brings descriptors for an order, msgOrder the last of them.
	msgFiles = 'F'
	msgOrder = 'O'
)

// SendOrder passes o in a memfd, since a message's size is bounded by socket
// buffers, and then files.
func SendOrder(sock *os.File, o *Order, files []*os.File) error {
	body, err := Memfd("order", func(w io.Writer) error { return gob.NewEncoder(w).Encode(o) })
	if err != nil {
		return err
	}
	defer body.Close()
	all := append([]*os.File{body}, files...)
	for len(all) > maxFDs {
		if err := sendFiles(sock, []byte{msgFiles}, all[:maxFDs]); err != nil {
			return err
		}
		all = all[maxFDs:]
	}
	return sendFiles(sock, []byte{msgOrder}, all)
}

// receiveOrder returns the order with its files, all close-on-exec.
func receiveOrder(sock *os.File) (*Order, []*os.File, error) {
	var files []*os.File
	for {
		msg, more, err := receive(sock)
		if err != nil {
			return nil, nil, err
		}
		files = append(files, more...)
		switch {
		case len(msg) != 1 || msg[0] != msgFiles && msg[0] != msgOrder || len(files) > MaxMounts+1:
			return nil, nil, errors.New("not an order")
		case msg[0] == msgFiles:
			continue
		}
		var o Order
		if len(files) == 0 {
			return nil, nil, errors.New("an order without a body")
		}
		if _, err := files[0].Seek(0, io.SeekStart); err != nil {
			return nil, nil, fmt.Errorf("order: %w", err)
		}
		if err := gob.NewDecoder(files[0]).Decode(&o); err != nil {
			return nil, nil, fmt.Errorf("order: %w", err)
		}
		files[0].Close()
		return &o, files[1:], nil
	}
}

// SendTerminate asks the first process to send SIGTERM to all in the sandbox. No error is
// that it has ended.
func SendTerminate(sock *os.File) error {
	err := sendFiles(sock, []byte{msgTerminate}, nil)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

func sendReport(sock *os.File, r Report, files ...*os.File) error {
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if len(b) > maxReport {
		return fmt.Errorf("report of %d bytes", len(b))
	}
	return sendFiles(sock, b, files)
}

// ReceiveReport waits for one. io.EOF is the end of the first process; the files are the
// caller's.
func ReceiveReport(sock *os.File) (r Report, files []*os.File, err error) {
	b, files, err := receive(sock)
	if err != nil {
		return r, nil, err
	}
	if err := json.Unmarshal(b, &r); err != nil {
		CloseAll(files)
		return r, nil, fmt.Errorf("report: %w", err)
	}
	return r, files, nil
}

func sendFiles(sock *os.File, msg []byte, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	conn, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	err = conn.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), msg, rights, nil, unix.MSG_NOSIGNAL)
		return sent != unix.EAGAIN && sent != unix.EINTR
	})
	if err = errors.Join(err, sent); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// receive returns one message. io.EOF is the end of the other process.
func receive(sock *os.File) (msg []byte, files []*os.File, err error) {
	msg, rights := make([]byte, maxReport), make([]byte, unix.CmsgSpace(maxFDs*4))
	var n, rn, flags int
	conn, err := sock.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	var got error
	err = conn.Read(func(fd uintptr) bool {
		n, rn, flags, _, got = unix.Recvmsg(int(fd), msg, rights, unix.MSG_CMSG_CLOEXEC)
		return got != unix.EAGAIN && got != unix.EINTR
	})
	if err = errors.Join(err, got); err != nil {
		if errors.Is(err, unix.ECONNRESET) {
			return nil, nil, io.EOF
		}
		return nil, nil, fmt.Errorf("receive: %w", err)
	}
	if rn > 0 {
		if files, err = parseRights(rights[:rn]); err != nil {
			return nil, nil, err
		}
	}
	if flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
		CloseAll(files)
		return nil, nil, errors.New("receive: message was cut off")
	}
	if n == 0 {
		CloseAll(files)
		return nil, nil, io.EOF
	}
	return msg[:n], files, nil
}

func parseRights(b []byte) (files []*os.File, err error) {
	msgs, err := unix.ParseSocketControlMessage(b)
	if err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("received-%d", fd)))
		}
	}
	return files, nil
}

// CloseAll closes files that were only read, or passed on: their errors say nothing.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// SocketPair returns two ends of a socket that keeps messages apart. The first
// can be waited for without a thread.
func SocketPair() (host, inside *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, fmt.Errorf("socket pair: %w", err)
	}
	return os.NewFile(uintptr(fds[0]), "sandbox"), os.NewFile(uintptr(fds[1]), "host"), nil
}

// Memfd makes a sealed file of what fill writes, at offset 0.
func Memfd(name string, fill func(io.Writer) error) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := fill(f); err != nil {
		return nil, errors.Join(fmt.Errorf("memfd %s: %w", name, err), f.Close())
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, errors.Join(fmt.Errorf("memfd %s: %w", name, err), f.Close())
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return nil, errors.Join(fmt.Errorf("seal memfd %s: %w", name, err), f.Close())
	}
	return f, nil
}
