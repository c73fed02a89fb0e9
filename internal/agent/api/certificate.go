package api

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

// DefaultPort is the port of an endpoint whose address names none.
const DefaultPort = 5022

// readPeer reads the certificate of a request to trust an instance: takes the
// name from it where none is given, completes the address, and refuses the
// instance's own certificate and what can't work.
func readPeer(in AddPeer, own Certificate, now time.Time) (AddPeer, error) {
	cert, err := readCertificate(in.Certificate)
	if err != nil {
		return AddPeer{}, err
	}
	if in.Name == "" {
		in.Name = cert.Subject.CommonName
	}
	if err := CheckName("peer", in.Name); err != nil {
		return AddPeer{}, err
	}
	if self, _ := pem.Decode([]byte(own.PEM)); self != nil && bytes.Equal(self.Bytes, cert.Raw) {
		return AddPeer{}, problem.New("invalid-certificate", "instance "+own.Name, "This is the instance's own certificate.",
			"hawser cert show").Advise("give the other instance's").At("the other instance")
	}
	if in.Name == own.Name {
		return AddPeer{}, problem.New("invalid-name", "peer "+in.Name, "This instance has that name itself, so one could not be told from the other.",
			"--name NAME").Advise("give the peer another name")
	}
	if now.After(cert.NotAfter) {
		return AddPeer{}, problem.New("invalid-certificate", "peer "+in.Name, "The certificate expired on "+cert.NotAfter.UTC().Format(time.DateOnly)+".",
			"hawser cert show").Advise("fetch the one that it uses now").At("the other instance")
	}
	if in.Address, err = completeAddress(in.Address); err != nil {
		return AddPeer{}, err
	}
	in.Certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	return in, nil
}

// readCertificate finds the one certificate in PEM text. Text around it, such
// as the head that hawser cert show prints, is no obstacle.
func readCertificate(text string) (*x509.Certificate, error) {
	invalid := problem.New("invalid-certificate", "", "", "hawser cert show").Advise("give the file that this prints").At("the other instance")
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil:
		invalid.Cause = "There is no certificate in PEM form in it."
	case strings.HasSuffix(block.Type, "PRIVATE KEY"):
		invalid.Cause = "It holds a private key. A peer takes the certificate alone; the key must never leave its instance."
	case block.Type != "CERTIFICATE":
		invalid.Cause = "It holds a " + strconv.Quote(block.Type) + ", not a certificate."
	default:
		if next, _ := pem.Decode(rest); next != nil {
			invalid.Cause = "It holds more than one PEM block; an instance has exactly one certificate."
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err == nil {
			return cert, nil
		}
		invalid.Cause, invalid.Err = "The certificate can't be read", err
	}
	return nil, invalid
}

// completeAddress adds the default port to an address that has none.
func completeAddress(address string) (string, error) {
	if address == "" {
		return "", nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = strings.Trim(address, "[]"), strconv.Itoa(DefaultPort)
	}
	invalid := problem.New("invalid-address", "address "+strconv.Quote(address), "It is not host or host:port.", "--address mi-west.example.com:5022")
	if bareIPv6 := net.ParseIP(host) != nil; host == "" || strings.ContainsAny(host, "/ @?#") || strings.Contains(host, ":") && !bareIPv6 {
		return "", invalid
	}
	if cause := CheckPort(port); cause != "" {
		invalid.Cause = cause
		return "", invalid
	}
	return net.JoinHostPort(host, port), nil
}

// CheckPort says why text is not a TCP port that can be dialled; "" where it is one.
func CheckPort(text string) string {
	if n, err := strconv.ParseUint(text, 10, 16); err != nil || n == 0 {
		return strconv.Quote(text) + " is not a port: ports are whole numbers from 1 to 65535."
	}
	return ""
}
