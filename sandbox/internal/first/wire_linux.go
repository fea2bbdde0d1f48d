package first

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Ask has the Serve process at the other end of sock make a first process, which is told what
// to do by the other end of inside. The pidfd is the caller's. One at a time may ask.
func Ask(sock, inside *os.File, r Request, timeout time.Duration) (pidfd *os.File, err error) {
	kind := ""
	switch {
	case r.Map:
		kind = "map"
	case r.Network:
		kind = "network"
	}
	if err := sendFiles(sock, []byte(strings.Join([]string{kind, r.UIDs, r.GIDs}, ";")), []*os.File{inside}); err != nil {
		return nil, err
	}
	return receiveAnswer(sock, timeout)
}

// AwaitServe waits until a Serve process is ready.
func AwaitServe(sock *os.File, timeout time.Duration) error {
	f, err := receiveAnswer(sock, timeout)
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	return err
}

func receiveAnswer(sock *os.File, timeout time.Duration) (*os.File, error) {
	if err := sock.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	text, files, err := receive(sock, maxText)
	switch {
	case err != nil:
		return nil, err
	case string(text) != string(rune(msgRun)) || len(files) > 1:
		CloseAll(files)
		return nil, errors.New(string(text))
	case len(files) == 0:
		return nil, nil
	}
	return files[0], nil
}

func receiveRequest(sock *os.File) (r Request, inside *os.File, err error) {
	text, files, err := receive(sock, maxText)
	if err != nil {
		return r, nil, err
	}
	f := strings.Split(string(text), ";")
	if len(f) != 3 || len(files) != 1 {
		CloseAll(files)
		return r, nil, errors.New("not a request")
	}
	return Request{Network: f[0] == "network", Map: f[0] == "map", UIDs: f[1], GIDs: f[2]}, files[0], nil
}

// Run sends a program of some steps, and the files that it names.
func Run(sock, program *os.File, steps, size int, files []*os.File) error {
	if len(files) > MaxFiles {
		return fmt.Errorf("a program with %d files; there may be %d", len(files), MaxFiles)
	}
	all := append([]*os.File{program}, files...)
	for len(all) > maxFDs {
		if err := sendFiles(sock, control(msgFiles, 0, 0), all[:maxFDs]); err != nil {
			return err
		}
		all = all[maxFDs:]
	}
	return sendFiles(sock, control(msgRun, steps, size), all)
}

// control is a message to a first process.
func control(kind byte, steps, size int) []byte {
	b := make([]byte, msgSize)
	for i, n := range []uint64{uint64(kind), uint64(steps), uint64(size)} {
		binary.NativeEndian.PutUint64(b[8*i:], n)
	}
	return b
}

// Terminate asks a first process to send SIGTERM to all in the sandbox. No error is
// that it has ended.
func Terminate(sock *os.File) error {
	err := sendFiles(sock, control(msgTerminate, 0, 0), nil)
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

// Receive waits for a Reply. io.EOF is the end of the first process; the files are the
// caller's.
func Receive(sock *os.File) (r Reply, text []byte, files []*os.File, err error) {
	b, files, err := receive(sock, ReplySize+maxText)
	if err == nil && len(b) < ReplySize {
		err = errors.New("reply: too short")
	}
	if err == nil {
		err = binary.Read(bytes.NewReader(b[:ReplySize]), binary.NativeEndian, &r)
	}
	if err != nil {
		CloseAll(files)
		return r, nil, nil, err
	}
	return r, b[ReplySize:], files, nil
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
func receive(sock *os.File, most int) (msg []byte, files []*os.File, err error) {
	msg, rights := make([]byte, most), make([]byte, unix.CmsgSpace(4*4))
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
