package box

import (
	"regexp"

	"mvdan.cc/sh/v3/pattern"
)

// matcher compiles a pattern of the shell.
func matcher(p string, mode pattern.Mode) (func(string) bool, error) {
	expr, err := pattern.Regexp(p, mode)
	if err != nil {
		return nil, err
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil, err
	}
	return re.MatchString, nil
}
