package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/executor"
	"github.com/sandboxd/sandboxd/internal/testutil"
)

// told records what a supervisor was told.
type told struct {
	mu    sync.Mutex
	all   []string
	fresh chan string
}

func newTold() *told { return &told{fresh: make(chan string, 64)} }

func (s *told) send(state string) error {
	s.mu.Lock()
	s.all = append(s.all, state)
	s.mu.Unlock()
	s.fresh <- state
	return nil
}

// await returns once a state that begins with prefix was told.
func (s *told) await(prefix string) string {
	for state := range s.fresh {
		if strings.HasPrefix(state, prefix) {
			return state
		}
	}
	return ""
}

// fileOf is a socket's descriptor, as one that is passed on.
func fileOf(t *testing.T, s interface{ File() (*os.File, error) }, err error) *os.File {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	f, err := s.File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestGivenSocketIsServedAndStays(t *testing.T) {
	testutil.CheckLeaks(t)
	path := filepath.Join(socketDir(t), "s")
	own, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	given := fileOf(t, own, err)
	defer own.Close()
	states := newTold()
	e, _, errs := testEnv("serve", "--socket", "/nowhere/s", "--state-dir", "/nowhere/state")
	signals := make(chan os.Signal)
	e.signals = signals
	h := results(executor.TaskOutput{Cause: executor.CauseExited})
	e.parts.openHost = func(context.Context, config, logrus.FieldLogger) (host, error) { return h, nil }
	e.supervisor = func() (supervisor, error) {
		return supervisor{sockets: []*os.File{given}, send: states.send}, nil
	}
	exit := make(chan int)
	go func() { exit <- run(context.Background(), e) }()
	states.await("READY=1")
	if st := states.await("WATCHDOG=1"); !strings.Contains(st, "STATUS=0 tasks running, 5 done") {
		t.Errorf("%q", st)
	}
	d := &daemon{socket: path}
	if code, _, errs := d.client("", "ping"); code != 0 {
		t.Errorf("exit %d: %s", code, errs)
	}
	signals <- syscall.SIGHUP
	states.await("RELOADING=1\nMONOTONIC_USEC=")
	states.await("READY=1")
	signals <- syscall.SIGTERM
	if st := states.await("STOPPING=1"); !strings.Contains(st, "EXTEND_TIMEOUT_USEC=90000000") { // 30 s, and twice as much to clean
		t.Errorf("%q", st)
	}
	if code := <-exit; code != 0 {
		t.Errorf("exit %d: %s", code, errs)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket that is another's: %v", err)
	}
	if err := given.Close(); err == nil {
		t.Error("the descriptor that was passed on is still open")
	}
}

func TestGivenSocketMustBeOneToListenOn(t *testing.T) {
	testutil.CheckLeaks(t)
	dir := socketDir(t)
	unixAt := func(name string) *net.UnixAddr {
		return &net.UnixAddr{Name: filepath.Join(dir, name), Net: "unix"}
	}
	listening, err := net.ListenUnix("unix", unixAt("listening"))
	if err != nil {
		t.Fatal(err)
	}
	defer listening.Close()
	connected, err := net.DialUnix("unix", nil, unixAt("listening"))
	if err != nil {
		t.Fatal(err)
	}
	defer connected.Close()
	datagrams, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "datagrams"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer datagrams.Close()
	abstract, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@" + dir, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer abstract.Close()
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want  string
		given []*os.File
	}{
		{"nobody listens", []*os.File{fileOf(t, connected, nil)}},
		{"nobody listens", []*os.File{fileOf(t, datagrams, nil)}},
		{"no Unix stream", []*os.File{fileOf(t, tcp, nil)}},
		{"with a path", []*os.File{fileOf(t, abstract, nil)}},
		{"passed to the daemon", []*os.File{file}},
		{"which takes one", []*os.File{fileOf(t, listening, nil), fileOf(t, listening, nil)}},
	} {
		if claim, err := claimSocket("/nowhere/s", c.given); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, %v; want %q", claim, err, c.want)
		}
		if err := c.given[0].Close(); err == nil {
			t.Errorf("%q: the descriptor is still open", c.want)
		}
	}
	// One that is served already by a daemon that was given it as well.
	first, err := claimSocket("", []*os.File{fileOf(t, listening, nil)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claimSocket("", []*os.File{fileOf(t, listening, nil)}); err == nil || !strings.Contains(err.Error(), "another daemon") {
		t.Errorf("a second one: %v", err)
	}
	if err := first.release(); err != nil {
		t.Error(err)
	}
}

func TestWatchdogHearsOfTheHealthyAlone(t *testing.T) {
	log := logrus.New()
	out := newWatched()
	log.SetOutput(out)
	h := results(executor.TaskOutput{})
	states, stop, done := newTold(), make(chan struct{}), make(chan struct{})
	h.sick = errors.New("no lock to be had")
	go func() {
		defer close(done)
		supervisor{watchdog: 3 * time.Millisecond, send: states.send}.watch(h, log, stop)
	}()
	if !out.await("no lock to be had") {
		t.Error("what is wrong was not logged")
	}
	states.mu.Lock()
	if len(states.all) != 0 {
		t.Errorf("told of a sick host: %q", states.all)
	}
	states.mu.Unlock()
	h.mu.Lock()
	h.sick = nil
	h.mu.Unlock()
	states.await("WATCHDOG=1")
	go func() { // so that it is never held up
		for range states.fresh {
		}
	}()
	close(stop)
	<-done
	close(states.fresh)
}

func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	load := func() (config, error) {
		c, err := readConfig(file, "")
		if err != nil {
			return c, err
		}
		return c, c.validate()
	}
	log := logrus.New()
	h := results(executor.TaskOutput{})
	said := func(old config) (config, string) {
		out := newWatched()
		log.SetOutput(out)
		return reload(old, load, h, log), out.String()
	}
	old := defaultConfig()
	write("cache_max_bytes = \"1GiB\"\nshutdown_grace = \"7s\"\nlog_level = \"debug\"\nstate_dir = \"/elsewhere\"\n" +
		"[limits]\nallow_unenforced = true\n[network]\ndeny = [\"10.0.0.0/8\"]\n[[access]]\nuser = 7\n")
	now, text := said(old)
	for _, want := range []string{
		`configuration changed" from=21474836480 key=cache_max_bytes to=1073741824`, `configuration changed" from=30s key=shutdown_grace to=7s`,
		"key=log_level to=debug", "key=access", `level=warning msg="configuration changed, but this key takes a restart" from=/var/lib/sandboxd key=state_dir to=/elsewhere`,
		"key=limits", `key=network to="{Deny:[10.0.0.0/8] DenyDefaults:true ResolvConf:}"`, "configuration reloaded",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q was not said: %s", want, text)
		}
	}
	if strings.Count(text, "takes a restart") != 3 {
		t.Errorf("%s", text)
	}
	if h.config.CacheMaxBytes != 1<<30 || len(h.config.rules) != 1 || log.GetLevel() != logrus.DebugLevel || now.ShutdownGrace.Duration != 7*time.Second {
		t.Errorf("the host has %+v, the log's level is %v", h.config, log.GetLevel())
	}
	if now.StateDir != old.StateDir || h.config.StateDir != old.StateDir || now.Limits.AllowUnenforced {
		t.Errorf("what takes a restart was taken over: %+v", now)
	}
	for _, broken := range []string{"cache_max_bytes = 7\n", "no_such_key = 1\n", "log_level = \"loud\"\n", "=\n"} {
		write(broken)
		if after, text := said(now); !strings.Contains(text, "stays in force") || after.CacheMaxBytes != now.CacheMaxBytes || h.config.CacheMaxBytes != 1<<30 {
			t.Errorf("%q: %+v, %s", broken, after, text)
		}
	}
}

// TestReloadableKeysAreKeys, so that none is renamed and then forgotten.
func TestReloadableKeysAreKeys(t *testing.T) {
	for key := range reloadable {
		c := defaultConfig()
		if err := decodeConfig([]byte(key+" = {}"), &c); err != nil && strings.Contains(err.Error(), "unknown") {
			t.Error(err)
		}
	}
}

// TestExampleConfiguration: the one that is installed shows the defaults.
func TestExampleConfiguration(t *testing.T) {
	b, err := os.ReadFile("../../systemd/sandboxd.toml")
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	keys := 0
	for l := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(l, "#"); ok && !strings.HasPrefix(s, " ") {
			text.WriteString(s)
			keys++
		}
	}
	got, want := defaultConfig(), defaultConfig()
	if err := decodeConfig([]byte(text.String()), &got); err != nil || keys < 8 {
		t.Fatalf("%d keys, %v:\n%s", keys, err, text.String())
	}
	got.MaxParallel, got.Warm = want.MaxParallel, want.Warm // the machine's
	old, log := want, logrus.New()
	out := newWatched()
	log.SetOutput(out)
	keep(&got, old, log)
	if s := out.String(); s != "" {
		t.Errorf("not the defaults: %s", s)
	}
}
