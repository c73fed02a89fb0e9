package api

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/hawser/hawser/internal/problem"
)

// LoadOrCreateToken reads the token that clients show on the TCP address, and
// makes one when the file is missing.
func LoadOrCreateToken(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return ReadToken(path)
	}
	if err != nil {
		return "", fmt.Errorf("make the token file: %w", err)
	}
	token := rand.Text()
	_, err = f.WriteString(token + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", fmt.Errorf("write the token file: %w", errors.Join(err, os.Remove(path)))
	}
	return token, nil
}

// ReadToken reads a token file, and refuses one that others can read.
func ReadToken(path string) (string, error) {
	object := "token file " + path
	info, err := os.Stat(path)
	if err != nil {
		return "", problem.New("invalid-token-file", object, "It can't be read", "--token-file FILE").Advise("FILE is the agent's api.token_file, or a copy of it").Because(err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", problem.New("invalid-token-file", object, "Other users can read it; whoever knows the token commands the agent.", "chmod 600 "+problem.Word(path))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", problem.New("invalid-token-file", object, "It can't be read", "chmod 600 "+problem.Word(path)).Because(err)
	}
	token := strings.TrimSpace(string(b))
	const least = 16
	if len(token) < least || strings.ContainsAny(token, " \t\r\n") {
		return "", problem.New("invalid-token-file", object, fmt.Sprintf("It must hold one token of at least %d characters on one line.", least),
			"rm "+problem.Word(path)).Advise("then restart the agent: it makes a new one")
	}
	return token, nil
}
