package peer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/hawser/hawser/internal/problem"
)

const (
	// validFor is how long a certificate is good.
	validFor = 10 * 365 * 24 * time.Hour
	// identityFile holds certificate and key together: there is never one without
	// the other.
	identityFile = "identity.pem"
	// nextFile is the same of the identity that a rotation gives to the peers. It
	// becomes identityFile when all have it.
	nextFile = "next.pem"
)

// Identity is this instance's name, key and certificate.
type Identity struct {
	Name string
	cert tls.Certificate
	leaf *x509.Certificate
}

// LoadOrCreateIdentity reads the identity in dir, or makes one on the first start.
// The key is readable to its owner alone.
func LoadOrCreateIdentity(dir, name string) (*Identity, error) {
	return loadOrCreate(dir, identityFile, name)
}

// CheckIdentity reads the identity, if there is one, and makes none.
func CheckIdentity(dir, name string) error {
	if _, err := os.Stat(filepath.Join(dir, identityFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	_, err := LoadOrCreateIdentity(dir, name)
	return err
}

// NextIdentity reads or makes the identity that is to follow the present one. A rotation
// that was broken off goes on with the one that some of the peers have already.
func NextIdentity(dir, name string) (*Identity, error) {
	return loadOrCreate(dir, nextFile, name)
}

// UseNext makes the next identity the present one, also for the next start.
func UseNext(dir string) error {
	if err := os.Rename(filepath.Join(dir, nextFile), filepath.Join(dir, identityFile)); err != nil {
		return fmt.Errorf("identity: %w", err)
	}
	return syncDir(dir)
}

func loadOrCreate(dir, file, name string) (*Identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the identity's directory: %w", err)
	}
	path := filepath.Join(dir, file)
	for _, own := range []struct {
		path string
		mode fs.FileMode
	}{{dir, 0o700}, {path, 0o600}} {
		if err := os.Chmod(own.path, own.mode); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("close the identity to others: %w", err)
		}
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		now := time.Now()
		// An hour back: the other side's clock may be behind.
		if data, err = generate(name, now.Add(-time.Hour), now.Add(validFor)); err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
		err = writeFile(path, data)
	}
	if err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	id, err := parseIdentity(data)
	if err != nil {
		return nil, problem.New("identity-broken", "file "+path, "its key and certificate can't be used",
			"rm "+problem.Word(path)).Advise("or better put the file back from a backup; without it the agent makes a new one, and every peer needs the new certificate: hawser cert show").Because(err)
	}
	if id.Name != name {
		return nil, problem.New("identity-name", "file "+path,
			fmt.Sprintf("its certificate is that of instance %q, and this instance is named %q", id.Name, name),
			"--name "+problem.Word(id.Name)).Advise("that is its old name; an instance of its own needs another state_dir, and another PostgreSQL")
	}
	return id, nil
}

func parseIdentity(data []byte) (*Identity, error) {
	cert, err := tls.X509KeyPair(data, data)
	if err != nil {
		return nil, err
	}
	if len(cert.Certificate) != 1 {
		return nil, errors.New("more than one certificate")
	}
	return &Identity{Name: cert.Leaf.Subject.CommonName, cert: cert, leaf: cert.Leaf}, nil
}

// generate returns a self-signed certificate and its key, both as PEM.
func generate(name string, from, to time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...), nil
}

// writeFile writes a new file as a whole or not at all, also if the machine fails.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a new or renamed file durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// CertificatePEM is what the other instances are given.
func (i *Identity) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.leaf.Raw})
}

// Fingerprint is the certificate's SHA-256, as `sha256:` and hexadecimal digits.
func (i *Identity) Fingerprint() string { return fingerprint(i.leaf) }

// NotAfter is when the certificate expires.
func (i *Identity) NotAfter() time.Time { return i.leaf.NotAfter }

// String keeps the key out of whatever an identity is printed to.
func (i *Identity) String() string { return i.Name + " " + i.Fingerprint() }

// GoString is String, for %#v.
func (i *Identity) GoString() string { return i.String() }

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Fingerprint reads a certificate that somebody wants to trust, and returns its
// SHA-256. It refuses what could never be used: anything but one certificate, with
// a name, that is not expired.
func Fingerprint(certPEM []byte) (string, error) {
	c, err := parseCertificate(certPEM)
	if err != nil {
		return "", err
	}
	if c.Subject.CommonName == "" {
		return "", badCertificate("it names no instance", nil)
	}
	if now := time.Now(); now.After(c.NotAfter) {
		return "", badCertificate("it expired on "+c.NotAfter.UTC().Format(time.DateOnly), nil)
	}
	return fingerprint(c), nil
}

// parseCertificate reads exactly one certificate in PEM.
func parseCertificate(certPEM []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(certPEM)
	switch {
	case block == nil:
		return nil, badCertificate("it is not in PEM form", nil)
	case block.Type != "CERTIFICATE":
		return nil, badCertificate(fmt.Sprintf("it is a %.40q, not a certificate", block.Type), nil)
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, badCertificate("more follows behind the first certificate", nil)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, badCertificate("it can't be read", err)
	}
	return c, nil
}

func badCertificate(cause string, err error) error {
	p := problem.New("certificate-invalid", "certificate", cause, "hawser cert show").Advise("give what this prints").At("the other instance")
	if err != nil {
		return p.Because(err)
	}
	return p
}

// Expiry reads a certificate and returns when it expires.
func Expiry(certPEM []byte) (time.Time, error) {
	c, err := parseCertificate(certPEM)
	if err != nil {
		return time.Time{}, err
	}
	return c.NotAfter, nil
}
