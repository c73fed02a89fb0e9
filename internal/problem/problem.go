// Package problem is the one vocabulary in which Hawser says that something is
// wrong: to a person, to the API, and to itself when it decides whether to try
// again.
//
// A Problem carries the cause, the object it concerns and the remedy: what can be
// typed as it is, and apart from it, in words, what can't. Errors are made into
// problems where they arise, never sorted out by their text later. This package
// imports nothing of Hawser and must never do I/O, log, or hold a secret: what
// stands in a problem is shown to users and written to logs.
package problem

import (
	"errors"
	"strings"
	"unicode"
)

// Severity says what a problem stops.
type Severity string

const (
	// Blocker stops the operation. It is the meaning of an empty Severity.
	Blocker Severity = "blocker"
	// Warning lets the operation go on; the user should act before it hurts.
	Warning Severity = "warning"
	// Note is worth knowing and needs no action.
	Note Severity = "note"
)

// Problem is a typed error, a finding of a check, and the cause of a link's
// state. Code and Cause are always set; Object is set where there is one. What is
// more than a note has a Remedy, an Advice or both.
type Problem struct {
	// Code is stable, in kebab-case, and what programs compare.
	Code string `json:"code"`
	// Severity is Blocker when empty.
	Severity Severity `json:"severity,omitempty"`
	// Object is what the problem concerns, as PostgreSQL names it:
	// `table public."My Table"`, `setting wal_level`, `peer mi-west`.
	Object string `json:"object,omitempty"`
	// Cause says what is wrong and why it matters, in one or two sentences.
	Cause string `json:"cause"`
	// Remedy is what mends it, or what tells more, and nothing else: SQL, each
	// statement with its semicolon; or one command of a shell; or a flag or a line of
	// the configuration. "…", NAME, FILE, HOST and their like are for the reader to fill in.
	Remedy string `json:"remedy,omitempty"`
	// Place is where Remedy and Advice hold, when that is not where they are read:
	// "the primary", "instance mi-west".
	Place string `json:"place,omitempty"`
	// Advice says in words what can't be typed: what comes before or after Remedy, or
	// what else would do, or that nothing has to be done.
	Advice string `json:"advice,omitempty"`
	// Retryable says that the same operation may succeed later without a person.
	Retryable bool `json:"retryable,omitempty"`
	// Err is the error underneath, if any. It is part of Error's text.
	Err error `json:"-"`
}

// New returns a blocking problem.
func New(code, object, cause, remedy string) *Problem {
	return &Problem{Code: code, Object: object, Cause: cause, Remedy: remedy}
}

// Warn returns a finding that does not block.
func Warn(code, object, cause, remedy string) *Problem {
	return &Problem{Code: code, Severity: Warning, Object: object, Cause: cause, Remedy: remedy}
}

// Noted returns a finding that needs no action.
func Noted(code, object, cause string) *Problem {
	return &Problem{Code: code, Severity: Note, Object: object, Cause: cause}
}

// Advise returns a copy of p with what its remedy does not say.
func (p *Problem) Advise(advice string) *Problem {
	q := *p
	q.Advice = advice
	return &q
}

// Meant returns p with the name that was most likely meant, if there is one.
func (p *Problem) Meant(near string) *Problem {
	if near == "" {
		return p
	}
	return p.Advise(DidYouMean(Word(near)))
}

// At returns a copy of p that is mended in another place.
func (p *Problem) At(place string) *Problem {
	q := *p
	q.Place = place
	return &q
}

// Because returns a copy of p with err as the error underneath.
func (p *Problem) Because(err error) *Problem {
	q := *p
	q.Err = err
	return &q
}

// Retry returns a copy of p that is marked as worth trying again.
func (p *Problem) Retry() *Problem {
	q := *p
	q.Retryable = true
	return &q
}

// On returns p as another instance's, which is the one that found it: its object, or
// its cause where it has none, begin with that, and it is the place of the remedy.
// Whatever crosses from peer to peer passes here once; a problem that was on its way
// before keeps the instance that found it, and one that has a place keeps that.
func (p *Problem) On(instance string) *Problem {
	const on = "on instance "
	if p == nil || strings.HasPrefix(p.Object, on) || p.Object == "" && strings.HasPrefix(p.Cause, on) {
		return p
	}
	q := *p
	if p.Object != "" {
		q.Object = on + instance + ": " + p.Object
	} else {
		q.Cause = on + instance + ": " + p.Cause
	}
	if p.Place == "" && (p.Remedy != "" || p.Advice != "") {
		q.Place = "instance " + instance
	}
	return &q
}

// Help is place, remedy and advice in one line, or "".
func (p *Problem) Help() string {
	help := strings.ReplaceAll(p.Remedy, "\n", " / ")
	if help != "" && p.Advice != "" {
		help = strings.TrimSuffix(help, ";") + "; "
	}
	help += p.Advice
	if help != "" && p.Place != "" {
		help = "on " + p.Place + ": " + help
	}
	return help
}

// Blocks reports whether p stops the operation that found it.
func (p *Problem) Blocks() bool { return p.Severity == "" || p.Severity == Blocker }

// Error joins object, cause, the error underneath and the remedy on one line.
func (p *Problem) Error() string {
	var b strings.Builder
	if p.Object != "" {
		b.WriteString(p.Object)
		b.WriteString(": ")
	}
	b.WriteString(p.Cause)
	if p.Err != nil {
		b.WriteString(": ")
		b.WriteString(p.Err.Error())
	}
	if help := p.Help(); help != "" {
		b.WriteString(" (remedy: " + help + ")")
	}
	return b.String()
}

// Unwrap returns the error underneath.
func (p *Problem) Unwrap() error { return p.Err }

// Is makes errors.Is match two problems by their code.
func (p *Problem) Is(target error) bool {
	var q *Problem
	return errors.As(target, &q) && q.Code == p.Code
}

// As returns the first problem in err's chain.
func As(err error) (*Problem, bool) {
	var p *Problem
	ok := errors.As(err, &p)
	return p, ok
}

// Of returns err as a problem: the first one in its chain, with the whole text
// of err kept underneath, or a new one of the given code that has no remedy.
func Of(err error, code string) *Problem {
	if err == nil {
		return nil
	}
	if p, ok := As(err); ok {
		return p
	}
	return &Problem{Code: code, Cause: err.Error(), Err: nil}
}

// Findings are the results of a check, in the order found.
type Findings []*Problem

// Blocking returns the findings that stop the operation.
func (f Findings) Blocking() Findings {
	var out Findings
	for _, p := range f {
		if p.Blocks() {
			out = append(out, p)
		}
	}
	return out
}

// On returns the findings as those of another instance.
func (f Findings) On(instance string) Findings {
	out := make(Findings, len(f))
	for i, p := range f {
		out[i] = p.On(instance)
	}
	return out
}

// Err returns nil when nothing blocks, otherwise an error that holds every
// blocking finding; errors.As finds the first as a *Problem.
func (f Findings) Err() error {
	b := f.Blocking()
	if len(b) == 0 {
		return nil
	}
	errs := make([]error, len(b))
	for i, p := range b {
		errs[i] = p
	}
	return errors.Join(errs...)
}

// Word is s as a shell reads it back, for a remedy that is a command.
func Word(s string) string {
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_.-", r)
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
