//go:build !linux

package capture

import "time"

type rester struct{}

func newRester() (*rester, error) { return &rester{}, nil }

func (*rester) close() {}

func (*rester) rest(d time.Duration) error { time.Sleep(d); return nil }
