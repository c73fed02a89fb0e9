package postgres

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgservicefile"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hawser/hawser/internal/problem"
)

// unreadable is the problem of a connection string. It repeats nothing of it: in
// one that is malformed the password may stand anywhere.
func unreadable(why string) error {
	return problem.New("bad-connection-string", "connection string", "it can't be read: "+why,
		"host=HOST,HOST2 port=5432 user=USER passfile=FILE dbname=DATABASE").Advise("or a URL: postgresql://USER@HOST:5432,HOST2:5432/DATABASE")
}

const mislaid = "in a URL, the characters @ : / ? # % & = of a password are written %40 %3A %2F %3F %23 %25 %26 %3D"

// reason is why pgconn refused a string, as far as it can't hold a part of it.
func reason(err error) string {
	var file *fs.PathError
	if errors.As(err, &file) {
		return file.Error()
	}
	// The text is: cannot parse `STRING`: message (detail).
	text := err.Error()
	i := strings.LastIndex(text, "`: ")
	if i < 0 {
		return "wrong syntax"
	}
	message := text[i+len("`: "):]
	if strings.HasPrefix(message, "failed to configure TLS") || strings.HasPrefix(message, "failed to read service") {
		return message
	}
	message, _, _ = strings.Cut(message, " (")
	return message
}

// checkSecrets refuses a URL from whose password a part would be taken for the
// host or the database, and so be shown.
func checkSecrets(connString string) error {
	rest, isURL := cutScheme(connString)
	if !isURL {
		return nil
	}
	authority, rest, _ := strings.Cut(rest, "/")
	authority, _, _ = strings.Cut(authority, "?")
	path, _, _ := strings.Cut(rest, "?")
	if strings.Count(authority, "@") > 1 || strings.Contains(path, "@") || strings.Contains(connString, "#") {
		return unreadable(mislaid)
	}
	_, query, _ := strings.Cut(connString, "?")
	for pair := range strings.SplitSeq(query, "&") {
		if pair != "" && !strings.Contains(pair, "=") {
			return unreadable("behind ? stand parameters, each as NAME=VALUE; " + mislaid)
		}
	}
	return nil
}

var parameterName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// checkParts refuses what pgconn takes for a host or a parameter's name, and so
// would show, though it can't be one.
func (s *Server) checkParts() error {
	for _, n := range s.nodes() {
		if !strings.HasPrefix(n.host, "/") && strings.ContainsAny(n.host, "@/?#= ") {
			return unreadable("a host name holds a character that none can have; " + mislaid)
		}
	}
	if strings.Contains(s.config.Database, "://") {
		return unreadable("its database is a URL; give the URL alone")
	}
	for key := range s.settings {
		if !parameterName.MatchString(key) {
			return unreadable("one of its parameters has a name that none can have; is the URL's scheme postgresql:// ?")
		}
	}
	return nil
}

// keywords are those that a connection string may have.
var keywords = []string{
	"host", "port", "dbname", "user", "password", "passfile", "connect_timeout", "service", "servicefile", "target_session_attrs",
	"sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslcertmode", "sslsni", "sslnegotiation", "channel_binding", "require_auth",
	"krbsrvname", "krbspn", "min_protocol_version", "max_protocol_version", "application_name", "client_encoding", "options",
}

// checkKeywords refuses what is none: pgconn would take it for a setting of the server's, and
// connect where the others say. The word itself is not repeated: it may be of a password.
func checkKeywords(connString string) error {
	for key := range ownValues(connString) {
		if key == "database" || slices.Contains(keywords, key) { // pgconn's name for dbname
			continue
		}
		why := "one of its keywords is unknown"
		if near := problem.Nearest(key, keywords); near != "" {
			why += "; " + problem.DidYouMean(near)
		}
		return unreadable(why + " The keywords are " + strings.Join(keywords, ", ") + "; a setting of the server's is written options='-c NAME=VALUE'")
	}
	return nil
}

// ownValues are the parameters that stand in the string itself.
func ownValues(connString string) map[string]string {
	if rest, isURL := cutScheme(connString); isURL {
		return queryValues(rest)
	}
	return keywordValues(connString)
}

func cutScheme(s string) (rest string, isURL bool) {
	for _, scheme := range []string{"postgresql://", "postgres://"} {
		if rest, ok := strings.CutPrefix(s, scheme); ok {
			return rest, true
		}
	}
	return s, false
}

// settingsOf reads the parameters of a string that pgconn could read, in pgconn's
// order: the environment, then the service, then the string.
func settingsOf(connString string) map[string]string {
	own := ownValues(connString)
	all := map[string]string{
		"service": os.Getenv("PGSERVICE"), "target_session_attrs": os.Getenv("PGTARGETSESSIONATTRS"),
	}
	for key, variable := range toolVariables {
		all[key] = os.Getenv(variable)
	}
	service, file := own["service"], own["servicefile"]
	if service == "" {
		service = all["service"]
	}
	if file == "" {
		file = defaultServiceFile()
	}
	if found, err := pgservicefile.ReadServicefile(file); err == nil && service != "" {
		if s, err := found.GetService(service); err == nil {
			maps.Copy(all, s.Settings)
		}
	}
	maps.Copy(all, own)
	return all
}

// passwordFile is the one that the connection string or the environment names.
func (s *Server) passwordFile() string {
	name := s.settings["passfile"]
	if home, err := os.UserHomeDir(); name == "" && err == nil {
		name = filepath.Join(home, ".pgpass")
	}
	return name
}

// readByOthers is true of a file with secrets that is to be passed over: libpq's rule, by
// which pg_dump goes, too.
func readByOthers(file string) bool {
	info, err := os.Stat(file)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0
}

// givesPassword tells that no password file is asked.
func givesPassword(connString string, settings map[string]string) bool {
	if settings["password"] != "" || os.Getenv("PGPASSWORD") != "" {
		return true
	}
	rest, isURL := cutScheme(connString)
	authority, _, _ := strings.Cut(rest, "/")
	at := strings.LastIndex(authority, "@")
	return isURL && at >= 0 && strings.Contains(authority[:at], ":")
}

func defaultServiceFile() string {
	if file := os.Getenv("PGSERVICEFILE"); file != "" {
		return file
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return home + "/.pg_service.conf"
}

// queryValues reads the parameters behind the ? of a URL.
func queryValues(rest string) map[string]string {
	values := map[string]string{}
	_, query, _ := strings.Cut(rest, "?")
	for pair := range strings.SplitSeq(query, "&") {
		rawKey, rawValue, ok := strings.Cut(pair, "=")
		if !ok {
			continue
		}
		key, err := url.PathUnescape(rawKey)
		if err != nil {
			continue
		}
		if value, err := url.PathUnescape(rawValue); err == nil {
			values[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	if values["ssl"] == "true" { // JDBC's spelling
		delete(values, "ssl")
		if values["sslmode"] == "" {
			values["sslmode"] = "require"
		}
	}
	return values
}

// keywordValues reads key = 'value' pairs, in which a backslash takes the next
// character as it is.
func keywordValues(s string) map[string]string {
	values := map[string]string{}
	const space = " \t\n\r\v\f"
	for {
		key, rest, ok := strings.Cut(strings.TrimLeft(s, space), "=")
		if !ok {
			return values
		}
		var value strings.Builder
		rest = strings.TrimLeft(rest, space)
		end := space
		if strings.HasPrefix(rest, "'") {
			rest, end = rest[1:], "'"
		}
		i := 0
		for ; i < len(rest) && strings.IndexByte(end, rest[i]) < 0; i++ {
			if rest[i] == '\\' {
				i++
			}
			if i < len(rest) {
				value.WriteByte(rest[i])
			}
		}
		values[strings.Trim(key, space)] = value.String()
		s = rest[min(i+1, len(rest)):]
	}
}

// quoteValue writes a value for a connection string of keywords.
func quoteValue(v string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v) + "'"
}

// attempts are the errors of all addresses that were tried, without pgconn's
// ConnectError, which carries the password.
type attempts []error

func attemptsOf(err error) error {
	if refused := (*pgconn.ConnectError)(nil); errors.As(err, &refused) {
		err = errors.Unwrap(refused)
	}
	var all attempts
	seen := map[string]bool{} // sslmode=prefer tries each address twice
	for _, e := range apart(err) {
		if !seen[e.Error()] {
			seen[e.Error()] = true
			all = append(all, e)
		}
	}
	return all.telling()
}

// withoutTLS ends the text of pgconn's error where the server does not speak TLS.
const withoutTLS = "tls error: server refused TLS connection"

// telling begins with what a server said, and leaves out that an address does not speak
// TLS where it was tried without, too.
func (a attempts) telling() attempts {
	a = slices.DeleteFunc(slices.Clone(a), func(e error) bool {
		address, refused := strings.CutSuffix(e.Error(), withoutTLS)
		return refused && slices.ContainsFunc(a, func(other error) bool {
			return !strings.HasSuffix(other.Error(), withoutTLS) && strings.HasPrefix(other.Error(), address)
		})
	})
	slices.SortStableFunc(a, func(x, y error) int { return cmp.Compare(silence(x), silence(y)) })
	return a
}

// silence is 0 of an error that a server told.
func silence(err error) int {
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		return 0
	}
	return 1
}

// apart takes joined errors from each other, also from under a common heading:
// their text would be one of several lines.
func apart(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		joined, ok = errors.Unwrap(err).(interface{ Unwrap() []error })
	}
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, apart(e)...)
	}
	return all
}

func (a attempts) Error() string {
	texts := make([]string, len(a))
	for i, e := range a {
		texts[i] = e.Error()
	}
	return strings.Join(texts, "; ")
}

func (a attempts) Unwrap() []error { return a }
