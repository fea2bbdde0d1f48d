package abi

import (
	"context"
	"errors"
	"fmt"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// Host is what a component may import. A guest is told of a *RefusedError; any other error ends it.
type Host interface {
	// Instance is the one that calls, or nil where none may.
	Instance() *Instance
	FetchFile(hash string) ([]byte, error)
	StoreFile(content []byte) (string, error)
	Log(level, message string)
}

// RefusedError is an error that a guest is told of.
type RefusedError struct{ Text string }

// Error implements error.
func (e *RefusedError) Error() string { return e.Text }

// Export offers the interface host to the modules of r. host finds, in the context of a call, who answers it.
func Export(ctx context.Context, r wazero.Runtime, host func(context.Context) Host) error {
	const i32 = api.ValueTypeI32
	b := r.NewHostModuleBuilder(HostName)
	// A panic is a trap.
	add := func(name string, args int, f func(ctx context.Context, h Host, m api.Module, a []uint64) error) {
		types := make([]api.ValueType, args)
		for i := range types {
			types[i] = i32
		}
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, m api.Module, stack []uint64) {
			h := host(ctx)
			if i := h.Instance(); i == nil || !i.MayCall() {
				panic(fmt.Errorf("%s is called while the host may not be", name))
			}
			if m.Memory() == nil {
				panic(fmt.Errorf("%s is called by a module without memory", name))
			}
			if err := f(ctx, h, m, stack); err != nil {
				panic(fmt.Errorf("%s: %w", name, err))
			}
		}), types, nil).Export(name)
	}
	add("fetch-file", 3, func(ctx context.Context, h Host, m api.Module, a []uint64) error {
		l := &lift{mem: m.Memory(), left: MaxLifted}
		hash := l.text(a[0], a[1], "a hash")
		if l.err != nil {
			return l.err
		}
		content, err := h.FetchFile(hash)
		return give(ctx, h, m, uint32(a[2]), content, err)
	})
	add("store-file", 3, func(ctx context.Context, h Host, m api.Module, a []uint64) error {
		l := &lift{mem: m.Memory(), left: MaxLifted}
		content := l.bytes(uint32(a[0]), uint32(a[1]), 1)
		if l.err != nil {
			return l.err
		}
		hash, err := h.StoreFile(content)
		return give(ctx, h, m, uint32(a[2]), []byte(hash), err)
	})
	add("log", 4, func(_ context.Context, h Host, m api.Module, a []uint64) error {
		l := &lift{mem: m.Memory(), left: MaxLifted}
		level, message := l.text(a[0], a[1], "a level"), l.text(a[2], a[3], "a message")
		if l.err == nil {
			h.Log(level, message)
		}
		return l.err
	})
	_, err := b.Instantiate(ctx)
	return err
}

// give lowers a result<list<u8>, string> or result<string, string> to an address of the guest's: 12
// bytes, aligned to 4.
func give(ctx context.Context, h Host, m api.Module, at uint32, content []byte, err error) error {
	tag := byte(0)
	if err != nil {
		var refused *RefusedError
		if !errors.As(err, &refused) {
			return err
		}
		tag, content = 1, []byte(refused.Text)
	}
	check := &lift{mem: m.Memory(), left: MaxLifted}
	if check.bytes(at, 12, 4); check.err != nil {
		return fmt.Errorf("the place of the result: %w", check.err)
	}
	l := &lower{ctx: ctx, i: h.Instance()}
	p, n := l.bytes(content)
	l.write(at, []byte{tag})
	l.u32(at+4, uint32(p))
	l.u32(at+8, uint32(n))
	return l.err
}
