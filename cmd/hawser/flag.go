package main

import "github.com/hawser/hawser/internal/agent"

// boundFlag is the bound on the WAL of a link: a size, or default, which is nil.
type boundFlag struct{ to **int64 }

func (f boundFlag) Set(s string) error {
	if s == "default" {
		*f.to = nil
		return nil
	}
	var size agent.ByteSize
	if err := size.UnmarshalText([]byte(s)); err != nil {
		return err
	}
	n := int64(size)
	*f.to = &n
	return nil
}

func (f boundFlag) String() string {
	if f.to == nil || *f.to == nil {
		return ""
	}
	return agent.ByteSize(**f.to).String()
}

func (f boundFlag) Type() string { return "size" }
