//go:build !linux

package wasm

// start starts the process.
func (w *worker) start(argv []string) error {
	w.command(argv, ownGroup())
	return w.run()
}

// look is for Linux.
func (w *worker) look() error {
	w.stands = []string{"worker process"}
	w.missing = []string{"walls around the worker process, which are for Linux"}
	return nil
}

// bound is for Linux.
func (w *worker) bound(granted) error { return nil }
