package main

import (
	"fmt"
	"reflect"

	"github.com/sirupsen/logrus"
)

// reloadable are the keys of the configuration that can change while the daemon runs.
var reloadable = map[string]bool{
	"cache_max_bytes": true, "shutdown_grace": true, "log_level": true, "access": true,
}

// reload reads the configuration anew by load, has h and log follow it and returns what is
// now in force, with a line in the log for each change. A configuration with an error
// changes nothing.
func reload(old config, load func() (config, error), h host, log *logrus.Logger) config {
	next, err := load()
	level := log.GetLevel()
	if err == nil {
		level, err = logrus.ParseLevel(next.LogLevel)
	}
	if err != nil {
		log.WithError(err).Error("the configuration is not reloaded, and the one before stays in force")
		return old
	}
	keep(&next, old, log)
	h.Reconfigure(next)
	log.SetLevel(level)
	log.Info("configuration reloaded")
	return next
}

// keep logs how next differs from old, and takes back what needs a restart.
func keep(next *config, old config, log logrus.FieldLogger) {
	was, is := reflect.ValueOf(old), reflect.ValueOf(next).Elem()
	for i := range is.NumField() {
		if !is.Type().Field(i).IsExported() {
			continue // made of the others
		}
		from, to := was.Field(i).Interface(), is.Field(i).Interface()
		if reflect.DeepEqual(from, to) {
			continue
		}
		key := is.Type().Field(i).Tag.Get("toml")
		l := log.WithFields(logrus.Fields{"key": key, "from": fmt.Sprintf("%+v", from), "to": fmt.Sprintf("%+v", to)})
		if reloadable[key] {
			l.Info("configuration changed")
			continue
		}
		l.Warn("configuration changed, but this key takes a restart")
		is.Field(i).Set(was.Field(i))
	}
}
