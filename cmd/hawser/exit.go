package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/problem"
)

// Exit codes. They are a contract: one is added, none changes its meaning.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3
	exitUnreachable = 4
	exitBlocked     = 5
	exitDiffers     = 6
	exitPeerTest    = 7
	exitTimeout     = 8
	exitSignal      = 128 // and the signal's number
)

type exitMeaning struct {
	code    int
	meaning string
}

func exitMeanings() []exitMeaning {
	return []exitMeaning{
		{exitOK, "it is done"},
		{exitFailed, "it failed; the error tells why and what mends it"},
		{exitUsage, "wrong command, flag, argument, name or configuration; nothing was done"},
		{exitNotFound, "the link or peer that was named does not exist"},
		{exitUnreachable, "the agent can't be reached, or does not let this user in"},
		{exitBlocked, "validation found what blocks, such as a database that does not exist; nothing was done"},
		{exitDiffers, "link verify: the two sides differ (1 when nothing does, and not all could be compared)"},
		{exitPeerTest, "peer test: a step failed"},
		{exitTimeout, "it took longer than allowed and was given up"},
		{exitSignal + 2, "interrupted (Ctrl-C); what the agent had begun goes on"},
		{exitSignal + 15, "ended by SIGTERM; what the agent had begun goes on"},
	}
}

// quietly ends a command whose output has said all.
type quietly struct{ code int }

func (q quietly) Error() string { return fmt.Sprintf("exit code %d", q.code) }

// usage is an error in how the command was called.
type usage struct{ err error }

func (u usage) Error() string { return u.err.Error() }
func (u usage) Unwrap() error { return u.err }

func usagef(format string, args ...any) error { return usage{fmt.Errorf(format, args...)} }

func exitCode(err error) int {
	var (
		silent quietly
		sig    signalled
		wrong  usage
	)
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &silent):
		return silent.code
	case errors.As(err, &sig):
		return exitSignal + int(sig.signal)
	case errors.As(err, &wrong):
		return exitUsage
	}
	switch api.Classify(err) {
	case api.ClassInvalid:
		return exitUsage
	case api.ClassNotFound:
		return exitNotFound
	case api.ClassUnreachable:
		return exitUnreachable
	case api.ClassBlocked:
		return exitBlocked
	case api.ClassTimeout:
		return exitTimeout
	}
	return exitFailed
}

// errorReport is an error with -o json, on standard error.
type errorReport struct {
	Error    *problem.Problem `json:"error"`
	Findings problem.Findings `json:"findings,omitempty"`
	ExitCode int              `json:"exit_code"`
}

// report writes an error to standard error.
func (a *app) report(cmd *cobra.Command, err error) {
	code := exitCode(err)
	var silent quietly
	if errors.As(err, &silent) || code > exitSignal {
		return
	}
	if a.output == outputJSON {
		a.reportJSON(err, code)
		return
	}
	p := page{w: a.err, colour: a.colour(a.errTerminal)}
	title := p.paint(bad, "error:") + " "
	if b, ok := api.AsBlocked(err); ok {
		p.findings(b.Findings)
		p.line("%s%s", title, stopped(b))
	} else if f, ok := problem.As(err); ok {
		p.problem("", title, f)
	} else {
		p.line("%s%s", title, block(err.Error(), "  "))
	}
	if wrong := new(usage); errors.As(err, wrong) {
		p.line("%s", p.paint(dim, "See "+cmd.CommandPath()+" --help"))
	}
}

func stopped(b *api.Blocked) string {
	n := len(b.Findings.Blocking())
	if n == 1 {
		return "1 finding stops it; nothing was changed"
	}
	return fmt.Sprintf("%d findings stop it; nothing was changed", n)
}

func (a *app) reportJSON(err error, code int) {
	r := errorReport{ExitCode: code}
	if b, ok := api.AsBlocked(err); ok {
		r.Error = problem.New(api.CodeBlocked, "", stopped(b), "").Advise("mend each of the findings, then try again")
		r.Findings = b.Findings
	} else {
		p := *problem.Of(err, map[bool]string{true: "usage", false: "failed"}[code == exitUsage])
		if p.Err != nil {
			p.Cause = strings.TrimSuffix(p.Cause, ".") + ": " + p.Err.Error()
		}
		r.Error = &p
	}
	encode(a.err, r)
}

// encode writes v as JSON for people and programs.
func encode(w io.Writer, v any) {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	_ = e.Encode(v) // a reader that went away
}
