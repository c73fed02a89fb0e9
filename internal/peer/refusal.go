package peer

import (
	"fmt"
	"strings"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// refusal says why an instance is not let in. It is a code on the wire, and each
// side words it for its own user.
type refusal string

const (
	accepted refusal = ""
	// unknown: nobody gave this certificate.
	unknown refusal = "unknown-certificate"
	// wrong: it claims the name of a trusted peer, and shows another certificate.
	wrong refusal = "wrong-certificate"
	// other: it is trusted, but it is not the peer whose address was dialled.
	other      refusal = "other-instance"
	expired    refusal = "expired-certificate"
	notYetGood refusal = "certificate-not-yet-valid"
	self       refusal = "self"
	version    refusal = "protocol-version"
)

// parties are the two sides of a refusal as they are named to the user.
type parties struct {
	us, ourPrint string
	them         string // the peer's name here, or what a stranger claims
	theirPrint   string
	known        string // fingerprint that them is trusted with, if any
	notAfter     time.Time
	hello        hello
}

// ours words our refusal of them.
func (r refusal) ours(p parties) *problem.Problem {
	object := "instance " + shown(p.them)
	switch r {
	case unknown:
		return problem.New("peer-certificate-unknown", object, "its certificate "+p.theirPrint+" is not trusted here",
			exchange(p.them, p.us)).Advise("if it is yours")
	case wrong:
		return problem.New("peer-certificate-wrong", object,
			"it showed the certificate "+p.theirPrint+", and is trusted here with "+p.known+": its certificate was renewed, or another machine uses its name",
			exchange(p.them, p.us)).Advise("compare the fingerprint with that of hawser cert show there first")
	case other:
		return problem.New("peer-other-instance", object, "another trusted instance answers at its address",
			"hawser peer set "+problem.Word(p.them)+" --address HOST:PORT").Advise("give the right address; hawser peer list shows which peer answers there")
	case expired:
		return problem.New("peer-certificate-expired", object, "its certificate "+p.theirPrint+" expired on "+p.notAfter.UTC().Format(time.DateOnly)+", by the clock here",
			exchange(p.them, p.us)).Advise("before that, there: stop the agent, remove the directory identity from its state directory, start it")
	case notYetGood:
		return problem.New("peer-certificate-not-yet-valid", object, "its certificate "+p.theirPrint+" is not valid yet, by the clock here",
			"").Advise("set the clocks of both machines right")
	case self:
		return problem.New("peer-is-self", object, "it is this instance itself",
			"hawser peer add FILE --address HOST:PORT").Advise("give the address of the other instance")
	case version:
		return versions(object, p)
	}
	return problem.New("peer-refused", object, "it was refused: "+string(r), "hawser peer test "+problem.Word(p.them))
}

// exchange is how an instance's certificate comes to another one.
func exchange(from, to string) string {
	return "hawser cert show > " + file(from) + "  # on " + harmless(from) + "\nhawser peer add " + file(from) + "  # on " + harmless(to)
}

// theirs words their refusal of us.
func (r refusal) theirs(p parties) *problem.Problem {
	object := "instance " + shown(p.them)
	give := exchange(p.us, p.them)
	switch r {
	case unknown:
		return problem.New("own-certificate-unknown", object, "it does not trust this instance's certificate "+p.ourPrint, give)
	case wrong:
		return problem.New("own-certificate-wrong", object, "it trusts another certificate of an instance named "+shown(p.us)+", not "+p.ourPrint, give)
	case other:
		return problem.New("own-address-wrong", object, "it reached this instance at another peer's address",
			"hawser peer list").Advise("mend the address there").At("instance " + shown(p.them))
	case expired:
		return problem.New("own-certificate-expired", object, "this instance's certificate "+p.ourPrint+" has expired, by the clock there",
			give).Advise("before that stop this agent, remove the directory identity from its state directory, start it")
	case notYetGood:
		return problem.New("own-certificate-not-yet-valid", object, "this instance's certificate "+p.ourPrint+" is not valid yet, by the clock there",
			"").Advise("set the clocks of both machines right")
	case self:
		return self.ours(p)
	case version:
		return versions(object, p)
	}
	return problem.New("own-certificate-refused", object, "it refused this instance: "+string(r), "").Advise("look into the log of its agent")
}

func versions(object string, p parties) *problem.Problem {
	older := "of this instance"
	if p.hello.Newest < oldestProtocol {
		older = "of " + shown(p.them)
	}
	return problem.New("peer-version", object,
		fmt.Sprintf("its agent %s speaks protocol %d to %d, this one %d to %d", shown(p.hello.Version), p.hello.Oldest, p.hello.Newest, oldestProtocol, newestProtocol),
		"").Advise("upgrade the agent " + older)
}

// shown is a name in a sentence.
func shown(name string) string {
	if name == "" {
		return "without a name"
	}
	if plain(name) {
		return name
	}
	return fmt.Sprintf("%q", name)
}

// file is a file's name for a certificate.
func file(name string) string { return harmless(name) + ".pem" }

// harmless is a name in a command: one that a stranger chose does not become part of
// it unless it can do nothing there.
func harmless(name string) string {
	if plain(name) && name[0] != '-' {
		return name
	}
	return "peer"
}

func plain(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}
