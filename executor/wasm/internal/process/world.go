package process

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"

	wasys "github.com/tetratelabs/wazero/sys"

	"github.com/sandboxd/sandboxd/executor/wasm/internal/abi"
	"github.com/sandboxd/sandboxd/executor/wasm/internal/wire"
)

// ping sees that the component can be instantiated, and says that it is well.
func (w *worker) ping(ctx context.Context) error {
	i, err := w.instance(ctx)
	if err != nil {
		return err
	}
	defer i.close()
	well := false
	err = i.use(func(c *abi.Instance) (err error) {
		well, err = c.Ping(i.ctx)
		return err
	})
	if err == nil && !well {
		err = errors.New("its ping says false")
	}
	if err != nil {
		s := err.Error()
		return fmt.Errorf("the component cannot be used: %s", s[:min(len(s), maxTrap)])
	}
	return nil
}

// make makes the component's instance.
func (i *instance) make() (err error) {
	i.made, err = i.rt.InstantiateModule(i.ctx, i.module, i.config().WithStartFunctions("_initialize"))
	return err
}

// makeAhead makes the instance before there is a task. It is for components that have nothing of the task's to see
// when they are initialised. What goes wrong goes wrong again once there is a task.
func (i *instance) makeAhead() {
	defer func() {
		if recover() != nil {
			i.unmake()
		}
	}()
	if i.make() != nil {
		i.unmake()
	}
}

// unmake has the instance be gone. Nobody is left who could be told of an error.
func (i *instance) unmake() {
	if i.made != nil {
		_ = i.made.Close(i.ctx)
		i.made = nil
	}
	i.mem.peak, i.mem.refused = 0, false
}

// use has f use the component's instance. The error is f's, or a trap.
func (i *instance) use(f func(*abi.Instance) error) (err error) {
	defer func() {
		i.called = nil
		if x := recover(); x != nil {
			err = trapOf(x)
		}
		var exit *wasys.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("the component exited with %d, which is for commands", exit.ExitCode())
		}
	}()
	if i.made != nil && i.mem.limit != 0 && i.mem.peak > i.mem.limit {
		i.unmake() // it has more than the task may, and is made again within that
	}
	if i.made == nil {
		if err := i.make(); err != nil {
			return err
		}
	}
	i.called = abi.NewInstance(i.made)
	return f(i.called)
}

// component runs the task by execute-task; the error is a *sys.ExitError for an exit code that is
// not 0, an *abi.TaskError, or a trap.
func (i *instance) component() error {
	s := i.order.Spec
	if s == nil {
		return errOrder
	}
	var out *abi.TaskOutput
	err := i.use(func(c *abi.Instance) (err error) {
		spec := abi.TaskSpec(*s)
		out, err = c.ExecuteTask(i.ctx, &spec)
		return err
	})
	if err != nil {
		return err
	}
	i.files = out.OutputFiles
	if err := errors.Join(i.out.stream(wire.KindStdout, []byte(out.Stdout)), i.out.stream(wire.KindStderr, []byte(out.Stderr))); err != nil {
		return err
	}
	code := uint32(out.ExitCode)
	if out.ExitCode < 0 {
		code = math.MaxUint8
	}
	return wasys.NewExitError(code)
}

// Instance implements abi.Host.
func (i *instance) Instance() *abi.Instance { return i.called }

// FetchFile implements abi.Host.
func (i *instance) FetchFile(hash string) ([]byte, error) { return i.ask(wire.KindFetch, []byte(hash)) }

// StoreFile implements abi.Host.
func (i *instance) StoreFile(content []byte) (string, error) {
	b, err := i.ask(wire.KindStore, content)
	return string(b), err
}

// ask has the executor answer.
func (i *instance) ask(k wire.Kind, body []byte) ([]byte, error) {
	i.gc.called()
	if i.order == nil {
		return nil, errors.New("there is no task yet")
	}
	if err := wire.Write(i.out, k, body); err != nil {
		return nil, err
	}
	b, err := i.next(wire.KindReply)
	switch {
	case err != nil:
		return nil, err
	case len(b) == 0:
		return nil, errOrder
	case b[0] != 0:
		return nil, &abi.RefusedError{Text: string(b[1:])}
	}
	return b[1:], nil
}

// maxLog bounds a line of a component's log.
const maxLog = 64 << 10

// controls makes visible what would make more than a line of one, or be obeyed by a terminal.
var controls = func() *strings.Replacer {
	var pairs []string
	for c := range rune(0xa0) {
		if unicode.IsControl(c) && c != '\t' {
			q := strconv.QuoteRune(c)
			pairs = append(pairs, string(c), q[1:len(q)-1])
		}
	}
	return strings.NewReplacer(pairs...)
}()

// Log implements abi.Host: a line of standard error.
func (i *instance) Log(level, message string) {
	i.gc.called()
	line := fmt.Sprintf("[%.32s] %s", controls.Replace(level), controls.Replace(message))
	// An error is told with the next frame that matters.
	_ = i.out.stream(wire.KindStderr, append([]byte(line[:min(len(line), maxLog)]), '\n'))
}
